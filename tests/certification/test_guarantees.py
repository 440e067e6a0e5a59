"""Set guarantees against the exact worst case of small sets, and SciPy at zero width."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from certiqa.certification.guarantees import certified_krocc, certified_mse, certified_plcc, certified_srocc

_spec = importlib.util.spec_from_file_location("yardstick", Path(__file__).with_name("yardstick.py"))
yardstick = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(yardstick)


def test_the_yardstick_itself():
    """Orders found possible are exactly those of a fine grid of scores (whole-number ends, N = 3)."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        lower = rng.integers(0, 3, 3).astype(float)
        upper = lower + rng.integers(0, 3, 3)
        axes = [np.arange(a, b + 0.1, 0.25) for a, b in zip(lower, upper, strict=True)]
        seen = {tuple(rankdata(s, method="dense") - 1) for s in itertools.product(*axes)}
        possible = {tuple(p) for p in yardstick.possible_orders(lower, upper)}
        assert possible == {p for p in seen if max(p) > 0}


# --- never above the worst case -----------------------------------------------------------------------------


@yardstick.by_correlation
@given(box=yardstick.boxes())
@settings(max_examples=150, deadline=None)
def test_never_above_the_worst_case(certified, box):
    value = certified(*box)
    assert -1 <= value <= 1
    assert value <= yardstick.EXACT[certified](*box) + yardstick.ROUNDING


# (mean shortfall below the exact worst case, share of boxes met exactly) over random untied boxes
@pytest.mark.parametrize(
    ("certified", "mean_gap", "exact"),
    [(certified_srocc, 0.02, 0.90), (certified_krocc, 0.12, 0.60), (certified_plcc, 0.01, 0.50)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_close_to_the_worst_case_of_small_sets(certified, mean_gap, exact):
    rng = np.random.default_rng(7)
    gaps = []
    for n in (3, 4, 5, 6):
        for _ in range(40):
            box = yardstick.random_box(rng, n)
            gap = yardstick.EXACT[certified](*box) - certified(*box)
            assert gap > -yardstick.ROUNDING
            gaps.append(gap)
    assert np.mean(gaps) < mean_gap
    assert np.mean(np.array(gaps) < 1e-3) > exact


@yardstick.by_correlation
def test_never_above_attacks_on_a_set_of_forty(certified):
    rng = np.random.default_rng(8)
    for half in (0.05, 0.2, 0.5, 1.0):
        mos = np.round(rng.normal(size=40), 1)
        centre = np.round(mos + 0.4 * rng.normal(size=40), 1)
        lower, upper = centre - half, centre + half
        value = certified(lower, upper, mos)
        towards_middle = np.clip(0.0, lower, upper)
        candidates = [np.where(mos > t, lower, upper) for t in np.quantile(mos, np.linspace(0, 1, 21))]
        candidates += [np.clip(-k * mos, lower, upper) for k in np.geomspace(1e-4, 10, 30)]
        candidates += [towards_middle, *rng.uniform(lower, upper, (20, 40))]
        statistic = yardstick.CORRELATIONS[certified]
        assert value <= min(statistic(s, mos) for s in candidates if np.ptp(s) > 0) + yardstick.ROUNDING
        assert value > -1 or half == 1.0


def test_plcc_is_nearly_exact_on_twelve_images():
    """Where the worst correlation is positive it is at a corner of the box, and all corners can be tried."""
    rng = np.random.default_rng(9)
    for _ in range(5):
        mos = rng.normal(size=12)
        centre, half = mos + 0.3 * rng.normal(size=12), rng.uniform(0, 0.5, 12)
        s = np.array(list(itertools.product(*zip(centre - half, centre + half, strict=True))))
        s -= s.mean(axis=1, keepdims=True)
        y = mos - mos.mean()
        worst = np.min(s @ y / np.sqrt(np.sum(s**2, axis=1) * (y @ y)))
        assert worst > 0
        assert worst - 0.005 < certified_plcc(centre - half, centre + half, mos) <= worst + yardstick.ROUNDING


# --- not vacuous --------------------------------------------------------------------------------------------


@yardstick.by_correlation
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40),
    st.sampled_from([1.0, 1e-3, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_zero_width_gives_the_plain_correlation_ties_included(certified, pairs, unit):
    scores, mos = unit * np.array(pairs, dtype=float).T
    assume(np.ptp(scores) > 0)
    assume(np.ptp(mos) > 0)
    assert certified(scores, scores, mos) == pytest.approx(
        yardstick.CORRELATIONS[certified](scores, mos), abs=yardstick.ROUNDING
    )


@yardstick.by_correlation
@pytest.mark.parametrize("unit", [1, 0.1, 0.3, 1e-3, 7e5])
def test_zero_correlation_is_zero_in_any_unit(certified, unit):
    x = np.arange(-4, 5)  # rounding must not turn a covariance of 0 into a negative one with no proof
    assert certified(unit * (x + 0.7), unit * (x + 0.7), unit * x**2) == pytest.approx(0, abs=yardstick.ROUNDING)
    assert certified(unit * x**2, unit * x**2, unit * (x + 0.7)) == pytest.approx(0, abs=yardstick.ROUNDING)


@yardstick.by_correlation
def test_disjoint_intervals_in_the_order_of_mos(certified):
    mos = np.arange(20.0)
    assert certified(mos, mos, mos) == pytest.approx(1, abs=yardstick.ROUNDING)
    value = certified(mos - 0.4, mos + 0.4, mos)
    assert value == pytest.approx(1, abs=0.01 if certified is certified_plcc else yardstick.ROUNDING)
    assert certified(-mos, -mos, mos) == pytest.approx(-1, abs=yardstick.ROUNDING)


@yardstick.by_correlation
def test_wider_intervals_never_help(certified):
    rng = np.random.default_rng(10)
    mos = rng.normal(size=60)
    centre = mos + 0.3 * rng.normal(size=60)
    values = [certified(centre - h, centre + h, mos) for h in (0, 0.02, 0.05, 0.1, 0.3, 1, 3)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.7
    assert values[-1] == pytest.approx(-1)


@yardstick.by_correlation
def test_order_shift_and_scale_do_not_matter(certified):
    rng = np.random.default_rng(11)
    lower, upper, mos = yardstick.random_box(rng, 30)
    value = certified(lower, upper, mos)
    p = rng.permutation(30)
    assert certified(lower[p], upper[p], mos[p]) == pytest.approx(value, abs=1e-7)
    assert certified(1000 + 7 * lower, 1000 + 7 * upper, 3 * mos - 50) == pytest.approx(value, abs=1e-7)
    assert certified(-upper, -lower, -mos) == pytest.approx(value, abs=1e-7)


@yardstick.by_correlation
def test_constant_scores_claim_nothing(certified):
    mos = np.arange(5.0)
    assert certified(np.ones(5), np.ones(5), mos) == -1
    assert certified(np.zeros(5), np.ones(5), mos) == pytest.approx(-1, abs=1e-9)


# --- mean squared error -------------------------------------------------------------------------------------


@given(yardstick.boxes(most=6))
@settings(max_examples=60, deadline=None)
def test_mse_is_the_greatest_over_the_box(box):
    lower, upper, mos = box
    corners = np.array(list(itertools.product(*zip(lower, upper, strict=True))))
    assert certified_mse(*box) == pytest.approx(np.max(np.mean((corners - mos) ** 2, axis=1)))
    for fit in (lambda s: 5 / (1 + np.exp(-s)), lambda s: 3 - 2 * s):  # rising and falling
        worst = np.max(np.mean((fit(corners) - mos) ** 2, axis=1))
        assert certified_mse(*box, score_to_mos=fit) == pytest.approx(worst)


def test_mse_of_infinite_ends():
    lower, upper, mos = [-np.inf, 2.0], [1.0, 2.0], [1.0, 2.0]
    assert certified_mse(lower, upper, mos) == math.inf
    assert certified_mse(lower, upper, mos, hard_bounds=(0.0, 5.0)) == pytest.approx(0.5)
    assert certified_mse(lower, upper, mos, score_to_mos=lambda s: 1 / (1 + np.exp(-s))) < math.inf
