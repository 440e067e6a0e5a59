"""The fixed map from scores to opinion scores, and the errors that are counted through it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certiqa.evaluation import score_to_mos
from certiqa.metrics import QualityMetric


def metric(score_range, lower_better=False):
    made = QualityMetric()
    made.score_range, made.lower_better = score_range, lower_better
    return made


def test_the_range_is_laid_on_the_scale():
    line = score_to_mos(metric((0.0, 100.0)), (1.0, 5.0))
    assert line([0.0, 25.0, 100.0, 125.0]).tolist() == [1.0, 2.0, 5.0, 6.0]
    turned = score_to_mos(metric((0.0, 100.0), lower_better=True), (1.0, 5.0))
    assert turned([0.0, 25.0, 100.0, 125.0]).tolist() == [5.0, 4.0, 1.0, 0.0]
    assert turned([-math.inf, math.inf]).tolist() == [math.inf, -math.inf]


@given(st.floats(-1e9, 1e9), st.floats(-50, 50), st.floats(0.1, 50))
def test_equal_ranges_leave_every_score_as_it_is(score, low, width):
    scale = (low, low + width)
    assert score_to_mos(metric(scale), scale)(np.array([score]))[0] == score


@pytest.mark.parametrize("broken", [None, (1.0, 1.0), (5.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_without_two_ranges_there_is_no_map(broken):
    assert score_to_mos(metric(broken), (1.0, 5.0)) is None
    assert score_to_mos(metric((1.0, 5.0)), broken) is None
