"""How low can a correlation get within certified intervals? A search for score vectors: the other side of a guarantee.

A guarantee (`certified_srocc` and its like) is a number that no scores in the box of intervals can go below. What is
found here is a score vector in the box, hence a number that the true least correlation cannot be above. The truth lies
between the two, and the difference is how loose the guarantee can be at most. It is a statement about the intervals:
whether an attack can reach every point of the box at once is another matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from certiqa.certification.guarantees import Array, Bounds, checked_box
from certiqa.certification.pearson_bounds import pulled_to_line

MOVES = 60_000  # images tried at other places of the order, at most; each costs O(N) time


@dataclass(frozen=True)
class Worst:
    """The lowest correlation found, and scores that have it.

    Attributes:
        value: in [-1, 1]; NaN where every vector tried is constant, so that it has no correlation.
        scores: shape (N,), within the intervals, finite.
    """

    value: float
    scores: Array


def worst_srocc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> Worst:
    """Return scores within the intervals whose Spearman correlation with MOS is as low as could be found.

    Arguments and errors are those of ``certiqa.certification.certified_srocc``. Deterministic.

    Starts: images whose MOS is high go to their lower ends and the others to their upper ends, split at several levels;
    and neighbours whose intervals share a point are put into reverse order, block by block. From the three lowest
    single images are moved to their best place among the others, within their intervals, until no move helps.
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    g = rankdata(y) - (len(y) + 1) / 2
    return _worst_order(lo, hi, y, lambda i, others: g[i] - g[others], lambda s: _of(spearmanr, s, y))


def worst_krocc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> Worst:
    """Return scores within the intervals whose Kendall tau-b with MOS is as low as found; see ``worst_srocc``."""
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    return _worst_order(lo, hi, y, lambda i, others: np.sign(y[i] - y[others]), lambda s: _of(kendalltau, s, y))


def worst_plcc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> Worst:
    """Return scores within the intervals whose Pearson correlation with MOS is as low as could be found.

    Arguments and errors are those of ``certiqa.certification.certified_plcc``. Where the correlation stays
    positive the worst vector is a corner of the box: found by Dinkelbach's iteration, with the concave rest replaced by
    its tangent. Where it can be negative the worst vector is pulled to a line that falls with MOS.
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    lo, hi = _finite(lo, hi, beyond=1e4)
    shift = float(np.mean(lo + hi)) / 2  # correlations ignore it, and small numbers round less
    y = y - y.mean()

    def value(s: Array) -> float:
        return _of(pearsonr, s, y)

    def along(log_k: float) -> float:
        found = value(pulled_to_line(lo, hi, y, float(np.exp(log_k))))
        return 1.0 if np.isnan(found) else found

    width = max(float(np.max(hi) - np.min(lo)), np.finfo(float).tiny) / float(np.ptp(y))
    slopes = np.log(width * np.geomspace(1e-4, 1e4, 33))
    steepest = int(np.argmin([along(k) for k in slopes]))
    around = slopes[max(0, steepest - 1)], slopes[min(len(slopes) - 1, steepest + 1)]
    slope = float(minimize_scalar(along, bounds=around, method="bounded").x)
    candidates = [pulled_to_line(lo, hi, y, float(np.exp(k))) for k in (slope, slopes[steepest])]
    for start in _splits(lo, hi, y):
        corner = _steepest_corner(lo - shift, hi - shift, y, start - shift)
        candidates += [start, np.clip(corner + shift, lo, hi)]
    return _lowest(candidates, value)


def _steepest_corner(lower: Array, upper: Array, y: Array, s: Array) -> Array:
    """Lower the correlation from corner to corner until it stays, then by single images until no one helps."""
    for _ in range(100):
        centred = s - s.mean()
        norm = float(np.linalg.norm(centred))
        if norm == 0:
            break
        slope = y - (y @ s) / norm**2 * centred
        moved = np.where(slope > 0, lower, np.where(slope < 0, upper, s))
        if np.array_equal(moved, s):
            break
        s = moved
    for _ in range(2 * len(s)):
        total, squares, least = float(s.sum()), float(s @ s), float(y @ s)
        best, at = _ratio(least, total, squares, len(s)) - 1e-12, None
        for ends in (lower, upper):
            step = ends - s
            ratio = _ratio(least + y * step, total + step, squares + ends**2 - s**2, len(s))
            if ratio.min() < best:
                best, at = float(ratio.min()), (int(np.argmin(ratio)), ends)
        if at is None:
            break
        s = s.copy()
        s[at[0]] = at[1][at[0]]
    return s


def _ratio(covariance: Any, total: Any, squares: Any, count: int) -> Any:
    """Return covariance over the centred norm, from sums over the scores; 2 or more where they are constant."""
    spread = squares - total**2 / count
    return np.where(spread > 1e-12 * squares, covariance / np.sqrt(np.maximum(spread, 1e-300)), np.inf)


def _worst_order(
    lower: Array,
    upper: Array,
    mos: Array,
    pulls: Callable[[int, NDArray[np.intp]], Array],
    value: Callable[[Array], float],
) -> Worst:
    """Search orders; ``pulls(i, others)`` says what each pair adds to the statistic when i is above the other."""
    lower, upper = _finite(lower, upper)
    starts = [*_splits(lower, upper, rankdata(mos)), *_blocks(lower, upper, mos)]
    starts = sorted(starts, key=lambda s: np.nan_to_num(value(s), nan=2.0))
    found = list(starts)
    for start in starts[:3]:
        order = _improved(np.lexsort((-mos, start)), lower, upper, pulls)
        found.append(scores_in_order(order, lower, upper))
    return _lowest(found, value)


def _improved(
    order: NDArray[np.intp], lower: Array, upper: Array, pulls: Callable[[int, NDArray[np.intp]], Array]
) -> NDArray[np.intp]:
    """Move single images to their best place until no move helps, or ``MOVES`` were tried."""
    n = len(order)
    for _ in range(max(1, MOVES // n)):
        still = True
        for i in order.copy():
            at = int(np.flatnonzero(order == i)[0])
            others = np.delete(order, at)
            above_all = np.flatnonzero(upper[others] <= lower[i])  # touching: could be passed by no more than a tie
            below_all = np.flatnonzero(lower[others] >= upper[i])
            first = int(above_all[-1]) + 1 if len(above_all) else 0
            last = int(below_all[0]) if len(below_all) else n - 1
            if not first <= at <= last:  # tied with what it touches
                continue
            cost = np.concatenate([[0.0], np.cumsum(pulls(int(i), others[first:last]))])
            best = first + int(np.argmin(cost))
            if cost[best - first] < cost[at - first] - 1e-9:
                order = np.insert(others, best, i)
                still = False
        if still:
            break
    return order


def scores_in_order(order: NDArray[np.intp], lower: Array, upper: Array) -> Array:
    """Return scores within the intervals that rise along ``order``, which must put i before j where upper_i < lower_j.

    The greatest lower end so far and the least upper end from here on both rise, and the first is never above the
    second; a point between them that moves from the first towards the second rises strictly, except where they meet.
    """
    floor = np.maximum.accumulate(lower[order])
    ceiling = np.minimum.accumulate(upper[order][::-1])[::-1]
    share = np.arange(1, len(order) + 1) / (len(order) + 1)
    scores = np.empty(len(order))
    scores[order] = np.clip(floor + share * (ceiling - floor), floor, ceiling)
    return scores


def _splits(lower: Array, upper: Array, mos: Array) -> Iterator[Array]:
    """Yield corners that put high MOS at lower ends and low MOS at upper ends, split in several ways."""
    middle = rankdata(lower + upper)
    expected = (middle - middle.mean()) / max(float(np.std(middle)), 1e-12)
    opinion = (mos - mos.mean()) / np.std(mos)
    for tilt in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield np.where(opinion > tilt * expected, lower, upper)
    for steepness in (0.5, 4.0):
        yield pulled_to_line(lower, upper, opinion, steepness * float(np.max(upper) - np.min(lower)) / 4)


def _blocks(lower: Array, upper: Array, mos: Array) -> Iterator[Array]:
    """Yield scores that reverse MOS in each block of neighbours with a common point, the first block full or cut."""
    along = np.argsort(lower + upper, kind="stable")  # no image is below one before it

    def end_of(start: int) -> int:
        common = np.maximum.accumulate(lower[along[start:]]) < np.minimum.accumulate(upper[along[start:]])
        return start + (len(common) if common.all() else max(1, int(np.argmin(common))))

    for share in (1.0, 0.75, 0.5, 0.25):
        ends = [0, max(1, int(share * end_of(0)))]
        while ends[-1] < len(along):
            ends.append(end_of(ends[-1]))
        blocks = [along[start:end] for start, end in itertools.pairwise(ends)]
        order = np.concatenate([block[np.argsort(-mos[block], kind="stable")] for block in blocks])
        yield scores_in_order(order, lower, upper)


def _finite(lower: Array, upper: Array, beyond: float = 1.0) -> tuple[Array, Array]:
    """Replace infinite ends by numbers outside all finite ones, by ``beyond`` times their span."""
    ends = np.concatenate([lower, upper])
    ends = ends[np.isfinite(ends)]
    low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 1.0)
    span = beyond * ((high - low) or 1.0)
    return np.where(np.isinf(lower), low - span, lower), np.where(np.isinf(upper), high + span, upper)


def _of(statistic: Callable[[Array, Array], tuple[float, float]], scores: Array, mos: Array) -> float:
    """Return a correlation, NaN for constant scores."""
    return float(statistic(scores, mos)[0]) if np.ptp(scores) > 0 else np.nan


def _lowest(candidates: list[Array], value: Callable[[Array], float]) -> Worst:
    values = [value(s) for s in candidates]
    best = int(np.argmin(np.nan_to_num(values, nan=2.0)))
    return Worst(values[best], candidates[best])
