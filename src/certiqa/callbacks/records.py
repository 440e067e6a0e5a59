"""Write a record for every tested image while the test goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from certiqa.data.images import ImageDataset
from certiqa.defenses import MedianSmoothing, reported_scores
from certiqa.evaluation.failing import one_by_one, refused, why
from certiqa.evaluation.records import RecordStore, plain
from certiqa.metrics.weights import fingerprint
from certiqa.training import DefenseModule

Row = dict[str, Any]


class Records(pl.Callback):
    """Scores every tested image with the defended metric and records it, once, durably.

    Images already recorded by an earlier, interrupted run of the same folder are passed over.

    Args:
        folder: the run's folder.

    Attributes:
        identity: what else than weights and data decides the numbers; the run's semantic config. Where it is left
            empty, outside ``train.py`` and ``evaluate.py``, ``settings`` takes its place.
        num_recorded: images that this process has recorded.
        each_alone: whether an image's rows depend on no other of its batch, to the last bit.
    """

    each_alone = False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.identity: dict[str, Any] = {}
        self.num_recorded = 0
        self._store: RecordStore | None = None

    @property
    def recorded_radii(self) -> Sequence[float]:
        """The radii that every image has a row for; here none, and one row without a radius."""
        return ()

    @property
    def store(self) -> RecordStore:
        """The records, open while a test runs."""
        assert self._store is not None
        return self._store

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the records of this rank; refuses those made with other weights, images, opinion scores or config."""
        assert isinstance(pl_module, DefenseModule)
        images = trainer.datamodule.test_set  # type: ignore[attr-defined]
        identity = self.identity_of(pl_module, images, pl_module.device)
        self._store = RecordStore(
            self.folder, trainer.global_rank, identity, images=images.digests(), radii=self.recorded_radii
        )
        trainer.strategy.barrier("records opened")  # no rank writes before the first has looked at what is there

    def identity_of(self, module: DefenseModule, images: ImageDataset, device: torch.device) -> dict[str, Any]:
        """Return everything that decides the numbers of these images on this device."""
        own = {f"callbacks.recorder.{key}": value for key, value in self.settings(module).items()}
        return (self.identity or own) | {
            "weights": fingerprint(module.defense),
            "data": images.fingerprint,
            "device": device.type,  # each type of device has noise of its own
        }

    def settings(self, module: DefenseModule) -> dict[str, Any]:
        """Return what decides the numbers beside weights and data; here, how a smoothed defense draws."""
        smooth = next((part for part in module.defense.modules() if isinstance(part, MedianSmoothing)), None)
        if smooth is None:
            return {}
        return {key: getattr(smooth, key) for key in ("sigma", "num_samples", "seed", "precision", "clip")}

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
        self.store_skipped(batch.get("failed", ()))
        keep = [row for row, name in enumerate(batch["image_id"]) if name not in self.store]
        if not keep:
            return
        raised: dict[int, Exception] = outputs["raised"]

        def score(rows: list[int]) -> Iterator[tuple[int, list[Row]]]:
            ids = [batch["image_id"][row] for row in rows]
            for place, found in self.score(trainer, pl_module, batch["image"][rows], ids):
                yield rows[place], found

        # what a killed run recorded of a batch is scored with it again: of another batch scores differ by rounding
        scored = keep if self.each_alone else range(len(batch["image_id"]))
        for row, found in chain(
            ((row, raised[row]) for row in keep if row in raised),
            one_by_one(score, [row for row in scored if row not in raised]),
        ):
            if row not in keep:
                continue
            clean = float(outputs["score_clean"][row])
            facts = facts_of(batch, row) | {"score_clean": plain(clean)}
            if isinstance(found, Exception):
                metric = pl_module.base_metric if row in raised else pl_module.defense
                found = self.failed(trainer, f"metric '{metric.name}'", facts["image_id"], found)
            elif not math.isfinite(clean):
                failure = f"metric '{pl_module.base_metric.name}' scored {clean} on image {facts['image_id']} as it is"
                found = [{**more, "failure": failure} for more in found]
            self.store.append([{**facts, **more} for more in found])
            self.num_recorded += 1

    def failed(self, trainer: pl.Trainer, what: str, image_id: str, error: Exception) -> list[Row]:
        """Return the rows of an image on which a metric raises; UserError where ``data.on_error`` says so."""
        refuse_unless_skipped(trainer, what, image_id, error)
        radii: Sequence[float | None] = list(self.recorded_radii) or [None]
        return [{"score": None, "radius": radius, "failure": why(what, image_id, error)} for radius in radii]

    def store_skipped(self, failed: Sequence[Row]) -> None:
        """Record images that could not be read, with the reason, once."""
        for item in failed:
            if item["image_id"] not in self.store:
                numbers = {key: plain(float(item[key])) for key in ("mos", "mos_normalised")}
                self.store.append([{**item, **numbers, "score_clean": None, "score": None, "skipped": True}])

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the other ranks: the first merges what all have written."""
        trainer.strategy.barrier("records")

    def score(
        self,
        trainer: pl.Trainer,
        module: DefenseModule,
        images: torch.Tensor,
        ids: list[str],
    ) -> Iterator[tuple[int, list[Row]]]:
        """Yield each image's place in the batch and its rows; here one, with the defended score."""
        scores = reported_scores(module.defense, images, ids)
        for place, score in enumerate(scores.tolist()):
            failure = None if math.isfinite(score) else f"metric '{module.defense.name}' scored {score} on {ids[place]}"
            yield place, [{"score": plain(score), "failure": failure}]


def refuse_unless_skipped(trainer: pl.Trainer, what: str, image_id: str, error: Exception) -> None:
    """Raise UserError of an image on which a metric raises, unless the data module is to skip such images."""
    if trainer.datamodule.on_error != "skip":  # type: ignore[attr-defined]
        raise refused(what, image_id, error) from error


def facts_of(batch: dict[str, Any], row: int) -> Row:
    """Return what is recorded of an image of a batch whatever is done to it."""
    words = {key: batch[key][row] for key in ("image_id", "path", "digest", "reference_id")}
    return words | {key: plain(float(batch[key][row])) for key in ("mos", "mos_normalised")}
