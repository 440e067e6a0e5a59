"""``run.log``, written from the moment on that the folder is known to be the run's, and what goes there alone."""

from __future__ import annotations

import logging
import warnings


class RunLog(logging.FileHandler):
    """Holds back what is logged until ``begin_logs``: a command that is refused leaves no line in a run's folder.

    Args:
        filename: the log, which is appended to.
        encoding: of its text.
    """

    def __init__(self, filename: str, encoding: str = "utf-8") -> None:
        super().__init__(filename, encoding=encoding, delay=True)
        self.held: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or hold it back."""
        if self.held is None:
            super().emit(record)
        else:
            self.held.append(record)

    def begin(self) -> None:
        """Write what was held back, and from now on every line at once."""
        held, self.held = self.held or [], None
        for record in held:
            self.handle(record)


def begin_logs() -> None:
    """Begin the log of the job under way."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLog):
            handler.begin()


def quiet_lightning() -> None:
    """Keep Lightning's tips and device notes in the log file: the terminal shows progress and results."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_utilities", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for harmless in (
        "You're resuming from a checkpoint that ended before the epoch ended",  # the loader goes on at its batch
        "Found .* module.* in eval mode at the start of training",  # the frozen metric is meant to be
        ".*does not have many workers",
        "Experiment logs directory .* exists and is not empty",  # curves of an unfinished run are set aside first
        ".*isinstance.treespec, LeafSpec.*",
        "Starting from v1.9.0, `tensorboardX`",
        "The `srun` command is available on your system but is not used",
    ):
        warnings.filterwarnings("ignore", harmless)
