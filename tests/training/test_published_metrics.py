"""A denoiser trains through every published metric, in both precisions."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import UNet
from certiqa.metrics import METRICS, load_metric
from certiqa.metrics.weights import fingerprint
from certiqa.training import DefenseModule, DenoisingObjective

SMALL = {"linearity": {"resize": [128, 160]}}  # ResNeXt-101 at 498x664 takes seconds an image here


class Pictures(Dataset):
    """Smooth random images of one size with a made-up opinion score."""

    def __init__(self, side):
        self.side = side

    def __len__(self):
        return 2

    def __getitem__(self, index):
        low = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(index))
        image = nn.functional.interpolate(low, size=(self.side, self.side), mode="bilinear")[0]
        facts = {"image_id": f"{index}.png", "mos": float(index), "mos_normalised": float(index)}
        return {"image": image, **facts, "epoch": 0, "is_crop": False}


def train(name, precision, side, folder, steps=2, **options):
    metric = load_metric(name, weights="random", **options)
    before = fingerprint(metric)
    torch.manual_seed(0)
    denoiser = UNet((8, 8))
    start = [parameter.clone() for parameter in denoiser.parameters()]
    # no MSE term, so that all that moves the denoiser comes through the metric
    objective = DenoisingObjective("mse_ranking", mse_weight=0, ranking_weight=1, target_weight=1)
    module = DefenseModule(MedianSmoothing(metric, 0.1, 5, denoiser), objective, torch.optim.Adam, warmup_steps=1)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Pictures(max(side, metric.min_size)), 2))
    assert fingerprint(metric) == before, "the metric stays frozen"
    moved = [float((now - then).abs().max()) for now, then in zip(denoiser.parameters(), start, strict=True)]
    assert all(value < 1 for value in moved)
    assert max(moved) > 0, "no gradient came through the metric"
    assert all(parameter.isfinite().all() for parameter in denoiser.parameters())


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"mini"}))
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.full)])
def test_a_denoiser_trains_through_every_metric(name, precision, tmp_path):
    train(name, precision, 64, tmp_path, **SMALL.get(name, {}))


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"mini"}))
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_denoiser_trains_through_every_metric_at_224(name, precision, tmp_path):
    train(name, precision, 224, tmp_path, steps=1)
