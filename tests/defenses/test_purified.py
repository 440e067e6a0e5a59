"""Metrics behind purifiers: what they score, what gradients take through them, and what randomness depends on."""

import pytest
import torch

from certiqa.attacks import load_attack
from certiqa.defenses import (
    Flip,
    Jpeg,
    LipschitzSteps,
    MedianSmoothing,
    PurifiedMetric,
    PurifierEnsemble,
    RandomCrop,
    RandomRotate,
    Resize,
    undefended,
)
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


def test_a_crop_that_is_not_square_needs_each_of_its_own_sides(curved_metric):
    metric = PurifiedMetric(curved_metric, RandomCrop([30, 40]))
    assert metric(smooth_images(height=30, width=64), image_ids=["a", "b"]).shape == (2,)
    for height, width in ((29, 64), (64, 39)):
        with pytest.raises(UserError, match=rf"'random_crop' needs images of at least 30x40 .*got {height}x{width}"):
            metric(smooth_images(height=height, width=width))
    assert metric.min_size == 40, "of a square"
    # around it, and behind what changes the size
    for around in (MedianSmoothing(metric, 0.1, 3), PurifierEnsemble(curved_metric, [RandomCrop([30, 40]), Flip()])):
        assert around.min_sides == (30, 40)
        assert around(smooth_images(height=30, width=40), image_ids=["a", "b"]).shape == (2,)
    halved = PurifiedMetric(metric, Resize(scale=0.5))
    assert halved(smooth_images(height=60, width=80), image_ids=["a", "b"]).shape == (2,)
    assert (halved.min_sides, MedianSmoothing(metric, 0.1, before=Resize(scale=0.5)).min_sides) == ((60, 80),) * 2
    for small in (RandomCrop([30, 39]), Resize([29, 40])):
        with pytest.raises(
            UserError, match=f"metric 'random_crop' is too small: .* 30x40 .*let {small.name} keep more"
        ):
            PurifiedMetric(metric, small)
    with pytest.raises(UserError, match="what reaches metric 'random_crop' is too small: .* 30x40"):
        MedianSmoothing(metric, 0.1, before=LipschitzSteps([Resize([29, 40]), Flip()]))


def test_bad_options_are_named(curved_metric):
    with pytest.raises(UserError, match="native, identity, none, got 'soft'"):
        PurifiedMetric(curved_metric, Jpeg(), backward="soft")
    with pytest.raises(UserError, match="2 images but 1 image ids"):
        PurifiedMetric(curved_metric, RandomRotate())(smooth_images(), image_ids=["a"])
