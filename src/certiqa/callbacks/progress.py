"""Progress bars in the words of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.markup import escape


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with passes over the training set counted from one and without a last one.

    Training ends after ``trainer.max_steps``, so "epoch 3 of -2" would be all that Lightning can say.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        return f"training, pass {current_epoch + 1}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the figures beside the bar, without the logger's version number that Lightning adds."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    @property
    def validation_description(self) -> str:
        """What the validation bar is called."""
        return "validation"

    @property
    def test_description(self) -> str:
        """What the test bar is called."""
        return "testing"


@contextmanager
def side_bar(trainer: pl.Trainer, description: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """Show a bar of its own within a batch; gives what advances it, None where no bars are shown.

    Args:
        trainer: whose progress bar is shown.
        description: what is under way.
        total: how many steps there will be; None if that is not known, and no bar is shown.
    """
    shown = next((bar for bar in trainer.callbacks if isinstance(bar, Progress)), None)  # type: ignore[attr-defined]
    bars = None if shown is None else shown.progress
    if bars is None or total is None:  # Lightning's columns need a total
        yield None
        return
    task = bars.add_task(f"[white]{escape(description)}", total=total)  # Lightning's column reads markup
    try:
        yield lambda count: bars.update(task, advance=count)
    finally:
        bars.remove_task(task)
