"""Purifiers: image -> image steps before a metric, and the metric defended by one.

A purifier is adaptive ground: an attack's gradient flows through it, or through a stand-in where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certiqa.defenses.base import Defense, undefended
from certiqa.defenses.noise import hashed
from certiqa.errors import UserError
from certiqa.metrics.base import at_least_float32
from certiqa.options import Choices, Count, Seed

BACKWARDS = ("native", "identity", "none")
Generators = Sequence[torch.Generator]


class Purifier(nn.Module):
    """An image -> image module in [0, 1].

    Attributes:
        name: what tables call it.
        differentiable: whether its own gradient is of use to an attack.
        is_random: whether it draws random numbers, from the generators it is given.
        keeps_size: whether images leave it as large as they came.
        overshoots: whether its values may leave [0, 1]; a metric behind it then sees them clipped.
        min_size: smallest height and width that it takes, in pixels.
        thread_safe: whether several threads may call it at once, each with its own images.
    """

    name: str = "purifier"
    differentiable: bool = True
    is_random: bool = False
    keeps_size: bool = True
    overshoots: bool = False
    min_size: int = 1
    thread_safe: bool = False

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return purified images of ``(N, 3, H, W)``.

        Args:
            images: RGB in [0, 1].
            generators: one per image, for what is random, on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, generators)")

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) in which images of (height, width) ``size`` leave it."""
        return int(size[0]), int(size[1])

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) that images must have to leave it with at least ``needed``.

        A side is 0 where no image's is enough.
        """
        return max(self.min_size, needed[0]), max(self.min_size, needed[1])

    @property
    def trained_network(self) -> nn.Module | None:
        """The network that a training changes: the module called ``network``, None where there is none."""
        return self._modules.get("network")

    def lipschitz(self, size: Sequence[int]) -> float | None:
        """Return a proven upper bound on its l2 Lipschitz constant for images of ``size``, None where none is known."""
        return None

    def surrogate(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return what stands in for it in the backward pass of BPDA: the identity, or the bilinear resize.

        Athalye et al., ICML 2018: a differentiable map near the purifier, of the same output size. Generators are
        those of the forward pass, in the state they had before it.
        """
        size = self.output_size(images.shape[-2:])
        if size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class LipschitzSteps(Purifier):
    """Several purifiers in a row, none of them random, whose Lipschitz constants are known and multiply."""

    name = "steps"

    def __init__(self, steps: Sequence[Purifier]) -> None:
        super().__init__()
        for step in steps:
            check_before_noise(step)
        self.steps = nn.ModuleList(steps)
        self.keeps_size = all(step.keeps_size for step in steps)
        self.overshoots = any(step.overshoots for step in steps)
        self.thread_safe = all(step.thread_safe for step in steps)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Apply all steps in order."""
        for step in self.steps:
            images = step(images)
        return images

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size after the last step."""
        height, width = size
        for step in self.steps:
            assert isinstance(step, Purifier)
            height, width = step.output_size((height, width))
        return height, width

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return the size that images need before the first step."""
        height, width = needed
        for step in reversed(self.steps):
            assert isinstance(step, Purifier)
            if not height or not width:
                return 0, 0
            height, width = step.least_size((height, width))
        return height, width

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the product of the steps' constants, each at the size that reaches it."""
        constant = 1.0
        for step in self.steps:
            assert isinstance(step, Purifier)
            known = step.lipschitz(size)
            if known is None:
                raise UserError(f"no bound on the Lipschitz constant of {step.name} is known at {tuple(size)} pixels")
            constant, size = constant * known, step.output_size(size)
        return constant


def check_before_noise(step: nn.Module) -> None:
    """Raise UserError unless ``step`` may stand before the noise of median smoothing, with the reason."""
    name = step.name if isinstance(step, Purifier) else type(step).__name__
    reason = None
    if not isinstance(step, Purifier):
        reason = "its Lipschitz constant is unknown (wrap a linear module in LinearOperator)"
    elif step.is_random:
        reason = "it is random, so that clean and attacked images need not meet the same map"
    elif type(step).lipschitz is Purifier.lipschitz:
        reason = "no bound on its Lipschitz constant is known, so that a small change may grow to any size"
    if reason:
        raise UserError(
            f"{name} before the noise voids the certificate: {reason}. Put it behind the noise, where it is part of "
            f"what is smoothed, e.g. defense=chain defense.steps=[ms,{name}]"
        )


class PurifiedMetric(Defense):
    """A metric behind a purifier.

    Args:
        metric: the metric to defend; stays frozen.
        purifier: the step before it.
        backward: what a gradient takes through the purifier: "native" its own; "identity" that of
            ``Purifier.surrogate`` (BPDA, Athalye et al., ICML 2018); "none" lets nothing through, as a deployed
            purifier without a gradient does. Default: native where the purifier is differentiable, else identity.
        seed: of what is random, a function of (seed, place, image id).
        place: tells steps of one chain and draws of one ensemble apart, which share a seed.
        name: what tables call it.

    Raises:
        UserError: an unknown backward, or images that would be too small for the metric whatever comes in.
    """

    purifier: Purifier

    def __init__(
        self,
        metric: nn.Module,
        purifier: Purifier,
        *,
        backward: Annotated[str, Choices("native", "identity", "none")] | None = None,
        seed: Seed = 0,
        place: Count = 0,
        name: str | None = None,
    ) -> None:
        backward = backward or ("native" if purifier.differentiable else "identity")
        if backward not in BACKWARDS:
            raise UserError(f"defense.backward must be one of {', '.join(BACKWARDS)}, got '{backward}'")
        super().__init__(metric, name or purifier.name, purifier=purifier)
        self.kind = purifier.name
        self.backward = backward
        self.seed = int(seed)
        self.place = int(place)
        self.is_random |= purifier.is_random
        self.thread_safe = purifier.thread_safe and self.metric.thread_safe

    @property
    def purified_by(self) -> Purifier:
        """The purifier."""
        return self.purifier

    @property
    def trained_network(self) -> nn.Module | None:
        """The purifier's network."""
        return self.purifier.trained_network

    @property
    def min_sides(self) -> tuple[int, int]:
        """What the purifier needs to leave the metric enough."""
        return self.purifier.least_size(self.metric.min_sides)

    def purify(
        self, images: Tensor, image_ids: Sequence[str] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return what the metric sees of images ``(N, 3, H, W)``; draws once from ``generator`` where one is given."""
        images = at_least_float32(images)  # resizing, for one, knows no half precision
        salt = self.seed
        if self.purifier.is_random and generator is not None:
            salt = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))

        def generators() -> list[torch.Generator] | None:
            if not self.purifier.is_random:
                return None
            ids = [""] * len(images) if image_ids is None else image_ids
            if len(ids) != len(images):
                raise UserError(f"{len(images)} images but {len(ids)} image ids; give one id per image")
            return [torch.Generator().manual_seed(_key(salt, self.place, name)) for name in ids]

        if self.backward == "native":
            purified = self.purifier(images, generators())
        else:
            with torch.no_grad():
                purified = self.purifier(images.detach(), generators())
            if self.backward == "identity" and images.requires_grad and torch.is_grad_enabled():
                stand_in = self.purifier.surrogate(images, generators())  # its gradient under the purifier's value
                purified = purified + (stand_in - stand_in.detach())
        return purified.clamp(0, 1) if self.purifier.overshoots else purified

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score purified images; see ``QualityMetric.forward``."""
        self.check_images(images)
        purified = self.purify(images, image_ids, generator)
        return self.metric(purified, image_ids=image_ids, generator=generator)

    def stages(self, images: Tensor, image_ids: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the purified images, where only purifiers stand before the metric."""
        purified = purified_images(self, images, image_ids)
        return {} if purified is None else {"purified": purified}

    def stops_gradient(self) -> str | None:
        """Return the purifier's name where it lets no gradient through."""
        stopped = self.backward == "none" or (self.backward == "native" and not self.purifier.differentiable)
        return self.purifier.name if stopped else self.metric.stops_gradient()


def purified_images(defense: nn.Module, images: Tensor, image_ids: Sequence[str] | None = None) -> Tensor | None:
    """Return what the metric behind a chain of purifiers sees of images; None where the defense is anything else."""
    if not isinstance(defense, PurifiedMetric):
        return None
    while isinstance(defense, PurifiedMetric):
        images, defense = defense.purify(images, image_ids), defense.metric
    return images if undefended(defense) is defense else None


def _key(seed: int, place: int, image_id: str) -> int:
    return hashed(f"purify|{seed}|{place}|", image_id)
