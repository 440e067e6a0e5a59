"""Order statistics that bound a smoothed score: which draws to read off, and how many draws that takes.

The base function f scores x + sigma*z, z standard normal; the smoothed metric M(x) is a median of these
scores. Two steps lead from n draws of f at x to an interval that holds M(x + u) for every ||u||_2 <= radius.

*From a perturbation to a percentile* (Chiang et al., "Detection as Regression: Certified Object Detection by
Median Smoothing", NeurIPS 2020, the theorem on percentile smoothing; DMS-IQA, arXiv 2411.12575, Theorem 1).
By Neyman-Pearson, an event of probability p at x has probability at most Phi(Phi^-1(p) + radius/sigma) at
x + u. Take p_lo = Phi(-radius/sigma): where f lies below y with probability less than p_lo at x, it does so
with probability less than 1/2 at x + u, so no median at x + u lies below the p_lo percentile at x. The same
holds above, with p_hi = Phi(radius/sigma). A linear f meets both bounds with equality.

*From a percentile to a draw* (distribution-free order-statistic intervals; David and Nagaraja, "Order
Statistics", section 7.1). Let h be the p_hi percentile at x. The q-th smallest of n draws lies below h only
if at least q draws do; each does with probability at most p_hi, so this happens with probability at most
P(Bin(n, p_hi) >= q), and P(Bin(n, p_hi) <= q - 1) > confidence makes the draw an upper bound. The lower side
is the mirror image. No property of f is used: atoms, clipping and low precision leave the proof as it is.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from certiqa.errors import UserError


def order_statistic_ranks(radius: float, sigma: float, num_samples: int, confidence: float) -> tuple[int, int]:
    """Return the 1-based ranks ``(lower, upper)`` of the draws that bound the score within ``radius``.

    With n draws and p = Phi(-+radius/sigma): ``upper`` is the smallest q in [ceil(n p_hi), n] with
    P(Bin(n, p_hi) <= q - 1) > confidence, ``lower`` the largest q in [1, floor(n p_lo)] with
    P(Bin(n, p_lo) >= q) > confidence. A side that no draw can bound has rank 0 or n + 1.

    Args:
        radius: l2 radius at the noise, in the units of sigma (pixels in [0, 1]); 0 bounds the clean median.
        sigma: standard deviation of the noise, > 0.
        num_samples: number of draws n, >= 1.
        confidence: probability that one side holds, in (0.5, 1); both hold with 2*confidence - 1.

    Raises:
        UserError: an argument is out of its range.

    Source: Chiang et al. 2020; DMS-IQA (arXiv 2411.12575), Theorem 1. Proof: at the head of this file.

    >>> order_statistic_ranks(radius=0.05, sigma=0.12, num_samples=1000, confidence=0.999)
    (293, 708)
    """
    _check_noise(sigma, confidence)
    _check_radius(radius)
    _check_num_samples(num_samples)
    n = int(num_samples)
    # Both sides are read off the small tail, as 1 - p_hi would lose digits at large radii:
    # P(Bin(n, p_hi) <= n - k) = P(Bin(n, p_lo) >= k). The largest k with that > confidence serves both.
    p_lo = float(ndtr(-radius / sigma))
    k = max(0, int(binom.isf(confidence, n, p_lo)))
    while k > 0 and binom.sf(k - 1, n, p_lo) <= confidence:  # isf is a starting point, the definition decides
        k -= 1
    while k < n and binom.sf(k, n, p_lo) > confidence:
        k += 1
    return min(k, math.floor(n * p_lo)), n + 1 - k


def randomised_ranks(
    radius: float, sigma: float, num_samples: int, confidence: float, toss: tuple[float, float]
) -> tuple[int, int]:
    """Return ranks one draw further in than ``order_statistic_ranks`` as often as the confidence allows.

    The deterministic ranks k and n + 1 - k hold with more than ``confidence``. Taking k + 1 with probability
    (1 - confidence - P(B <= k - 1)) / P(B = k), B ~ Bin(n, p_lo), spends the rest exactly: the order-statistic twin of
    the randomised Clopper-Pearson interval (Voracek, NeurIPS 2024, arXiv 2406.17830).

    Args:
        radius: as for ``order_statistic_ranks``.
        sigma: as for ``order_statistic_ranks``.
        num_samples: as for ``order_statistic_ranks``.
        confidence: as for ``order_statistic_ranks``.
        toss: two numbers in [0, 1), uniform and independent of the draws, one for each side.
    """
    lower, upper = order_statistic_ranks(radius, sigma, num_samples, confidence)
    chances = _chances_to_step_in(radius, sigma, int(num_samples), confidence, (lower, int(num_samples) + 1 - upper))
    return lower + (toss[0] < chances[0]), upper - (toss[1] < chances[1])


@lru_cache(maxsize=256)
def _chances_to_step_in(radius: float, sigma: float, n: int, confidence: float, ranks: tuple[int, int]) -> list[float]:
    p_lo = float(ndtr(-radius / sigma))
    spare = [1 - confidence - float(binom.cdf(rank - 1, n, p_lo)) for rank in ranks]
    return [
        left / float(binom.pmf(rank, n, p_lo)) if rank < n else 0.0 for left, rank in zip(spare, ranks, strict=True)
    ]


def certified_interval(
    scores: ArrayLike, radius: float | Sequence[float], sigma: float, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(lower, upper)``, bounds on the population median at every x + u with ||u||_2 <= radius.

    Each side holds with probability ``confidence``; a side no draw can bound is -inf or +inf, never the
    extreme of the sample. One set of draws serves every radius, but several radii hold *jointly* only at a
    confidence from ``joint_confidence_per_side``.

    Args:
        scores: draws of f(x + sigma*z), shape (..., n), any order along the last axis, any score units.
        radius: l2 radius at the noise, or a sequence of R radii.
        sigma: standard deviation of the noise the draws were made with.
        confidence: per side, in (0.5, 1).

    Returns:
        Two float64 arrays of shape (...), or (..., R) for a sequence of radii, in the units of the scores.

    Raises:
        UserError: no draws, NaN among the draws, or an argument out of its range.

    Source: Chiang et al. 2020; DMS-IQA (arXiv 2411.12575), Theorem 1.
    """
    draws = np.asarray(scores, dtype=np.float64)
    if draws.ndim == 0 or draws.shape[-1] == 0:
        raise UserError(f"scores has shape {draws.shape}; give at least one draw along the last axis.")
    if np.isnan(draws).any():
        raise UserError(
            f"{int(np.isnan(draws).sum())} of {draws.size} draws are NaN: the metric failed on noisy images; "
            "no bound can be read off such draws."
        )
    ends = np.full((*draws.shape[:-1], 1), np.inf)
    # rank r is index r of the padded draws, and ranks 0 and n + 1, "none", are the infinite ends
    padded = np.concatenate([-ends, np.sort(draws, axis=-1), ends], axis=-1)
    ranks = [
        order_statistic_ranks(r, sigma, draws.shape[-1], confidence)
        for r in np.atleast_1d(np.asarray(radius, dtype=np.float64))
    ]
    lower, upper = (padded[..., [pair[side] for pair in ranks]] for side in (0, 1))
    return (lower[..., 0], upper[..., 0]) if np.ndim(radius) == 0 else (lower, upper)


def percentile_shares(radius: float, sigma: float) -> tuple[float, float]:
    """Return (p_lo, p_hi) = Phi(-+radius/sigma): the shares of the draws below the percentiles that bounds estimate."""
    return float(ndtr(-radius / sigma)), float(ndtr(radius / sigma))


def median_interval(scores: ArrayLike, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(lower, upper)``, a confidence interval of the population median behind the draws themselves.

    This is ``certified_interval`` at radius 0: how far the median of the n draws, shape (..., n), may
    be from the quantity it estimates. Each side holds with probability ``confidence``, both with
    2*confidence - 1.

    Raises:
        UserError: as ``certified_interval``.

    Source: David and Nagaraja, "Order Statistics", section 7.1.
    """
    return certified_interval(scores, 0.0, 1.0, confidence)


def smallest_num_samples(radius: float, sigma: float, confidence: float) -> int:
    """Return the smallest number of draws for which both ranks exist.

    The lower rank exists when 1 - (1 - p_lo)^n > confidence and n p_lo >= 1, and the upper one whenever the
    lower does. Units and ranges are those of ``order_statistic_ranks``.

    Raises:
        UserError: an argument is out of its range, or radius/sigma is so large that no number of draws helps.
    """
    _check_noise(sigma, confidence)
    _check_radius(radius)
    p_lo = float(ndtr(-radius / sigma))
    needed = max(math.log1p(-confidence) / math.log1p(-p_lo), 1 / p_lo) if p_lo > 1e-300 else math.inf
    if needed > 1e12:  # decades of computing, and past what the binomial tail resolves
        raise UserError(
            f"radius {radius:g} is {radius / sigma:.3g} sigma at sigma {sigma:g}: more than 1e12 draws "
            "would be needed. Lower the radius or raise sigma."
        )
    n = max(1, math.ceil(needed))
    while not _certifiable(radius, sigma, n, confidence):
        n += 1
    while n > 1 and _certifiable(radius, sigma, n - 1, confidence):
        n -= 1
    return n


def largest_radius(num_samples: int, sigma: float, confidence: float) -> float:
    """Return the largest l2 radius (at the noise) that ``num_samples`` draws certify on both sides.

    It solves 1 - (1 - p)^n = confidence (or n p = 1 where that asks for more) for p = Phi(-radius/sigma),
    and is stepped down by rounding errors until ``order_statistic_ranks`` has both ranks. Units are
    those of sigma.

    Raises:
        UserError: an argument is out of its range, or so few draws do not even bound the clean median.
    """
    _check_noise(sigma, confidence)
    _check_num_samples(num_samples)
    if not _certifiable(0.0, sigma, num_samples, confidence):
        raise UserError(
            f"num_samples={num_samples} draws certify no radius at all at confidence {confidence}; "
            f"at least {smallest_num_samples(0.0, sigma, confidence)} are needed."
        )
    p_lo = max(-math.expm1(math.log1p(-confidence) / num_samples), 1 / num_samples)
    radius = max(0.0, -sigma * float(ndtri(p_lo)))
    step = 1e-16
    while not _certifiable(radius, sigma, num_samples, confidence):
        radius = max(0.0, radius - sigma * step)
        step *= 2
    return radius


def validate_request(radii: float | Sequence[float], sigma: float, num_samples: int, confidence: float) -> None:
    """Refuse, before any image is scored, a request whose outcome is already known to be abstention.

    Args:
        radii: one l2 radius or several, at the noise (a radius at the input times the Lipschitz constant of
            whatever comes before the noise).
        sigma: standard deviation of the noise.
        num_samples: draws per image.
        confidence: per side, in (0.5, 1); give the joint one where joint intervals are wanted.

    Raises:
        UserError: an argument is out of its range, or ``num_samples`` draws cannot certify one of the
            radii; the text then says how many draws could, and how far these draws reach.
    """
    _check_noise(sigma, confidence)
    _check_num_samples(num_samples)
    for radius in np.atleast_1d(np.asarray(radii, dtype=np.float64)).tolist():
        _check_radius(radius)
        if not _certifiable(radius, sigma, num_samples, confidence):
            needed = smallest_num_samples(radius, sigma, confidence)
            if _certifiable(0.0, sigma, num_samples, confidence):
                farthest = largest_radius(num_samples, sigma, confidence)
                reach = f"{num_samples} draws reach radius {farthest:.4g} at most"
            else:
                reach = f"{num_samples} draws certify no radius at all"
            raise UserError(
                f"radius {radius:g} cannot be certified with num_samples={num_samples} at sigma {sigma:g} "
                f"and confidence {confidence} per side: it takes num_samples>={needed}, and {reach}. "
                "Raise num_samples or sigma, or lower the radius or the confidence."
            )


def joint_confidence_per_side(joint_confidence: float, num_images: int, num_radii: int = 1) -> float:
    """Return the per-side confidence 1 - (1 - J)/(2 N R) at which all intervals hold together with J.

    Proof: N images at R radii have 2 N R sides, each failing with probability at most (1 - J)/(2 N R); by the
    union bound some side fails with probability at most 1 - J, however the sides depend on one another.

    Raises:
        UserError: ``joint_confidence`` is outside (0, 1), or a count is below 1.
    """
    if not 0 < joint_confidence < 1:
        raise UserError(f"joint_confidence={joint_confidence} must lie in (0, 1), e.g. 0.95.")
    if num_images < 1 or num_radii < 1:
        raise UserError(f"num_images={num_images} and num_radii={num_radii} must both be at least 1.")
    return 1 - (1 - joint_confidence) / (2 * num_images * num_radii)


def _certifiable(radius: float, sigma: float, num_samples: int, confidence: float) -> bool:
    lower, upper = order_statistic_ranks(radius, sigma, num_samples, confidence)
    return lower >= 1 and upper <= num_samples


def _check_noise(sigma: float, confidence: float) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise UserError(f"sigma={sigma} must be a positive number (pixel units, images in [0, 1]), e.g. 0.12.")
    if not 0.5 < confidence < 1:
        raise UserError(f"confidence={confidence} is per side and must lie in (0.5, 1), e.g. 0.999.")


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise UserError(f"radius={radius} must be a finite number >= 0 (l2, pixel units), e.g. 0.05.")


def _check_num_samples(num_samples: int) -> None:
    if not isinstance(num_samples, numbers.Integral) or num_samples < 1:
        raise UserError(f"num_samples={num_samples} must be a whole number of draws, at least 1, e.g. 1000.")
