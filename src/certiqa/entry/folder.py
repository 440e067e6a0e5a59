"""A run's folder: continue what is unfinished, report what is finished, never lose what is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from certiqa.entry.starting_over import LOCK
from certiqa.errors import UserError
from certiqa.evaluation.summary import sound_summary


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


def finished_summary(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """Return the summary of a finished run of this config, None where the run has to go on."""
    summary = sound_summary(folder)
    finished = summary.get("status") == "finished"
    return summary if finished and summary.get("config_hash") == config_hash else None
