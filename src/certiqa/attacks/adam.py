"""The loop of attacks without a ball: Adam on whatever describes the attacked image, with a penalty on the change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certiqa.attacks.base import Attack
from certiqa.attacks.gradient import Best
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.options import PositiveInt, Step, Through

ADAM_EPS = 1e-12
"""Far below any gradient of a score by a pixel of a large image, which torch's 1e-8 is not."""


@dataclass
class Problem:
    """What Adam works on, for a batch of images; nothing in it may couple images.

    Attributes:
        start: parameters ``(N, ...)``, one row per image.
        render: parameters -> images ``(N, 3, H, W)`` in [0, 1], differentiable.
        penalty: (images, parameters) -> ``(N,)``, what is taken from J.
        feasible: parameters -> the nearest that are allowed.
    """

    start: Tensor
    render: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor, Tensor], Tensor] | None = None
    feasible: Callable[[Tensor], Tensor] | None = None


class AdamAttack(Attack):
    """Raise ``J(render(p)) - penalty`` by Adam (Kingma and Ba, ICLR 2015) on parameters p of each image.

    Adam works on each parameter by itself and the objective is a sum over images, so a batch equals one by one.

    Args:
        learning_rate: of Adam, in units of the parameters; what makes the attack stronger or weaker.
        steps: gradients.
        best: return the best iterate by that objective instead of the last; costs one more forward pass.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    norm = "none"
    strength = "learning_rate"

    def __init__(
        self,
        learning_rate: Step,
        *,
        steps: PositiveInt = 10,
        best: bool = True,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(None, eot_samples=eot_samples, through=through)
        self.steps, self.best = self.at_least("steps", steps, 1), best
        self.learning_rate = self.above_zero("learning_rate", learning_rate)

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return what to optimise; the only thing a subclass must define."""
        raise NotImplementedError(f"{type(self).__name__} must define problem(target, images)")

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the best or last iterate."""
        problem = self.problem(target, images)
        parameters = problem.start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([parameters], lr=self.learning_rate, eps=ADAM_EPS)
        keeper = Best(target, images) if self.best else None
        for step in range(self.steps + 1):
            with torch.enable_grad():
                attacked = problem.render(parameters)
                penalty = torch.zeros_like(attacked[:, 0, 0, 0])
                if problem.penalty is not None:
                    penalty = problem.penalty(attacked, parameters)
            rendered = attacked.detach()
            if step == self.steps:
                if keeper:
                    keeper.see(rendered, target.values(rendered) - penalty.detach())
                break
            values, gradient = target.gradient(rendered)  # by the image, then on to the parameters: one backward pass
            if keeper:
                keeper.see(rendered, values - penalty.detach())
            loss = penalty.sum() - (attacked * gradient).sum()
            (slope,) = torch.autograd.grad(loss, parameters)
            parameters.grad = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
            optimiser.step()
            if problem.feasible is not None:
                with torch.no_grad():
                    parameters.copy_(problem.feasible(parameters))
        return rendered if keeper is None else keeper.images


def non_negative(attack: Attack, **options: float) -> None:
    """Raise UserError for an option below zero."""
    for key, value in options.items():
        if not value >= 0:
            raise UserError(f"attack.{key} of {attack.name} must be at least 0, got {value}")
