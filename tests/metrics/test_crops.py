"""The mean over crops is a metric of the whole image."""

import pytest
import torch

from certiqa.defenses import MedianSmoothing, undefended
from certiqa.errors import UserError
from certiqa.metrics import CropAveraged, check_metric
from certiqa.metrics.crops import crop_corners


def test_it_is_the_average_written_by_hand(curved_metric):
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    by_hand = []
    for image in images:
        scores = [curved_metric(image[None, :, y : y + 8, x : x + 8]) for y in (0, 6, 12) for x in (0, 6, 12)]
        by_hand.append(sum(scores) / 9)
    assert torch.allclose(CropAveraged(curved_metric, 8, 9)(images), torch.cat(by_hand), atol=1e-6)
    centre = curved_metric(images[..., 6:14, 6:14])
    assert torch.allclose(CropAveraged(curved_metric, 8, 1)(images), centre, atol=1e-6)
    assert torch.equal(CropAveraged(curved_metric, 20, 7)(images), curved_metric(images)), "all crops coincide"


@pytest.mark.parametrize(
    ("number", "height", "width", "rows"),
    [(25, 224, 224, [1]), (25, 512, 512, [5, 5, 5, 5, 5]), (5, 384, 512, [2, 3]), (4, 224, 500, [4]),
     (4, 500, 224, [1, 1, 1, 1]), (7, 224, 400, [7]), (15, 768, 1024, [5, 5, 5])],
)  # fmt: skip
def test_crops_are_placed_evenly_from_border_to_border(number, height, width, rows):
    corners = crop_corners(224, number, height, width)
    tops = sorted({top for top, _ in corners})
    assert [sum(top == row for top, _ in corners) for row in tops] == rows
    assert all(0 <= top <= height - 224 and 0 <= left <= width - 224 for top, left in corners)
    if number > 1 and len(rows) > 1:
        assert (tops[0], tops[-1]) == (0, height - 224)
    mirrored = {(height - 224 - top, width - 224 - left) for top, left in corners}
    if len(set(rows)) == 1:
        assert mirrored == set(corners)


def test_it_keeps_the_contract_and_what_is_known_of_the_metric(curved_metric):
    curved_metric.lower_better, curved_metric.weights_source = True, "shipped"
    metric = CropAveraged(curved_metric, 16, 4)
    report = check_metric(metric)
    assert report.ok, report.failures
    assert {"differentiable", "independent of the batch", "hard bounds", "frozen", "eval mode"} <= set(report.passed)
    for fact in ("name", "score_range", "hard_bounds", "lower_better", "weights_source", "thread_safe"):
        assert getattr(metric, fact) == getattr(curved_metric, fact)
    assert undefended(MedianSmoothing(metric, 0.1, 20)) is metric, "the metric under defense is the mean over crops"


def test_gradients_reach_every_pixel_that_a_crop_covers(linear_metric):
    images = torch.rand(1, 3, 12, 12, requires_grad=True)
    CropAveraged(linear_metric(8), 8, 4)(images).sum().backward()
    assert (images.grad != 0).all()


def test_what_does_not_fit_is_named(curved_metric):
    with pytest.raises(UserError, match="test_crops.size=2 is too small: metric 'curved' needs at least 3 pixels"):
        CropAveraged(curved_metric, 2, 4)
    with pytest.raises(UserError, match="number must be at least 1, got 0"):
        CropAveraged(curved_metric, 8, 0)
    with pytest.raises(UserError, match="needs images of at least 8x8 pixels, got 6x9"):
        CropAveraged(curved_metric, 8, 2)(torch.rand(1, 3, 6, 9))
