"""APGD: projected gradient ascent that sets its own step size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from certiqa.attacks.base import Attack, per_image
from certiqa.attacks.parts import project_linf, uniform_start
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.options import Budget, PositiveInt, PositiveShare, Share, Through


class APGD(Attack):
    """Auto-PGD in l_inf (Croce and Hein, "Reliable evaluation of adversarial robustness...", ICML 2020, algorithm 1).

    Steps of 2 eps with momentum, halved at checkpoints where too few steps raised the objective or the best value
    stands still; then it goes on from the best iterate. For a regression J itself takes the place of the loss. Every
    image has its own step size and best iterate. At a restart the velocity is zero, where the authors' code keeps the
    difference to the iterate that was left. The best iterate is returned, the image itself included, which after a
    random start costs a forward pass; of a random metric, whose values at different iterates cannot be compared, the
    last.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        steps: gradients; 100 in the paper.
        momentum: share of the new step, alpha in the paper.
        rise: share of steps between checkpoints that must raise J, rho in the paper.
        random_start: start from a uniform draw in the ball instead of the image.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    name = "apgd"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        steps: PositiveInt = 20,
        momentum: PositiveShare = 0.75,
        rise: Share = 0.75,
        random_start: bool = True,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        if not 0 < momentum <= 1 or not 0 <= rise <= 1:
            raise UserError(
                f"attack.momentum of {self.name} must be in (0, 1] and rise in [0, 1], got {momentum} and {rise}"
            )
        self.steps = self.at_least("steps", steps, 1)
        self.momentum, self.rise, self.random_start = momentum, rise, random_start

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the best iterate."""
        attacked = uniform_start(target, images, self.eps, self.name) if self.random_start else images.clone()
        previous = attacked
        values, gradient = target.gradient(attacked)
        best, best_values, best_gradient = attacked, values, gradient
        sizes = torch.full_like(values, 2 * self.eps)
        rises = torch.zeros_like(values)
        marked, halved_before = best_values, torch.zeros_like(values, dtype=torch.bool)
        checkpoints, last = checkpoints_of(self.steps), 0
        for step in range(1, self.steps + 1):
            share = 1.0 if step == 1 else self.momentum
            ahead = project_linf(attacked + per_image(sizes, attacked) * gradient.sign(), images, self.eps)
            moved = attacked + share * (ahead - attacked) + (1 - share) * (attacked - previous)
            previous, attacked = attacked, project_linf(moved, images, self.eps)
            if step == self.steps:
                new_values = target.values(attacked)  # nothing follows it: a forward pass will do
            else:
                new_values, gradient = target.gradient(attacked)
            rises += new_values > values
            values = new_values
            better = (values > best_values) | best_values.isnan()
            best_values = torch.where(better, values, best_values)
            best = torch.where(per_image(better, attacked), attacked, best)
            best_gradient = torch.where(per_image(better, attacked), gradient, best_gradient)
            if step in checkpoints:
                halved = (rises < self.rise * (step - last)) | (~halved_before & (best_values <= marked))
                sizes = torch.where(halved, sizes / 2, sizes)
                restart = per_image(halved, attacked)
                attacked, gradient = torch.where(restart, best, attacked), torch.where(restart, best_gradient, gradient)
                previous, values = torch.where(restart, best, previous), torch.where(halved, best_values, values)
                marked, halved_before, last = best_values, halved, step
                rises = torch.zeros_like(rises)
        if target.metric.is_random:
            return attacked
        if self.random_start:
            stays = target.values(images) > best_values
            best = torch.where(per_image(stays, images), images, best)
        return best


def checkpoints_of(steps: int) -> list[int]:
    """Return the steps after which the step size may be halved, w_1, w_2, ... in the paper."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share < 1})
