"""Metrics by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from certiqa.errors import UserError, suggest
from certiqa.metrics.base import QualityMetric
from certiqa.metrics.clipiqa import ClipiqaPlusMetric
from certiqa.metrics.dbcnn import DbcnnMetric
from certiqa.metrics.linearity import LinearityMetric
from certiqa.metrics.metaiqa import MetaiqaMetric
from certiqa.metrics.mini import MiniMetric
from certiqa.metrics.pyiqa import PyiqaMetric
from certiqa.metrics.spaq import SpaqMetric
from certiqa.metrics.trained import TrainedMetric

METRICS: dict[str, Callable[..., QualityMetric]] = {
    "mini": MiniMetric,
    "clipiqa_plus": ClipiqaPlusMetric,
    "dbcnn": DbcnnMetric,
    "metaiqa": MetaiqaMetric,
    "linearity": LinearityMetric,
    "spaq": SpaqMetric,
    "trained": TrainedMetric,
}
"""The metrics with adapters of their own; every other NR metric of pyiqa goes by its name there."""


def load_metric(
    name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu", **options: Any
) -> QualityMetric:
    """Load a frozen metric by name, e.g. ``load_metric("dbcnn")``.

    Args:
        name: one of ``METRICS``, or of pyiqa's NR metrics; "pyiqa" with the option ``metric_name`` is the same,
            as in ``metric=pyiqa metric.metric_name=cnniqa``.
        weights: a path; "random" for a smoke run; None takes the published ones, downloaded if need be.
        device: where its weights are read to.
        options: of that metric, e.g. ``resize``.

    Raises:
        UserError: unknown name or option, weights that cannot be had, or that do not fit.
    """
    if name == "pyiqa":
        if "metric_name" not in options:
            raise UserError('metric \'pyiqa\' needs metric_name, e.g. load_metric("pyiqa", metric_name="cnniqa")')
        name = options.pop("metric_name")
    if name in METRICS:
        build = METRICS[name]
        known = set(inspect.signature(build).parameters)
        for key in options.keys() - known:
            raise UserError(f"metric '{name}' has no option '{key}'; it has: {', '.join(sorted(known))}.")
        return build(weights=weights, device=device, **options)
    known = set(inspect.signature(PyiqaMetric).parameters) - {"metric_name"}
    for key in options.keys() - known:
        raise UserError(f"metric '{name}' has no option '{key}'; it has: {', '.join(sorted(known))}.")
    try:
        return PyiqaMetric(name, weights, device=device, **options)
    except UserError as error:
        if "has no NR metric" not in str(error):
            raise
        from certiqa.metrics.pyiqa import pyiqa_metrics

        names = [*METRICS, *pyiqa_metrics()]
        raise UserError(
            f"no metric '{name}'; there are: {', '.join(sorted(METRICS))}, and pyiqa's NR metrics by their names "
            f"there.{suggest(name, names)}"
        ) from error
