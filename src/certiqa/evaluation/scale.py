"""The one map from a metric's scores to the units of the opinion scores, fixed before any score is seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certiqa.metrics import QualityMetric

Array = NDArray[np.float64]
Range = tuple[float, float]


def score_to_mos(metric: QualityMetric, mos_range: Range | None) -> Callable[[ArrayLike], Array] | None:
    """Return the straight line that takes a metric's nominal range onto the scale of the opinion scores.

    ``share = (score - low) / (high - low)`` of ``metric.score_range``, turned round (``1 - share``) where lower is
    better, and ``mos = mos_low + share * (mos_high - mos_low)``. It is decided by the two nominal ranges alone and
    never by the data: a curve fitted to scores would move with them, and errors certified through it would say nothing.
    The identity where a higher-is-better metric has the range of the opinion scores.

    Args:
        metric: gives the range and the direction.
        mos_range: scale (low, high) of the opinion scores, in their units.

    Returns:
        A monotone function of scores ``(N,)`` in native units that returns ``(N,)`` in units of the opinion scores;
        infinite scores stay infinite, scores outside the nominal range land outside the scale. None where either range
        is missing or has no positive, finite width.
    """
    if metric.score_range is None or mos_range is None:
        return None
    (low, high), (mos_low, mos_high) = metric.score_range, mos_range
    if not (0 < high - low < math.inf and 0 < mos_high - mos_low < math.inf):
        return None
    # slope and intercept rather than shares: two equal ranges give exactly 1 and 0
    slope = metric.quality_sign * (mos_high - mos_low) / (high - low)
    intercept = mos_low - slope * (high if metric.lower_better else low)
    return lambda scores: slope * np.asarray(scores, dtype=np.float64) + intercept
