"""Proven lower bounds over the orders that scores in a box can have; the combinatorial half of the guarantees.

Image i has its score in [lower_i, upper_i]. Image i is *below* j, i < j, where upper_i < lower_j: then s_i < s_j for
all scores in the box. Every other pair is *free*. These relations form an interval order, and a bound over all orders
that respect them is a bound over all scores in the box. (Touching intervals count as free, which costs little.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]

ASSIGNMENT_LIMIT = 3000  # images; beyond, the assignment takes minutes and hardly ever improves on the other two


def least_rank_covariance(g: Array, lower: Array, upper: Array) -> float:
    """Bound S = sum_i g_i r_i from below over the ranks r of all scores in the box.

    Args:
        g: centred weights, shape (N,): MOS ranks less their mean.
        lower: lower ends of the intervals, shape (N,), may be -inf.
        upper: upper ends, shape (N,), may be +inf.

    Returns: the greatest of three lower bounds on S; r are average ranks where scores tie.

    Average ranks are the mean of the ranks of all tie-breaks, and S is linear, so it is enough to bound S for orders
    without ties that put i before j wherever upper_i < lower_j. Three relaxations do so.

    *Initial sets* (`_by_initial_sets`; the tightest on all but tiny sets). Let X_p hold the p images that come
    first. As sum g = 0, S = -sum over p = 1..N-1 of g(X_p), where g(X) is the sum of g over X. Each X_p is an initial
    set: with an image it holds all that are below it. So S >= -sum_p max {g(X): X an initial set of p images}.
    Those sets are known exactly: let t be the greatest lower end in X. Images with upper < t are below the image that
    has it, hence in X (they are M_t), and the others of X have lower <= t <= upper (they are from O_t). Conversely M_t
    with any part of O_t is an initial set. So the maximum is, over t, g(M_t) plus the p - |M_t| greatest g in O_t.
    What is given up is that X_p lies within X_(p+1).

    *Pairs* (`_by_pairs`). r_i - (N+1)/2 is half the sum of sign(s_i - s_j) over j, so S is the sum over pairs of
    (g_i - g_j) sign(s_i - s_j)/2; a free pair counts >= -|g_i - g_j|/2. What is given up is that orders are transitive.

    *Windows* (`_by_windows`). r_i >= 1 + #{upper_j < lower_i} and r_i <= N - #{lower_j > upper_i}; the least S over the
    permutations within these windows is a linear assignment, solved exactly. What is given up is which images displace
    which.

    None contains another. For N images of equal interval width in line with MOS, W of them to a width, the loss per
    image is W^2/2 by pairs and by windows and W^2/4 by initial sets, where orders that lose 0.176 W^2 exist. Where MOS
    varies much within a width, the initial sets tend to the truth: the X_p then lie within each other by themselves.

    Cost: pairs and initial sets O(N^2) time and O(N) memory; the assignment up to O(N^3), only to ``ASSIGNMENT_LIMIT``.
    """
    bounds = [_by_pairs(g, lower, upper), _by_initial_sets(g, lower, upper)]
    if len(g) <= ASSIGNMENT_LIMIT:
        bounds.append(_by_windows(g, lower, upper))
    return max(bounds)


def pairs(lower: Array, upper: Array) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield i and, for each j > i, whether interval j lies above or below interval i; no (N, N) array."""
    for i in range(len(lower) - 1):
        yield i, lower[i + 1 :] > upper[i], upper[i + 1 :] < lower[i]


def _by_pairs(g: Array, lower: Array, upper: Array) -> float:
    total = 0.0
    for i, above, below in pairs(lower, upper):
        d = g[i + 1 :] - g[i]
        total += float(np.sum(np.where(above, d, np.where(below, -d, -np.abs(d))))) / 2
    return total


def _by_initial_sets(g: Array, lower: Array, upper: Array) -> float:
    """Return -sum_p max g(X) over initial sets X of p images; see `least_rank_covariance`."""
    order = np.argsort(-g, kind="stable")
    g, lower, upper = g[order], lower[order], upper[order]
    greatest = np.full(len(g) + 1, -np.inf)
    for t in np.unique(lower):
        within = upper < t  # M_t
        size, start = int(np.count_nonzero(within)), float(g[within].sum())
        sums = start + np.cumsum(g[(lower <= t) & ~within])  # O_t, greatest g first
        part = greatest[size + 1 : size + 1 + len(sums)]
        np.maximum(part, sums, out=part)
    return -float(greatest[1:-1].sum())


def _by_windows(g: Array, lower: Array, upper: Array) -> float:
    n = len(g)
    first = 1 + np.searchsorted(np.sort(upper), lower, side="left")
    last = np.searchsorted(np.sort(lower), upper, side="right")
    rank = np.arange(1, n + 1)
    cost = np.outer(2 * g, 2 * rank - (n + 1.0))  # whole numbers unless g was averaged: the solver is exact
    cost[(rank < first[:, None]) | (rank > last[:, None])] = np.inf
    row, column = linear_sum_assignment(cost)  # the ranks of any scores in the box are feasible
    return float(cost[row, column].sum()) / 4


def triples_apart(y: Array, lower: Array, upper: Array) -> float:
    """Return how many triples without a common open pair were found, in halves.

    A triple is (a, k, b) with a below b, y_a < y_k < y_b, and k free against both; its open pairs are (a, k) and
    (k, b). For every k the a are matched with the b (`_most_matches`), each used once. An open pair (i, j), y_i < y_j,
    could so be used twice: as (a, k) where k = j, and as (k, b) where k = i. Two ways prevent that, and the better one
    counts. *By halves*: every triple has weight 1/2. *By rank*: let q be the share of an image's free neighbours with
    lower y; the pair is left to j where q_i + q_j < 1 and to i otherwise. In line with MOS, q is about 1/2 everywhere
    and halves are as good; where MOS varies much within an interval's width, an image with q near 0 or 1 has few
    partners on one side, and the rule leaves it just as many on the other.
    """
    n = len(y)
    share = np.zeros(n)
    halves = 0
    for k in range(n):
        free = _free(lower, upper, k)
        halves += _most_matches(upper[free & (y < y[k])], lower[free & (y > y[k])])
        rivals = int(np.count_nonzero(free & (y != y[k])))
        share[k] = np.count_nonzero(free & (y < y[k])) / rivals if rivals else 0.5
    by_rank = 0
    for k in range(n):
        free, mine = _free(lower, upper, k), share + share[k] < 1
        by_rank += _most_matches(upper[free & (y < y[k]) & mine], lower[free & (y > y[k]) & ~mine])
    return max(halves / 2, float(by_rank))


def _free(lower: Array, upper: Array, k: int) -> NDArray[np.bool_]:
    """Return which images can be on either side of image k: overlapping, and not both a single point at one value."""
    point = (lower == upper[k]) & (upper == lower[k])
    return (lower <= upper[k]) & (upper >= lower[k]) & ~point


def _most_matches(ends: Array, starts: Array) -> int:
    """Return how many pairs end < start can be made of two lists, each entry used once.

    Proof. The b-th least start may take any of the c_b ends below it, and c_b rises with b, so that greedy matching is
    best: m_b = min(m_(b-1) + 1, c_b), whose last value is min(B, min_b (c_b + B - b)).
    """
    if not len(ends) or not len(starts):
        return 0
    under = np.searchsorted(np.sort(ends), np.sort(starts), side="left")
    return int(min(len(starts), np.min(under + np.arange(len(starts) - 1, -1, -1))))
