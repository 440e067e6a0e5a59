"""``fresh=true``: an earlier run is moved aside, and nothing else that lies in its folder."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from certiqa.errors import UserError

LOCK = "run.lock"
WRITTEN = (
    "summary.json",  # first: without it a folder that was moved in part is no finished run
    *("records/rank-*.jsonl", "records/identity.json", "records/inputs.json", "records.parquet", "report.html"),
    *("checkpoints/*.ckpt*", "checkpoints/*.safetensors", "checkpoints/diffusion"),
    *("metrics*.csv", "hparams.yaml", "running_time.json", "gallery.json", "gallery/*.png"),
    *("attacked/manifest.csv", "attacked/*/*.png", "perturbations-*"),
    *("study.json", "study.csv", "cells/*/*.parquet", "transfer/*/*.npy", "transfer/*/complete", "figures.md"),
    *("wandb", "wandb.json", "tensorboard", ".hydra", "run.log"),
    *(".*.partial", "records/.*.partial", "checkpoints/.*.partial", "gallery/.*.partial"),
)
"""What runs write, as patterns below their folder."""
MARKS = (LOCK, "summary.json", "records/identity.json")
"""What a run's folder has at least one of as soon as there is anything to lose."""


def check_own(folder: Path) -> None:
    """Raise UserError where ``fresh=true`` is asked for in a folder that has content, but not that of a run."""
    if not folder.is_dir() or any((folder / mark).is_file() for mark in MARKS):
        return
    written = [pattern.split("/")[0] for pattern in WRITTEN]
    names = sorted(path.name for path in folder.iterdir())
    if foreign := [name for name in names if not any(fnmatch(name, pattern) for pattern in written)]:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"fresh=true starts a run over, but '{folder}' holds no run (it has {listed}); nothing there was touched. "
            "Leave fresh=true out, or give the run a folder of its own with hydra.run.dir=..."
        )


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run wrote in ``folder`` to ``<folder>.previous-N``; None if it wrote nothing.

    The lock stays, as whoever calls this holds it, and so does everything that no run writes.

    Raises:
        UserError: the system refuses.
    """
    paths = [path for pattern in WRITTEN for path in sorted(folder.glob(pattern))]
    if not paths:
        return None
    target = free_name(folder)
    try:
        target.mkdir()
        for path in paths:
            goal = target / path.relative_to(folder)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, goal)
        for parent in sorted({path.parent for path in paths} - {folder}, reverse=True):
            remove_empty(parent, folder)
    except OSError as error:
        raise UserError(f"cannot set '{folder}' aside as '{target}': {error}; move it away by hand") from error
    return target


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder, and those above it below ``top``, as far as nothing is in them."""
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def free_name(folder: Path) -> Path:
    """Return the first ``<folder>.previous-N`` that is free."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.previous-{number}")).exists():
        number += 1
    return target
