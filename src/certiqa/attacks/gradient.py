"""Attacks that follow the gradient inside a ball: the FGSM family and projected gradient ascent."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from certiqa.attacks.base import Attack, per_image, steps_to_reach
from certiqa.attacks.parts import Momentum, Sign, UnitL2, onto_sphere, project_linf, uniform_start
from certiqa.attacks.target import Target
from certiqa.options import Budget, Length, NonNegative, PositiveInt, Step, Through


class GradientAttack(Attack):
    """``x <- project(x + step_size * modify(gradient))``, ``steps`` times.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        steps: gradients.
        step_size: of each step; default eps / steps times ``pace``, at most eps.
        random_start: start from a uniform draw in the ball instead of the image.
        best: return the best iterate by the objective instead of the last, the image itself included; costs one more
            forward pass, and after a random start another.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    modifier: Sign
    pace = 2.5  # how often the default steps could cross from the image to the border
    may_stay = True  # where no step does better, the image itself is the answer

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        steps: PositiveInt = 10,
        step_size: Step | None = None,
        random_start: bool = False,
        best: bool = True,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        self.steps = self.at_least("steps", steps, 1)
        usual = min(self.eps, self.pace * self.eps / self.steps)
        self.step_size = usual if step_size is None else self.above_zero("step_size", step_size)
        self.random_start = random_start
        self.best = best
        self.modifier = Sign()
        needed = steps_to_reach(self.eps, self.step_size)
        if needed > self.steps:
            warnings.warn(
                f"{self.name}: {steps} steps of {self.step_size:g} never reach the border of eps={self.eps:g}; that "
                f"takes {needed} steps",
                stacklevel=2,
            )

    def start(self, target: Target, images: Tensor) -> Tensor:
        """Return the first iterate."""
        return uniform_start(target, images, self.eps, self.name) if self.random_start else images.clone()

    def project(self, attacked: Tensor, images: Tensor) -> Tensor:
        """Return the nearest images inside the budget."""
        return project_linf(attacked, images, self.eps)

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the best or last iterate."""
        self.modifier.reset()
        attacked = self.start(target, images)
        keeper = Best(target, images) if self.best else None
        if keeper and self.random_start and keeper.comparable:
            keeper.see(images, target.values(images))
        for step in range(self.steps):
            values, gradient = target.gradient(attacked)
            if keeper and (step or self.may_stay):
                keeper.see(attacked, values)
            attacked = self.project(attacked + self.step_size * self.modifier(gradient), images)
        if keeper is None:
            return attacked
        keeper.see(attacked, target.values(attacked))
        return keeper.images


class Best:
    """Keeps the best iterate of every image; of a random metric the last, whose values cannot be compared."""

    def __init__(self, target: Target, images: Tensor) -> None:
        self.images = images.clone()
        self.values = torch.full((len(target),), -torch.inf, device=images.device)
        self.comparable = not target.metric.is_random

    def see(self, attacked: Tensor, values: Tensor) -> None:
        """Take the iterates that are better than what there was."""
        better = values > self.values if self.comparable else torch.ones_like(values, dtype=torch.bool)
        self.values = torch.where(better, values, self.values)
        self.images = torch.where(per_image(better, attacked), attacked, self.images)


class FGSM(GradientAttack):
    """One signed step to the border (Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015)."""

    name = "fgsm"

    def __init__(self, eps: Budget = 10 / 255, *, eot_samples: PositiveInt = 1, through: Through = "mean") -> None:
        super().__init__(eps, steps=1, best=False, eot_samples=eot_samples, through=through)


class IFGSM(GradientAttack):
    """Signed steps (Kurakin et al., "Adversarial Examples in the Physical World", 2017); steps of 1/10 of eps."""

    name = "ifgsm"
    pace = 1.0


class MIFGSM(IFGSM):
    """Signed steps along accumulated gradients (Dong et al., CVPR 2018).

    Args:
        decay: what is kept of the accumulated gradient, mu in the paper.
        normalise: divide each gradient by its mean absolute value per image, as the paper does.
        options: see ``GradientAttack``.
    """

    name = "mifgsm"

    def __init__(
        self, eps: Budget = 10 / 255, *, decay: NonNegative = 1.0, normalise: bool = True, **options: object
    ) -> None:
        super().__init__(eps, **options)  # type: ignore[arg-type]
        self.modifier = Momentum(decay, normalise)


class AMIFGSM(MIFGSM):
    """Momentum with steps of eps / steps, so that the ball is kept without projection (Sang et al., 2022).

    It starts from the image and returns the last iterate.

    Args:
        eps: largest change, in [0, 1] pixel units.
        steps: gradients.
        decay: see ``MIFGSM``.
        normalise: see ``MIFGSM``.
        eps_of: radius ``(N,)`` per image from the images, at most ``eps``: the paper takes K / NIQE; None for the same
            for all.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    name = "amifgsm"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        steps: PositiveInt = 10,
        decay: NonNegative = 1.0,
        normalise: bool = False,
        eps_of: Callable[[Tensor], Tensor] | None = None,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(
            eps, steps=steps, decay=decay, normalise=normalise, best=False, eot_samples=eot_samples, through=through
        )
        self.eps_of = eps_of

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the last iterate."""
        self.modifier.reset()
        radii = torch.full((len(target),), self.eps, device=images.device)
        if self.eps_of is not None:
            radii = self.eps_of(images).to(images).clamp(0, self.eps)
        attacked = images.clone()
        for _ in range(self.steps):
            _, gradient = target.gradient(attacked)
            attacked = (attacked + per_image(radii / self.steps, attacked) * self.modifier(gradient)).clamp(0, 1)
        return attacked


class PGDLinf(GradientAttack):
    """Projected gradient ascent from a random start (Madry et al., ICLR 2018)."""

    name = "pgd_linf"

    def __init__(
        self, eps: Budget = 10 / 255, *, steps: PositiveInt = 20, random_start: bool = True, **options: object
    ) -> None:
        super().__init__(eps, steps=steps, random_start=random_start, **options)  # type: ignore[arg-type]


class PGDL2(GradientAttack):
    """Projected gradient ascent in l2, for certified radii; not rounded, and the whole radius is used.

    With ``eot_samples`` draws a step this is SmoothAdv (Salman et al., NeurIPS 2019) on a smoothed metric. It starts
    from the image: a random direction is nearly orthogonal to any gradient.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        steps: gradients.
        step_size: see ``GradientAttack``.
        best: see ``GradientAttack``; the image itself is no candidate.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    name = "pgd_l2"
    norm = "l2"
    rounds = False
    may_stay = False  # what is held against a certificate uses its radius

    def __init__(
        self,
        eps: Length = 0.06,
        *,
        steps: PositiveInt = 20,
        step_size: Step | None = None,
        best: bool = True,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, steps=steps, step_size=step_size, best=best, eot_samples=eot_samples, through=through)
        self.modifier = UnitL2()

    def project(self, attacked: Tensor, images: Tensor) -> Tensor:
        """Return images on the sphere, or where the box binds inside it.

        What the box cuts off is given to the other pixels, a few times over.
        """
        return onto_sphere(attacked, images, self.eps)
