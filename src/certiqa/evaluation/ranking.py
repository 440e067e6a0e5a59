"""What an attack did to the ranking of a set: every measure against the opinion scores and against the clean scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from certiqa.evaluation.measures import bootstrap_interval, krocc, plcc, rmse, srocc

Array = NDArray[np.float64]


def mae(scores: Array, reference: Array) -> float:
    """Return the mean absolute difference, in the units of both."""
    return float(np.abs(scores - reference).mean()) if len(scores) else math.nan


MEASURES: dict[str, Callable[..., float]] = {"srocc": srocc, "krocc": krocc, "plcc": plcc, "rmse": rmse, "mae": mae}
ERRORS = ("rmse", "mae")
REPEATS = 1000
LARGE = 3000  # images


def interval_of(name: str, scores: Array, reference: Array) -> tuple[float, float]:
    """Return the 95 % interval that ``certiqa.evaluation.bootstrap_interval`` gives, all resamples at once."""
    size = len(scores)
    if size > LARGE:  # where the matrices below would fill the memory
        return bootstrap_interval(MEASURES[name], scores, reference)
    drawn = np.random.default_rng(0).integers(0, size, (REPEATS, size))
    if name == "krocc":
        # how often each image was drawn weighs the pairs that it is in
        counts = np.stack([np.bincount(rows, minlength=size) for rows in drawn]).astype(np.float64)
        signs = [np.sign(values[:, None] - values[None, :]) for values in (scores, reference)]
        concordant, untied, untied_reference = (
            ((counts @ matrix) * counts).sum(1) for matrix in (signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2)
        )
        values = _ratio(concordant, np.sqrt(untied * untied_reference))
    elif name in ERRORS:
        gaps = (scores - reference)[drawn]
        values = np.sqrt((gaps**2).mean(1)) if name == "rmse" else np.abs(gaps).mean(1)
    else:
        first, second = scores[drawn], reference[drawn]
        if name == "srocc":
            first, second = rankdata(first, axis=1), rankdata(second, axis=1)
        first, second = (matrix - matrix.mean(1, keepdims=True) for matrix in (first, second))
        values = _ratio((first * second).sum(1), np.sqrt((first**2).sum(1) * (second**2).sum(1)))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def ranking_figures(
    clean: Array,
    attacked: Array,
    unrounded: Array,
    mos: Array | None = None,
    to_mos: Callable[[Array], Array] | None = None,
) -> dict[str, float]:
    """Return five measures of attacked scores, with 95 % bootstrap intervals over images.

    Args:
        clean: ``(n,)`` scores before, higher = better.
        attacked: after, as they are scored: rounded to 8 bits where the attack rounds.
        unrounded: after, before that rounding.
        mos: opinion scores, None where there are none.
        to_mos: takes scores to the units of the opinion scores; without it there are no errors against them.

    Returns:
        ``<measure>_with_mos`` and ``<measure>_with_clean`` for srocc, krocc, plcc, rmse and mae, each also with
        ``_low``, ``_high``, ``_unrounded``, and those with opinion scores ``_before``. Errors with the clean scores are
        in native units.
    """
    figures: dict[str, float] = {}
    for name, measure in MEASURES.items():
        kinds: dict[str, tuple[Array, Callable[[Array], Array] | None]] = {"clean": (clean, None)}
        if mos is not None and (name not in ERRORS or to_mos is not None):
            kinds["mos"] = (mos, to_mos if name in ERRORS else None)
        for kind, (reference, mapped) in kinds.items():
            key = f"{name}_with_{kind}"
            before, after, smooth = (mapped(x) if mapped else x for x in (clean, attacked, unrounded))
            figures[key] = measure(after, reference)
            figures[f"{key}_low"], figures[f"{key}_high"] = interval_of(name, after, reference)
            figures[f"{key}_unrounded"] = measure(smooth, reference)
            if kind == "mos":
                figures[f"{key}_before"] = measure(before, reference)
    return figures
