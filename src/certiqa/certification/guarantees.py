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

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from certiqa.certification.pearson_bounds import pearson_lower_bound
from certiqa.errors import UserError

Array = NDArray[np.float64]
Bounds = tuple[float, float] | None

ASSIGNMENT_LIMIT = 3000  # images; beyond, the assignment takes minutes and hardly ever improves on pairs


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
    D^2 = N(N^2 - 1)/12 and S = sum (r_i - m)(g_i - m), so that the correlation is S/(|r - m| G). Two
    relaxations bound S from below, for s and for every tie-break of s (a permutation that orders tied
    scores).

    *Pairs.* r_i - m is half the sum of sign(s_i - s_j) over j, so S is the sum over pairs of
    (g_i - g_j) sign(s_i - s_j)/2. Disjoint intervals fix the sign; any other pair counts >= -|g_i - g_j|/2.

    *Windows.* u_j < l_i forces s_j < s_i, so every tie-break has r_i >= 1 + #{u_j < l_i}, and likewise
    r_i <= N - #{l_j > u_i}. Average ranks are the mean of all tie-breaks, each a permutation within these
    windows, so they lie in the convex hull of such permutations, where the linear S is at least its minimum
    over the permutations themselves: a linear assignment problem, solved exactly.

    Let A be the greater of the two. The first forgets that an order is transitive, the second which images
    displace which; neither contains the other, and with many images the first is clearly tighter.

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

    Cost: pairs take O(N^2) time; the assignment a dense (N, N) matrix and up to O(N^3), so it is left out
    above 3,000 images.
    """
    lo, hi, y = _checked(lower, upper, mos, hard_bounds, correlation=True)
    n = len(y)
    g = rankdata(y) - (n + 1) / 2
    mos_norm = float(np.linalg.norm(g))
    longest = n * (n * n - 1) / 12  # squared norm of untied ranks
    averaged = g.copy()
    forced = _forced_ties(lo, hi)
    for group in forced:
        averaged[group] = g[group].mean()
        longest -= (len(group) ** 3 - len(group)) / 12

    least = _least_covariance(averaged, lo, hi)
    if least >= 0:
        return min(1.0, least / (np.sqrt(longest) * mos_norm)) if longest > 0 else -1.0
    values, counts = np.unique(y, return_counts=True)
    joint_ties = sum(_longest_ties(lo[y == value], hi[y == value]) for value in values[counts > 1])
    plain = _least_covariance(g, lo, hi) if forced else least
    bounds = [-1.0, plain / (np.sqrt(n * (n * n - 1) / 12 - joint_ties) * mos_norm)]
    shortest = n * (n * n - 1) / 12 - _longest_ties(lo, hi)
    if forced and shortest > 0:
        bounds.append(least / (np.sqrt(shortest) * mos_norm))
    return float(max(bounds))


def certified_krocc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> float:
    """Return a proven lower bound on Kendall's tau-b of MOS with any scores in the box.

    Arguments, range and errors are those of :func:`certified_srocc`; zero widths give tau-b itself.

    Proof. tau-b = P/sqrt((n0 - n1)(n0 - n2)) with n0 pairs in all, n1 tied in MOS, n2 tied in the scores, and
    P the agreeing minus the opposing pairs. Count +-1 for a pair of disjoint intervals (its order is known),
    0 for a pair tied in MOS or made of two single points at one value (f such pairs, tied in every vector),
    -1 for any other; call the sum A. If s ties x of the pairs counted -1, then P >= A + x and
    n0 - n2 <= n0 - f - x.

    *A >= 0.* P/sqrt(n0 - n2) >= (A + x)/sqrt(n0 - f - x) >= A/sqrt(n0 - f), so tau-b is at least
    A/sqrt((n0 - n1)(n0 - f)).

    *A < 0.* At most T further pairs, overlapping and tied in MOS, can be tied in s, so n0 - n2 >= B - x with
    B = n0 - f - T. Every -1 is among the pairs neither tied in MOS nor forced, hence -A <= B, so that
    (-A - x)/sqrt(B - x) falls with x, and tau-b is at least A/sqrt((n0 - n1) B).
    """
    lo, hi, y = _checked(lower, upper, mos, hard_bounds, correlation=True)
    n = len(y)
    least = mos_ties = forced = free_mos_ties = 0
    for i, above, below in _pairs(lo, hi):
        agree = np.sign(y[i + 1 :] - y[i]).astype(np.int64)
        tied = agree == 0
        point = (lo[i + 1 :] == hi[i]) & (hi[i + 1 :] == lo[i])
        free = ~(above | below | point)
        least += int(agree[above].sum()) - int(agree[below].sum()) - int(np.sum(free & ~tied))
        mos_ties += int(np.sum(tied))
        forced += int(np.sum(point))
        free_mos_ties += int(np.sum(free & tied))
    pairs = n * (n - 1) // 2
    untied = pairs - forced if least >= 0 else pairs - forced - free_mos_ties
    if untied <= 0:  # one constant vector is all there is
        return -1.0
    return float(np.clip(least / np.sqrt(float(pairs - mos_ties) * untied), -1.0, 1.0))


def certified_plcc(lower: ArrayLike, upper: ArrayLike, mos: ArrayLike, *, hard_bounds: Bounds = None) -> float:
    """Return a proven lower bound on Pearson's correlation of MOS with any raw scores in the box.

    It speaks of the raw scores: a curve refitted to perturbed scores is another statistic. An infinite end
    left after ``hard_bounds`` gives -1. Arguments, range and errors are those of :func:`certified_srocc`;
    zero widths give Pearson's correlation itself.

    Proof: `certiqa.certification.pearson_bounds`. The least covariance over the box is sum (mos_i - mean) *
    (lower_i or upper_i). Where it is >= 0 the greatest centred norm is bounded jointly with it, through any
    reference point; otherwise the worst vector is found by convex duality, and a Cauchy-Schwarz certificate
    is checked in closed form.
    """
    lo, hi, y = _checked(lower, upper, mos, hard_bounds, correlation=True)
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
        score_to_mos: monotone map (N,) -> (N,) from scores to MOS, fixed *before* these scores were seen; a
            curve fitted to the scores being certified would move with them. None: scores are in MOS units.
        hard_bounds: proven range of the metric; replaces infinite ends.

    Returns: A number >= 0 in squared MOS units; inf where an infinite end is left and not mapped to a finite
        value.

    Raises:
        UserError: NaN, lower > upper, lengths that differ, no image.

    Proof. (t - mos_i)^2 is convex in t, so on an interval it is largest at an end; a monotone map takes
    ends to ends; and the images' terms are independent, so all are at their worst at once.
    """
    lo, hi, y = _checked(lower, upper, mos, hard_bounds, correlation=False)
    if score_to_mos is not None:
        lo, hi = (np.asarray(score_to_mos(end), dtype=np.float64) for end in (lo, hi))
        if lo.shape != y.shape or np.isnan(lo).any() or np.isnan(hi).any():
            raise UserError(
                f"score_to_mos must map (N,) scores to (N,) numbers; it gave shape {lo.shape} for "
                f"{len(y)} scores, or NaN."
            )
    return float(np.mean(np.maximum((lo - y) ** 2, (hi - y) ** 2)))


def _checked(
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
        if not hard_bounds[0] < hard_bounds[1]:
            raise UserError(f"hard_bounds={hard_bounds} must be (low, high) with low < high.")
        lo[lo == -np.inf], hi[hi == np.inf] = hard_bounds
    wrong = (lo > hi) | (lo == np.inf) | (hi == -np.inf)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(
            f"the interval at position {i} is empty: lower {lo[i]:g}, upper {hi[i]:g}"
            + (f" (after hard_bounds={hard_bounds})." if hard_bounds is not None else ".")
        )
    return lo, hi, y


def _pairs(lower: Array, upper: Array) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield i and, for each j > i, whether interval j lies above or below interval i; no (N, N) array."""
    for i in range(len(lower) - 1):
        yield i, lower[i + 1 :] > upper[i], upper[i + 1 :] < lower[i]


def _least_covariance(g: Array, lower: Array, upper: Array) -> float:
    """Bound sum_i g_i r_i from below over the ranks r of all scores in the box; g is centred."""
    by_pairs = 0.0
    for i, above, below in _pairs(lower, upper):
        d = g[i + 1 :] - g[i]
        by_pairs += float(np.sum(np.where(above, d, np.where(below, -d, -np.abs(d))))) / 2
    n = len(g)
    if n > ASSIGNMENT_LIMIT:
        return by_pairs
    first = 1 + np.searchsorted(np.sort(upper), lower, side="left")
    last = np.searchsorted(np.sort(lower), upper, side="right")
    rank = np.arange(1, n + 1)
    cost = np.outer(2 * g, 2 * rank - (n + 1.0))  # whole numbers unless g was averaged: the solver is exact
    cost[(rank < first[:, None]) | (rank > last[:, None])] = np.inf
    row, column = linear_sum_assignment(cost)  # the ranks of any scores in the box are feasible
    return max(by_pairs, float(cost[row, column].sum()) / 4)


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
