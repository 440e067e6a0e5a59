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
    """
    first, second = _pair(scores, mos)
    spread = float(np.std(first)) or 1.0
    start = [float(second.max()), float(second.min()), float(np.mean(first)), spread]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        parameters, _ = optimize.curve_fit(logistic4, first, second, p0=start, maxfev=20_000)
    return np.asarray(parameters, dtype=np.float64)


def plcc_logistic(scores: ArrayLike, mos: ArrayLike) -> float:
    """PLCC after the four-parameter logistic fitted on the same data; NaN where the fit does not converge."""
    first, second = _pair(scores, mos)
    if first.size < 5 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    try:
        return plcc(logistic4(first, *fit_logistic4(first, second)), second)
    except RuntimeError:
        return float("nan")


def rmse(scores: ArrayLike, mos: ArrayLike) -> float:
    """Root mean squared error, in the units of the inputs, which must be the same: see ``score_to_mos``."""
    first, second = _pair(scores, mos)
    return float(np.sqrt(np.mean((first - second) ** 2))) if first.size else float("nan")


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
    """
    arrays = [np.asarray(column) for column in columns]
    generator = np.random.default_rng(seed)
    size = len(arrays[0])
    values = []
    for _ in range(repeats):
        rows = generator.integers(0, size, size)
        values.append(measure(*(array[rows] for array in arrays)))
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
