"""Set guarantees of unusual input: infinite ends, hard bounds, sets that are too small or not numbers."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest

from certiqa.certification.guarantees import certified_mse, certified_plcc, certified_srocc
from certiqa.errors import UserError

_spec = importlib.util.spec_from_file_location("yardstick", Path(__file__).with_name("yardstick.py"))
yardstick = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(yardstick)


@yardstick.by_correlation
def test_an_abstention_counts_at_its_worst_and_hard_bounds_limit_it(certified):
    mos = np.arange(30.0)
    lower, upper = mos.copy(), mos.copy()
    lower[25], upper[25], upper[3] = -np.inf, np.inf, np.inf
    open_ended = certified(lower, upper, mos)
    bounded = certified(lower, upper, mos, hard_bounds=(0.0, 29.0))
    lower[25], upper[25], upper[3] = 0.0, 29.0, 29.0
    assert bounded == certified(lower, upper, mos)
    assert open_ended <= bounded + yardstick.ROUNDING
    assert 0.3 < bounded < 0.9
    if certified is certified_plcc:
        assert open_ended == -1
    else:
        assert open_ended > 0.3  # one image can only do so much to ranks
        lower[25], upper[25], upper[3] = -1e9, 1e9, 1e9
        assert open_ended == certified(lower, upper, mos)


@yardstick.by_correlation
def test_nothing_is_known_when_all_abstain(certified):
    free = np.full(6, np.inf)
    assert certified(-free, free, np.arange(6.0)) == -1


@pytest.mark.parametrize("certified", [*yardstick.CORRELATIONS, certified_mse], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("lower", "upper", "mos", "named"),
    [
        ([0, np.nan, 0], [1, 1, 1], [1, 2, 3], "lower holds NaN at position 1"),
        ([0, 0, 0], [1, 1, np.nan], [1, 2, 3], "upper holds NaN at position 2"),
        ([0, 0, 0], [1, 1, 1], [np.nan, 2, 3], "mos holds NaN at position 0"),
        ([0, 0, 0], [1, 1, 1], [1, np.inf, 3], "mos is infinite at position 1"),
        ([0, 2, 0], [1, 1, 1], [1, 2, 3], "position 1 is empty: lower 2, upper 1"),
        ([np.inf, 0, 0], [np.inf, 1, 1], [1, 2, 3], "position 0 is empty"),
        ([0, 0], [1, 1, 1], [1, 2, 3], r"shapes \(2,\), \(3,\) and \(3,\)"),
        ([[0, 0]], [[1, 1]], [[1, 2]], "one-dimensional"),
        ([], [], [], r"0 image\(s\) given"),
    ],
)
def test_bad_input_is_named(certified, lower, upper, mos, named):
    with pytest.raises(UserError, match=named):
        certified(lower, upper, mos)


@yardstick.by_correlation
def test_correlations_need_two_images_and_varying_mos(certified):
    with pytest.raises(UserError, match="at least 2"):
        certified([0.0], [1.0], [1.0])
    with pytest.raises(UserError, match="every MOS is 3"):
        certified([0.0, 1.0], [1.0, 2.0], [3.0, 3.0])


def test_bad_hard_bounds_and_maps_are_named():
    with pytest.raises(UserError, match=r"hard_bounds=\(1, 0\)"):
        certified_srocc([0, 1], [1, 2], [1, 2], hard_bounds=(1, 0))
    with pytest.raises(UserError, match="after hard_bounds"):
        certified_srocc([-np.inf, 1], [-3, 2], [1, 2], hard_bounds=(0, 5))
    for bounds in ((None, 1), (0, None), (0,), (np.nan, 1)):
        with pytest.raises(UserError, match="must be two numbers"):
            certified_srocc([0, 1], [1, 2], [1, 2], hard_bounds=bounds)
    with pytest.raises(UserError, match="score_to_mos"):
        certified_mse([0, 1], [1, 2], [1, 2], score_to_mos=lambda s: s[:1])
    with pytest.raises(UserError, match="score_to_mos must map 3 scores"):
        certified_mse([0], [1], [1], score_to_mos=lambda s: s[:1])


def test_a_map_that_turns_is_refused_and_one_that_does_not_is_taken():
    """Of 1 - s^2 on [-1, 1] the ends say 0, and the truth is 1."""
    with pytest.raises(UserError, match="must be monotone, but it rises from -1 to 0 and falls from 0 to 1"):
        certified_mse([-1, -1], [1, 1], [0, 0], score_to_mos=lambda s: 1 - s**2)
    with pytest.raises(UserError, match="must be monotone"):  # between the intervals is no less wrong: one map for all
        certified_mse([0, 3], [1, 4], [0, 0], score_to_mos=lambda s: np.abs(s - 2))
    lower, upper, mos = np.array([-2.0, 0.0, -np.inf]), np.array([1.0, 30.0, np.inf]), np.array([1.0, 3.0, 2.0])
    for rising in (lambda s: 5 / (1 + np.exp(-s)), lambda s: -5 / (1 + np.exp(-s)), np.zeros_like, np.sign):
        ends = np.array([rising(lower), rising(upper)])
        with np.errstate(over="ignore"):
            found = certified_mse(lower, upper, mos, score_to_mos=rising)
        assert found == pytest.approx(((ends - mos) ** 2).max(axis=0).mean())
    with np.errstate(divide="ignore"):
        assert certified_mse([0.0, 1.0], [1.0, 2.0], [0.0, 0.0], score_to_mos=np.log) == np.inf


def test_no_warnings_reach_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for certified in yardstick.CORRELATIONS:
            certified([0, 1, -np.inf, 2], [0, 1, 4, np.inf], [1, 2, 3, 3])
            certified([0, 0, 0], [0, 1, 1], [1, 2, 3])
            certified([1, 1, 1], [1, 1, 1], [1, 2, 3])
