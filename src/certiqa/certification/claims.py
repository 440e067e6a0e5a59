"""The test of a guarantee's claim: what attacked medians prove wrong about certified intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from certiqa.certification.guarantees import certified_krocc, certified_plcc, certified_srocc

FLOORS = {"srocc": certified_srocc, "krocc": certified_krocc, "plcc": certified_plcc}


def refuted(lower: ArrayLike, upper: ArrayLike, low: ArrayLike, high: ArrayLike, mos: ArrayLike) -> list[str]:
    """Return what an attack proves wrong, nothing where it proves nothing.

    A certificate speaks of the median behind the draws, and an attacked median is an estimate too. So an image counts
    only where the whole interval of its attacked median lies outside the certified one; and a floor only where it is
    above every correlation that scores within the attacked intervals can have (the negated floor of the negated
    scores). If the certified intervals hold and those of the attacked medians do, nothing is ever returned, so that a
    finding by chance has at most the sum of the two failure probabilities.

    Args:
        lower: certified lower ends, shape (N,).
        upper: certified upper ends, shape (N,).
        low: lower ends of the two-sided intervals of the attacked medians, shape (N,).
        high: their upper ends, shape (N,).
        mos: opinion scores, shape (N,).

    Returns:
        "image <row>" and "certified <statistic>" for each claim that cannot be true.

    Raises:
        UserError: as ``certiqa.certification.certified_srocc``.
    """
    certified = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    attacked = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    found = []
    for name, floor in FLOORS.items():
        highest = -floor(-attacked[1], -attacked[0], mos)
        if floor(*certified, mos) > highest + 1e-9:
            found.append(f"certified {name}")
    outside = (attacked[0] > certified[1]) | (attacked[1] < certified[0])
    return [f"image {row}" for row in np.flatnonzero(outside)] + found
