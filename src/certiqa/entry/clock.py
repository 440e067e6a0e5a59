"""How long a run has taken, also where sessions of it were killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certiqa.evaluation.summary import sound_summary
from certiqa.reports.tables import value_of
from certiqa.storage.files import DamagedFileError, read_json, write_json

CLOCK = "running_time.json"


class Clock:
    """How long a run has taken, over all its sessions; on the disk while it goes on, so that a kill loses little.

    Args:
        folder: the run's.
        config_hash: of what it computes; the time of a run of something else does not count.

    """

    def __init__(self, folder: Path, config_hash: str) -> None:
        self.path = folder / CLOCK
        self.config_hash = config_hash
        kept = self._read() or self._of_summary()
        self.before = {key: value_of(kept, key) or 0.0 for key in ("seconds", "seconds_training")}
        self.started = self.train_started = time.monotonic()
        self.is_training = False
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def _read(self) -> dict[str, Any]:
        try:
            kept = read_json(self.path, dict) or {}
        except DamagedFileError:
            return {}
        return kept if kept.get("config_hash") == self.config_hash else {}

    def _of_summary(self) -> dict[str, Any]:
        """Return what the summary says, where an older version of certiqa has left no file of its own."""
        summary = sound_summary(self.path.parent)
        return summary if summary.get("config_hash") == self.config_hash else {}

    @property
    def seconds(self) -> float:
        """Seconds of all sessions so far."""
        return self.before["seconds"] + time.monotonic() - self.started

    @property
    def seconds_training(self) -> float:
        """Those of training among them."""
        return self.before["seconds_training"] + (time.monotonic() - self.train_started if self.is_training else 0.0)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the time of the block as training."""
        self.train_started, self.is_training = time.monotonic(), True
        try:
            yield
        finally:
            self.before["seconds_training"], self.is_training = self.seconds_training, False

    def start(self, every: float = 10.0) -> None:
        """Write the time down every so many seconds, until ``stop``."""

        def write_until_the_end() -> None:
            while not self._ended.wait(every):
                self.write()

        self._writer = threading.Thread(target=write_until_the_end, daemon=True)
        self._writer.start()

    def stop(self) -> None:
        """Write it a last time."""
        self._ended.set()
        if self._writer is not None:
            self._writer.join()
            self.write()

    def write(self) -> None:
        """Write the time so far."""
        content = {"config_hash": self.config_hash, "seconds": self.seconds, "seconds_training": self.seconds_training}
        write_json(self.path, content, durable=False)
