"""Purifiers that move pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.defenses.purified import Purifier
from certiqa.errors import UserError


class RandomRotate(Purifier):
    """Rotation by a random angle about the centre, bilinear, what lies outside filled by reflection.

    Args:
        degrees: largest angle; each image's is drawn uniformly from -degrees to degrees.
    """

    name = "random_rotate"
    is_random = True

    def __init__(self, degrees: float = 15.0) -> None:
        super().__init__()
        if not 0 <= degrees <= 180:
            raise UserError(f"the degrees of random_rotate must be 0 to 180, got {degrees}")
        self.degrees = float(degrees)

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the rotated images."""
        draws = generators or [torch.Generator().manual_seed(0)] * len(images)
        turns = torch.tensor([(2 * float(torch.rand((), generator=draw)) - 1) * self.degrees for draw in draws])
        height, width = images.shape[-2:]
        cosine, sine = (turns * math.pi / 180).cos(), (turns * math.pi / 180).sin()
        zero = torch.zeros_like(turns)
        # grid coordinates span [-1, 1] on both sides, so that a rotation of pixels needs the ratio of the sides
        first = torch.stack([cosine, sine * height / width, zero], dim=1)
        second = torch.stack([-sine * width / height, cosine, zero], dim=1)
        grid = F.affine_grid(torch.stack([first, second], dim=1).to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
