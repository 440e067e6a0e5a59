"""A run's folder: continue what is unfinished, report what is finished, never lose what is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from certiqa.errors import UserError
from certiqa.evaluation.summary import read_summary

LOCK = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder: two processes in one would write over each other. A process that ends lets go of it.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process runs the same configuration in '{folder}'; wait for it, then the same command reports "
            "it, or give this one a place of its own with paths.outputs=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def shown(path: Path) -> str:
    """Return ``path`` as a user types it: relative to the working directory where it lies below that."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)


def move_aside(folder: Path) -> Path | None:
    """Move a whole run to ``<folder>.previous-N`` before a job of a sweep starts it over; None if there is none."""
    if not folder.is_dir():
        return None
    with locked(folder):
        target = free_name(folder)
        try:
            folder.rename(target)
        except OSError as error:
            raise UserError(f"cannot set '{folder}' aside as '{target}': {error}; move it away by hand") from error
    return target


def free_name(folder: Path) -> Path:
    """Return the first ``<folder>.previous-N`` that is free."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.previous-{number}")).exists():
        number += 1
    return target


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run's results out of ``folder`` to ``<folder>.previous-N``; None if there were none.

    Hydra has already opened ``.hydra`` and ``run.log`` in it, so those are copied.
    """
    shared = {".hydra", "run.log", LOCK}
    contents = [path for path in folder.iterdir() if path.name not in shared]
    if not contents:
        return None
    target = free_name(folder)
    try:
        target.mkdir()
        for path in contents:
            shutil.move(path, target / path.name)
        shutil.copytree(folder / ".hydra", target / ".hydra", dirs_exist_ok=True)
        shutil.copy2(folder / "run.log", target / "run.log")
    except OSError as error:
        raise UserError(f"cannot set '{folder}' aside as '{target}': {error}; move it away by hand") from error
    return target


def finished_summary(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """Return the summary of a finished run of this config, None where the run has to go on."""
    summary = read_summary(folder)
    finished = summary is not None and summary.get("status") == "finished"
    return summary if finished and summary and summary.get("config_hash") == config_hash else None
