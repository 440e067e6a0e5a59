"""What all defenses share: they wrap a metric, and have it as ``defense.metric``."""

from __future__ import annotations

from torch import nn

from certiqa.metrics.base import QualityMetric, as_metric


def undefended(metric: nn.Module) -> QualityMetric:
    """Return the metric inside all defenses; of a plain metric, itself."""
    while isinstance(inner := getattr(metric, "metric", None), nn.Module):
        metric = inner
    return as_metric(metric)


def no_defense(metric: nn.Module, name: str = "none") -> QualityMetric:
    """Return the metric as it is: ``defense=none``, the baseline of every table."""
    return as_metric(metric)
