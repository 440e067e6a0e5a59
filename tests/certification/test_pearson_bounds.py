"""The numerical half of the guarantee on PLCC: its line, and that a negative bound is attained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from certiqa.certification.pearson_bounds import pearson_lower_bound, pulled_to_line
from certiqa.certification.worst_case import worst_plcc


def box_of(seed, n=40, half=0.5):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    centre, widths = y + 0.3 * rng.normal(size=n), half * rng.uniform(0, 2, n)
    return centre - widths, centre + widths, y - y.mean()


@given(st.integers(0, 10**6), st.sampled_from([1e-4, 0.1, 0.7, 1.0, 3.0, 1e4]), st.sampled_from([2, 3, 40]))
@settings(max_examples=80, deadline=None)
def test_scores_are_pulled_to_a_line_through_their_own_mean(seed, slope, n):
    lower, upper, y = box_of(seed, n)
    s = pulled_to_line(lower, upper, y, slope)
    np.testing.assert_allclose(s, np.clip(s.mean() - slope * y, lower, upper), atol=1e-9 * (1 + slope))


@pytest.mark.parametrize("half", [2.0, 3.0])
def test_a_negative_bound_is_attained(half):
    """Scores inside the box that correlate as the bound says prove that no better bound is possible."""
    for seed in range(5):
        lower, upper, y = box_of(seed, half=half)
        bound = pearson_lower_bound(lower, upper, y)
        scores = worst_plcc(lower, upper, y).scores
        assert np.all((lower <= scores) & (scores <= upper))
        assert -1 < bound < 0
        assert bound - 1e-12 <= pearsonr(scores, y)[0] <= bound + 1e-6
