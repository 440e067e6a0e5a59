"""What all defenses share: the metric inside, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics.base import QualityMetric, as_metric

CPU_PIXELS = 1 << 20
"""Of the images that a CPU scores at once: five of 512x384, one of a megapixel."""


class Defense(QualityMetric):
    """A metric with a defense around it: the base of all defenses.

    Range, direction, bounds, weights and sizes are those of the metric inside, as its randomness is, and the whole is
    frozen: no parameter requires grad, and ``train()`` leaves it in eval mode. A defense defines ``forward``, and of
    ``min_sides``, ``trained_network``, ``purified_by``, ``certifiable`` and ``stages`` what is not as it is here.

    Args:
        metric: the metric to defend.
        name: what tables call it.
        parts: what else the defense is made of, kept under these names before it is frozen and its sizes are asked for.

    Attributes:
        metric: the metric inside, which may be a defense again.
        kind: which of certiqa's own defenses it is, by the name that ``defense=`` takes; None for any other.

    Raises:
        UserError: images would be too small for the metric inside whatever comes in.
    """

    metric: QualityMetric
    kind: str | None = None

    def __init__(self, metric: nn.Module, name: str, **parts: Any) -> None:
        super().__init__()
        self.metric = inner = as_metric(metric)
        for part, value in parts.items():
            setattr(self, part, value)
        self.name = name
        self.score_range, self.hard_bounds, self.lower_better = inner.score_range, inner.hard_bounds, inner.lower_better
        self.weights_source = inner.weights_source
        self.is_random = type(self).is_random or inner.is_random
        if 0 in self.min_sides:
            height, width = inner.min_sides
            step = "the step before it" if self.purified_by is None else self.purified_by.name
            raise UserError(
                f"what reaches metric '{inner.name}' is too small: it needs images of at least {height}x{width} "
                f"pixels; let {step} keep more"
            )
        self.min_size = max(self.min_sides)
        self.requires_grad_(False)
        self.eval()

    @property
    def min_sides(self) -> tuple[int, int]:
        """What the metric inside needs; another where a step before it changes the size."""
        return self.metric.min_sides

    def stops_gradient(self) -> str | None:
        """Return the step of the metric inside that lets no gradient through."""
        return self.metric.stops_gradient()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: whoever trains ``trained_network`` puts that alone in training mode."""
        return super().train(False)


def undefended(metric: nn.Module) -> QualityMetric:
    """Return the metric inside all defenses; of a plain metric, itself.

    Anything that has a module as its ``metric`` counts, a defense of one's own that is no ``Defense`` too.
    """
    while isinstance(inner := getattr(metric, "metric", None), nn.Module):
        metric = inner
    return as_metric(metric)


@torch.no_grad()
def reported_scores(metric: QualityMetric, images: Tensor, image_ids: Sequence[str] | None = None) -> Tensor:
    """Return scores ``(N,)`` as a run reports them.

    No autocast of a trainer's reaches them, whose precision is of the training alone; and on a CPU large images are
    scored a few at a time, for the memory.
    """
    size = len(images) or 1
    if images.device.type == "cpu":
        size = max(1, min(size, CPU_PIXELS // (images.shape[-2] * images.shape[-1])))
    scores = []
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, len(images), size):
            ids = None if image_ids is None else image_ids[start : start + size]
            scores.append(metric(images[start : start + size], image_ids=ids))
    return torch.cat(scores)


def no_defense(metric: nn.Module, name: str = "none") -> QualityMetric:
    """Return the metric as it is: ``defense=none``, the baseline of every table."""
    return as_metric(metric)
