"""Certified intervals cover as often as they say, and the test that says so can tell when they do not.

One statistical test, `undercovers`, judges both the product and variants of it that are broken on purpose.
The number of draws is the least conservative one in a range, so that one rank too few is a visible fault.
"""

from functools import cache

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, norm

from certiqa.certification.ranks import certified_interval, median_interval, order_statistic_ranks

SIGMA = 0.12
REPETITIONS = 30_000
SIGNIFICANCE = 1e-6  # a sound interval fails this once in a million runs; the seed is fixed besides


def undercovers(covered: np.ndarray, confidence: float) -> bool:
    """Reject "covers with probability >= confidence" by the exact one-sided binomial test."""
    return bool(binom.cdf(int(np.sum(covered)), covered.size, confidence) < SIGNIFICANCE)


@cache
def tightest_num_samples(radius: float, confidence: float) -> int:
    """Return the n in 80..160 whose upper rank covers with the least probability above the confidence."""

    def coverage(n: int) -> float:
        rank = order_statistic_ranks(radius, SIGMA, n, confidence)[1]
        return float(binom.cdf(rank - 1, n, ndtr(radius / SIGMA)))

    return min(range(80, 161), key=coverage)


@cache
def draws(n: int, seed: int) -> np.ndarray:
    return SIGMA * np.random.default_rng(seed).standard_normal((REPETITIONS, n))


def _order_statistics(scores, lower_rank, upper_rank):
    ordered = np.sort(scores, axis=-1)
    return ordered[:, lower_rank - 1], ordered[:, upper_rank - 1]


def off_by_one(scores, radius, sigma, confidence):
    lower, upper = order_statistic_ranks(radius, sigma, scores.shape[-1], confidence)
    return _order_statistics(scores, lower + 1, upper - 1)


def swapped(scores, radius, sigma, confidence):
    lower, upper = order_statistic_ranks(radius, sigma, scores.shape[-1], confidence)
    return _order_statistics(scores, upper, lower)


def one_sigma_short(scores, radius, sigma, confidence):
    return certified_interval(scores, max(0.0, radius - sigma), sigma, confidence)


CASES = [(radius, confidence) for radius in (0.06, 0.12) for confidence in (0.9, 0.99)]


@pytest.mark.parametrize(("radius", "confidence"), CASES)
def test_each_side_covers_the_worst_case_of_a_linear_metric(radius, confidence):
    scores = draws(tightest_num_samples(radius, confidence), seed=1)
    lower, upper = certified_interval(scores, radius, SIGMA, confidence)
    assert not undercovers(lower <= -radius, confidence)
    assert not undercovers(radius <= upper, confidence)
    # ... and is not wastefully wide: the nominal level is nearly met
    assert np.mean(lower <= -radius) < confidence + 0.02
    assert np.mean(radius <= upper) < confidence + 0.02


@pytest.mark.parametrize("broken", [off_by_one, swapped, one_sigma_short])
@pytest.mark.parametrize(("radius", "confidence"), CASES)
def test_broken_intervals_are_caught(broken, radius, confidence):
    scores = draws(tightest_num_samples(radius, confidence), seed=1)
    lower, upper = broken(scores, radius, SIGMA, confidence)
    assert undercovers(lower <= -radius, confidence)
    assert undercovers(radius <= upper, confidence)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_median_interval_covers_the_population_median(confidence):
    scores = draws(tightest_num_samples(0.0, confidence), seed=2)
    lower, upper = median_interval(scores, confidence)
    assert not undercovers(lower <= 0, confidence)
    assert not undercovers(upper >= 0, confidence)
    assert not undercovers((lower <= 0) & (upper >= 0), 2 * confidence - 1)


@pytest.mark.parametrize("shift", [-0.1, -0.04, 0.04, 0.1])
def test_atoms_do_not_hurt(shift):
    """A score in coarse steps: the median at x + u is known, since a monotone f commutes with the median."""

    def score(t):
        return np.floor(20 * t)

    x, confidence = 0.513, 0.9
    n = tightest_num_samples(abs(shift), confidence)
    lower, upper = certified_interval(score(x + draws(n, seed=3)), abs(shift), SIGMA, confidence)
    attacked = score(x + shift)
    assert not undercovers((lower <= attacked) if shift < 0 else (attacked <= upper), confidence)


def test_an_attack_that_is_not_along_the_gradient_is_covered_too():
    """A score that falls to both sides of x: the worst perturbation is neither up nor down the line."""
    radius, confidence = 0.1, 0.99
    n = tightest_num_samples(radius, confidence)
    lower, upper = certified_interval(-np.abs(draws(n, seed=4)), radius, SIGMA, confidence)
    for u in np.linspace(-radius, radius, 9):
        # the median of |u + sigma z| solves Phi((m - u)/sigma) - Phi((-m - u)/sigma) = 1/2
        grid = np.linspace(0, 1, 100_001)
        inside = norm.cdf((grid - u) / SIGMA) - norm.cdf((-grid - u) / SIGMA)
        attacked = -grid[np.searchsorted(inside, 0.5)]
        assert not undercovers(lower <= attacked + 1e-5, confidence)
        assert not undercovers(attacked - 1e-5 <= upper, confidence)


def test_joint_level_of_both_sides():
    radius, confidence = 0.12, 0.9
    lower, upper = certified_interval(
        draws(tightest_num_samples(radius, confidence), seed=1), radius, SIGMA, confidence
    )
    both = (lower <= -radius) & (radius <= upper)
    assert not undercovers(both, 2 * confidence - 1)
    assert undercovers(both, confidence)  # the two-sided level is 2c - 1, not c
