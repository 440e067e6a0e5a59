"""Measures of what a purifier undoes: the defense family of the MSU study of purification for quality metrics.

Four arrays ``(N,)`` of native scores: c of the clear images, a of the attacked ones, both by the undefended metric; dc
and da of the same images by the defended one. Gains here are means of absolute changes, so that they say nothing of a
direction and never cancel. c against da mixes what the attack still does with what the defense costs by itself; dc
against da is the attack alone; both stand side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certiqa.errors import UserError
from certiqa.evaluation.measures import srocc

Array = NDArray[np.float64]
TINY = 1e-6
PSNR_UNIT, PSNR_CAP = 40.0, 100.0  # dB


def _columns(*values: ArrayLike) -> list[Array]:
    arrays = [np.asarray(each, dtype=np.float64) for each in values]
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 1 or len(set(shapes)) != 1:
        raise UserError(f"scores must be (N,) arrays of one length, got {', '.join(map(str, shapes))}")
    return arrays


def purification_gains(
    clear: ArrayLike,
    attacked: ArrayLike,
    defended_clear: ArrayLike,
    defended_attacked: ArrayLike,
    *,
    score_range: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Return how far attacks move scores with and without a purifier; NaN where there is no image.

    Args:
        clear: ``(N,)`` scores of the clear images by the undefended metric.
        attacked: ``(N,)`` scores of the attacked images by the undefended metric.
        defended_clear: ``(N,)`` scores of the clear images by the defended metric.
        defended_attacked: ``(N,)`` scores of the attacked images by the defended metric.
        score_range: of the metric, the unit of the absolute gains; None leaves them in native units.

    Returns:
        ``nonpurified_*`` (c, a), ``robust_*`` (c, da) and ``both_defended_*`` (dc, da), each as ``abs_gain``, the mean
        of ``|first - second|`` over the range, and ``rel_gain``, the mean of ``|first - second| / (|first| + 1e-6)``
        in native units. The study divides by the score itself, which turns negative scores into negative gains.
    """
    c, a, dc, da = _columns(clear, attacked, defended_clear, defended_attacked)
    if score_range is not None and not score_range[1] > score_range[0]:
        raise UserError(f"the range of a metric must be (low, high) with low < high, got {score_range}")
    width = 1.0 if score_range is None else score_range[1] - score_range[0]
    found = {}
    for name, first, second in (("nonpurified", c, a), ("robust", c, da), ("both_defended", dc, da)):
        change = np.abs(first - second)
        found[f"{name}_abs_gain"] = _mean(change / width)
        found[f"{name}_rel_gain"] = _mean(change / (np.abs(first) + TINY))
    return found


def quality_score(ssim: ArrayLike, psnr: ArrayLike) -> float:
    """Return the mean of ``SSIM + PSNR / 40`` between clear images and what a purifier makes of (attacked) ones.

    A PSNR counts as at most 100 dB, which is what equal images have; pairs with a NaN are left out.

    >>> quality_score([1.0, 0.9], [float("inf"), 32.0])
    2.6
    """
    first, second = _columns(ssim, psnr)
    return _mean(first + np.minimum(second, PSNR_CAP) / PSNR_UNIT)


def purification_sroccs(
    mos: ArrayLike | None,
    clear: ArrayLike,
    attacked: ArrayLike,
    defended_clear: ArrayLike,
    defended_attacked: ArrayLike,
    *,
    lower_better: bool = False,
) -> dict[str, float]:
    """Return the SROCC family; opinion scores are always those of the clear images, NaN where one is undefined.

    Args:
        mos: opinion scores, higher is better; None where there are none, and what needs them is left out.
        clear: ``(N,)`` scores of the clear images by the undefended metric.
        attacked: ``(N,)`` scores of the attacked images by the undefended metric.
        defended_clear: ``(N,)`` scores of the clear images by the defended metric.
        defended_attacked: ``(N,)`` scores of the attacked images by the defended metric.
        lower_better: of the metric; scores are negated before their ranks meet those of the opinion scores.

    Returns:
        ``clear_srocc_mos`` (c), ``attacked_srocc_mos`` (a), ``robust_clear_srocc_mos`` (dc),
        ``robust_attacked_srocc_mos`` (da), and ``robust_clear_srocc_clear``, of dc with c: what purification costs
        where there is no attack.
    """
    scores = _columns(clear, attacked, defended_clear, defended_attacked)
    c, a, dc, da = (-each if lower_better else each for each in scores)
    kept = {"robust_clear_srocc_clear": srocc(c, dc)}
    if mos is None:
        return kept
    y, _ = _columns(mos, c)
    return kept | {
        "clear_srocc_mos": srocc(c, y),
        "attacked_srocc_mos": srocc(a, y),
        "robust_clear_srocc_mos": srocc(dc, y),
        "robust_attacked_srocc_mos": srocc(da, y),
    }


def _mean(values: Array) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
