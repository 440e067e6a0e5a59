"""Lightning's own ways to do less than asked: those that would leave out test images, or the training, are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certiqa.errors import UserError

WHOLE = (None, 1.0)  # of a share of the batches; the whole number 1 means one batch
INSTEAD = {
    "limit_test_batches": "test fewer images with data.limit_test",
    "fast_dev_run": "test fewer images with data.limit_test, and train for fewer steps with trainer.max_steps, or try "
    "debug=fast",
    "overfit_batches": "train for fewer steps with trainer.max_steps, and test fewer images with data.limit_test",
    "limit_train_batches": "train for fewer steps with trainer.max_steps",
    "limit_val_batches": "validate on fewer images with data.validation_images",
}


def refuse_limits(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for options of the trainer by which a finished run would not be all of what its config says.

    Refused are a limit of the batches of a test, whatever it is, and limits that leave nothing to train or validate on.

    >>> refuse_limits({"max_steps": 10, "limit_train_batches": 0.5})
    >>> refuse_limits({"limit_test_batches": 2})
    Traceback (most recent call last):
    certiqa.errors.UserError: trainer.limit_test_batches=2 leaves out images; test fewer images with data.limit_test
    """
    for option, instead in INSTEAD.items():
        value = trainer.get(option)
        if option == "limit_test_batches":
            refused = value not in WHOLE or isinstance(value, int)
        elif option in ("fast_dev_run", "overfit_batches"):
            refused = bool(value)
        else:
            refused = value is not None and not value
        if refused:
            raise UserError(f"trainer.{option}={value} leaves out images; {instead}")
