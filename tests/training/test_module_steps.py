"""What a step of training is made of: its mode, its crops, its images as the noise meets them, its checks."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from certiqa.data import ImageDataset, ImageRecord, registry
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import MedianSmoothing, Resize
from certiqa.denoisers import DnCNN, UNet
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric
from certiqa.training import DefenseModule, DenoisingObjective

SIDE = 16
SIGMA = 0.1


class Mean(nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


class Seen(nn.Module):
    """A denoiser that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.inputs = []

    def forward(self, images):
        self.inputs.append(images.detach().clone())
        return self.gain * images


def item(row, image=None):
    generator = torch.Generator().manual_seed(row)
    image = torch.rand(3, SIDE, SIDE, generator=generator) if image is None else image
    facts = {"image_id": f"{row}.png", "mos": 1.0, "mos_normalised": 0.5, "epoch": 0, "is_crop": False}
    return {"image": image, **facts}


def make(denoiser, objective=None, *, sigma=SIGMA, **options):
    metric = FrozenMetric(Mean(), score_range=(0, 1))
    defense = MedianSmoothing(metric, sigma, 3, denoiser, **options)
    return DefenseModule(defense, objective or DenoisingObjective(), lambda weights: torch.optim.SGD(weights, lr=1e-3))


def trainer(folder, steps=1):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", default_root_dir=folder, enable_model_summary=False, **options
    )


def fit(module, folder, items, steps=1):
    trainer(folder, steps).fit(module, DataLoader(items, len(items)))
    return module


def test_the_running_statistics_of_a_batch_norm_move_in_training(tmp_path):
    torch.manual_seed(0)
    module = make(DnCNN(depth=3, width=4))
    (norm,) = (layer for layer in module.denoiser.modules() if isinstance(layer, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    fit(module, tmp_path, [item(0), item(1)])
    assert not torch.equal(norm.running_mean, before)
    assert not norm.training, "and it is back in eval mode after"


def test_a_ranking_without_opinions_is_refused_before_the_first_step(tmp_path, monkeypatch):
    record = ImageRecord("a.png", tmp_path / "a.png", None)
    images = ImageDataset([record], mos_range=None, name="bare", fingerprint="0")
    monkeypatch.setitem(registry.DATASETS, "bare", lambda *_, **__: images)
    module = make(UNet((4, 4)), DenoisingObjective(ranking_weight=1.0, mse_share=1.0))
    module.trainer = type("Trainer", (), {"datamodule": QualityDataModule("bare")})()
    with pytest.raises(UserError, match="ranks images by opinion scores, but some training images have none"):
        module.on_fit_start()


def test_crops_of_the_first_phase_lie_elsewhere_at_every_step(tmp_path):
    rows = torch.arange(64.0).view(1, 64, 1).expand(3, 64, 64)
    columns = rows.transpose(1, 2)
    place = torch.stack([rows[0], columns[0], rows[0]]) / 64  # a pixel says where it is
    module = make(Seen(), DenoisingObjective(mse_crop=8), sigma=1e-6)
    fit(module, tmp_path, [item(0, place)], steps=6)
    corners = [tuple((seen[0, :2, 0, 0] * 64).round().int().tolist()) for seen in module.denoiser.inputs]
    assert len(corners) == 6
    assert all(seen.shape[-2:] == (8, 8) for seen in module.denoiser.inputs)
    assert len(set(corners)) >= 5, corners


def test_behind_a_resize_the_denoiser_learns_at_the_size_of_the_noise(tmp_path):
    module = make(Seen(), DenoisingObjective(target_weight=1.0), sigma=1e-6, before=Resize(6))
    image = item(0)
    fit(module, tmp_path, [image])
    (seen,) = module.denoiser.inputs
    expected = module.defense.prepared(image["image"][None])
    assert seen.shape[-2:] == (6, 6)
    assert torch.allclose(seen, expected.clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
def test_training_noise_is_clipped_where_that_of_the_defense_is(clip):
    module = make(UNet((4, 4)), sigma=0.5, clip=clip)
    noisy = module.corruption.noisy(torch.full((1, 3, 32, 32), 0.9), ["a"], [0])
    assert (float(noisy.max()) <= 1 and float(noisy.min()) >= 0) == clip


def test_an_untrained_network_restores_no_more_than_it_is_given(tmp_path):
    """The residual U-Net is the identity before training, so that validation shows the PSNR of the noise itself."""
    module = make(UNet((4, 4)), sigma=0.05)
    images = [item(row, torch.full((3, SIDE * 4, SIDE * 4), 0.5)) for row in range(2)]  # noise meets no clip
    (figures,) = trainer(tmp_path).validate(module, DataLoader(images, 2), verbose=False)
    assert figures["val/psnr"] == pytest.approx(-20 * math.log10(0.05), abs=0.3)
