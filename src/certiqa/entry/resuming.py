"""Where a run that was stopped goes on: the newest checkpoint that is whole, and the curves up to it."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

NAMES = ("last*.ckpt", "previous.ckpt")
SAVED = ("state_dict", "loops", "optimizer_states", "lr_schedulers")


class Resumption(NamedTuple):
    """Where a training goes on.

    Attributes:
        checkpoint: the file; None to begin.
        steps: how many training steps it holds.
        batches: how many batches they were, counted as curves count them.
    """

    checkpoint: Path | None = None
    steps: int = 0
    batches: int = 0


def newest_checkpoint(folder: Path, network: Mapping[str, Tensor]) -> tuple[Resumption, list[tuple[Path, str]]]:
    """Return where a run's training goes on, and the files that are no checkpoints of it, each with the reason.

    There may be several: ``last.ckpt`` and the one before it, and a copy of Lightning's in a folder that an older
    version of certiqa went on in after it was moved. The one of the most steps counts, since times of change do not
    tell them apart after a copy.

    Args:
        folder: the run's.
        network: state of the network under training, whose names and shapes a checkpoint must have.
    """
    found, damaged = [Resumption()], []
    for path in sorted(path for names in NAMES for path in (folder / "checkpoints").glob(names)):
        try:
            saved = read_checkpoint(path, network)
        except FileNotFoundError:
            continue  # another process of this run has set it aside
        except Exception as error:  # a damaged pickle raises whatever it likes
            damaged.append((path, str(error).strip().split("\n")[0] or type(error).__name__))
        else:
            stepped = saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
            found.append(Resumption(path, int(saved["global_step"]), int(stepped) + 1))
    return max(found, key=lambda one: one.steps), damaged


def read_checkpoint(path: Path, network: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint after it has been checked; raises any exception where it is cut, changed or another's."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():  # PyTorch does not look at the sums that it writes
            raise ValueError(f"its part {broken} is damaged")
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if lacking := [key for key in SAVED if key not in saved]:
        raise ValueError(f"it has no {lacking[0]}")
    shapes = {name.removeprefix("denoiser."): value.shape for name, value in saved["state_dict"].items()}
    if shapes != {name: value.shape for name, value in network.items()}:
        raise ValueError("it is of another network")
    return saved


def set_damaged_aside(damaged: list[tuple[Path, str]]) -> list[str]:
    """Rename files that are no checkpoints, and return what to tell of each."""
    told = []
    for path, reason in damaged:
        number = 1
        while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        path.replace(target)
        told.append(f"'{path}' is no checkpoint of this run ({reason}); it is set aside as {target.name}")
    return told


# -- curves --------------------------------------------------------------------------------------------------


def set_curves_aside(folder: Path) -> None:
    """Rename ``metrics.csv``, which Lightning's logger would begin anew, until ``continue_curves`` has its rows."""
    curves, earlier = folder / "metrics.csv", folder / "metrics-earlier.csv"
    if curves.is_file() and not earlier.exists():  # else the last session was killed in between
        curves.replace(earlier)


def continue_curves(trainer: pl.Trainer, folder: Path, batches: int) -> None:
    """Put the rows of the batches that are not trained again back into ``metrics.csv``."""
    earlier = folder / "metrics-earlier.csv"
    if not earlier.is_file():
        return
    with earlier.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if is_before(row, batches)]
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.experiment.metrics[:0] = rows
            logger.save()
    earlier.unlink()


def is_before(row: dict[str | Any, Any], batches: int) -> bool:
    """Return whether a row of the curves is whole and of one of the first batches."""
    step = row.get("step") or ""
    return None not in row and None not in row.values() and step.isdigit() and int(step) < batches
