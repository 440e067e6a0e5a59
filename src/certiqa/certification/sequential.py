"""Fewer draws for the same proof: intervals that hold at every look, so that one may stop once they are narrow.

Draws are looked at when there are n_1 < n_2 < ... < n_K of them. A stop that depends on the data voids ranks computed
for one fixed n, so the ranks here are valid at all looks *together*.

*The proof.* Let h be the p-percentile of the scores f(x + sigma z) and S_n the number of the first n draws below it.
The q-th smallest of n draws lies below h only if S_n >= q. (S_n) is a walk whose steps are 1 with probability at most
p; on a common probability space it lies below the walk B_n with steps of exactly p. So if q_1, ..., q_K are such that

    P(B_{n_k} >= q_k for some k) < 1 - confidence,

then, with probability above ``confidence``, none of the draws of rank q_k lies below h: each bounds h from above, at
every look, hence at the look where a rule that saw the draws chose to stop, and the least of them does too. The
left-hand side is computed exactly: the distribution of B at a look, cut at the boundary, convolved with the binomial
steps to the next look. By look k at most the share k/K of the error is spent (alpha spending; Lan and DeMets,
Biometrika 1983). As the number of looks is finite this is sharper than a confidence sequence that must hold at every n
(Voracek, NeurIPS 2024, arXiv 2406.17830), and K = 1 gives ``certiqa.certification.order_statistic_ranks`` again.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from certiqa.certification.ranks import order_statistic_ranks
from certiqa.errors import UserError

Array = NDArray[np.float64]
Ranks = tuple[int, int]


def look_sizes(first: int, last: int, ratio: float = 1.1) -> tuple[int, ...]:
    """Return the numbers of draws at which to look: geometric from ``first`` to ``last``.

    >>> look_sizes(100, 1000, 2.0)
    (100, 200, 400, 800, 1000)

    Raises:
        UserError: a number of draws that is not whole or below 1, or a ratio that is not above 1.
    """
    _check_looks((first, last))
    if not 1 < ratio < math.inf:
        raise UserError(f"certification.look_ratio={ratio} must be greater than 1, e.g. 1.1")
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(last, max(sizes[-1] + 1, math.ceil(sizes[-1] * ratio))))
    # a last look just behind the one before it would cost error and bring nothing
    if len(sizes) > 2 and sizes[-1] < sizes[-2] * (1 + (ratio - 1) / 4):
        del sizes[-2]
    return tuple(sizes)


def _check_looks(looks: Sequence[int]) -> None:
    if not looks or not all(isinstance(n, numbers.Integral) and n >= 1 for n in looks):
        raise UserError(f"looks (certification.first_look) need whole numbers of draws, at least 1, got {tuple(looks)}")


def sequential_ranks(radius: float, sigma: float, looks: Sequence[int], confidence: float) -> tuple[Ranks, ...]:
    """Return for each look the 1-based ranks ``(lower, upper)`` that bound the score within ``radius``.

    Each side holds at all looks together with probability ``confidence``; 0 and n + 1 stand for no rank. Arguments
    and the meaning of ranks are those of ``certiqa.certification.order_statistic_ranks``.

    Raises:
        UserError: an argument is out of its range, or ``looks`` is empty or does not increase.
    """
    _check_looks(looks)
    return _sequential_ranks(radius, sigma, tuple(looks), confidence)


@lru_cache(maxsize=256)
def _sequential_ranks(radius: float, sigma: float, looks: tuple[int, ...], confidence: float) -> tuple[Ranks, ...]:
    order_statistic_ranks(radius, sigma, looks[-1], confidence)  # checks the arguments
    share = float(ndtr(-radius / sigma))
    # draws above the p_hi percentile are as likely as draws below the p_lo one: one walk serves both sides
    return tuple((rank, n + 1 - rank) for rank, n in zip(_lower_ranks(share, looks, confidence), looks, strict=True))


@lru_cache(maxsize=256)
def inner_ranks(radius: float, sigma: float, looks: tuple[int, ...], confidence: float) -> tuple[Ranks, ...]:
    """Return for each look ranks ``(lower, upper)`` of draws *inside* the percentiles that the bounds estimate.

    With ``confidence`` per side the draw of rank ``lower`` is at least the p_lo percentile and that of rank ``upper``
    at most the p_hi percentile, at all looks together: the interval can never become narrower than the gap between
    them, however many draws are added. Where the ranks cross, nothing is known yet.
    """
    order_statistic_ranks(radius, sigma, looks[-1], confidence)
    share = float(ndtr(-radius / sigma))
    # an upper bound on the p_lo percentile is the mirror of a lower bound on the p_hi one
    mirrored = _lower_ranks(1 - share, looks, confidence)
    return tuple((n + 1 - rank, rank) for rank, n in zip(mirrored, looks, strict=True))


def _lower_ranks(p: float, looks: Sequence[int], confidence: float) -> list[int]:
    """Return for each look the largest rank whose draw bounds the p-percentile from below, all looks together.

    The k-th smallest of n draws exceeds the percentile only if fewer than k of them fall below it, each with
    probability at least p; 0 where no rank will do.
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(looks)):
        raise UserError(f"looks must increase, got {tuple(looks)}")
    allowed = 1 - confidence
    ranks: list[int] = []
    spent, drawn = 0.0, 0
    alive = np.ones(1)  # P(B = rank + i and no boundary crossed so far)
    rank = 0
    for number, n in enumerate(looks, start=1):
        alive = np.convolve(alive, binom.pmf(np.arange(n - drawn + 1), n - drawn, p))
        drawn = n
        below = np.cumsum(alive)
        budget = allowed * number / len(looks) - spent
        cut = int(np.searchsorted(below, budget, side="left"))  # the most with P(B <= rank - 1) < budget
        if cut:
            spent += float(below[cut - 1])
            alive, rank = alive[cut:], rank + cut
        ranks.append(rank)
    return ranks
