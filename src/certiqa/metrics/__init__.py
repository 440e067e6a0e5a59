"""Frozen NR-IQA metrics, and where their weights come from."""

from certiqa.metrics.base import FrozenMetric, QualityMetric, as_metric
from certiqa.metrics.check import MetricCheck, check_metric, require_metric
from certiqa.metrics.clipiqa import ClipiqaPlusMetric
from certiqa.metrics.crops import CropAveraged
from certiqa.metrics.dbcnn import DbcnnMetric
from certiqa.metrics.linearity import LinearityMetric
from certiqa.metrics.metaiqa import MetaiqaMetric
from certiqa.metrics.mini import MiniMetric
from certiqa.metrics.pyiqa import PyiqaMetric
from certiqa.metrics.registry import METRICS, load_metric
from certiqa.metrics.spaq import SpaqMetric
from certiqa.metrics.trained import TrainedMetric

__all__ = [
    "METRICS",
    "ClipiqaPlusMetric",
    "CropAveraged",
    "DbcnnMetric",
    "FrozenMetric",
    "LinearityMetric",
    "MetaiqaMetric",
    "MetricCheck",
    "MiniMetric",
    "PyiqaMetric",
    "QualityMetric",
    "SpaqMetric",
    "TrainedMetric",
    "as_metric",
    "check_metric",
    "load_metric",
    "require_metric",
]
