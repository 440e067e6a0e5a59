"""Ranks that can be differentiated: the projection of scores onto the permutahedron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

from certiqa.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SoftRanks:
    """Soft ranks of scores, and what their derivative needs.

    Attributes:
        ranks: ``(n,)``, the greatest score near n.
        order: rows from the greatest score to the least.
        blocks: where each block of scores that share a shift begins in that order, and its end.
        strength: what the scores were divided by.
    """

    ranks: Array
    order: NDArray[np.intp]
    blocks: NDArray[np.intp]
    strength: float

    def pull_back(self, gradient: Array) -> Array:
        """Return the gradient ``(n,)`` by the scores of what has this gradient ``(n,)`` by the ranks."""
        ordered = gradient[self.order]
        sizes = np.diff(self.blocks)
        means = np.add.reduceat(ordered, self.blocks[:-1]) / sizes
        result = np.empty_like(ordered)
        result[self.order] = (ordered - np.repeat(means, sizes)) / self.strength
        return result


def project_to_ranks(scores: Array, strength: float) -> SoftRanks:
    """Return the soft ranks of scores ``(n,)``: see ``soft_ranks``."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order] / strength
    hard = np.arange(len(scores), 0, -1, dtype=np.float64)
    found = isotonic_regression(ordered - hard, increasing=False)
    ranks = np.empty_like(ordered)
    ranks[order] = ordered - found.x
    return SoftRanks(ranks, order, found.blocks, strength)


class _SoftRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, strength: float) -> Tensor:
        ctx.found = project_to_ranks(scores.detach().cpu().double().numpy(), strength)
        return torch.from_numpy(ctx.found.ranks).to(scores)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return torch.from_numpy(ctx.found.pull_back(gradient.cpu().double().numpy())).to(gradient), None


def soft_ranks(scores: Tensor, strength: float = 1.0) -> Tensor:
    """Return soft ranks ``(n,)`` of scores ``(n,)``, from 1 (least) to n (greatest), differentiable.

    The Euclidean projection of ``scores / strength`` onto the permutahedron of (1, ..., n), by isotonic regression of
    the sorted scores in O(n log n) (Blondel et al., "Fast Differentiable Sorting and Ranking", ICML 2020, section 4).
    They are the ranks, with a gradient of zero, once all sorted scores are at least ``strength`` apart; a large
    strength makes them linear in the scores.

    Args:
        scores: of any device and type; worked on in float64 on the CPU.
        strength: of the regularisation, in the units of the scores, above 0.

    Raises:
        UserError: scores that are not a finite (n,), or a strength not above 0.
    """
    if scores.ndim != 1 or not len(scores) or not bool(torch.isfinite(scores).all()):
        raise UserError(f"soft ranks are of finite scores (n,), got shape {tuple(scores.shape)}; drop NaN and infinity")
    if not strength > 0:
        raise UserError(f"the strength of soft ranks must be above 0, in the units of the scores, got {strength}")
    return _SoftRanks.apply(scores, float(strength))
