"""The batches of a set attack, which are gone through several times, and what the first time finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certiqa.attacks.base import AttackResult
from certiqa.attacks.planning import Array
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric

AGAIN = "give a DataLoader or a list of batches, which can be gone through again, with the same images every time"


@dataclass
class Survey:
    """A set before it is attacked: ids, scores ``(n,)``, opinion scores ``(n,)`` in the scores' direction or None.

    ``forward_calls`` and ``gradient_calls`` are what came before the attack itself, of all images together.
    """

    image_ids: list[str]
    scores: Array
    mos: Array | None
    forward_calls: int = 0
    gradient_calls: int = 0

    def count(self, target: Target) -> None:
        """Add what a target was asked."""
        self.forward_calls += target.forward_calls
        self.gradient_calls += target.gradient_calls

    def charge(self, result: AttackResult) -> None:
        """Add to the cost of attacked images their share of this."""
        share = len(result.images) / len(self.image_ids)
        result.forward_calls += round(self.forward_calls * share)
        result.gradient_calls += round(self.gradient_calls * share)


def device_of(metric: QualityMetric) -> torch.device:
    """Return where a metric's tensors are."""
    tensors = [*metric.parameters(), *metric.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def set_batches(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, list[str], Tensor | None]]:
    """Yield images on a device, their ids, and opinion scores where there are any; batches without images are left."""
    count = 0
    for batch in batches:
        images = batch.get("image") if isinstance(batch, dict) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise UserError(
                "the batches of a set attack must be dicts with 'image', or tensors (N, 3, H, W), got "
                f"{type(batch).__name__}; add the batch axis, or name the images 'image'"
            )
        if not len(images):
            continue
        facts = batch if isinstance(batch, dict) else {}
        names = [str(name) for name in facts.get("image_id", range(count, count + len(images)))]
        mos = facts.get("mos_normalised", facts.get("mos"))
        count += len(images)
        yield images.to(device), names, None if mos is None else torch.as_tensor(mos)


def again(
    batches: Iterable[Any], device: torch.device, places: dict[str, int]
) -> Iterator[tuple[Tensor, list[str], Tensor | None]]:
    """Yield the batches once more; raises UserError where they are not the same images."""
    left = set(places)
    for images, names, mos in set_batches(batches, device):
        strange = [name for number, name in enumerate(names) if name not in left or name in names[:number]]
        if strange:
            raise UserError(f"a later pass over the set gave '{strange[0]}', which is new or came twice; {AGAIN}")
        left -= set(names)
        yield images, names, mos
    if left:
        raise UserError(f"{len(left)} of {len(places)} images were missing in a later pass over the set; {AGAIN}")
