"""Metrics by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from certiqa.errors import UserError, suggest
from certiqa.metrics.base import QualityMetric
from certiqa.metrics.mini import MiniMetric

METRICS: dict[str, Callable[..., QualityMetric]] = {"mini": MiniMetric}


def load_metric(name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu") -> QualityMetric:
    """Load a frozen metric by name, e.g. ``load_metric("mini")``.

    Args:
        name: one of ``METRICS``.
        weights: a path; None takes the metric's own.
        device: where to put it.

    Raises:
        UserError: unknown name, or weights that do not fit.
    """
    if name not in METRICS:
        raise UserError(f"no metric '{name}'; there are: {', '.join(sorted(METRICS))}.{suggest(name, METRICS)}")
    return METRICS[name](weights=weights).to(device)
