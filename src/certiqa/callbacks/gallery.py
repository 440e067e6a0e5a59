"""A few tested images as the report shows them: clean, noisy, denoised, with their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from certiqa.evaluation.failing import one_by_one
from certiqa.evaluation.gallery import read_gallery, write_gallery
from certiqa.evaluation.records import plain
from certiqa.options import Count
from certiqa.storage.files import write_aside
from certiqa.training import DefenseModule


class Gallery(pl.Callback):
    """Saves ``num_images`` test images, spread over the list, to ``gallery/`` and describes them in ``gallery.json``.

    Args:
        folder: the run's folder.
        num_images: how many; 0 for none.
    """

    def __init__(self, folder: str | Path, num_images: Count = 5) -> None:
        self.folder = Path(folder)
        self.num_images = num_images
        self._chosen: set[str] = set()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the images: evenly over the opinion scores, so that bad and good ones are shown."""
        if not trainer.is_global_zero:
            return
        # of several ranks the first shows what it tests itself
        records = trainer.datamodule.test_set.records[:: trainer.world_size]  # type: ignore[attr-defined]
        ordered = sorted(records, key=lambda record: (record.mos is None, record.mos, record.image_id))
        count = min(self.num_images, len(ordered))
        rows = np.linspace(0, len(ordered) - 1, count).round().astype(int)
        self._chosen = {ordered[row].image_id for row in rows}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the chosen images of the batch."""
        assert isinstance(pl_module, DefenseModule)
        if not self._chosen:
            return
        entries = read_gallery(self.folder)
        have = {entry["image_id"] for entry in entries}
        for row, name in enumerate(batch["image_id"]):
            if name not in self._chosen or name in have or row in outputs["raised"]:
                continue
            panels = _panels(pl_module, batch["image"][row : row + 1], name)
            entry = {"image_id": name, "mos": plain(float(batch["mos"][row])), "panels": []}
            for label, image, score in panels:
                file = f"gallery/{len(entries)}-{label}.png"
                save_picture(self.folder / file, image[0])
                entry["panels"].append({"label": label, "file": file, "score": score})
            entry["score_clean"] = panels[0][2]
            entries.append(entry)
        if len(entries) > len(have):
            write_gallery(self.folder, entries)


@torch.no_grad()
def _panels(module: DefenseModule, image: Tensor, name: str) -> list[tuple[str, Tensor, float | None]]:
    """Return (label, image, undefended score) of the image and of what the defense makes of it.

    A picture on which the metric raises, or scores no number, has no score.
    """
    stages = module.defense.stages(image, [name])
    images = [("clean", image), *((label, picture.clamp(0, 1)) for label, picture in stages.items())]
    found = one_by_one(lambda rows: [(row, module.base_metric(images[row][1])[0]) for row in rows], range(len(images)))
    scores = [plain(float(score)) if isinstance(score, Tensor) else None for _, score in found]
    return [(label, picture, score) for (label, picture), score in zip(images, scores, strict=True)]


def save_picture(path: Path, image: Tensor) -> None:
    """Write an image ``(3, H, W)`` in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    with write_aside(path, durable=False) as partial:
        Image.fromarray(pixels).save(partial, "png")
