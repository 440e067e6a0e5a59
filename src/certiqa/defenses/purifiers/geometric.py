"""Purifiers that move pixels at random; those that do so linearly are in ``certiqa.defenses.linear``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from certiqa.defenses.purified import Generators, Purifier
from certiqa.errors import UserError
from certiqa.options import Choices, Sides


class RandomRotate(Purifier):
    """Rotation by a random angle about the centre.

    Args:
        degrees: largest angle; each image's is drawn uniformly from -degrees to degrees.
        mode: "bilinear" or "nearest".
        fill: what lies outside: "reflection" of the image, or "zeros" for black corners.
    """

    name = "random_rotate"
    is_random = True
    thread_safe = True

    def __init__(
        self,
        degrees: Annotated[float, Interval(ge=0, le=180)] = 15.0,
        mode: Annotated[str, Choices("bilinear", "nearest")] = "bilinear",
        fill: Annotated[str, Choices("reflection", "zeros")] = "reflection",
    ) -> None:
        super().__init__()
        if not (is_number(degrees) and 0 <= degrees <= 180):
            raise UserError(f"the degrees of random_rotate must be a number from 0 to 180, e.g. 15, got {degrees!r}")
        for option, value, allowed in (
            ("mode", mode, ("bilinear", "nearest")),
            ("fill", fill, ("reflection", "zeros")),
        ):
            if value not in allowed:
                raise UserError(f"random_rotate.{option} must be {' or '.join(allowed)}, got '{value}'")
        self.degrees = float(degrees)
        self.mode = mode
        self.fill = fill

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the rotated images."""
        draws = one_each(images, generators)
        turns = torch.tensor([(2 * float(torch.rand((), generator=draw)) - 1) * self.degrees for draw in draws])
        height, width = images.shape[-2:]
        cosine, sine = (turns * math.pi / 180).cos(), (turns * math.pi / 180).sin()
        zero = torch.zeros_like(turns)
        # grid coordinates span [-1, 1] on both sides, so that a rotation of pixels needs the ratio of the sides
        first = torch.stack([cosine, sine * height / width, zero], dim=1)
        second = torch.stack([-sine * width / height, cosine, zero], dim=1)
        grid = F.affine_grid(torch.stack([first, second], dim=1).to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode=self.mode, padding_mode=self.fill, align_corners=False)


class RandomCrop(Purifier):
    """A window at a random place of each image.

    Args:
        size: side of the window in pixels, or (height, width).
    """

    name = "random_crop"
    is_random = True
    keeps_size = False
    thread_safe = True

    def __init__(self, size: Sides = 128) -> None:
        super().__init__()
        sides = list(size) if isinstance(size, Sequence) else [size, size]
        if len(sides) != 2 or not all(is_number(side) and side == int(side) and side >= 1 for side in sides):
            raise UserError(
                f"random_crop.size must be a side, e.g. 128, or (height, width), in whole pixels, got {size!r}"
            )
        self.size = (int(sides[0]), int(sides[1]))
        self.min_size = max(self.size)

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the window's size."""
        return self.size

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return the window's size, a side of 0 where it is smaller than ``needed``."""
        (tall, wide), (height, width) = self.size, needed
        return tall if tall >= height else 0, wide if wide >= width else 0

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the windows; raises UserError where an image is smaller than one."""
        (height, width), (tall, wide) = images.shape[-2:], self.size
        if tall > height or wide > width:
            raise UserError(
                f"random_crop.size={tall}x{wide} is larger than an image of {height}x{width} pixels; choose a smaller "
                "window or larger images"
            )
        windows = []
        for image, draw in zip(images, one_each(images, generators), strict=True):
            top = int(torch.randint(height - tall + 1, (), generator=draw))
            left = int(torch.randint(width - wide + 1, (), generator=draw))
            windows.append(image[:, top : top + tall, left : left + wide])
        return torch.stack(windows)

    def surrogate(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the windows: their own backward pass pads the gradient to the image."""
        return self.forward(images, generators)


def is_number(value: object) -> bool:
    """Return whether an option is a finite number, and no word or truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def one_each(images: Tensor, generators: Generators | None) -> Generators:
    """Return one generator per image; without any every image gets the same draws."""
    if generators is None:
        return [torch.Generator().manual_seed(0) for _ in images]
    if len(generators) != len(images):
        raise UserError(f"{len(images)} images but {len(generators)} generators; give one per image")
    return generators
