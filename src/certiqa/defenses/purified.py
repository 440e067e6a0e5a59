"""Purifiers: image -> image steps before a metric, and the metric defended by one.

A purifier is adaptive ground: an attack's gradient flows through it, or through a stand-in where it has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics.base import QualityMetric, as_metric

BACKWARDS = ("native", "identity", "none")


class Purifier(nn.Module):
    """An image -> image module in [0, 1].

    Attributes:
        name: what tables call it.
        differentiable: whether its own gradient is of use to an attack.
        is_random: whether it draws random numbers, from the generators it is given.
        keeps_size: whether images leave it as large as they came.
        min_size: smallest height and width that it takes, in pixels.
    """

    name: str = "purifier"
    differentiable: bool = True
    is_random: bool = False
    keeps_size: bool = True
    min_size: int = 1

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return purified images of ``(N, 3, H, W)``.

        Args:
            images: RGB in [0, 1].
            generators: one per image, for what is random.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, generators)")

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) in which images of (height, width) ``size`` leave it."""
        return int(size[0]), int(size[1])

    def lipschitz(self, size: Sequence[int]) -> float | None:
        """Return a proven upper bound on its l2 Lipschitz constant for images of ``size``, None where none is known."""
        return None

    def surrogate(self, images: Tensor) -> Tensor:
        """Return what stands in for it in the backward pass of BPDA: the identity, or the bilinear resize.

        Athalye et al., ICML 2018: a differentiable map near the purifier, of the same output size.
        """
        size = self.output_size(images.shape[-2:])
        if size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class PurifiedMetric(QualityMetric):
    """A metric behind a purifier.

    Args:
        metric: the metric to defend; stays frozen.
        purifier: the step before it.
        backward: what a gradient takes through the purifier: "native" its own; "identity" that of
            :meth:`Purifier.surrogate` (BPDA, Athalye et al., ICML 2018); "none" lets nothing through, as a deployed
            purifier without a gradient does. Default: native where the purifier is differentiable, else identity.
        seed: of what is random, a function of (seed, image id).
        name: what tables call it.
    """

    def __init__(
        self,
        metric: nn.Module,
        purifier: Purifier,
        *,
        backward: str | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.metric = as_metric(metric)
        self.purifier = purifier
        backward = backward or ("native" if purifier.differentiable else "identity")
        if backward not in BACKWARDS:
            raise UserError(f"defense.backward must be one of {', '.join(BACKWARDS)}, got '{backward}'")
        self.backward = backward
        self.seed = int(seed)
        self.name = name or purifier.name
        inner = self.metric
        self.score_range, self.hard_bounds, self.lower_better = inner.score_range, inner.hard_bounds, inner.lower_better
        self.min_size, self.weights_source = inner.min_size, inner.weights_source
        self.is_random = purifier.is_random or inner.is_random
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def purify(
        self, images: Tensor, image_ids: Sequence[str] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return what the metric sees of images ``(N, 3, H, W)``."""
        generators = None
        if self.purifier.is_random:
            salt = self.seed if generator is None else int(torch.randint(2**62, (1,), generator=generator))
            ids = [""] * len(images) if image_ids is None else image_ids
            generators = [torch.Generator().manual_seed(_key(salt, name)) for name in ids]
        if self.backward == "native":
            return self.purifier(images, generators)
        with torch.no_grad():
            purified = self.purifier(images.detach(), generators)
        if self.backward == "none":
            return purified
        stand_in = self.purifier.surrogate(images)  # its gradient under the purifier's value
        return purified + (stand_in - stand_in.detach())

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score purified images; see :meth:`QualityMetric.forward`."""
        purified = self.purify(images, image_ids, generator)
        return self.metric(purified, image_ids=image_ids, generator=generator)

    def stops_gradient(self) -> str | None:
        """Return the purifier's name where it lets no gradient through."""
        stopped = self.backward == "none" or (self.backward == "native" and not self.purifier.differentiable)
        return self.purifier.name if stopped else self.metric.stops_gradient()


def _key(seed: int, image_id: str) -> int:
    text = f"purify|{seed}|{image_id}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
