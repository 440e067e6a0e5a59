"""Ranks against the definition and known values; intervals against a metric whose percentiles are known."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binom

from certiqa.certification.ranks import (
    certified_interval,
    joint_confidence_per_side,
    largest_radius,
    median_interval,
    order_statistic_ranks,
    smallest_num_samples,
    validate_request,
)
from certiqa.errors import UserError

GOLDEN = [  # radius, n, sigma, confidence -> upper, lower; None: no such draw
    (0.36, 2000, 0.25, 0.99999, 1899, 102),
    (0.05, 1000, 0.12, 0.999, 708, 293),
    (0.12, 1000, 0.12, 0.999, 877, 124),
    (0.24, 1000, 0.12, 0.999, 991, 10),
    (0.06, 2000, 0.18, 0.999, 1328, 673),
    (0.36, 100, 0.25, 0.999, 100, 1),
    (0.05, 100, 0.12, 0.999, 81, 20),
    (0.12, 10000, 0.12, 0.999, 8526, 1475),
    (0.30, 1000, 0.12, 0.999, None, None),
]

radii = st.floats(0, 0.6)
sigmas = st.floats(0.05, 0.5)
counts = st.integers(1, 3000)
confidences = st.floats(0.51, 0.99999)


@pytest.mark.parametrize(("radius", "n", "sigma", "confidence", "upper", "lower"), GOLDEN)
def test_ranks_equal_the_known_table(radius, n, sigma, confidence, upper, lower):
    expected = (0 if lower is None else lower, n + 1 if upper is None else upper)
    assert order_statistic_ranks(radius, sigma, n, confidence) == expected


@given(radii, sigmas, counts, confidences)
@settings(max_examples=200, deadline=None)
def test_ranks_meet_the_definition_and_no_tighter_rank_does(radius, sigma, n, confidence):
    p_lo, p_hi = ndtr(-radius / sigma), ndtr(radius / sigma)
    lower, upper = order_statistic_ranks(radius, sigma, n, confidence)
    slack = 1e-11  # where the two float64 routes to one binomial tail may disagree
    assert 0 <= lower < upper <= n + 1
    if upper <= n:
        assert upper >= math.ceil(n * p_hi - slack)
        assert binom.cdf(upper - 1, n, p_hi) > confidence - slack
    if upper - 1 >= math.ceil(n * p_hi):
        assert binom.cdf(upper - 2, n, p_hi) <= confidence + slack
    if lower >= 1:
        assert lower <= n * p_lo + slack
        assert 1 - binom.cdf(lower - 1, n, p_lo) > confidence - slack
    if lower + 1 <= math.floor(n * p_lo):
        assert 1 - binom.cdf(lower, n, p_lo) <= confidence + slack


@given(radii, radii, sigmas, counts, counts, confidences, confidences)
@settings(max_examples=150, deadline=None)
def test_ranks_are_monotone_in_radius_confidence_and_draws(r1, r2, sigma, n1, n2, c1, c2):
    (r1, r2), (n1, n2), (c1, c2) = sorted((r1, r2)), sorted((n1, n2)), sorted((c1, c2))
    near, far = (order_statistic_ranks(r, sigma, n1, c1) for r in (r1, r2))
    assert far[0] <= near[0]
    assert far[1] >= near[1]
    sure = order_statistic_ranks(r1, sigma, n1, c2)
    assert sure[0] <= near[0]
    assert sure[1] >= near[1]
    more = order_statistic_ranks(r1, sigma, n2, c1)
    assert more[0] >= near[0]  # ranks counted from either end move inwards with more draws
    assert n2 + 1 - more[1] >= n1 + 1 - near[1]


def test_ranks_at_extreme_radii_and_many_draws():
    assert order_statistic_ranks(5.0, 0.1, 1000, 0.9) == (0, 1001)
    lower, upper = order_statistic_ranks(0.1, 0.1, 10**7, 0.999)
    assert lower / 1e7 == pytest.approx(ndtr(-1), abs=1e-3)
    assert upper == 10**7 + 1 - lower


@given(radii, sigmas, confidences)
@settings(max_examples=60, deadline=None)
def test_smallest_num_samples_is_enough_and_one_fewer_is_not(radius, sigma, confidence):
    assume(radius / sigma < 4)
    n = smallest_num_samples(radius, sigma, confidence)
    lower, upper = order_statistic_ranks(radius, sigma, n, confidence)
    assert lower >= 1
    assert upper <= n
    if n > 1:
        lower, upper = order_statistic_ranks(radius, sigma, n - 1, confidence)
        assert lower == 0 or upper == n


@given(st.integers(2, 10**6), sigmas, confidences)
@settings(max_examples=60, deadline=None)
def test_largest_radius_is_certified_and_a_longer_one_is_not(n, sigma, confidence):
    assume(n >= smallest_num_samples(0.0, sigma, confidence))
    radius = largest_radius(n, sigma, confidence)
    validate_request(radius, sigma, n, confidence)
    with pytest.raises(UserError, match="cannot be certified"):
        validate_request(radius + 1e-9 * sigma, sigma, n, confidence)


def test_too_few_draws_for_any_radius():
    with pytest.raises(UserError, match="at least 10 are needed"):
        largest_radius(9, 0.12, 0.999)
    assert largest_radius(10, 0.12, 0.999) == pytest.approx(0.0, abs=0.01)


def test_refusal_says_what_would_do():
    validate_request([0.05, 0.24], 0.12, 1000, 0.999)
    with pytest.raises(UserError) as refusal:
        validate_request([0.05, 0.3], 0.12, 1000, 0.999)
    for part in ("radius 0.3 ", "num_samples=1000", "sigma 0.12", "0.999", "num_samples>=1109", "0.2956"):
        assert part in str(refusal.value)
    with pytest.raises(UserError, match="certify no radius at all"):
        validate_request(0.05, 0.12, 3, 0.999)
    with pytest.raises(UserError, match="more than 1e12 draws"):
        validate_request(3.0, 0.12, 1000, 0.999)


@pytest.mark.parametrize(
    ("radius", "sigma", "n", "confidence", "named"),
    [
        (-0.1, 0.1, 10, 0.9, "radius=-0.1"),
        (float("nan"), 0.1, 10, 0.9, "radius=nan"),
        (float("inf"), 0.1, 10, 0.9, "radius=inf"),
        (0.1, 0.0, 10, 0.9, "sigma=0.0"),
        (0.1, -1.0, 10, 0.9, "sigma=-1.0"),
        (0.1, float("nan"), 10, 0.9, "sigma=nan"),
        (0.1, 0.1, 0, 0.9, "num_samples=0"),
        (0.1, 0.1, 10.5, 0.9, "num_samples=10.5"),
        (0.1, 0.1, 10, 0.5, "confidence=0.5"),
        (0.1, 0.1, 10, 1.0, "confidence=1.0"),
        (0.1, 0.1, 10, 99.9, "confidence=99.9"),
    ],
)
def test_arguments_out_of_range_are_named(radius, sigma, n, confidence, named):
    for refused in (order_statistic_ranks, validate_request):
        with pytest.raises(UserError, match=named):
            refused(radius, sigma, n, confidence)


def test_interval_shapes_ranks_and_abstention():
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(1.0, 1001), (2, 3, 1)), axis=-1)  # the value of a draw is its rank
    lower, upper = certified_interval(scores, 0.05, 0.12, 0.999)
    assert lower.shape == upper.shape == (2, 3)
    assert np.all(lower == 293)
    assert np.all(upper == 708)
    lower, upper = certified_interval(scores, [0.05, 0.24, 0.3], 0.12, 0.999)
    assert lower.shape == (2, 3, 3)
    assert lower[1, 2].tolist() == [293, 10, -np.inf]
    assert upper[1, 2].tolist() == [708, 991, np.inf]
    lower, upper = certified_interval(scores[0, 0].astype(np.float32), 0.05, 0.12, 0.999)
    assert (float(lower), float(upper)) == (293, 708)
    assert lower.dtype == np.float64


def test_median_interval_is_the_one_at_radius_zero():
    scores = np.random.default_rng(1).normal(size=(4, 200))
    assert np.array_equal(median_interval(scores, 0.99), certified_interval(scores, 0.0, 0.3, 0.99))
    lower, upper = median_interval(scores, 0.99)
    assert np.all(lower <= np.median(scores, axis=1))
    assert np.all(np.median(scores, axis=1) <= upper)


def test_draws_that_bound_nothing_are_refused():
    with pytest.raises(UserError, match="1 of 3 draws are NaN"):
        certified_interval([1.0, float("nan"), 2.0], 0.0, 0.1, 0.6)
    with pytest.raises(UserError, match="at least one draw"):
        certified_interval(np.empty((3, 0)), 0.0, 0.1, 0.6)


def test_linear_metric_interval_holds_the_percentiles_and_closes_in_on_them():
    """For w.x the bound is tight: an attack of norm eps along w moves the median to w.x + |w| eps exactly."""
    rng = np.random.default_rng(2)
    w, x, sigma, radius = rng.normal(size=32), rng.random(32), 0.12, 0.1
    clean, reach = w @ x, np.linalg.norm(w) * radius
    excess = []
    for n in (100, 1_000, 10_000, 100_000):
        draws = clean + sigma * (rng.standard_normal((n, 32)) @ w)
        lower, upper = certified_interval(draws, radius, sigma, 0.9999)
        assert lower <= clean - reach
        assert clean + reach <= upper
        excess.append((upper - lower - 2 * reach) / (2 * reach))
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 0.03


def test_joint_confidence_is_a_union_bound():
    assert joint_confidence_per_side(0.95, 125) == pytest.approx(1 - 0.05 / 250)
    assert joint_confidence_per_side(0.95, 125, 4) == pytest.approx(1 - 0.05 / 1000)
    for bad in ((0.0, 5), (1.0, 5), (0.95, 0), (0.95, 5, 0)):
        with pytest.raises(UserError):
            joint_confidence_per_side(*bad)
