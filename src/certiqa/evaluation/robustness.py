"""Measures of what attacks did to scores: gains, robustness, distances between distributions of scores.

Every function takes arrays ``(N,)`` in native units and the metric's nominal range, the fixed scale of all of them (a
range fitted to the clean scores, as in the tables of the MSU benchmark, is ``fitted_range``). Gains are signed:
above zero where the attack raised quality, also of lower-is-better metrics. NaN where there is no image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from certiqa.errors import UserError

Array = NDArray[np.float64]
Range = tuple[float, float]
TINY = 1e-6


def _shares(clean: ArrayLike, attacked: ArrayLike, score_range: Range) -> tuple[Array, Array]:
    """Return both as shares of the range; attacked scores may leave [0, 1]."""
    first, second = np.asarray(clean, dtype=np.float64), np.asarray(attacked, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UserError(f"clean and attacked scores must be two (N,) arrays, got {first.shape} and {second.shape}")
    low, high = score_range
    if not high > low:
        raise UserError(f"the range of a metric must be (low, high) with low < high, got {score_range}")
    return (first - low) / (high - low), (second - low) / (high - low)


def fitted_range(clean: ArrayLike) -> Range:
    """Return (least, greatest) clean score: the scale of the MSU benchmark; a constant gets a width of 1.

    Raises:
        UserError: no score, or one that is not finite.
    """
    scores = np.asarray(clean, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise UserError(
            f"a range is fitted to at least one clean score, (N,) and all finite, got shape {scores.shape}; leave out "
            "images without a score, or give the metric's own range"
        )
    low, high = float(scores.min()), float(scores.max())
    return (low, high) if high > low else (low, low + 1.0)


def absolute_gain(clean: ArrayLike, attacked: ArrayLike, *, score_range: Range, lower_better: bool = False) -> Array:
    """Return each image's gain ``(N,)`` as a share of the range.

    >>> absolute_gain([2.0], [4.0], score_range=(1, 5)).tolist()
    [0.5]
    """
    first, second = _shares(clean, attacked, score_range)
    return (second - first) * (-1 if lower_better else 1)


def relative_gain(clean: ArrayLike, attacked: ArrayLike, *, score_range: Range, lower_better: bool = False) -> Array:
    """Return each image's gain ``(N,)`` over one plus its clean share, the normalised form of the MSU benchmark.

    NaN where the clean score is a whole range below the range or farther, a share of -1: there it has no meaning.
    """
    first, second = _shares(clean, attacked, score_range)
    over = np.where(first > -1, first + 1, np.nan)
    return (second - first) / over * (-1 if lower_better else 1)


def robustness_score(clean: ArrayLike, attacked: ArrayLike, *, score_range: Range) -> Array:
    """Return each image's R score ``(N,)``: log10 of the greatest possible change over the change there was.

    Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022; with
    the MSU benchmark's base 10 and 1e-6. Higher is more robust; a whole-range change is 0.
    """
    first, second = _shares(clean, attacked, score_range)
    return np.log10(np.maximum(1 - first, first) / (np.abs(second - first) + TINY))


def relative_gain_of_range(clean: ArrayLike, attacked: ArrayLike, *, score_range: Range) -> Array:
    """Return each image's change ``(N,)`` over the greatest possible one: RGO of Ran et al., arXiv 2402.17533."""
    first, second = _shares(clean, attacked, score_range)
    return np.abs(second - first) / np.maximum(np.maximum(1 - first, first), TINY)


def score_distance(
    clean: ArrayLike, attacked: ArrayLike, *, score_range: Range, lower_better: bool = False, kind: str = "wasserstein"
) -> float:
    """Return the signed distance between the two distributions of scores, as a share of the range.

    The sign is that of the mean gain. Which image changed is not seen: a permutation of the scores is at distance 0.

    Args:
        clean: ``(N,)`` scores before the attack.
        attacked: ``(N,)`` scores after it.
        score_range: of the metric.
        lower_better: of the metric.
        kind: "wasserstein" (order 1) or "energy".
    """
    first, second = _shares(clean, attacked, score_range)
    if not first.size:
        return float("nan")
    function = {"wasserstein": stats.wasserstein_distance, "energy": stats.energy_distance}.get(kind)
    if function is None:
        raise UserError(f"kind must be wasserstein or energy, got '{kind}'")
    sign = np.sign(second.mean() - first.mean()) * (-1 if lower_better else 1)
    return float(sign * function(first, second))


def mean_absolute_change(clean: ArrayLike, attacked: ArrayLike, *, score_range: Range) -> float:
    """Return the mean absolute change as a share of the range."""
    first, second = _shares(clean, attacked, score_range)
    return float(np.abs(second - first).mean()) if first.size else float("nan")


def neutralised(defended: ArrayLike, defended_attacked: ArrayLike, clean: ArrayLike, attacked: ArrayLike) -> float:
    """Return the share of an attack's effect that a defense removes: 1 - mean|dc - da| / mean|c - a|.

    NaN where there is no image, or the attack had no effect on the undefended metric.
    """
    dc, da, c, a = (np.asarray(values, dtype=np.float64) for values in (defended, defended_attacked, clean, attacked))
    if c.ndim != 1 or len({array.shape for array in (dc, da, c, a)}) != 1:
        shapes = ", ".join(str(array.shape) for array in (dc, da, c, a))
        raise UserError(f"scores must be four (N,) arrays of one length, got {shapes}")
    effect = float(np.abs(c - a).mean()) if c.size else 0.0
    return 1 - float(np.abs(dc - da).mean()) / effect if effect > 0 else float("nan")
