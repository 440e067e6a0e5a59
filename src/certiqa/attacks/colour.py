"""Attacks that change colours smoothly: curves of the channels, and offsets of the chroma."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from certiqa.attacks.adam import AdamAttack, Problem, non_negative
from certiqa.attacks.colour_space import lab_to_rgb, rgb_to_lab
from certiqa.attacks.target import Target
from certiqa.options import NonNegative, PositiveInt, Step

AB_UNIT = 110.0
SMALLEST_SLOPE = 1e-3  # of a curve's piece, as a share of the identity's: keeps sums away from zero


class AdvCF(AdamAttack):
    """Adversarial colour filter: a monotone curve per channel (Zhao et al., "Adversarial Color...", BMVC 2020).

    Curves are piecewise linear from 0 to 1; pixels of one colour keep one colour. Unrestricted: the strength is
    ``learning_rate``.

    Args:
        learning_rate: of Adam, in units of a piece's rise, whose start is 1 / pieces.
        steps: gradients.
        pieces: of each curve, K in the paper.
        weight: of the squared distance to the identity's pieces, per share of the metric's range; 5 in the paper,
            .5 in the port to quality metrics.
        options: ``best``, ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "advcf"

    def __init__(
        self,
        learning_rate: Step = 0.001,
        *,
        steps: PositiveInt = 10,
        pieces: Annotated[int, Ge(2)] = 64,
        weight: NonNegative = 0.5,
        **options: object,
    ) -> None:
        super().__init__(learning_rate, steps=steps, **options)  # type: ignore[arg-type]
        non_negative(self, weight=weight)
        self.pieces, self.weight = self.at_least("pieces", pieces, 2), float(weight)

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return the rises of the curves' pieces ``(N, 3, pieces)`` as parameters."""
        start = images.new_full((len(images), 3, self.pieces), 1 / self.pieces)

        def penalty(_: Tensor, rises: Tensor) -> Tensor:
            shares = rises / rises.sum(dim=2, keepdim=True)
            return self.weight * (shares - 1 / self.pieces).square().flatten(1).sum(1)

        return Problem(
            start,
            lambda rises: apply_curves(images, rises),
            penalty,
            lambda rises: rises.clamp(min=SMALLEST_SLOPE / self.pieces),
        )


def apply_curves(images: Tensor, rises: Tensor) -> Tensor:
    """Return images with each channel sent through its curve.

    Args:
        images: ``(N, 3, H, W)`` in [0, 1].
        rises: ``(N, 3, K)``, not negative: how much the curve rises over each piece, up to a common factor.
    """
    pieces = rises.shape[2]
    shares = rises / rises.sum(dim=2, keepdim=True)
    below = shares.cumsum(dim=2) - shares
    position = images.flatten(2) * pieces
    index = position.floor().clamp(0, pieces - 1).long()  # a value of 1 ends the last piece
    values = below.gather(2, index) + shares.gather(2, index) * (position - index)
    return values.view_as(images).clamp(0, 1)


class ABOffset(AdamAttack):
    """A smooth offset of chroma: a coarse map of ab, bilinearly enlarged and added in CIE Lab.

    Lightness stays as it is up to what sRGB cannot show. It stands where cAdv (Bhattad et al., "Unrestricted
    Adversarial Examples via Semantic Manipulation", ICLR 2020) would, and is not it: cAdv colours anew by a network,
    which cannot be had. Unrestricted: the strength is ``limit``.

    Args:
        limit: largest offset of a or b, in units of 110.
        steps: gradients.
        learning_rate: of Adam, in the same units; default limit / steps times 2.5.
        grid: height and width of the coarse map, at most the image's.
        options: ``best``, ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "ab_offset"
    strength = "limit"

    def __init__(
        self,
        limit: Step = 0.1,
        *,
        steps: PositiveInt = 10,
        learning_rate: Step | None = None,
        grid: PositiveInt = 16,
        **options: object,
    ) -> None:
        self.limit, self.grid = self.above_zero("limit", limit), self.at_least("grid", grid, 1)
        rate = 2.5 * self.limit / self.at_least("steps", steps, 1) if learning_rate is None else learning_rate
        super().__init__(rate, steps=steps, **options)  # type: ignore[arg-type]

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return the coarse maps ``(N, 2, grid, grid)`` as parameters."""
        lab = rgb_to_lab(images)
        height, width = (min(self.grid, side) for side in images.shape[-2:])
        return Problem(
            images.new_zeros(len(images), 2, height, width),
            lambda offsets: offset_chroma(lab, offsets).clamp(0, 1),
            None,
            lambda offsets: offsets.clamp(-self.limit, self.limit),
        )


def offset_chroma(lab: Tensor, offsets: Tensor) -> Tensor:
    """Return sRGB, not clipped, of Lab ``(N, 3, H, W)`` with coarse offsets ``(N, 2, h, w)`` / 110 added to a and b."""
    fine = F.interpolate(offsets, size=lab.shape[-2:], mode="bilinear", align_corners=True) * AB_UNIT
    return lab_to_rgb(torch.cat([lab[:, :1], lab[:, 1:] + fine], dim=1))
