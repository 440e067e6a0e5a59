"""Correlations and errors, each against SciPy or a closed form."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from certiqa.errors import UserError
from certiqa.evaluation import (
    bootstrap_interval,
    fit_logistic4,
    krocc,
    logistic4,
    mean_interval,
    plcc,
    plcc_logistic,
    rmse,
    srocc,
)

# few distinct values, so that ties are the rule
columns = st.integers(2, 30).flatmap(lambda n: st.tuples(*[arrays(float, n, elements=st.integers(0, 6))] * 2))


@settings(deadline=None, max_examples=60)
@given(columns)
def test_correlations_equal_their_definitions_with_ties(pair):
    x, y = pair
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert all(np.isnan(measure(x, y)) for measure in (srocc, krocc, plcc))
        return
    centred = (x - x.mean()) @ (y - y.mean()) / np.sqrt(((x - x.mean()) ** 2).sum() * ((y - y.mean()) ** 2).sum())
    assert plcc(x, y) == pytest.approx(centred, abs=1e-12)
    assert srocc(x, y) == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1], abs=1e-12)
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    assert krocc(x, y) == pytest.approx((a @ b) / np.sqrt((a @ a) * (b @ b)), abs=1e-12)


def test_correlations_equal_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    assert srocc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert krocc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert srocc(-x, y) == pytest.approx(-srocc(x, y))
    assert rmse(x, y) == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-12)
    assert rmse([1, 2], [4, -2]) == pytest.approx(np.sqrt((9 + 16) / 2))


@pytest.mark.parametrize("measure", [srocc, krocc, plcc, plcc_logistic])
def test_an_undefined_correlation_is_nan_without_a_warning(measure):
    rising = np.arange(6.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in ((np.full(6, 0.1), rising), (rising, np.full(6, 0.1)), ([1.0], [2.0]), ([], [])):
            assert np.isnan(measure(x, y))
    assert np.isnan(rmse([], []))


def test_too_few_images_for_four_parameters():
    x = np.arange(5.0)
    assert np.isnan(plcc_logistic(x[:4], x[:4]))
    assert plcc_logistic(x, x) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("measure", [srocc, krocc, plcc, plcc_logistic, rmse])
def test_columns_of_other_shapes_are_refused(measure):
    with pytest.raises(UserError, match=r"\(3,\) and \(2,\)"):
        measure([1, 2, 3], [1, 2])
    with pytest.raises(UserError, match=r"\(1, 3\)"):
        measure([[1, 2, 3]], [[1, 2, 3]])


def test_the_logistic_and_its_fit():
    assert logistic4(3.0, 9, 1, 3, 2) == 5  # halfway at b3
    np.testing.assert_allclose(logistic4([-1e9, 1e9], 9, 1, 3, -2), [1, 9])
    x = np.linspace(0, 10, 60)
    np.testing.assert_allclose(
        logistic4(x, *fit_logistic4(x, logistic4(x, 4.5, 1.2, 6, 0.8))), logistic4(x, 4.5, 1.2, 6, 0.8)
    )
    b1, b2, b3, b4 = fit_logistic4(x, logistic4(x, 4.5, 1.2, 6, 0.8))
    np.testing.assert_allclose([b1, b2, b3, abs(b4)], [4.5, 1.2, 6, 0.8], rtol=1e-4)


def test_plcc_after_the_logistic_ignores_units_and_beats_plcc_on_a_curve():
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 10, 150)
    mos = logistic4(x, 5, 1, 5, 0.6) + rng.normal(0, 0.1, 150)
    fitted = plcc_logistic(x, mos)
    assert fitted > 0.99 > plcc(x, mos) + 0.03
    assert plcc_logistic(100 * x - 7, mos) == pytest.approx(fitted, abs=1e-4)
    assert plcc_logistic(-x, mos) == pytest.approx(fitted, abs=1e-4)  # the fit finds the direction itself
    assert plcc_logistic(x, 20 * mos + 3) == pytest.approx(fitted, abs=1e-4)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_of_a_mean_is_students(level):
    values = np.random.default_rng(4).normal(2, 3, 7)
    expected = stats.t.interval(level, 6, values.mean(), stats.sem(values))
    assert mean_interval(values, level) == pytest.approx(expected)
    assert mean_interval(values) == mean_interval(values, 0.95)


def test_the_interval_of_a_mean_covers_as_often_as_it_says_for_five_images():
    samples = np.random.default_rng(5).normal(3, 2, (4000, 5))
    low, high = np.array([mean_interval(sample) for sample in samples]).T
    inside = int(((low <= 3) & (high >= 3)).sum())
    assert 0.005 < stats.binom.cdf(inside, 4000, 0.95) < 0.995
    percentile = [bootstrap_interval(np.mean, sample, repeats=200) for sample in samples[:400]]
    assert np.mean([low <= 3 <= high for low, high in percentile]) < 0.9, "what the bootstrap falls short by"


def test_the_interval_of_a_mean_that_has_none_is_nan():
    for values in ([], [1.0], [1.0, np.nan, 2.0]):
        assert np.isnan(mean_interval(values)).all()
    assert mean_interval([2.0, 2.0]) == (2, 2)


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for repetition in range(120):
        sample = rng.normal(3, 1, 40)
        low, high = bootstrap_interval(
            lambda column: float(column.mean()), sample, level=0.8, repeats=150, seed=repetition
        )
        inside += low <= 3 <= high
    assert stats.binom.cdf(inside, 120, 0.76) > 1e-3  # the percentile bootstrap is a little short at n = 40
    assert stats.binom.sf(inside, 120, 0.84) > 1e-3


def test_bootstrap_rows_are_drawn_together_and_seeded():
    x = np.arange(30.0)
    assert bootstrap_interval(srocc, x, 2 * x, repeats=50) == pytest.approx((1, 1))
    noisy = x + 10 * np.random.default_rng(3).normal(size=30)
    first = bootstrap_interval(srocc, x, noisy, repeats=100, seed=1)
    assert first == bootstrap_interval(srocc, x, noisy, repeats=100, seed=1)
    assert first != bootstrap_interval(srocc, x, noisy, repeats=100, seed=2)
    low, high = bootstrap_interval(srocc, x, noisy, repeats=300, level=0.5)
    wider = bootstrap_interval(srocc, x, noisy, repeats=300, level=0.95)
    assert wider[0] < low < srocc(x, noisy) < high < wider[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(srocc, [1, 2, 3], [1, 2, 3, 4]), r"all of one length, got \(3,\), \(4,\)"),
        (lambda: bootstrap_interval(np.mean, 3.0), r"one entry for each image, .*got \(\)"),
        (lambda: bootstrap_interval(np.mean), "got none"),
        (lambda: bootstrap_interval(np.mean, [1, 2], level=95), r"must lie in \(0, 1\), e.g. 0.95, got 95"),
        (lambda: mean_interval([1, 2], level=1), r"must lie in \(0, 1\)"),
        (lambda: mean_interval([[1, 2]]), r"one \(N,\) array, got shape \(1, 2\)"),
        (lambda: fit_logistic4([1, 2, 3, 4, np.nan], [1, 2, 3, 4, 5]), "finite"),
        (lambda: fit_logistic4([1, 2], [1, 2]), "at least 4 images, got 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_measures_of_what_is_not_finite_are_nan(value):
    bad, good = [1.0, 2.0, value, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]
    for pair in ((bad, good), (good, bad)):
        assert np.isnan(plcc_logistic(*pair))
    assert np.isnan(bootstrap_interval(np.mean, [])).all()
    assert np.isnan(bootstrap_interval(plcc, [1.0, 1.0], [1.0, 2.0])).all()
