"""A run's loggers: built from the config, told what the run found, and closed whatever ends it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from certiqa.callbacks import WandbTracker
from certiqa.entry.build import build
from certiqa.entry.identity import public_config
from certiqa.entry.preemption import Requeue
from certiqa.errors import UserError
from certiqa.evaluation.tracked import number

_running: list[pl.Trainer] = []
"""The trainer of the run under way, whose loggers are still open."""


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers of ``logger=...``: one with a ``_target_`` of its own, or one for each part that has one."""
    node = config.logger
    if not node:
        return []
    nodes = [node] if node.get("_target_") else [part for part in node.values() if _is_logger(part)]
    for part in nodes:
        name = str(part._target_).rpartition(".")[2]
        packages = ("tensorboard", "tensorboardX")
        if name == "TensorBoardLogger" and not any(map(importlib.util.find_spec, packages)):
            raise UserError("TensorBoard is not installed: pip install 'certiqa[tensorboard]', or choose logger=csv")
    return [build(part) for part in nodes]


def _is_logger(part: Any) -> bool:
    return isinstance(part, DictConfig) and bool(part.get("_target_"))


def start_tracking(trainer: pl.Trainer, config: DictConfig) -> None:
    """Open the W&B run of a job with its config, before any work; others open when Lightning first uses them."""
    _running[:] = [trainer]
    for logger in trainer.loggers:
        if isinstance(logger, WandbTracker):
            logger.open({key: value for key, value in public_config(config).items() if key != "hydra"})


def publish(summary: Mapping[str, Any]) -> None:
    """Tell the loggers of the run under way what it found; none of them can stop the run."""
    for trainer in _running:
        for logger in trainer.loggers:
            if isinstance(logger, WandbTracker):
                logger.publish(summary)
            elif isinstance(logger, TensorBoardLogger):
                figures = {f"summary/{key}": number(value) for key, value in summary.items()}
                chosen = {key: value for key, value in figures.items() if value is not None}
                logger.log_metrics(chosen, trainer.global_step)
                logger.save()


@contextmanager
def closing_loggers() -> Iterator[None]:
    """Close the loggers of the run within, as finished, failed, interrupted or to be continued."""
    status = "failed"
    try:
        yield
        status = "finished"
    except Requeue:
        status = "preempted"
        raise
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        trainers = _running[:]
        _running.clear()
        for logger in (logger for trainer in trainers for logger in trainer.loggers):
            if isinstance(logger, WandbTracker):
                logger.close(status)
