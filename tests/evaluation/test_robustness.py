"""Measures of what attacks did, against arithmetic by hand and SciPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from certiqa.errors import UserError
from certiqa.evaluation import (
    absolute_gain,
    fitted_range,
    image_distances,
    mean_absolute_change,
    neutralised,
    relative_gain,
    relative_gain_of_range,
    robustness_score,
    score_distance,
)

CLEAN, ATTACKED, RANGE = [10.0, 50.0, 90.0], [30.0, 40.0, 110.0], (0.0, 100.0)
scores = st.lists(st.floats(0, 100), min_size=2, max_size=12)


def test_gains_by_hand():
    assert absolute_gain(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx([0.2, -0.1, 0.2])
    assert relative_gain(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx([0.2 / 1.1, -0.1 / 1.5, 0.2 / 1.9])
    assert mean_absolute_change(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx(0.5 / 3)
    assert relative_gain_of_range(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx(
        [0.2 / 0.9, 0.1 / 0.5, 0.2 / 0.9]
    )
    expected = [math.log10(0.9 / 0.200001), math.log10(0.5 / 0.100001), math.log10(0.9 / 0.200001)]
    assert robustness_score(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx(expected)


def test_an_attack_that_did_nothing():
    same = {"score_range": RANGE}
    assert absolute_gain(CLEAN, CLEAN, **same) == pytest.approx([0, 0, 0])
    assert robustness_score([0.0, 100.0], [0.0, 100.0], **same) == pytest.approx([6, 6])
    assert robustness_score([50.0], [50.0], **same) == pytest.approx([6 + math.log10(0.5)])
    assert score_distance(CLEAN, CLEAN, **same) == 0
    assert score_distance(CLEAN, CLEAN, kind="energy", **same) == 0


def test_distances_between_distributions_are_scipys_with_a_sign():
    shares = np.array(CLEAN) / 100, np.array(ATTACKED) / 100
    assert score_distance(CLEAN, ATTACKED, score_range=RANGE) == pytest.approx(stats.wasserstein_distance(*shares))
    down = score_distance(ATTACKED, CLEAN, score_range=RANGE, kind="energy")
    assert down == pytest.approx(-stats.energy_distance(*shares))
    assert score_distance(CLEAN, CLEAN[::-1], score_range=RANGE) == 0, "a permutation is not seen"
    shifted = [value + 7 for value in CLEAN]
    assert score_distance(CLEAN, shifted, score_range=RANGE) == pytest.approx(0.07)


@given(scores, st.data())
def test_mirrored_metrics_have_the_same_gains(clean, data):
    attacked = data.draw(st.lists(st.floats(0, 100), min_size=len(clean), max_size=len(clean)))
    flip = [100 - value for value in clean], [100 - value for value in attacked]
    up, down = {"score_range": RANGE}, {"score_range": RANGE, "lower_better": True}
    assert absolute_gain(*flip, **down) == pytest.approx(absolute_gain(clean, attacked, **up), abs=1e-12)
    assert score_distance(*flip, **down) == pytest.approx(score_distance(clean, attacked, **up), abs=1e-9)
    assert robustness_score(*flip, score_range=RANGE) == pytest.approx(
        robustness_score(clean, attacked, score_range=RANGE), abs=1e-6
    )


@given(scores, st.floats(0.1, 10), st.floats(-50, 50))
def test_a_fitted_range_makes_gains_independent_of_the_scale(clean, factor, offset):
    if np.ptp(clean) < 1e-3:
        return
    attacked = [value + 3 for value in clean]
    scaled = [factor * value + offset for value in clean], [factor * value + offset for value in attacked]
    one = absolute_gain(clean, attacked, score_range=fitted_range(clean))
    other = absolute_gain(*scaled, score_range=fitted_range(scaled[0]))
    assert other == pytest.approx(one, rel=1e-6)


def test_what_a_defense_removes():
    assert neutralised([1, 2], [1.5, 2.5], [1, 2], [3, 4]) == pytest.approx(1 - 0.5 / 2)
    assert math.isnan(neutralised([1, 2], [1, 2], [1, 2], [1, 2]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: absolute_gain(CLEAN, [1, 2], score_range=RANGE), r"\(3,\) and \(2,\)"),
        (lambda: robustness_score(CLEAN, ATTACKED, score_range=(1, 1)), "low < high"),
        (lambda: score_distance(CLEAN, ATTACKED, score_range=RANGE, kind="l2"), "wasserstein or energy"),
        (lambda: neutralised([1, 2], [1, 2], [1], [3]), r"one length, got \(2,\), \(2,\), \(1,\), \(1,\)"),
        (lambda: neutralised([[1, 2]], [[1, 2]], [[1, 2]], [[2, 2]]), r"got \(1, 2\)"),
        (lambda: fitted_range([]), r"at least one clean score, .*got shape \(0,\)"),
        (lambda: fitted_range([1.0, math.nan]), "all finite"),
        (lambda: image_distances(torch.rand(3, 8, 8), torch.rand(3, 8, 9)), r"\(3, 8, 8\) and \(3, 8, 9\)"),
        (lambda: image_distances(*torch.rand(2, 1, 3, 8, 8)), "one by one"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_what_has_no_meaning_is_nan():
    below = relative_gain([-100.0, -250.0, 0.0], [0.0, 0.0, 50.0], score_range=RANGE)
    np.testing.assert_array_equal(below, [math.nan, math.nan, 0.5])
    assert math.isnan(neutralised([], [], [], []))
    small = image_distances(torch.zeros(3, 6, 20), torch.ones(3, 6, 20) / 2)
    assert math.isnan(small.pop("ssim"))
    assert small["linf"] == 0.5


def test_distances_between_images():
    clean = torch.full((3, 16, 16), 0.5)
    attacked = clean.clone()
    attacked[0, 0, 0] = 0.75
    found = image_distances(clean, attacked)
    assert found["linf"] == pytest.approx(0.25)
    assert found["l2"] == pytest.approx(0.25)
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.0625 / 768))
    assert found["ssim"] < 1
    assert image_distances(clean, clean) == {"linf": 0, "l2": 0, "psnr": 100, "ssim": 1}
