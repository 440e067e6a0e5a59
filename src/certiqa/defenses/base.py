"""What all defenses share: they wrap a metric, and have it as ``defense.metric``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certiqa.metrics.base import QualityMetric, as_metric

CPU_PIXELS = 1 << 20
"""Of the images that a CPU scores at once: five of 512x384, one of a megapixel."""


def undefended(metric: nn.Module) -> QualityMetric:
    """Return the metric inside all defenses; of a plain metric, itself."""
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
