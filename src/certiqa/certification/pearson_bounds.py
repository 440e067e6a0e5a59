"""Proven lower bounds on a Pearson correlation over a box of scores; the numerical half of `certified_plcc`.

Notation: y are centred opinion scores, s ranges over the box [lower_i, upper_i], C(s) = sum_i y_i s_i is N
times the covariance and |s - mean s| the centred norm, so that the correlation is C(s)/(|y| |s - mean s|).
Both bounds rest on a certificate that is checked in closed form: the searches only look for a good one, and
where they fail the bound gets worse, not wrong (all up to float64 rounding).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

Array = NDArray[np.float64]


def pearson_lower_bound(lower: Array, upper: Array, y: Array) -> float:
    """Bound the correlation with the centred, non-zero ``y`` from below over a finite box; all shapes (N,).

    The least covariance over the box is linear, hence in closed form; its sign decides which bound applies.
    """
    scale = max(float(np.max(upper) - np.min(lower)), np.finfo(float).tiny)
    shift = np.mean(lower + upper) / 2  # correlations ignore shift and scale; small numbers round less
    lower, upper = (lower - shift) / scale, (upper - shift) / scale
    y = y / np.max(np.abs(y))
    y = y / np.linalg.norm(y)
    terms = np.where(y >= 0, y * lower, y * upper)
    never_negative = np.sum(terms) >= -1e-15 * np.sum(np.abs(terms))  # zero, up to its own rounding, is zero
    bound = _when_never_negative(lower, upper, y) if never_negative else _when_negative(lower, upper, y)
    return float(np.clip(bound, -1.0, 1.0))


def _when_never_negative(lower: Array, upper: Array, y: Array) -> float:
    """Least C(s)/|s - mean s| over the box when C >= 0 on all of it, relaxed but proven.

    Proof: |s - mean s| <= |s - m| for every number m, so for any m the least C/sqrt(V), V = sum_i
    (s_i - m)^2, is a bound. C - r sqrt(V) is concave in s for r >= 0, so its least value lies at a corner of
    the box. A corner chooses one of two points (y_i s_i, (s_i - m)^2) for each i, and all sums of such
    choices lie in the Minkowski sum of the N segments between them. On that convex polygon C/sqrt(V) is least
    on the boundary of greatest V for given C, which starts at the corner of least C and takes the segments by
    falling slope dV/dC. On each edge C^2/V is convex, with its minimum in closed form.

    The bound is quasi-concave in m, as C - r |s - m| is concave in m, so a line search finds the best m. The
    gap to the truth is that between a sum of N two-point sets and its convex hull: it vanishes as N grows
    (Shapley-Folkman).
    """

    def bound(m: float) -> float:
        to_low, to_high = (lower - m) ** 2, (upper - m) ** 2
        rises = y > 0  # C is least at the lower end
        d_c = np.abs(y) * (upper - lower)
        d_v = np.where(rises, to_high - to_low, to_low - to_high)
        free = d_c <= 0  # moving this score costs nothing: take the larger V at once
        c = float(np.sum(np.where(rises, y * lower, y * upper)))
        v = float(np.sum(np.where(free, np.maximum(to_low, to_high), np.where(rises, to_low, to_high))))
        use = ~free & (d_v > 0)
        d_c, d_v = d_c[use], d_v[use]
        order = np.argsort(-d_v / d_c)
        d_c, d_v = d_c[order], d_v[order]
        c0, v0 = c + np.cumsum(d_c) - d_c, v + np.cumsum(d_v) - d_v  # where each edge starts
        step = np.clip(c0 / d_c - 2 * v0 / d_v, 0, 1)
        cs, vs = np.append(c0 + step * d_c, c), np.append(v0 + step * d_v, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(vs > 0, cs / np.sqrt(vs), 0.0)  # V = 0: a constant vector, and C = 0
        return max(0.0, float(np.min(ratio)))

    low, high = float(np.min(lower)), float(np.max(upper))
    start = float(np.mean(lower + upper) / 2)
    if high <= low:
        return -1.0  # every score is one constant: nothing to claim
    search = minimize_scalar(lambda m: -bound(m), bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return max(bound(float(search.x)), bound(start))


def _when_negative(lower: Array, upper: Array, y: Array) -> float:
    """Least C(s)/|s - mean s| over the box when C can be negative: exact up to the search, and proven.

    Proof: for any centred w with |w| <= 1, |s - mean s| >= w.s (Cauchy-Schwarz), so C(s) + a |s - mean
    s| >= sum_i (y_i + a w_i) s_i, whose least value over the box is in closed form. Where that is >= 0, no
    correlation lies below -a (|y| = 1). Since C(s) + a |s - mean s| is convex, the best w, the centred worst
    vector, loses nothing.

    The worst vector: a |s - mean s| is the least of a (|s - m|^2/t + t)/2 over numbers m and t > 0. For given
    m and k = t/a the minimiser is s_i = clip(m - k y_i, lower_i, upper_i): every score is pulled towards one
    line that falls with MOS. m is then the mean of s, t = |s - mean s|, and at the worst k, t^2 = -k C(s).
    """

    def stationarity(k: float) -> float:
        s = pulled_to_line(lower, upper, y, k)
        return float(np.sum((s - s.mean()) ** 2) + k * (y @ s))

    scale = 1 / float(np.ptp(y))  # the line then falls by the whole width of the (unit) box
    small, large = 1e-4 * scale, scale
    for _ in range(60):
        if stationarity(large) < 0:
            break
        large *= 2
    worst = brentq(stationarity, small, large, maxiter=500) if stationarity(small) > 0 > stationarity(large) else small
    for slack in 10.0 ** np.arange(-13, 0):  # a shade below the worst k the proof is strict
        k = worst * (1 - slack)
        s = pulled_to_line(lower, upper, y, k)
        s = s - s.mean()
        norm = float(np.linalg.norm(s))
        if norm == 0:
            break
        w = s / norm
        w = (w - w.mean()) / max(1.0, float(np.linalg.norm(w)))
        a = norm / k
        slope = y + a * w
        margin = np.where(slope >= 0, slope * lower, slope * upper)
        if np.sum(margin) >= 1e-15 * np.sum(np.abs(margin)):  # above what its own rounding could hide
            return -a
    return -1.0


def pulled_to_line(lower: Array, upper: Array, y: Array, k: float) -> Array:
    """Return clip(m - k y, lower, upper), m being its mean: scores pulled towards a line that falls with y.

    mean(clip(m - k y)) - m falls with m and is linear between the knots where a score meets an end.
    """
    starts, stops = lower + k * y, upper + k * y
    knots = np.concatenate([starts, stops])
    order = np.argsort(knots)
    knots = knots[order]
    moving = np.cumsum(np.where(order < len(y), 1, -1))
    total = np.sum(lower) + np.concatenate([[0.0], np.cumsum(moving[:-1] * np.diff(knots))])
    excess = total / len(y) - knots
    m = np.interp(0.0, -excess, knots)
    return np.clip(m - k * y, lower, upper)
