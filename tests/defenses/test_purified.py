"""Metrics behind purifiers: what they score, what gradients take through them, and what randomness depends on."""

import pytest
import torch

from certiqa.attacks import load_attack
from certiqa.defenses import Jpeg, MedianSmoothing, PurifiedMetric, RandomRotate, undefended
from certiqa.errors import UserError


def smooth_images(count=2, height=24, width=32):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def test_jpeg_is_pillows_and_its_gradient_the_identity(curved_metric):
    images = smooth_images().requires_grad_(True)
    metric = PurifiedMetric(curved_metric, Jpeg(30))
    purified = metric.purify(images)
    assert (purified * 255 - (purified * 255).round()).abs().max() < 1e-4, "8-bit, as a file is"
    assert undefended(metric) is curved_metric
    weights = torch.rand_like(purified)
    (gradient,) = torch.autograd.grad((purified * weights).sum(), images)
    assert torch.allclose(gradient, weights)
    coarse, fine = (float((Jpeg(quality)(images) - images).detach().abs().mean()) for quality in (10, 95))
    assert coarse > 2 * fine


def test_without_a_backward_pass_the_step_is_named(curved_metric):
    metric = PurifiedMetric(curved_metric, Jpeg(), backward="none")
    with pytest.raises(UserError, match=r"step 'jpeg' stops it.*defense\.backward=identity.*attack=square"):
        load_attack("ifgsm")(metric, smooth_images())
    around = MedianSmoothing(metric, 0.1, 5)
    with pytest.raises(UserError, match="step 'jpeg'"):
        load_attack("ifgsm")(around, smooth_images())


def test_randomness_is_keyed_by_image_and_seed(curved_metric):
    images = smooth_images(1).expand(2, -1, -1, -1)
    metric = PurifiedMetric(curved_metric, RandomRotate(20))
    together = metric(images, image_ids=["a", "b"])
    assert together[0] != together[1]
    assert metric(images[:1], image_ids=["a"]) == pytest.approx(float(together[0]), abs=1e-6)
    assert PurifiedMetric(curved_metric, RandomRotate(20), seed=1)(images[:1], image_ids=["a"]) != together[0]
    draws = metric.expected_scores(images[:1], 3, image_ids=["a"], seed=5)
    assert draws == metric.expected_scores(images[:1], 3, image_ids=["a"], seed=5)
    assert draws != metric.expected_scores(images[:1], 3, image_ids=["a"], seed=6)


def test_bad_options_are_named(curved_metric):
    with pytest.raises(UserError, match="native, identity, none, got 'soft'"):
        PurifiedMetric(curved_metric, Jpeg(), backward="soft")
    with pytest.raises(UserError, match="2 images but 1 image ids"):
        PurifiedMetric(curved_metric, RandomRotate())(smooth_images(), image_ids=["a"])
