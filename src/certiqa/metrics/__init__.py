"""Frozen NR-IQA metrics, and where their weights come from."""

from certiqa.metrics.base import FrozenMetric, QualityMetric, as_metric
from certiqa.metrics.check import MetricCheck, check_metric, require_metric
from certiqa.metrics.mini import MiniMetric
from certiqa.metrics.registry import METRICS, load_metric

__all__ = [
    "METRICS",
    "FrozenMetric",
    "MetricCheck",
    "MiniMetric",
    "QualityMetric",
    "as_metric",
    "check_metric",
    "load_metric",
    "require_metric",
]
