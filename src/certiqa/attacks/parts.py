"""The replaceable parts of gradient attacks: where they start, how a gradient becomes a step, what keeps the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certiqa.attacks.base import image_generator, per_image
from certiqa.attacks.target import Target

TINY = 1e-12


def project_linf(attacked: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the nearest images inside the l_inf ball around ``images`` and inside [0, 1]."""
    return torch.clamp(attacked, images - eps, images + eps).clamp(0, 1)


def project_l2(attacked: Tensor, images: Tensor, eps: float, *, onto_sphere: bool = False) -> Tensor:
    """Return images inside the l2 ball around ``images``, each by itself, and inside [0, 1].

    Clipping to the box only shortens a perturbation, since the clean image lies in it. With ``onto_sphere`` shorter
    perturbations are stretched to the radius before that.
    """
    change = attacked - images
    lengths = per_image(change.flatten(1).norm(dim=1).clamp(min=TINY), change)
    factor = eps / lengths
    return (images + change * (factor if onto_sphere else factor.clamp(max=1))).clamp(0, 1)


def onto_sphere(attacked: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return images at l2 distance ``eps``, or where the box binds inside; what it cuts off others get, a few times."""
    for _ in range(4):
        attacked = project_l2(attacked, images, eps, onto_sphere=True)
    return project_l2(attacked, images, eps)


def uniform_start(target: Target, images: Tensor, eps: float, name: str) -> Tensor:
    """Return images moved by a uniform draw from the l_inf ball, each from its own generator."""
    start = torch.empty_like(images)
    for row, image_id in zip(start, target.image_ids, strict=True):
        row.copy_(torch.rand(row.shape, generator=image_generator(target.seed, name, image_id)).to(row) * 2 - 1)
    return project_linf(images + eps * start, images, eps)


def tile(pattern: Tensor, height: int, width: int) -> Tensor:
    """Return patterns ``(..., h, w)`` repeated from the upper left corner and cropped to ``(..., height, width)``."""
    down, across = -(-height // pattern.shape[-2]), -(-width // pattern.shape[-1])
    repeats = [1] * (pattern.ndim - 2)
    return pattern.repeat(*repeats, down, across)[..., :height, :width]


class Sign:
    """The step of fastest ascent in l_inf: the sign of the gradient; zero stays zero."""

    def reset(self) -> None:
        """Forget earlier gradients."""

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step."""
        return gradient.sign()


class UnitL2(Sign):
    """The step of fastest ascent in l2: the gradient over its norm, per image."""

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step."""
        return gradient / per_image(gradient.flatten(1).norm(dim=1).clamp(min=TINY), gradient)


@dataclass
class Momentum(Sign):
    """The sign of accumulated gradients (Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018).

    Args:
        decay: what is kept of the accumulated gradient, mu in the paper.
        normalise: divide each gradient by its mean absolute value per image, as the paper does; without it the
            steps depend on the scale of the gradients.
    """

    decay: float = 1.0
    normalise: bool = True

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget earlier gradients."""
        self._sum: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step."""
        if self.normalise:
            gradient = gradient / per_image(gradient.flatten(1).abs().mean(dim=1).clamp(min=TINY), gradient)
        self._sum = gradient if self._sum is None else self.decay * self._sum + gradient
        return self._sum.sign()
