"""Checkpoints of a training, from which a run that was killed ends with the weights of one that was not.

What a training step does is a function of (seed, step) and of the state that a checkpoint holds, and of nothing else:

- the order of the images is a function of (seed, pass); a crop and its noise of (seed, pass, image); the phase of MSE
  alone and the crops in it of the step. ``DefenseModule`` seeds PyTorch's global generators anew for every batch, for
  networks of one's own that draw from them;
- a checkpoint holds weights, optimizer, schedule, the number of batches done, and the metric's scores of clean images.
  Attacked images that a purifier is trained on are kept in files of their own, see
  ``certiqa.training.corruption.Attacked``.

A checkpoint is only ever taken *between* two batches, when validation and the end of a pass, if they were due, are
over: every ``minutes``, before a batch that a validation follows, at the end, and when a signal tells the run to stop.
Lightning takes up a run rightly only where its counters say "just after a batch, in the middle of a pass". So the
counters are written that way whatever the place, as a function of the number of batches done; the end of a pass is
"after batch 0" of the next. The training loader goes on at the restored batch without reading those before it.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from certiqa.data.order import TrainingLoader
from certiqa.errors import UserError
from certiqa.options import NonNegative
from certiqa.storage.files import write_aside

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
ENDED = "training_ended"  # in a checkpoint: there is nothing left to train


class StopSignal(Protocol):
    """What a run knows of the signals that tell it to stop.

    Attributes:
        received: the number of the one that came, None so far.
        deferred: whether signals are only noted, and do not interrupt.
    """

    received: int | None
    deferred: bool


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits for the disk, and renames it; the one before is kept as another.

    Lightning's own way is to write to a temporary folder, perhaps on another disk, and to move, which copies.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path``; what was there becomes ``previous.ckpt`` beside it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch itself would hide that a disk is full behind a RuntimeError
        torch.save(checkpoint, content)
        with write_aside(path) as partial:
            partial.write_bytes(content.getbuffer())
            if path.is_file():
                path.replace(path.with_name(PREVIOUS))


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` while a training goes on.

    Args:
        dirpath: folder of the checkpoints.
        minutes: at most so long between two checkpoints, but for a batch that takes longer, or a validation; 0 writes
            one after every batch.

    Attributes:
        signals: says whether the run was told to stop; it is then stopped after the batch under way, with a
            checkpoint. A validation is cut short instead: it may take minutes.

    Raises:
        UserError: ``minutes`` is negative or no number.
    """

    def __init__(self, dirpath: str | Path, minutes: NonNegative = 3.0) -> None:
        if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes >= 0:
            raise UserError(f"callbacks.checkpoint.minutes must be a number of at least 0, got {minutes!r}")
        self.folder = Path(dirpath)
        self.minutes = minutes
        self.signals: StopSignal | None = None
        self._written = time.monotonic()
        self._ended = False

    # -- when ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the loader go on where the run was stopped, and signals wait for the end of a batch."""
        if done := batches_done(trainer):
            loader = trainer.train_dataloader
            if not isinstance(loader, TrainingLoader):
                raise TypeError(f"{type(loader).__name__} cannot go on in the middle of a pass; use QualityDataModule")
            loader.go_on(*divmod(done, int(trainer.num_training_batches)))
        self._written = time.monotonic()
        self._defer(True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint of the batches before this one, if it is time."""
        done, loop = batches_done(trainer), trainer.fit_loop.epoch_loop
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients of earlier batches wait to be stepped with, and are in no checkpoint
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        is_due = time.monotonic() - self._written >= 60 * self.minutes or loop._should_check_val_fx(fetcher)
        told = self._told_to_stop(trainer)
        if done and trainer.strategy.reduce_boolean_decision(is_due or told, all=False):
            self.write(trainer)
        if told:
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals interrupt, of which one may have come in the step before."""
        self._defer(False)
        if self._told_to_stop(trainer):
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals wait again while training goes on."""
        self._defer(trainer.state.fn == "fit")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was trained."""
        self._ended = True
        self.write(trainer)
        self._defer(False)
        if self._told_to_stop(trainer):
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals interrupt again; nothing is written, as a step may be half done."""
        self._defer(False)

    def _defer(self, deferred: bool) -> None:
        if self.signals is not None:
            self.signals.deferred = deferred

    def _told_to_stop(self, trainer: pl.Trainer) -> bool:
        """Return whether any process of the run was: all stop at the same place."""
        told = self.signals is not None and self.signals.received is not None
        return trainer.strategy.reduce_boolean_decision(told, all=False)

    # -- what ----------------------------------------------------------------------------------------------

    def write(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint and, before it, the curves so far, which a continued run goes on with."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.folder / LAST)
        self._written = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring Lightning's counters into the one form in which it takes them up rightly."""
        set_counters(checkpoint["loops"]["fit_loop"], batches_done(trainer), int(trainer.num_training_batches))
        checkpoint[ENDED] = self._ended

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave the training where it ended, whatever ended it."""
        self._ended = bool(checkpoint.get(ENDED))
        if self._ended:
            trainer.should_stop = True


def batches_done(trainer: pl.Trainer) -> int:
    """Return how many batches the training has behind it, over all passes and sessions."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def set_counters(fit_loop: dict[str, Any], batches: int, batches_a_pass: int) -> None:
    """Make the state of Lightning's loops, as it was between two batches, that of just after a batch in a pass.

    Args:
        fit_loop: the state, changed in place.
        batches: how many are done, over all passes.
        batches_a_pass: how many one pass has.
    """
    passes, done = divmod(batches, batches_a_pass)

    def after(number: int) -> dict[str, int]:
        # Lightning itself counts the batch as completed when it takes the run up
        return {"ready": number, "started": number, "processed": number, "completed": number - 1}

    # the pass counts as not begun, so that hooks of its start are called
    begun = {"ready": passes + 1, "started": passes, "processed": passes, "completed": passes}
    fit_loop["epoch_progress"] = {"total": begun, "current": dict(begun)}
    fit_loop["epoch_loop.batch_progress"] = {"total": after(batches), "current": after(done), "is_last_batch": False}
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # counted with the batch
