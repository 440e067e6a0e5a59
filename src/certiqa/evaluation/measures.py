"""Correlation and error between scores and opinion scores, in float64 and with SciPy.

Every function takes arrays ``(N,)`` and returns a float; NaN where a correlation is undefined (constant
input or fewer than two images). Signs are as given: pass ``-score`` for a lower-is-better metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from certiqa.errors import UserError

Array = NDArray[np.float64]


def _pair(scores: ArrayLike, mos: ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UserError(f"scores and opinion scores must be two (N,) arrays, got {first.shape} and {second.shape}")
    return first, second


def _correlation(function: Callable[[Array, Array], tuple[float, float]], scores: ArrayLike, mos: ArrayLike) -> float:
    first, second = _pair(scores, mos)
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(function(first, second)[0])


def srocc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Spearman's rank-order correlation, average ranks for ties.

    >>> round(srocc([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]), 4)
    0.9487
    """
    return _correlation(stats.spearmanr, scores, mos)


def krocc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Kendall's tau-b."""
    return _correlation(stats.kendalltau, scores, mos)


def plcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Pearson's linear correlation of the raw scores."""
    return _correlation(stats.pearsonr, scores, mos)


def logistic4(scores: ArrayLike, b1: float, b2: float, b3: float, b4: float) -> Array:
    """Four-parameter logistic ``(b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2`` (VQEG, 2000; ITU-R BT.500)."""
    exponent = -(np.asarray(scores, dtype=np.float64) - b3) / max(abs(b4), 1e-12)
    return (b1 - b2) / (1.0 + np.exp(np.clip(exponent, -500, 500))) + b2


def fit_logistic4(scores: ArrayLike, mos: ArrayLike) -> Array:
    """Fit ``logistic4`` by least squares; returns its four parameters.

    The fit starts from the field's usual guess (extremes of MOS, mean and deviation of the scores).

    Raises:
        UserError: fewer than four images, or values that are not finite.
        RuntimeError: the fit does not converge.
    """
    first, second = _pair(scores, mos)
    if first.size < 4 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError(
            f"a logistic of four parameters is fitted to at least 4 images, got {first.size}, all scores and opinion "
            "scores finite; leave out those that are not"
        )
    spread = float(np.std(first)) or 1.0
    start = [float(second.max()), float(second.min()), float(np.mean(first)), spread]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        parameters, _ = optimize.curve_fit(logistic4, first, second, p0=start, maxfev=20_000)
    return np.asarray(parameters, dtype=np.float64)


def plcc_logistic(scores: ArrayLike, mos: ArrayLike) -> float:
    """PLCC after the four-parameter logistic fitted on the same data.

    NaN where the fit does not converge, for fewer than five images, and where a value is not finite.
    """
    first, second = _pair(scores, mos)
    finite = bool(np.isfinite(first).all() and np.isfinite(second).all())
    if first.size < 5 or not finite or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    try:
        return plcc(logistic4(first, *fit_logistic4(first, second)), second)
    except RuntimeError:
        return float("nan")


def rmse(scores: ArrayLike, mos: ArrayLike) -> float:
    """Root mean squared error, in the units of the inputs, which must be the same: see ``score_to_mos``."""
    first, second = _pair(scores, mos)
    return float(np.sqrt(np.mean((first - second) ** 2))) if first.size else float("nan")


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of a mean: ``mean -+ t sd / sqrt(N)``, N - 1 degrees of freedom (Student, 1908).

    Exact for values from a normal distribution, whatever N is, where a percentile bootstrap is too narrow for few
    images; the MSU benchmark gives this interval with its gains.

    Args:
        values: ``(N,)``, one for each image.
        level: coverage of the two-sided interval, in (0, 1).

    Returns:
        its two ends, NaN for fewer than two values or where one of them is NaN.

    Raises:
        UserError: values of another shape, or a level that is not in (0, 1).

    >>> tuple(round(end, 3) for end in mean_interval([1.0, 2.0, 3.0]))
    (-0.484, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UserError(f"values must be one (N,) array, got shape {array.shape}")
    _check_level(level)
    if array.size < 2:
        return float("nan"), float("nan")
    reach = stats.t.ppf((1 + level) / 2, array.size - 1) * np.std(array, ddof=1) / np.sqrt(array.size)
    return float(array.mean() - reach), float(array.mean() + reach)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval must lie in (0, 1), e.g. 0.95, got {level}")


def bootstrap_interval(
    measure: Callable[..., float], *columns: ArrayLike, level: float = 0.95, repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``measure(*columns)`` over images (rows drawn together, with replacement).

    Args:
        measure: takes the resampled columns, returns a float.
        columns: arrays with one entry per image.
        level: coverage of the two-sided interval.
        repeats: number of resamples.
        seed: of the resampling.

    Returns:
        its two ends, NaN where there is no image or the measure is NaN for every resample.

    Raises:
        UserError: no column, columns of several lengths, or a level that is not in (0, 1).
    """
    arrays = [np.asarray(column) for column in columns]
    if len({array.shape[:1] for array in arrays}) != 1 or not arrays[0].ndim:
        shapes = ", ".join(str(array.shape) for array in arrays) or "none"
        raise UserError(f"the columns of a bootstrap need one entry for each image, all of one length, got {shapes}")
    _check_level(level)
    generator = np.random.default_rng(seed)
    size = len(arrays[0])
    if not size:
        return float("nan"), float("nan")
    values = []
    for _ in range(repeats):
        rows = generator.integers(0, size, size)
        values.append(measure(*(array[rows] for array in arrays)))
    tail = (1 - level) / 2
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
