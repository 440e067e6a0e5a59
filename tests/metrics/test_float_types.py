"""Images in any float type are scored, in the precision of the weights; and a metric can be exported."""

import copy

import pytest
import torch
from torch import nn

from certiqa.attacks import load_attack
from certiqa.defenses import MedianSmoothing, PurifiedMetric, load_purifier
from certiqa.denoisers import UNet
from certiqa.metrics import as_metric, load_metric

TYPES = (torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def mini():
    return load_metric("mini")


@pytest.fixture(scope="module")
def pictures():
    """Values that every one of the types holds exactly."""
    return torch.randint(0, 65, (2, 3, 48, 40), generator=torch.Generator().manual_seed(0)) / 64


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_type_of_image_changes_no_score(mini, pictures, dtype):
    defended = [
        mini,
        MedianSmoothing(mini, 0.12, 4, UNet((4, 6))),
        MedianSmoothing(mini, 0.12, 4, before=load_purifier("resize", size=40)),
        PurifiedMetric(mini, load_purifier("resize", scale=0.9)),
        PurifiedMetric(mini, load_purifier("jpeg")),
    ]
    for metric in defended:
        scores = metric(pictures.to(dtype))
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, metric(pictures), rtol=0, atol=1e-4)


def test_a_metric_in_float64_scores_in_float64(mini, pictures):
    double = copy.deepcopy(mini).double()
    for images in (pictures, pictures.double()):
        scores = double(images)
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, mini(pictures).double(), rtol=0, atol=1e-4)
    smooth = MedianSmoothing(mini, 0.12, 4, UNet((4, 6)))
    torch.testing.assert_close(copy.deepcopy(smooth).double()(pictures), smooth(pictures), rtol=0, atol=1e-4)


def test_gradients_come_back_in_the_type_of_the_images(mini, pictures):
    images = pictures.double().requires_grad_(True)
    mini(images).sum().backward()
    assert images.grad.dtype == torch.float64
    assert images.grad.abs().sum() > 0


def test_a_metric_without_weights_sees_images_as_they_are(pictures):
    class Mean(nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))

    assert as_metric(Mean())(pictures.double()).dtype == torch.float64


@pytest.mark.parametrize(("dtype", "attacked"), [(torch.float64, torch.float64), (torch.float16, torch.float32)])
def test_an_attack_keeps_double_precision_and_leaves_half(mini, pictures, dtype, attacked):
    images = pictures.to(dtype)
    for name in ("ifgsm", "pgd_l2"):
        found = load_attack(name, eps=0.02, steps=2)(mini, images)
        assert found.dtype == attacked
        assert float(mini(found).sum()) > float(mini(images).sum())


def test_a_metric_is_exported_for_batches_of_any_size(mini, pictures):
    batch = torch.export.Dim("batch", min=1, max=64)
    options = {"images": {0: batch}, "image_ids": None, "generator": None}
    exported = torch.export.export(mini, (pictures,), {"image_ids": None, "generator": None}, dynamic_shapes=options)
    alone = exported.module()(pictures[:1], image_ids=None, generator=None)
    torch.testing.assert_close(alone, mini(pictures[:1]))
    purified = PurifiedMetric(mini, load_purifier("resize", scale=0.9))
    torch.testing.assert_close(torch.export.export(purified, (pictures,)).module()(pictures), purified(pictures))
