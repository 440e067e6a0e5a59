"""Purifiers that smooth, sharpen, round and shake; the Gaussian blur is in ``certiqa.defenses.linear``.

kornia does the filtering. It is imported when it is first needed, which keeps ``--help`` fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from certiqa.defenses.linear import ROUNDING, blur_matrix, odd
from certiqa.defenses.noise import fill_noise
from certiqa.defenses.purified import Generators, Purifier
from certiqa.defenses.purifiers.geometric import is_number, one_each
from certiqa.errors import UserError
from certiqa.options import Choices, Noise, NonNegative, OddInt, Positive

WINDOW_VALUES = 2**25  # gathered window values in memory at a time, 128 MiB in float32


class MedianBlur(Purifier):
    """The median of a window around each pixel, per channel, reflected at the border.

    Each output is one of the inputs of its window, so the gradient is that pixel's; and each pixel is in at most
    kernel^2 windows, so the Lipschitz constant is at most ``kernel``: ``|median x - median y|`` is at most the largest
    change in the window (its square at most the sum of all squared changes there).

    Args:
        kernel: side of the window in pixels, odd.
    """

    name = "median_blur"
    thread_safe = True

    def __init__(self, kernel: OddInt = 3) -> None:
        super().__init__()
        self.kernel = odd(kernel, f"{self.name}.kernel")
        self.min_size = self.kernel // 2 + 1

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the medians; windows, or what is sorted in place of them, are held for a few channels at a time."""
        from kornia.filters import median_blur

        follows = images.requires_grad and torch.is_grad_enabled()
        # kornia takes its path without windows for what requires no gradient, whether one is asked for or not
        planes = (images if follows else images.detach()).reshape(-1, 1, *images.shape[-2:])
        return _in_parts(lambda part: median_blur(part, self.kernel), planes, self.kernel).reshape(images.shape)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return ``kernel``."""
        return float(self.kernel)


class Bilateral(Purifier):
    """Bilateral filter (Tomasi and Manduchi, ICCV 1998): a Gaussian blur that stops at edges.

    ``y_p = sum_q w_pq x_q / sum_q w_pq``, ``w_pq = G(|p - q|) exp(-d(x_p, x_q)^2 / (2 sigma_color^2))`` over a square
    window, d the sum of absolute (l1) or Euclidean (l2) differences of the channels.

    Args:
        kernel: side of the window in pixels, odd.
        sigma_color: in [0, 1] pixel units.
        sigma_space: in pixels.
        distance: "l1" or "l2".
    """

    name = "bilateral"
    thread_safe = True

    def __init__(
        self,
        kernel: OddInt = 5,
        sigma_color: Positive = 0.1,
        sigma_space: Positive = 1.5,
        distance: Annotated[str, Choices("l1", "l2")] = "l1",
    ) -> None:
        super().__init__()
        self.kernel = odd(kernel, f"{self.name}.kernel")
        for option, value in (("sigma_color", sigma_color), ("sigma_space", sigma_space)):
            if not (is_number(value) and value > 0):
                raise UserError(f"bilateral.{option} must be positive, a number such as 0.1, got {value!r}")
        if distance not in ("l1", "l2"):
            raise UserError(f"bilateral.distance must be l1 or l2, got '{distance}'")
        self.sigma_color, self.sigma_space = float(sigma_color), float(sigma_space)
        self.distance = distance
        self.min_size = self.kernel // 2 + 1

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the filtered images; where windows are gathered, for a few images at a time."""
        from kornia.filters import bilateral_blur

        def blurred(part: Tensor) -> Tensor:
            spaces = (self.sigma_space, self.sigma_space)
            filtered: Tensor = bilateral_blur(
                part, self.kernel, self.sigma_color, spaces, color_distance_type=self.distance
            )
            return filtered

        if images.device.type == "cpu" and not (images.requires_grad and torch.is_grad_enabled()):
            return blurred(images)  # kornia goes pixel by pixel of the window there, in parts of its own
        return _in_parts(blurred, images, self.kernel)


def _in_parts(function: Callable[[Tensor], Tensor], images: Tensor, kernel: int) -> Tensor:
    """Return ``function(images)``, given so many images at a time that their windows are ``WINDOW_VALUES``, or one."""
    size = max(1, WINDOW_VALUES // (images.shape[1:].numel() * kernel**2))
    if len(images) <= size:
        return function(images)
    return torch.cat([function(part) for part in images.split(size)])


class Unsharp(Purifier):
    """Unsharp masking, clipped: ``x + amount (x - G x)`` with a Gaussian blur G (kornia).

    Args:
        kernel: side of the blur's window in pixels, odd.
        amount: of what the blur takes away, added again.
        sigma: of the blur, in pixels.
    """

    name = "unsharp"
    thread_safe = True

    def __init__(self, kernel: OddInt = 3, amount: NonNegative = 1.0, sigma: Positive = 1.0) -> None:
        super().__init__()
        self.kernel = odd(kernel, f"{self.name}.kernel")
        if not (is_number(amount) and amount >= 0 and is_number(sigma) and sigma > 0):
            raise UserError(
                f"unsharp.amount must be at least 0 and sigma positive, both numbers, got {amount!r} and {sigma!r}"
            )
        self.amount, self.sigma = float(amount), float(sigma)
        self.min_size = self.kernel // 2 + 1

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the sharpened images."""
        from kornia.filters import gaussian_blur2d

        blurred = gaussian_blur2d(images, self.kernel, (self.sigma, self.sigma))
        return (images + self.amount * (images - blurred)).clamp(0, 1)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return sqrt(||A||_1 ||A||_inf) >= ||A||_2 of the linear part A; clipping is 1-Lipschitz.

        A = (1 + amount) I - amount (B_h x B_w) has only its diagonal above zero, so both norms follow from the sums
        and diagonals of the two axes.
        """
        axes = [blur_matrix(side, self.kernel, self.sigma) for side in size]
        peak = torch.outer(*(axis.diagonal() for axis in axes))
        # |A| is amount times the blur off the diagonal, and |1 + amount - amount * peak| on it
        correction = (1 + self.amount - self.amount * peak).abs() - self.amount * peak
        ones, infinity = (
            float((self.amount * torch.outer(*(axis.sum(dim) for axis in axes)) + correction).max()) for dim in (0, 1)
        )
        return ROUNDING * math.sqrt(ones * infinity)


class ColorQuantization(Purifier):
    """Every channel rounded to evenly spaced levels; no gradient of its own.

    Args:
        levels: 2 to 256 for each channel.
    """

    name = "color_quantization"
    differentiable = False
    thread_safe = True

    def __init__(self, levels: Annotated[int, Interval(ge=2, le=256)] = 16) -> None:
        super().__init__()
        if not (is_number(levels) and levels == int(levels) and 2 <= levels <= 256):
            raise UserError(f"color_quantization.levels must be 2 to 256, a whole number, got {levels!r}")
        self.levels = int(levels)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the rounded images."""
        return (images.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)


class RandomNoise(Purifier):
    """Gaussian noise, clipped; by itself it certifies nothing, that is what median smoothing is for.

    Args:
        sigma: standard deviation in [0, 1] pixel units.
    """

    name = "random_noise"
    is_random = True
    thread_safe = True

    def __init__(self, sigma: Noise = 0.01) -> None:
        super().__init__()
        if not (is_number(sigma) and 0 <= sigma <= 1):
            raise UserError(f"random_noise.sigma must be 0 to 1, in [0, 1] pixel units, got {sigma!r}")
        self.sigma = float(sigma)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the noisy images; the noise is drawn on their device, in float32."""
        keys = [int(torch.randint(2**62, (), generator=draw)) for draw in one_each(images, generators)]
        noise = fill_noise(torch.empty(images.shape, dtype=torch.float32, device=images.device), keys)
        return (images + self.sigma * noise.to(images.dtype)).clamp(0, 1)
