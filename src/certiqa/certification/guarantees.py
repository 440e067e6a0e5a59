"""Guarantees for a whole set: the worst correlation (or error) that certified intervals leave possible.

Given an interval for every image's score, each function bounds its statistic over *every* score vector in
the box of intervals, so whatever each image's perturbation within the radius is, also a coordinated one.
With joint intervals (`joint_confidence_per_side`) the result holds with the joint confidence. The bounds
are deterministic statements about the box, proven below up to float64 rounding, with ties in the scores and
in the opinion scores (MOS).

An infinite end counts at its worst; `hard_bounds` replaces it where the metric's range is proven. A
correlation of a constant score vector is undefined: the bounds speak of the vectors where it is defined.
For a metric where lower is better, pass (-upper, -lower).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from certiqa.certification.order_bounds import least_rank_covariance, triples_apart
from certiqa.certification.pearson_bounds import pearson_lower_bound
from certiqa.errors import UserError

Array = NDArray[np.float64]
Bounds = tuple[float, float] | None


def certified_srocc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> float:
    """Return a proven lower bound on Spearman's correlation of MOS with any scores in the box.

    Args:
        lower: lower ends, shape (N,), score units; -inf allowed.
        upper: upper ends, shape (N,); +inf allowed.
        mos: opinion scores, shape (N,), any units, not constant.
        hard_bounds: proven range of the metric; replaces infinite ends.

    Returns:
        A number in [-1, 1]; Spearman's correlation itself where every interval has zero width.

    Raises:
        UserError: NaN, lower > upper, lengths that differ, fewer than 2 images, constant MOS.

    Proof. Let r be the average ranks of scores s in the box, g those of MOS, m = (N+1)/2, G = |g - m|,
    D^2 = N(N^2 - 1)/12 and S = sum (r_i - m)(g_i - m), so that the correlation is S/(|r - m| G). Let A be the bound
    on S of ``least_rank_covariance``, for s and for every tie-break of s (a
    permutation that orders tied scores).

    *A >= 0.* |r - m| <= D, as ties only shorten r, so the correlation is at least A/(D G).

    *A < 0.* Take the tie-break of s that opposes MOS most. In a group of t tied scores it lowers S by
    W = (1/t) sum over pairs of (rank difference)(MOS rank difference). MOS ranks are at least as far apart in
    the whole set as ranked within the group, so W >= (t^3 - t)/12 - sum (c^3 - c)/12, where c are the sizes
    of the sets within the group that MOS ties too. With x the sum of all W: S >= A + x, and
    |r - m|^2 = D^2 - sum (t^3 - t)/12 >= D^2 - Y - x, where Y bounds the joint ties. An image's joint tie is
    no larger than the greatest number w of intervals of its MOS group that share a point of its own, and sum
    (c^3 - c) is the sum of c^2 - 1 over images, so Y = sum (w^2 - 1)/12 over images will do. Let B = D^2 - Y,
    which is >= G^2. As long as -A <= B, (-A - x)/sqrt(B - x) falls with x, so x = 0 is the worst and the
    correlation is at least A/(sqrt(B) G); where -A > B that number is below -1 anyway.

    *Forced ties.* Single points at one value always share one rank, so g may first be averaged over each such
    group (S stays the same, A can only rise), and D^2 in the case A >= 0 loses (t^3 - t)/12 for each. If A is
    still < 0, |r - m|^2 >= D^2 - sum (w^2 - 1)/12 with w over all images, which bounds the correlation at
    once; the better of this and of the bound without averaging is returned.

    What is left open is told by ``worst_srocc``, a vector in the box, so that the
    true least correlation lies between the two. Cost: O(N^2) time.
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    n = len(y)
    g = rankdata(y) - (n + 1) / 2
    mos_norm = float(np.linalg.norm(g))
    longest = n * (n * n - 1) / 12  # squared norm of untied ranks
    averaged = g.copy()
    forced = _forced_ties(lo, hi)
    for group in forced:
        averaged[group] = g[group].mean()
        longest -= (len(group) ** 3 - len(group)) / 12

    least = least_rank_covariance(averaged, lo, hi)
    if least >= 0:
        return min(1.0, least / (np.sqrt(longest) * mos_norm)) if longest > 0 else -1.0
    values, counts = np.unique(y, return_counts=True)
    joint_ties = sum(_longest_ties(lo[y == value], hi[y == value]) for value in values[counts > 1])
    plain = least_rank_covariance(g, lo, hi) if forced else least
    bounds = [-1.0, plain / (np.sqrt(n * (n * n - 1) / 12 - joint_ties) * mos_norm)]
    shortest = n * (n * n - 1) / 12 - _longest_ties(lo, hi)
    if forced and shortest > 0:
        bounds.append(least / (np.sqrt(shortest) * mos_norm))
    return float(max(bounds))


def certified_krocc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> float:
    """Return a proven lower bound on Kendall's tau-b of MOS with any scores in the box.

    Arguments, range and errors are those of ``certified_srocc``; zero widths give tau-b itself.

    Proof. tau-b = P/sqrt((n0 - n1)(n0 - n2)) with n0 pairs in all, n1 tied in MOS, n2 tied in the scores, and
    P = sum of sign(s_i - s_j) sign(mos_i - mos_j) over pairs. A pair of disjoint intervals counts +-1 (its order
    is known), one tied in MOS or made of two single points at one value (f such pairs, tied in every vector) counts 0,
    and any other, an *open* pair, counts -1, 0 or 1.

    *Triples.* An open pair at -1 is all that a pair alone can promise, but not all of them can be -1 at once. Let a
    lie below b (disjoint intervals), mos_a < mos_k < mos_b, and both (a, k) and (k, b) be open. Whatever s_k is,
    s_k > s_a or s_k < s_b, so the two together count >= 0 instead of -2, and >= 1 where one of them is tied. Triples
    that share no open pair add up; `triples_apart` finds many. Let A be the sum of the known pairs, less the number of
    open pairs, plus 2 for each triple. If s ties x of the open pairs, then P >= A + x and n0 - n2 <= n0 - f - x.

    *A >= 0.* P/sqrt(n0 - n2) >= (A + x)/sqrt(n0 - f - x) >= A/sqrt(n0 - f), so tau-b is at least
    A/sqrt((n0 - n1)(n0 - f)).

    *A < 0.* At most T further pairs, overlapping and tied in MOS, can be tied in s, so n0 - n2 >= B - x with
    B = n0 - f - T. -A is at most the number of pairs neither tied in MOS nor forced, hence -A <= B, so that
    (-A - x)/sqrt(B - x) falls with x, and tau-b is at least A/sqrt((n0 - n1) B).
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    n = len(y)
    twice = mos_ties = forced = free_mos_ties = 0  # pairs are met twice, once from each end
    for k in range(n):
        above, below = lo > hi[k], hi < lo[k]
        agree = np.sign(y - y[k]).astype(np.int64)
        tied = agree == 0
        point = (lo == hi[k]) & (hi == lo[k])
        free = ~(above | below | point)
        twice += int(agree[above].sum()) - int(agree[below].sum()) - int(np.sum(free & ~tied))
        mos_ties += int(np.sum(tied)) - 1
        forced += int(np.sum(point & (np.arange(n) != k)))
        free_mos_ties += int(np.sum(free & tied & (np.arange(n) != k)))
    pairs = n * (n - 1) // 2
    least = twice // 2 + round(2 * triples_apart(y, lo, hi))
    mos_ties, forced, free_mos_ties = mos_ties // 2, forced // 2, free_mos_ties // 2
    untied = pairs - forced if least >= 0 else pairs - forced - free_mos_ties
    if untied <= 0:  # one constant vector is all there is
        return -1.0
    return float(np.clip(least / np.sqrt(float(pairs - mos_ties) * untied), -1.0, 1.0))


def certified_plcc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> float:
    """Return a proven lower bound on Pearson's correlation of MOS with any raw scores in the box.

    It speaks of the raw scores: a curve refitted to perturbed scores is another statistic. An infinite end
    left after ``hard_bounds`` gives -1. Arguments, range and errors are those of ``certified_srocc``;
    zero widths give Pearson's correlation itself.

    Proof: `certiqa.certification.pearson_bounds`. The least covariance over the box is sum (mos_i - mean) *
    (lower_i or upper_i). Where it is >= 0 the greatest centred norm is bounded jointly with it, through any
    reference point; otherwise the worst vector is found by convex duality, and a Cauchy-Schwarz certificate
    is checked in closed form.
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=True)
    if np.isinf(lo).any() or np.isinf(hi).any():
        return -1.0
    return pearson_lower_bound(lo, hi, y - y.mean())


def certified_mse(
    lower: ArrayLike,
    upper: ArrayLike,
    mos: ArrayLike,
    *,
    score_to_mos: Callable[[Array], ArrayLike] | None = None,
    hard_bounds: Bounds = None,
) -> float:
    """Return the greatest mean squared error between MOS and any mapped scores in the box, exactly.

    Args:
        lower: lower ends, shape (N,), score units; -inf allowed.
        upper: upper ends, shape (N,); +inf allowed.
        mos: opinion scores, shape (N,); one image is enough and constant MOS is fine here.
        score_to_mos: monotone map from scores to MOS, element by element of an array of any length, fixed *before*
            these scores were seen; a curve fitted to the scores being certified would move with them. None: scores
            are in MOS units.
        hard_bounds: proven range of the metric; replaces infinite ends.

    Returns: A number >= 0 in squared MOS units; inf where an infinite end is left and not mapped to a finite
        value.

    Raises:
        UserError: NaN, lower > upper, lengths that differ, no image, or a map that is found to rise and to fall
            between the ends of the intervals.

    Proof. (t - mos_i)^2 is convex in t, so on an interval it is largest at an end; a monotone map takes
    ends to ends; and the images' terms are independent, so all are at their worst at once.
    """
    lo, hi, y = checked_box(lower, upper, mos, hard_bounds, correlation=False)
    if score_to_mos is not None:
        ends = lo, hi
        lo, hi = (np.asarray(score_to_mos(end), dtype=np.float64) for end in ends)
        if lo.shape != y.shape or np.isnan(lo).any() or np.isnan(hi).any():
            raise UserError(
                f"score_to_mos must map (N,) scores to (N,) numbers; it gave shape {lo.shape} for "
                f"{len(y)} scores, or NaN."
            )
        _check_monotone(score_to_mos, *ends)
    return float(np.mean(np.maximum((lo - y) ** 2, (hi - y) ** 2)))


def _check_monotone(score_to_mos: Callable[[Array], ArrayLike], lower: Array, upper: Array) -> None:
    """Raise UserError where the map both rises and falls over all finite ends and the points midway between them."""
    ends = np.concatenate([lower, upper])
    ends = np.unique(ends[np.isfinite(ends)])
    grid = np.sort(np.concatenate([ends, ends[:-1] + np.diff(ends) / 2]))
    if len(grid) < 3:
        return
    mapped = np.asarray(score_to_mos(grid), dtype=np.float64)
    if mapped.shape != grid.shape or np.isnan(mapped).any():
        raise UserError(
            f"score_to_mos must map {len(grid)} scores to as many numbers; it gave shape {mapped.shape}, or NaN."
        )
    with np.errstate(invalid="ignore"):
        steps = np.nan_to_num(np.diff(mapped), nan=0.0, posinf=np.inf, neginf=-np.inf)  # NaN: from infinite to infinite
    rounding = 1e-9 * np.abs(mapped[np.isfinite(mapped)]).max(initial=0)
    if steps.max() > rounding and steps.min() < -rounding:
        rises, falls = int(np.argmax(steps)), int(np.argmin(steps))
        raise UserError(
            f"score_to_mos must be monotone, but it rises from {grid[rises]:g} to {grid[rises + 1]:g} and falls from "
            f"{grid[falls]:g} to {grid[falls + 1]:g}; give a map that does one of the two."
        )


def checked_box(
    lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, hard_bounds: Bounds, *, correlation: bool
) -> tuple[Array, Array, Array]:
    """Return the three arrays as float64 with infinite ends replaced, or say what is wrong with them."""
    lo, hi, y = (np.array(a, dtype=np.float64) for a in (lower, upper, mos))
    if not (lo.ndim == hi.ndim == y.ndim == 1 and len(lo) == len(hi) == len(y)):
        raise UserError(
            f"lower, upper and mos must be one-dimensional and equally long; "
            f"they have shapes {lo.shape}, {hi.shape} and {y.shape}."
        )
    fewest = 2 if correlation else 1
    if len(y) < fewest:
        raise UserError(f"{len(y)} image(s) given; this guarantee needs at least {fewest}.")
    for name, values in (("lower", lo), ("upper", hi), ("mos", y)):
        if np.isnan(values).any():
            raise UserError(f"{name} holds NaN at position {int(np.argmax(np.isnan(values)))}.")
    if not np.isfinite(y).all():
        raise UserError(f"mos is infinite at position {int(np.argmax(~np.isfinite(y)))}.")
    if correlation and np.all(y == y[0]):
        raise UserError(f"every MOS is {y[0]:g}: a correlation with constant opinion scores is undefined.")
    if hard_bounds is not None:
        ends = [end for end in hard_bounds if isinstance(end, numbers.Real)]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise UserError(
                f"hard_bounds={hard_bounds} must be two numbers (low, high) with low < high; -inf or inf where nothing "
                "is proven on one side."
            )
        lo[lo == -np.inf], hi[hi == np.inf] = hard_bounds
    wrong = (lo > hi) | (lo == np.inf) | (hi == -np.inf)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(
            f"the interval at position {i} is empty: lower {lo[i]:g}, upper {hi[i]:g}"
            + (f" (after hard_bounds={hard_bounds})." if hard_bounds is not None else ".")
        )
    return lo, hi, y


def _longest_ties(lower: Array, upper: Array) -> float:
    """Return sum_i (w_i^2 - 1)/12, w_i the greatest number of intervals that share a point of interval i.

    Ties take no more than this from the squared norm of the centred ranks.
    """
    starts = np.sort(lower)  # the number of intervals over a point is greatest at some lower end
    ends = np.sort(upper)
    depth = np.searchsorted(starts, starts, side="right") - np.searchsorted(ends, starts, side="left")
    first = np.searchsorted(starts, lower, side="left")
    last = np.searchsorted(starts, upper, side="right")
    window = np.stack([first, last], axis=1)
    w = np.maximum.reduceat(np.append(depth, 0), window.ravel())[::2].astype(np.float64)
    return float(np.sum(w**2 - 1)) / 12


def _forced_ties(lower: Array, upper: Array) -> list[NDArray[np.int64]]:
    """Return the groups of two or more intervals that are single points at one value."""
    points = np.flatnonzero(lower == upper)
    values, counts = np.unique(lower[points], return_counts=True)
    return [points[lower[points] == value] for value in values[counts > 1]]
