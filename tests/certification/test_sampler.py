"""certify: from images to intervals, in any pieces, from one set of draws, and sound to the rank."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from certiqa.certification import (
    Certificates,
    CertificationRequest,
    certified_interval,
    certify,
    certify_each,
    joint_confidence_per_side,
    median_interval,
    order_statistic_ranks,
    ranks,
    require_certifiable,
)
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric

SIGMA = 0.12
RADII = [0.03, 0.06, 0.12]
IDS = ["a.png", "b.png", "c.png", "d.png"]
FIELDS = ("score", "lower", "upper", "joint_lower", "joint_upper")


@pytest.fixture
def linear(linear_metric):
    """A smoothed linear metric, what it scores without noise, and the norm of its gradient."""
    metric = linear_metric()
    slope = float((metric.network.weight.double() / metric.network.weight.numel()).norm())
    return MedianSmoothing(metric, SIGMA, clip=False, batch_size=256), metric, slope


def count_scored(metric):
    """Count the images that go through ``metric`` from now on; returns the list of batch sizes."""
    sizes = []
    metric.register_forward_hook(lambda module, inputs, scores: sizes.append(len(scores)))
    return sizes


def test_intervals_hold_the_percentiles_of_a_linear_metric_and_little_more(linear, images):
    smooth, metric, slope = linear
    bounds = certify(smooth, images, RADII, num_samples=1000, image_ids=IDS)
    clean = metric(images).double().numpy()[:, None]
    reach = slope * np.array(RADII)
    assert (bounds.lower <= clean - reach).all()
    assert (bounds.upper >= clean + reach).all()
    slack = 0.5 * slope * SIGMA  # of ranks and sampling, far less than the widths a wrong sigma or scale would give
    assert (bounds.lower >= clean - reach - slack).all()
    assert (bounds.upper <= clean + reach + slack).all()
    np.testing.assert_allclose(bounds.score[:, None], clean, atol=0.15 * slope * SIGMA)
    assert (bounds.radii, bounds.sigma, bounds.num_samples, bounds.confidence) == (tuple(RADII), SIGMA, 1000, 0.999)


def test_bounds_are_the_sorted_draws_at_the_golden_ranks(linear, images):
    smooth, _, _ = linear
    draws = smooth.sample_scores(images, 1000, image_ids=IDS, seed=5, stream="certify").double().numpy()
    bounds = certify(smooth, images, [0.05, 0.12], num_samples=1000, image_ids=IDS, seed=5)
    ordered = np.sort(draws, axis=1)
    np.testing.assert_array_equal(bounds.lower, ordered[:, [293 - 1, 124 - 1]])
    np.testing.assert_array_equal(bounds.upper, ordered[:, [708 - 1, 877 - 1]])
    np.testing.assert_allclose(bounds.score, np.median(draws, axis=1), rtol=0, atol=1e-7)


def test_one_set_of_draws_serves_every_radius(linear, images):
    smooth, metric, _ = linear
    sizes = count_scored(metric)
    bounds = certify(smooth, images, RADII, num_samples=200, image_ids=IDS)
    assert sum(sizes) == 4 * 200
    assert (np.diff(bounds.lower, axis=1) <= 0).all()
    assert (np.diff(bounds.upper, axis=1) >= 0).all()
    assert (bounds.lower[:, 0] < bounds.score).all()
    assert (bounds.score < bounds.upper[:, 0]).all()
    for column, radius in enumerate(RADII):
        alone = certify(smooth, images, radius, num_samples=200, image_ids=IDS)
        assert alone.lower.shape == (4, 1)
        np.testing.assert_array_equal(alone.lower[:, 0], bounds.lower[:, column])
        np.testing.assert_array_equal(alone.upper[:, 0], bounds.upper[:, column])


def test_batch_size_pieces_and_order_do_not_matter(curved_metric, images):
    def run(rows, batch_size):
        smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=150, batch_size=batch_size)
        ids = [IDS[row] for row in rows]
        return certify(smooth, images[rows], RADII, joint_confidence=0.9, set_size=4, image_ids=ids)

    whole = run([0, 1, 2, 3], 16)
    first, second = run([2, 0], 16), run([3, 1], 1)
    for field in FIELDS:
        expected = getattr(whole, field)
        np.testing.assert_allclose(getattr(run([0, 1, 2, 3], 1), field), expected, rtol=0, atol=1e-4)
        pieces = np.concatenate([getattr(first, field), getattr(second, field)])
        np.testing.assert_allclose(pieces[[1, 3, 0, 2]], expected, rtol=0, atol=1e-4)
        assert np.ptp(expected, axis=0).min() > 1e-3  # the images differ by more than the tolerance


def test_seed_and_stream_choose_the_draws(linear, images):
    smooth, _, _ = linear
    scores = [
        certify(smooth, images, 0.03, num_samples=50, image_ids=IDS, **choice).score
        for choice in ({}, {"seed": 0, "stream": "certify"}, {"seed": 1}, {"stream": "validate"})
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).all()
    assert (scores[0] != scores[3]).all()


def test_joint_intervals_are_those_of_the_joint_confidence(linear, images):
    smooth, _, _ = linear
    draws = smooth.sample_scores(images, 400, image_ids=IDS, stream="certify").double().numpy()
    for set_size in (None, 50):
        bounds = certify(
            smooth, images, RADII, num_samples=400, joint_confidence=0.95, set_size=set_size, image_ids=IDS
        )
        side = joint_confidence_per_side(0.95, set_size or 4, 3)
        lower, upper = certified_interval(draws, RADII, SIGMA, side)
        np.testing.assert_array_equal(bounds.joint_lower, lower)
        np.testing.assert_array_equal(bounds.joint_upper, upper)
        assert bounds.joint_confidence == 0.95
    assert (bounds.joint_lower < bounds.lower).all()
    assert (bounds.joint_upper > bounds.upper).all()
    alone = certify(smooth, images, RADII, num_samples=400, image_ids=IDS)
    assert alone.joint_lower is alone.joint_upper is alone.joint_confidence is None


def test_figures_of_an_interval_and_abstention():
    bounds = Certificates(
        score=np.array([1.0, 2.0]),
        lower=np.array([[0.5, -np.inf], [1.5, -np.inf]]),
        upper=np.array([[2.0, 3.0], [2.25, np.inf]]),
        radii=(0.1, 0.2),
        sigma=SIGMA,
        num_samples=10,
        confidence=0.9,
    )
    np.testing.assert_array_equal(bounds.certified_delta, [[1.0, np.inf], [0.5, np.inf]])
    np.testing.assert_array_equal(bounds.half_width, [[0.75, np.inf], [0.375, np.inf]])
    np.testing.assert_array_equal(bounds.abstained, [[False, True], [False, True]])


def test_what_cannot_be_certified_is_refused_before_any_forward_pass(linear, images):
    smooth, metric, _ = linear
    sizes = count_scored(metric)
    requests = [
        ({"radii": 0.3, "num_samples": 1000}, "num_samples>="),
        ({"radii": [0.03, 0.12], "num_samples": 20}, r"radius 0\.12 .*num_samples=20"),
        ({"radii": 0.12, "num_samples": 50, "joint_confidence": 0.95, "set_size": 10_000}, "over 10000 images"),
        ({"radii": 0.03, "joint_confidence": 0.95, "set_size": 3}, "set_size=3 is less than the 4 images"),
        ({"radii": 0.03, "image_ids": ["a", "b", "a", "c"]}, "'a' occurs twice"),
        ({"radii": 0.03, "image_ids": ["a", "b"]}, "4 images but 2 image ids"),
        ({"radii": -0.1}, "radius=-0.1"),
        ({"radii": 0.03, "confidence": 0.4}, "confidence=0.4"),
        ({"radii": 0.03, "stream": "other"}, "no noise stream 'other'"),
    ]
    for request, named in requests:
        with pytest.raises(UserError, match=named):
            certify(smooth, images, **request)
    assert sizes == []


@pytest.mark.parametrize("claimed", [2 * SIGMA, SIGMA / 2])
def test_a_request_for_another_sigma_is_refused(linear, images, claimed):
    smooth, metric, slope = linear
    request = CertificationRequest((0.06,), claimed, 1000, 0.999, set_size=4)
    sizes = count_scored(metric)
    with pytest.raises(UserError, match=rf"sigma={claimed}, but 'ms' smooths with sigma={SIGMA}"):
        next(certify_each(smooth, images, request, image_ids=IDS))
    assert sizes == []
    # why: where the claim is larger than the noise, its ranks exclude what a perturbation truly does
    draws = smooth.sample_scores(images, 1000, image_ids=IDS, stream="certify").double().numpy()
    worst = metric(images).double().numpy() + slope * 0.06
    reaches = [certified_interval(draws, 0.06, sigma, 0.999)[1] >= worst for sigma in (SIGMA, 2 * SIGMA)]
    assert reaches[0].all()
    assert not reaches[1].any()


def test_a_metric_without_smoothing_outermost_is_refused(linear, images):
    smooth, metric, _ = linear
    with pytest.raises(UserError, match=r"'linear' cannot be certified.*MedianSmoothing"):
        certify(metric, images, 0.05)
    assert require_certifiable(smooth) is smooth


def test_nan_scores_name_the_image(images):
    class FailsOnBright(torch.nn.Module):
        def forward(self, images):
            score = images.flatten(1).mean(1)
            return torch.where(score > 0.9, torch.nan, score)

    images[2] = 1
    smooth = MedianSmoothing(FrozenMetric(FailsOnBright(), name="fragile"), 0.01, clip=False)
    with pytest.raises(UserError, match=r"'fragile' scored NaN on 100 of 100 noisy copies of image c\.png"):
        certify(smooth, images, 0.001, image_ids=IDS)
    with pytest.raises(UserError, match="number 2"):
        certify(smooth, images, 0.001)


def test_no_attack_within_the_radius_leaves_the_interval_and_one_beyond_does(linear, images):
    """The aligned perturbation is the strongest on a linear metric.

    A violation is an attacked median whose own interval, from a fresh stream, lies outside the certified one.
    Per image and direction it happens by chance with probability at most 2 * 0.001.
    """
    smooth, metric, _ = linear
    radius, confidence = 0.05, 0.999
    bounds = certify(smooth, images, radius, num_samples=1000, confidence=confidence, image_ids=IDS)
    direction = metric.network.weight / metric.network.weight.norm()

    def violations(length):
        attacked = images + length * direction
        draws = smooth.sample_scores(attacked, 2000, image_ids=IDS, stream="score").double().numpy()
        low, high = median_interval(draws, confidence)
        return (low > bounds.upper[:, 0]) | (high < bounds.lower[:, 0])

    assert not violations(radius).any()
    assert not violations(-radius).any()
    assert violations(2 * radius).all()
    assert violations(-2 * radius).all()


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_the_worst_attack_is_covered_as_often_as_stated_and_one_rank_less_is_caught(linear_metric, monkeypatch, side):
    """Many images of one pixel, each certified; at x + u the median of a linear metric is known exactly."""
    confidence, radius, repetitions = 0.9, 0.06, 1500

    def chance(n):
        return float(binom.cdf(order_statistic_ranks(radius, SIGMA, n, confidence)[1] - 1, n, norm.cdf(radius / SIGMA)))

    n = min(range(20, 41), key=chance)  # the tightest, so that one rank is a visible fault
    assert confidence < chance(n) < confidence + 0.01

    metric = linear_metric(size=1)
    smooth = MedianSmoothing(metric, SIGMA, num_samples=n, clip=False, batch_size=4096)
    images = torch.rand(repetitions, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    slope = float(metric.network.weight.double().norm()) / 3
    worst = metric(images).double().numpy() + slope * radius * (1 if side == "upper" else -1)

    def coverage_is_plausible():
        bounds = certify(smooth, images, radius, confidence=confidence, image_ids=[str(i) for i in range(repetitions)])
        inside = bounds.upper[:, 0] >= worst if side == "upper" else bounds.lower[:, 0] <= worst
        return binom.cdf(int(inside.sum()), repetitions, confidence) > 1e-6

    assert coverage_is_plausible()

    def generous(*arguments):
        lower, upper = order_statistic_ranks(*arguments)
        return lower + 1, upper - 1

    monkeypatch.setattr(ranks, "order_statistic_ranks", generous)
    assert not coverage_is_plausible()
