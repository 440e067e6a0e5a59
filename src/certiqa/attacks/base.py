"""What all attacks share: the call, the budget, 8-bit rounding, and what came of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from certiqa.attacks.target import Direction, Target
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, as_metric
from certiqa.metrics.base import at_least_float32
from certiqa.options import Length, PositiveInt, Through

EXPLODING = 100
"""Ranges of the score that one 8-bit step of every pixel would cover, to first order: above it a gradient explodes."""


@dataclass
class AttackResult:
    """What an attack made of images.

    Attributes:
        images: ``(N, 3, H, W)`` in [0, 1], on the 8-bit grid where the attack rounds: these are scored.
        unrounded: the same before rounding.
        forward_calls: images scored without a gradient; each draw of a random metric counts.
        gradient_calls: images scored with one, likewise.
        failed: ``(N,)``, images where a gradient or score was not finite.
        flat: ``(N,)``, images where a gradient was zero short of the best score there is; None of a suite.
        exploding: ``(N,)``, images where a gradient exploded; None where that is not known.
        rises: ``(N, 2)``, by how much J had risen after the first step and before the last one, as a share of the
            range; None where the attack does not climb J by itself, step by step.
        notes: what a reader should know, e.g. that gradients were zero.
    """

    images: Tensor
    unrounded: Tensor
    forward_calls: int
    gradient_calls: int
    failed: Tensor
    flat: Tensor | None = None
    exploding: Tensor | None = None
    rises: Tensor | None = None
    notes: list[str] = field(default_factory=list)


class Attack:
    """Base of all attacks: ``attack(metric, images, direction="raise") -> images``.

    A subclass implements ``perturb``. The images of a batch are attacked at once, and each as it would be alone.

    Attributes:
        name: what tables call it.
        norm: of its budget ``eps``: "linf", "l2", "rmse", "l0", or "none" where the attack bounds itself otherwise.
        strength: the option that makes it stronger or weaker, which presets of equal l_inf set.
        uses_gradient: whether it differentiates the metric; black-box attacks never do.
        rounds: whether its images are rounded to 8 bits before they are scored, since people attack files.
        watch: told how many images were scored, after each pass: ``attack.watch = tqdm(total=...).update``.
    """

    name = "attack"
    norm = "linf"
    strength = "eps"
    uses_gradient = True
    rounds = True
    watch: Callable[[int], object] | None = None

    def __init__(
        self, eps: Length | None = None, *, eot_samples: PositiveInt | None = 1, through: Through = "mean"
    ) -> None:
        self.eps = 0.0 if eps is None and self.norm not in ("linf", "l2", "rmse") else self.above_zero("eps", eps)
        if self.norm in ("linf", "rmse") and self.eps > 1:
            raise UserError(f"attack.eps of {self.name} must be at most 1, in [0, 1] pixel units (8/255), got {eps}")
        self.eot_samples = None if eot_samples is None else self.at_least("eot_samples", eot_samples, 1)
        self.through = through

    def at_least(self, option: str, value: Any, least: int) -> int:
        """Return a whole number of at least ``least``; raises UserError for others."""
        whole = isinstance(value, Real) and not isinstance(value, bool) and value == value // 1
        if not whole or value < least:
            raise UserError(f"attack.{option} of {self.name} must be a whole number, at least {least}, got {value!r}")
        return int(value)

    def above_zero(self, option: str, value: Any) -> float:
        """Return a finite number above 0; raises UserError for others."""
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            example = ", e.g. 8/255" if option == "eps" else ""
            raise UserError(f"attack.{option} of {self.name} must be a number above 0{example}, got {value!r}")
        return float(value)

    def __call__(
        self,
        metric: QualityMetric,
        images: Tensor,
        direction: Direction = "raise",
        *,
        targets: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return attacked images ``(N, 3, H, W)`` in [0, 1] inside the budget; see ``craft``."""
        return self.craft(metric, images, direction, targets=targets, image_ids=image_ids, seed=seed).images

    def craft(
        self,
        metric: QualityMetric,
        images: Tensor,
        direction: Direction = "raise",
        *,
        targets: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
    ) -> AttackResult:
        """Attack images, and say what it took.

        Args:
            metric: the metric, defended or not: gradients and scores are those of all of it.
            images: ``(N, 3, H, W)`` in [0, 1]; left as they are. Those in half precision, which cannot hold small
                steps, are attacked in float32.
            direction: "raise", "lower", "away", or a tensor of signs, see ``Target``.
            targets: scores ``(N,)`` to reach instead, native units.
            image_ids: names that key all randomness, of the metric and of the attack.
            seed: of all randomness; an image's own depends on (seed, image id) alone, not on the batch.

        Raises:
            UserError: no images or images outside [0, 1], a direction or targets that are none, or a metric without
                the gradient that the attack needs.
        """
        metric = as_metric(metric)
        images = at_least_float32(images.detach())
        if images.ndim != 4 or not len(images):
            raise UserError(f"an attack needs at least one image, (N, 3, H, W), got shape {tuple(images.shape)}")
        if float(images.amin()) < -1e-6 or float(images.amax()) > 1 + 1e-6:
            raise UserError(
                f"an attack starts from images in [0, 1], got {float(images.amin()):g} to {float(images.amax()):g}"
            )
        target = Target(
            metric,
            images,
            direction,
            targets=targets,
            image_ids=image_ids,
            seed=seed,
            eot_samples=self.eot_samples,
            through=self.through,
            watch=self.watch,
        )
        unrounded = self.perturb(target, images).detach().clamp(0, 1)
        attacked = self.rounded(unrounded, images) if self.rounds else unrounded
        result = AttackResult(attacked, unrounded, target.forward_calls, target.gradient_calls, target.failed)
        if self.uses_gradient and self.norm in ("linf", "l2") and len(target.trace) >= 3:
            result.rises = torch.stack([target.trace[1], target.trace[-1]], dim=1) - target.trace[0][:, None]
        result.flat, result.exploding = target.flat, self.explodes(target)
        result.notes = self.remarks(target)
        return result

    def passes(self) -> int | None:
        """Return about how often each image will be scored, for a progress bar; None where that is not known."""
        return getattr(self, "queries", None) or getattr(self, "steps", None)

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return attacked images before rounding; the only thing a subclass must define."""
        raise NotImplementedError(f"{type(self).__name__} must define perturb(target, images)")

    def rounded(self, attacked: Tensor, images: Tensor) -> Tensor:
        """Return attacked images on the 8-bit grid.

        Rounding never leaves the l_inf ball where clean images are on the grid and eps is a whole number of steps;
        otherwise a value that would leave it is rounded the other way.
        """
        grid = self.to_grid(attacked)
        if self.norm != "linf":
            return grid
        outside = (grid - images).abs() > self.eps + 1e-6
        inward = torch.where(grid > images, (attacked * 255).floor(), (attacked * 255).ceil()) / 255
        return torch.where(outside, inward, grid).clamp(0, 1)

    def to_grid(self, attacked: Tensor) -> Tensor:
        """Return images rounded to 8 bits, whatever the budget."""
        return (attacked * 255).round() / 255

    def explodes(self, target: Target) -> Tensor:
        """Return the images ``(N,)`` whose gradient promises more than any score can do."""
        if target.targets is not None or not target.metric.range_width:
            return torch.zeros_like(target.failed)
        # J is a share of the range, so this is what one 8-bit step of every pixel would do to first order
        return target.steepest / 255 > EXPLODING

    def remarks(self, target: Target) -> list[str]:
        """Return what a reader should know of this run."""
        notes = []
        if self.uses_gradient and bool(target.flat.any()):
            count = int(target.flat.sum())
            notes.append(
                f"{self.name}: the gradient was zero for {count} of {len(target)} images (masked, or at a flat spot); "
                "a black-box attack may do better"
            )
        exploding = self.explodes(target)
        if bool(exploding.any()):
            notes.append(
                f"{self.name}: the gradient explodes for {int(exploding.sum())} of {len(target)} images: it promises "
                f"more than {EXPLODING} times the range from one 8-bit step, so its direction says little"
            )
        if bool(target.failed.any()):
            notes.append(f"{self.name}: gradient or score not finite for {int(target.failed.sum())} images")
        return notes


def image_generator(seed: int, name: str, image_id: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one image's randomness in one attack: a function of (seed, attack, image id) alone."""
    digest = hashlib.blake2b(f"{seed}|{name}|{image_id}".encode(errors="surrogateescape"), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return ``(N,)`` values shaped to multiply images ``(N, ...)``."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def steps_to_reach(eps: float, step_size: float) -> int:
    """Return how many steps of this size it takes to reach the border of a ball."""
    return math.ceil(eps / step_size - 1e-9)
