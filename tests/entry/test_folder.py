"""A run's folder: where a moved one goes on."""

import shutil

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from certiqa.entry.folder import last_checkpoint


class Line(pl.LightningModule):
    """The smallest thing that trains."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder, epochs):
    """Train on, one step an epoch, as the runs do; returns the number of steps done."""
    keeper = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[keeper], enable_progress_bar=False
    )
    trainer.fit(Line(), DataLoader(torch.ones(1, 1)), ckpt_path=last_checkpoint(folder), weights_only=True)
    return trainer.global_step


def test_a_run_that_was_moved_goes_on_where_it_was(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert last_checkpoint(first) is None
    train(first, 1)
    assert last_checkpoint(first).name == "last.ckpt"
    shutil.move(first, second)
    train(second, 2)
    names = sorted(path.name for path in (second / "checkpoints").iterdir())
    assert names == ["last-v1.ckpt", "last.ckpt"], "Lightning does this after a move"
    copy = tmp_path / "third"
    shutil.copytree(second, copy)
    (copy / "checkpoints" / "last.ckpt").touch()  # a copy says nothing about which is newer
    assert last_checkpoint(copy).name == "last-v1.ckpt"
    assert torch.load(last_checkpoint(copy), weights_only=True)["global_step"] == 2
    assert train(copy, 3) == 3
