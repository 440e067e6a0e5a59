"""What an attack did to the ranking of a set: every measure against the opinion scores and against the clean scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from certiqa.evaluation.measures import bootstrap_interval, krocc, plcc, rmse, srocc

Array = NDArray[np.float64]


def mae(scores: Array, reference: Array) -> float:
    """Return the mean absolute difference, in the units of both."""
    return float(np.abs(scores - reference).mean()) if len(scores) else math.nan


MEASURES: dict[str, Callable[..., float]] = {"srocc": srocc, "krocc": krocc, "plcc": plcc, "rmse": rmse, "mae": mae}
ERRORS = ("rmse", "mae")


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
            figures[f"{key}_low"], figures[f"{key}_high"] = bootstrap_interval(measure, after, reference)
            figures[f"{key}_unrounded"] = measure(smooth, reference)
            if kind == "mos":
                figures[f"{key}_before"] = measure(before, reference)
    return figures
