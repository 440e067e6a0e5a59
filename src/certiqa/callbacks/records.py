"""Write a record for every tested image while the test goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from certiqa.errors import UserError
from certiqa.evaluation.records import RecordStore, plain
from certiqa.training import DefenseModule

Row = dict[str, Any]


class Records(pl.Callback):
    """Scores every tested image with the defended metric and records it, once, durably.

    Images already recorded by an earlier, interrupted run of the same folder are passed over.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.num_forward = 0  # passes through the metric for defended scores, in this process
        self._store: RecordStore | None = None

    @property
    def store(self) -> RecordStore:
        """The records, open while a test runs."""
        assert self._store is not None
        return self._store

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the records of this rank."""
        self._store = RecordStore(self.folder, trainer.global_rank)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the images of the batch that have no record yet."""
        assert isinstance(pl_module, DefenseModule)
        keep = [row for row, name in enumerate(batch["image_id"]) if name not in self.store]
        if not keep:
            return
        images = batch["image"][keep]
        ids = [batch["image_id"][row] for row in keep]
        clean = outputs["score_clean"][keep]
        for row, rows in zip(keep, self.score(trainer, pl_module, images, ids, clean), strict=True):
            facts = {
                "image_id": batch["image_id"][row],
                "path": batch["path"][row],
                "reference_id": batch["reference_id"][row],
                "mos": plain(float(batch["mos"][row])),
                "mos_normalised": plain(float(batch["mos_normalised"][row])),
                "score_clean": float(outputs["score_clean"][row]),
            }
            self.store.append([{**facts, **more} for more in rows])

    def score(
        self,
        trainer: pl.Trainer,
        module: DefenseModule,
        images: torch.Tensor,
        ids: list[str],
        clean: torch.Tensor,
    ) -> Iterable[list[Row]]:
        """Return for each image its rows; here one, with the defended score."""
        with torch.no_grad():
            scores = module.defense(images, image_ids=ids)
        self.num_forward += len(images)
        require_finite(module.defense.name, scores, ids)
        return [[{"score": float(score)}] for score in scores]


def require_finite(name: str, scores: torch.Tensor, ids: list[str]) -> None:
    """Raise UserError that names the first image whose score is NaN or infinite."""
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise UserError(
            f"metric '{name}' scored {float(scores[row])} on image '{ids[row]}'; look at that image and the metric's "
            "weights (records so far are kept)"
        )
