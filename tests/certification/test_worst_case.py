"""The search for a set's worst case: what it finds is possible, and near the worst there is."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from certiqa.certification.guarantees import certified_krocc, certified_plcc, certified_srocc
from certiqa.certification.worst_case import worst_krocc, worst_plcc, worst_srocc
from certiqa.errors import UserError

_spec = importlib.util.spec_from_file_location("yardstick", Path(__file__).with_name("yardstick.py"))
yardstick = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(yardstick)

SEARCHES = {certified_srocc: worst_srocc, certified_krocc: worst_krocc, certified_plcc: worst_plcc}


@yardstick.by_correlation
@given(box=yardstick.boxes())
@settings(max_examples=60, deadline=None)
def test_what_is_found_lies_in_the_box_between_floor_and_truth(certified, box):
    lower, upper, mos = box
    found = SEARCHES[certified](*box)
    assert np.all((lower <= found.scores) & (found.scores <= upper))
    if np.ptp(found.scores) == 0:
        assert math.isnan(found.value)
        return
    assert found.value == pytest.approx(yardstick.CORRELATIONS[certified](found.scores, mos))
    assert certified(*box) <= found.value + yardstick.ROUNDING


@yardstick.by_correlation
def test_the_search_meets_the_worst_of_small_sets(certified):
    rng = np.random.default_rng(15)
    missed = []
    for n in (4, 5, 6):
        for _ in range(15):
            box = yardstick.random_box(rng, n)
            missed.append(SEARCHES[certified](*box).value - yardstick.EXACT[certified](*box))
    assert np.mean(missed) < 0.01
    assert np.mean(np.array(missed) < 1e-3) > 0.85


@pytest.mark.parametrize(
    ("certified", "gap"),
    [(certified_srocc, 0.02), (certified_krocc, 0.06), (certified_plcc, 0.005)],
    ids=["srocc", "krocc", "plcc"],
)
def test_floor_and_lowest_found_are_close_on_a_set_of_two_hundred(certified, gap):
    rng = np.random.default_rng(16)
    mos = rng.uniform(size=200)
    centre, half = mos + 0.2 * rng.normal(size=200), rng.uniform(0.04, 0.1, 200)
    box = centre - half, centre + half, mos
    floor, found = certified(*box), SEARCHES[certified](*box).value
    assert floor <= found < floor + gap
    assert found < yardstick.CORRELATIONS[certified](centre, mos) - 0.05


@yardstick.by_correlation
def test_the_search_takes_infinite_ends_ties_and_single_points(certified):
    free = np.full(4, np.inf)
    assert SEARCHES[certified](-free, free, [1, 2, 3, 4]).value == pytest.approx(-1)
    assert math.isnan(SEARCHES[certified]([1, 1, 1], [1, 1, 1], [1, 2, 3]).value)
    lower, upper = np.arange(6.0), np.arange(6.0)
    upper[1], lower[4] = np.inf, -np.inf
    found = SEARCHES[certified](lower, upper, np.arange(6.0))
    assert np.isfinite(found.scores).all()
    assert certified(lower, upper, np.arange(6.0)) - yardstick.ROUNDING <= found.value < 0.5
    bounded = SEARCHES[certified](lower, upper, np.arange(6.0), hard_bounds=(0, 5))
    assert bounded.scores.min() >= 0
    assert bounded.scores.max() <= 5
    assert bounded.value >= found.value - yardstick.ROUNDING
    with pytest.raises(UserError, match="lower holds NaN"):
        SEARCHES[certified]([0, np.nan], [1, 1], [1, 2])
    with pytest.raises(UserError, match="equally long"):
        SEARCHES[certified]([0, 1], [1, 1, 1], [1, 2, 3])
