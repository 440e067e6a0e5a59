"""Linear steps before the noise, the only steps there that leave a certificate standing.

Smoothing speaks of perturbations of what the noise is added to. If a linear step A comes first, a perturbation u of
the input becomes A u there, and ||A u||_2 <= ||A||_2 ||u||_2: a radius at the input is certified by the radius times
the spectral norm at the noise. So the norm must be known, or bounded from above; an estimate from below would void
the proof.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from numbers import Real
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from certiqa.defenses.purified import Generators, Purifier
from certiqa.errors import UserError
from certiqa.options import Choices, OddInt, Positive, PositiveShare, Sides

# a margin for the rounding of the norm itself: float64 arithmetic, and weights or responses that are float32. What
# float32 rounds when the step is applied is no share of the perturbation, and no part of the proof (docs/concepts.md)
ROUNDING = 1 + 1e-6


class LinearStep(Purifier, ABC):
    """A linear map of images with a proven bound on its spectral norm; no random step is linear in this sense."""

    thread_safe = True

    @abstractmethod
    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, 3, h, w)``, linearly and each image alone."""

    @abstractmethod
    def lipschitz(self, size: Sequence[int]) -> float:
        """Return an upper bound on the spectral norm for images of (height, width)."""


class Resize(LinearStep):
    """Antialiased resize, whose spectral norm is exact: it is a product of one matrix per axis.

    Args:
        size: shorter side in pixels, the other in proportion; or (height, width).
        mode: "bilinear" or "bicubic".
        scale: in place of ``size``, the factor of both sides, rounded down to whole pixels; 0.5 where neither is given.
    """

    name = "resize"
    keeps_size = False

    def __init__(
        self,
        size: Sides | None = None,
        mode: Annotated[str, Choices("bilinear", "bicubic")] = "bilinear",
        *,
        scale: Annotated[float, Interval(gt=0, le=8)] | None = None,
    ) -> None:
        super().__init__()
        if size is not None and scale is not None:
            raise UserError(f"{self.name} takes size or scale, not both: got size={size} and scale={scale}; null one")
        scale = 0.5 if size is None and scale is None else scale
        sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
        if size is not None and (len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides)):
            raise UserError(
                f"{self.name}.size must be a shorter side, e.g. 160, or (height, width), e.g. [160,240], in whole "
                f"pixels, got {size}"
            )
        if scale is not None and not (isinstance(scale, int | float) and 0 < scale <= 8):
            raise UserError(f"{self.name}.scale must lie in (0, 8], e.g. 0.5, got {scale}")
        if mode not in ("bilinear", "bicubic"):
            raise UserError(f"{self.name}.mode must be bilinear or bicubic, got '{mode}'")
        self.size = size if isinstance(size, int) or size is None else (sides[0], sides[1])
        self.scale = scale
        self.mode = mode
        self.overshoots = mode == "bicubic"

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) that images of ``size`` get."""
        height, width = size
        if self.scale is not None:
            return max(1, int(height * self.scale + 1e-9)), max(1, int(width * self.scale + 1e-9))
        if not isinstance(self.size, int):
            assert self.size is not None
            return self.size
        shorter = min(height, width)
        return max(1, round(height * self.size / shorter)), max(1, round(width * self.size / shorter))

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return the sides that images need: any, or in proportion to ``needed``; 0 where none is enough."""
        if self.scale is not None:
            height, width = (max(1, math.ceil(side / self.scale - 1e-6)) for side in needed)
            return height, width
        assert self.size is not None
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return int(sides[0] >= needed[0]), int(sides[1] >= needed[1])

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Resize; bicubic weights may leave [0, 1], clipping comes after the noise."""
        return _resized(images, self.output_size(images.shape[-2:]), self.mode)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the spectral norm: of a Kronecker product, the product of its factors' norms."""
        axes = zip(size, self.output_size(size), strict=True)
        return ROUNDING * math.prod(_resize_norm(old, new, self.mode) for old, new in axes)


class Upscale(Resize):
    """Shrinking, then a bilinear resize back to the size that came: what is lost in between stays lost.

    Args:
        scale: factor of both sides in between.
        mode: "bilinear" or "bicubic", of the shrinking.
    """

    name = "upscale"
    keeps_size = True

    def __init__(
        self, scale: PositiveShare = 0.5, mode: Annotated[str, Choices("bilinear", "bicubic")] = "bilinear"
    ) -> None:
        if not (isinstance(scale, int | float) and 0 < scale <= 1):
            raise UserError(f"upscale.scale must lie in (0, 1], e.g. 0.5, got {scale}")
        super().__init__(mode=mode, scale=scale)

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return ``size``."""
        return int(size[0]), int(size[1])

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return ``needed``."""
        return int(needed[0]), int(needed[1])

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Shrink and bring back."""
        size = images.shape[-2:]
        return _resized(_resized(images, super().output_size(size), self.mode), (size[0], size[1]), "bilinear")

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the spectral norm of both together, exact as that of one resize."""
        axes = zip(size, super().output_size(size), strict=True)
        return ROUNDING * math.prod(_there_and_back_norm(old, new, self.mode) for old, new in axes)


class Flip(LinearStep):
    """Rotation by 180 degrees: both axes mirrored, a permutation of the pixels."""

    name = "flip"

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Mirror both axes."""
        return images.flip(2, 3)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return 1."""
        return 1.0


class GaussianBlur(LinearStep):
    """Gaussian blur per channel, reflected at the border (kornia); its spectral norm is exact.

    Args:
        kernel: side of the window in pixels, odd.
        sigma: standard deviation in pixels; default the rule of OpenCV, ``0.3 ((kernel - 1) / 2 - 1) + 0.8``.
    """

    name = "gaussian_blur"

    def __init__(self, kernel: OddInt = 3, sigma: Positive | None = None) -> None:
        super().__init__()
        self.kernel = odd(kernel, "gaussian_blur.kernel")
        if sigma is not None and not (isinstance(sigma, Real) and sigma > 0):
            raise UserError(f"gaussian_blur.sigma must be positive, in pixels, got {sigma!r}")
        self.sigma = 0.3 * ((self.kernel - 1) / 2 - 1) + 0.8 if sigma is None else float(sigma)
        self.min_size = self.kernel // 2 + 1

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Blur."""
        from kornia.filters import gaussian_blur2d

        return gaussian_blur2d(images, self.kernel, (self.sigma, self.sigma))

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the spectral norm: of a Kronecker product, the product of its factors' norms."""
        return ROUNDING * math.prod(_blur_norm(side, self.kernel, self.sigma) for side in size)


def odd(kernel: int, option: str) -> int:
    """Return a window's side; raises UserError unless it is odd and positive."""
    if not isinstance(kernel, Real) or kernel != int(kernel) or kernel < 1 or kernel % 2 == 0:
        raise UserError(f"{option} must be odd and at least 1 (1, 3, 5, ...), got {kernel!r}")
    return int(kernel)


def _resized(images: Tensor, size: Sequence[int], mode: str) -> Tensor:
    return F.interpolate(images.contiguous(), size=tuple(size), mode=mode, antialias=True, align_corners=False)


def resize_matrix(old: int, new: int, mode: str) -> Tensor:
    """Return what a resize does to one axis: ``(old, new)`` float64, row i the response to pixel i."""
    rows = torch.eye(old, dtype=torch.float64).view(1, 1, old, old)
    return F.interpolate(rows, size=(old, new), mode=mode, antialias=True, align_corners=False)[0, 0]


def blur_matrix(side: int, kernel: int, sigma: float) -> Tensor:
    """Return what a Gaussian blur does to one axis, ``(side, side)`` float64, as ``resize_matrix`` does."""
    from kornia.filters import gaussian_blur2d

    rows = torch.eye(side, dtype=torch.float64).view(1, 1, side, side)
    return gaussian_blur2d(rows, (1, kernel), (sigma, sigma))[0, 0]


# a norm costs a decomposition, and every image of a set may have the same size
@lru_cache(maxsize=256)
def _resize_norm(old: int, new: int, mode: str) -> float:
    return _norm(resize_matrix(old, new, mode))


@lru_cache(maxsize=256)
def _there_and_back_norm(size: int, between: int, mode: str) -> float:
    return _norm(resize_matrix(size, between, mode) @ resize_matrix(between, size, "bilinear"))


@lru_cache(maxsize=256)
def _blur_norm(side: int, kernel: int, sigma: float) -> float:
    return _norm(blur_matrix(side, kernel, sigma))


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


class LinearOperator(LinearStep):
    """Any linear module of the user's before the noise, its norm bounded by sqrt(||A||_1 ||A||_inf).

    The bound needs every column of A, so the module is applied once to each basis vector of an image size, 3 H W in
    all; ``power_iteration`` shows from below how loose it is.

    Args:
        module: ``(N, 3, H, W)`` -> ``(N, 3, h, w)``, linear, each image alone.
        batch_size: basis vectors at a time.
    """

    name = "linear"
    keeps_size = False
    thread_safe = False

    def __init__(self, module: nn.Module, batch_size: int = 64) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        self.batch_size = batch_size
        self._bounds: dict[tuple[int, ...], float] = {}  # of sizes at which it was found linear, each image alone

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Apply the module."""
        result = self.module(images)
        if not isinstance(result, Tensor):
            raise UserError(f"{type(self.module).__name__} must return a tensor, got {type(result).__name__}")
        return result

    @torch.no_grad()
    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size of what the module makes of an image of ``size``."""
        height, width = self.forward(self._there(torch.zeros(1, 3, *size))).shape[-2:]
        return height, width

    def _there(self, probe: Tensor) -> Tensor:
        """Return a probe where the module's own numbers are, in float64 where they are.

        Probes are drawn on the CPU, so that they are the same wherever the module is.
        """
        held = next(chain(self.module.parameters(), self.module.buffers()), probe)
        return probe.to(held.device, torch.float64 if held.dtype == torch.float64 else torch.float32)

    @torch.no_grad()
    def lipschitz(self, size: Sequence[int]) -> float:
        """Return sqrt(||A||_1 ||A||_inf) >= ||A||_2 for images of this size, computed once.

        Raises:
            UserError: if the module is found not to be linear, or to mix the images of a batch.
        """
        key = tuple(size)
        if key not in self._bounds:
            self._check_linear(key)
            self._bounds[key] = ROUNDING * self._bound(key)
        return self._bounds[key]

    def _check_linear(self, size: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = (self._there(torch.rand(1, 3, *size, generator=generator)) for _ in range(2))
        together = self.forward(2 * x - 3 * y)
        apart = 2 * self.forward(x) - 3 * self.forward(y)
        scale = float(apart.abs().max()) + 1e-12
        if float((together - apart).abs().max()) > 1e-4 * scale:
            raise UserError(
                f"{type(self.module).__name__} is not linear (A(2x - 3y) differs from 2 A(x) - 3 A(y)): any other step "
                "before the noise voids the certificate; put it behind the smoothing"
            )
        alone = torch.cat([self.forward(x), self.forward(y)])
        scale = float(alone.abs().max()) + 1e-12
        if float((self.forward(torch.cat([x, y])) - alone).abs().max()) > 1e-4 * scale:
            raise UserError(
                f"{type(self.module).__name__} mixes the images of a batch (two together come out otherwise than one "
                "by one), so that no bound on one image holds; let it treat each image alone"
            )

    def _bound(self, size: Sequence[int]) -> float:
        count = 3 * size[0] * size[1]
        rows: Tensor | None = None
        column = 0.0
        held = self._there(torch.empty(0))
        for start in range(0, count, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, count))
            basis = held.new_zeros(len(indices), count)
            basis[torch.arange(len(indices)), indices] = 1
            responses = self.forward(basis.view(-1, 3, *size)).double().flatten(1).abs()
            column = max(column, float(responses.sum(1).max()))
            rows = responses.sum(0) if rows is None else rows + responses.sum(0)
        assert rows is not None
        return float((column * rows.max()).sqrt())

    def power_iteration(self, size: Sequence[int], steps: int = 50) -> float:
        """Return an estimate of the spectral norm from below; no proof may use it."""
        vector = self._there(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)))
        norm = 0.0
        for _ in range(steps):
            vector = (vector / vector.norm()).requires_grad_(True)
            image = self.forward(vector)
            norm = float(image.detach().norm())
            (vector,) = torch.autograd.grad(0.5 * image.square().sum(), vector)
        return norm
