"""Progress bars in the words of a run."""

from __future__ import annotations

from pytorch_lightning.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with passes over the training set counted from one and without a last one.

    Training ends after ``trainer.max_steps``, so "epoch 3 of -2" would be all that Lightning can say.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        return f"training, pass {current_epoch + 1}"

    @property
    def validation_description(self) -> str:
        """What the validation bar is called."""
        return "validation"

    @property
    def test_description(self) -> str:
        """What the test bar is called."""
        return "testing"
