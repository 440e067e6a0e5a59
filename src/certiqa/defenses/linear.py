"""Linear steps before the noise, the only steps there that leave a certificate standing.

Smoothing speaks of perturbations of what the noise is added to. If a linear step A comes first, a perturbation u of
the input becomes A u there, and ||A u||_2 <= ||A||_2 ||u||_2: a radius at the input is certified by the radius times
the spectral norm at the noise. So the norm must be known, or bounded from above; an estimate from below would void
the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certiqa.errors import UserError

ROUNDING = 1 + 1e-6  # float32 arithmetic of a step whose norm is computed exactly


class LinearStep(nn.Module):
    """A linear map of images with a proven bound on its spectral norm."""

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, 3, h, w)``, linearly and each image alone."""
        raise NotImplementedError

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return an upper bound on the spectral norm for images of (height, width)."""
        raise NotImplementedError


class Resize(LinearStep):
    """Antialiased resize, whose spectral norm is exact: it is a product of one matrix per axis.

    Args:
        size: shorter side in pixels, the other in proportion; or (height, width).
        mode: "bilinear" or "bicubic".
    """

    def __init__(self, size: int | Sequence[int], mode: str = "bilinear") -> None:
        super().__init__()
        sides = [size] if isinstance(size, int) else list(size)
        if len(sides) not in (1, 2) or min(sides) < 1:
            raise UserError(f"resize.size must be a shorter side or (height, width) in pixels, got {size}")
        if mode not in ("bilinear", "bicubic"):
            raise UserError(f"resize.mode must be bilinear or bicubic, got '{mode}'")
        self.size = size if isinstance(size, int) else (int(sides[0]), int(sides[1]))
        self.mode = mode

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) that images of ``size`` get."""
        if not isinstance(self.size, int):
            return self.size
        height, width = size
        shorter = min(height, width)
        return max(1, round(height * self.size / shorter)), max(1, round(width * self.size / shorter))

    def forward(self, images: Tensor) -> Tensor:
        """Resize; bicubic weights may leave [0, 1], clipping comes after the noise."""
        size = self.output_size(images.shape[-2:])
        return F.interpolate(images.contiguous(), size=size, mode=self.mode, antialias=True, align_corners=False)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the spectral norm: of a Kronecker product, the product of its factors' norms."""
        pairs = zip(size, self.output_size(size), strict=True)
        return ROUNDING * float(torch.tensor([_axis_norm(old, new, self.mode) for old, new in pairs]).prod())


@lru_cache(maxsize=256)
def _axis_norm(old: int, new: int, mode: str) -> float:
    rows = torch.eye(old, dtype=torch.float64).view(1, 1, old, old)
    matrix = F.interpolate(rows, size=(old, new), mode=mode, antialias=True, align_corners=False)
    return float(torch.linalg.matrix_norm(matrix[0, 0], ord=2))


class LinearOperator(LinearStep):
    """Any linear module of the user's before the noise, its norm bounded by sqrt(||A||_1 ||A||_inf).

    The bound needs every column of A, so the module is applied once to each basis vector of an image size, 3 H W in
    all; :meth:`power_iteration` shows from below how loose it is.

    Args:
        module: ``(N, 3, H, W)`` -> ``(N, 3, h, w)``, linear, each image alone.
        batch_size: basis vectors at a time.
    """

    def __init__(self, module: nn.Module, batch_size: int = 64) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        self.batch_size = batch_size
        self._bounds: dict[tuple[int, ...], float] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Apply the module."""
        result = self.module(images)
        if not isinstance(result, Tensor):
            raise UserError(f"{type(self.module).__name__} must return a tensor, got {type(result).__name__}")
        return result

    @torch.no_grad()
    def lipschitz(self, size: Sequence[int]) -> float:
        """Return sqrt(||A||_1 ||A||_inf) >= ||A||_2 for images of this size, computed once.

        Raises:
            UserError: if the module is found not to be linear.
        """
        key = tuple(size)
        if key not in self._bounds:
            self._check_linear(key)
            self._bounds[key] = ROUNDING * self._bound(key)
        return self._bounds[key]

    def _check_linear(self, size: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(1, 3, *size, generator=generator) for _ in range(2))
        together = self.forward(2 * x - 3 * y)
        apart = 2 * self.forward(x) - 3 * self.forward(y)
        scale = float(apart.abs().max()) + 1e-12
        if float((together - apart).abs().max()) > 1e-4 * scale:
            raise UserError(
                f"{type(self.module).__name__} is not linear (A(2x - 3y) differs from 2 A(x) - 3 A(y)): any other step "
                "before the noise voids the certificate; put it behind the smoothing"
            )

    def _bound(self, size: Sequence[int]) -> float:
        count = 3 * size[0] * size[1]
        rows: Tensor | None = None
        column = 0.0
        for start in range(0, count, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, count))
            basis = torch.zeros(len(indices), count)
            basis[torch.arange(len(indices)), indices] = 1
            responses = self.forward(basis.view(-1, 3, *size)).double().flatten(1).abs()
            column = max(column, float(responses.sum(1).max()))
            rows = responses.sum(0) if rows is None else rows + responses.sum(0)
        assert rows is not None
        return float((column * rows.max()).sqrt())

    def power_iteration(self, size: Sequence[int], steps: int = 50) -> float:
        """Return an estimate of the spectral norm from below; no proof may use it."""
        vector = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
        norm = 0.0
        for _ in range(steps):
            vector = (vector / vector.norm()).requires_grad_(True)
            image = self.forward(vector)
            norm = float(image.detach().norm())
            (vector,) = torch.autograd.grad(0.5 * image.square().sum(), vector)
        return norm


class LinearSteps(LinearStep):
    """Several linear steps in a row; their constants multiply."""

    def __init__(self, steps: Sequence[LinearStep]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor) -> Tensor:
        """Apply all steps in order."""
        for step in self.steps:
            images = step(images)
        return images

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the product of the steps' constants, each at the size that reaches it."""
        constant = 1.0
        probe = torch.zeros(1, 3, *size)
        for step in self.steps:
            assert isinstance(step, LinearStep)
            constant *= step.lipschitz(probe.shape[-2:])
            probe = step(probe)
        return constant
