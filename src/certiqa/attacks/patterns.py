"""Universal patterns that are trained themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from certiqa.attacks.target import Target
from certiqa.attacks.universal import UniversalAttack
from certiqa.options import Budget, Step


class UAP(UniversalAttack):
    """The pattern itself, trained by Adam and clipped to eps after each step (Shumitskaya et al., BMVC 2022)."""

    name = "uap"
    START = 1e-4

    def begin(self, device: torch.device, seed: int) -> None:
        """Start from a pattern next to nothing."""
        start = min(self.START, self.eps)
        self._free = torch.full((1, 3, self.size, self.size), start, device=device, requires_grad=True)
        self._adam = torch.optim.Adam([self._free], lr=self.lr)

    def step(self, target: Target, images: Tensor) -> None:
        """Take a step of Adam."""
        (self._free.grad,) = torch.autograd.grad(self.loss(target, images, self._free), self._free)
        self._adam.step()
        with torch.no_grad():
            self._free.clamp_(-self.eps, self.eps)

    def finish(self) -> Tensor:
        """Return the pattern."""
        return self._free


class CumulativeUAP(UniversalAttack):
    """The sum of the batches' gradients, clipped to eps (Shumitskaya et al., CVIU 2024): v <- clip(v + lr * gradient).

    The gradient is that of the mean of J, whose scale falls with the number of pixels and depends on the metric: by the
    authors' step of 1 few batches may leave the pattern near zero.

    Args:
        lr: step size; None for 1 as the authors have it, or with ``sign`` for a tenth of eps.
        sign: step along the gradient's sign, which no scale touches.
        options: of ``UniversalAttack``.
    """

    name = "cumulative_uap"

    def __init__(
        self, eps: Budget = 10 / 255, *, lr: Step | None = None, sign: bool = False, **options: object
    ) -> None:
        usual = self.above_zero("eps", eps) / 10 if sign else 1.0
        super().__init__(eps, lr=usual if lr is None else lr, **options)  # type: ignore[arg-type]
        self.sign = sign

    def begin(self, device: torch.device, seed: int) -> None:
        """Start from nothing."""
        self._sum = torch.zeros(1, 3, self.size, self.size, device=device, requires_grad=True)

    def step(self, target: Target, images: Tensor) -> None:
        """Add a gradient."""
        (gradient,) = torch.autograd.grad(self.loss(target, images, self._sum), self._sum)
        with torch.no_grad():
            self._sum.sub_(self.lr * (gradient.sign() if self.sign else gradient)).clamp_(-self.eps, self.eps)

    def finish(self) -> Tensor:
        """Return the sum."""
        return self._sum
