"""A metric trained on rated images: a ridge head on features of an ImageNet network, then perhaps fine-tuning of both.

``python train.py experiment=metric data=...`` runs it, ``metric=trained`` uses what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from numpy.typing import NDArray
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from rich.progress import Progress
from torch import Tensor, nn

from certiqa.data.datamodule import QualityDataModule
from certiqa.data.images import ImageDataset
from certiqa.defenses import noise_key
from certiqa.errors import UserError
from certiqa.evaluation import measures
from certiqa.metrics.backbones import PooledFeatures
from certiqa.metrics.trained import DIGITS, TrainedFacts, TrainedNetwork, plain_resize
from certiqa.options import Positive, PositiveInt, Text
from certiqa.training.objective import correlation
from certiqa.training.ridge import ridge, ridge_path
from certiqa.training.schedule import warm_cosine

Array = NDArray[np.float64]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class MetricFit:
    """How a metric is trained.

    Args:
        backbone: a torchvision classifier, or ``timm/NAME``; see ``certiqa.metrics.backbones``.
        backbone_weights: file of its ImageNet weights; None for the package of MobileNetV2's, or torchvision's cache.
        layers: whose features are taken; None for those that the backbone has by default.
        penalties: of the ridge head; that one is taken with the highest SROCC of scores that each training image has
            from a fit without its fold.
        folds: into how many the training images are divided for that; those of one reference, or prompt, share a fold.
        fine_tune: whether head and backbone are then trained further, for at most ``trainer.max_epochs`` passes.
        patience: fine-tuning ends after so many passes without a better SROCC on the validation images, and the best
            is kept.
    """

    backbone: Text = "mobilenet_v2"
    backbone_weights: str | Path | None = None
    layers: Annotated[Sequence[str | int], Len(1)] | None = None
    penalties: Annotated[Sequence[Positive], Len(1)] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    folds: Annotated[int, Ge(2)] = 5
    fine_tune: bool = False
    patience: PositiveInt = 3

    def with_head(
        self, data: QualityDataModule, device: str = "cpu"
    ) -> tuple[TrainedNetwork, TrainedFacts, dict[str, float]]:
        """Return a network with ImageNet features and a ridge head, what its file is to say, and what was chosen.

        That is ``penalty``, with ``cv_srocc``, the cross-validated SROCC for which it was chosen, and ``val_srocc``,
        that on the validation images.

        Args:
            data: gives the training images, and the validation images.
            device: where to compute, and where the network is left.

        Raises:
            UserError: images without opinion scores, or a backbone or weights that there are not.
        """
        train, validation = data.train_set, data.validation_set
        for images in (train, validation):
            if not images.has_opinions or images.mos_range is None:
                raise UserError(f"a metric is trained on opinion scores, but some images of '{images.name}' have none")
        features = PooledFeatures(self.backbone, self.layers, imagenet=True, weights=self.backbone_weights)
        features.eval().to(device)
        seen, held_out = (features_of(features, data, images) for images in (train, validation))
        mos, held_out_mos = opinions(train), opinions(validation)
        groups = [record.reference_id or record.image_id for record in train.records]
        cross_validated = self._cross_validated(seen, mos, groups, sources_of(train))
        penalty = self.penalties[int(np.argmax(cross_validated))]
        weights, bias = ridge(seen, mos, penalty)
        chosen = {
            "penalty": penalty,
            "cv_srocc": max(cross_validated),
            "val_srocc": mean_srocc(held_out @ weights + bias, held_out_mos, sources_of(validation)),
        }
        assert train.mos_range is not None
        network = TrainedNetwork(features, len(weights), train.mos_range).eval().to(device)
        with torch.no_grad():
            network.head.weight.copy_(torch.from_numpy(weights)[None])
            network.head.bias.fill_(bias)
        facts = TrainedFacts(
            backbone=self.backbone,
            layers=list(features.layers),
            num_features=len(weights),
            mos_range=train.mos_range,
            lower_better=train.mos_lower_better,
            data=train.name,
            resize=plain_resize(data.resize),
            images=sorted(digest[:DIGITS] for digest in train.digests().values()),
        )
        return network, facts, chosen

    def _cross_validated(
        self, features: Array, mos: Array, groups: Sequence[str], sources: Sequence[str]
    ) -> list[float]:
        """Return for each penalty the SROCC of scores that each image has from a fit without its fold.

        Args:
            features: ``(N, F)``.
            mos: ``(N,)``.
            groups: ``(N,)``; images of one group share a fold.
            sources: ``(N,)``; see ``mean_srocc``.
        """
        names = sorted(set(groups), key=lambda name: noise_key(0, "train", name, 0))
        fold_of = {name: place % self.folds for place, name in enumerate(names)}
        if len(names) < self.folds:
            raise UserError(f"metric_fit.folds={self.folds} needs as many training images, there are {len(names)}")
        folds = np.array([fold_of[name] for name in groups])
        scores = np.zeros((len(self.penalties), len(mos)))
        for fold in range(self.folds):
            out = folds == fold
            for row, (weights, bias) in enumerate(ridge_path(features[~out], mos[~out], self.penalties)):
                scores[row, out] = features[out] @ weights + bias
        return [mean_srocc(row, mos, sources) for row in scores]


def sources_of(images: ImageDataset) -> list[str]:
    """Return of which data set of a union each image is."""
    return [record.source for record in images.records]


def mean_srocc(scores: Sequence[float] | Array, mos: Sequence[float] | Array, sources: Sequence[str]) -> float:
    """Return the mean over the data sets of a union of each one's SROCC; that of all images where there is but one.

    >>> mean_srocc([1, 2, 3, 6, 5, 4], [1, 2, 3, 1, 2, 3], ["a"] * 3 + ["b"] * 3)
    0.0
    """
    table = pd.DataFrame({"score": scores, "mos": mos, "source": sources})
    return float(np.mean([measures.srocc(rows.score, rows.mos) for _, rows in table.groupby("source")]))


def opinions(images: ImageDataset) -> Array:
    """Return the opinion scores ``(N,)`` in native units."""
    return np.array([record.mos for record in images.records], dtype=float)


@torch.inference_mode()
def features_of(features: nn.Module, data: QualityDataModule, images: ImageDataset) -> Array:
    """Return what a network gives for whole images, ``(N, ...)``, in the order of their list."""
    found: dict[str, Any] = {}
    device = next(features.parameters()).device
    with Progress() as progress:
        task = progress.add_task(f"{len(images)} images of {images.name}", total=len(images))
        for batch in data.whole_images(images):
            if batch["image_id"]:
                values = features(batch["image"].to(device)).double().cpu().numpy()
                found |= dict(zip(batch["image_id"], values, strict=True))
            progress.advance(task, len(batch["image_id"]))
    if lacking := [record.image_id for record in images.records if record.image_id not in found]:
        raise UserError(f"image '{lacking[0]}' cannot be read; a metric is trained on images that all can be")
    return np.stack([found[record.image_id] for record in images.records])


class MetricModule(pl.LightningModule):
    """Fine-tunes a metric on random crops: squared error and one minus Pearson's correlation within a batch.

    Of a union of data sets the correlation is the mean of those within each set.

    The images that a batch shows, their crops and whether they are mirrored are functions of (seed, pass, image).

    Args:
        network: the metric's, with its head fitted.
        optimizer: builds the optimizer of its parameters.
        mos_range: scale of the opinion scores.
        lower_better: whether a lower opinion score means better quality.
        warmup_steps: see ``certiqa.training.schedule``.
        seed: of the mirroring.

    Attributes:
        best: state of the network that had the highest SROCC on the validation images.
        best_srocc: that SROCC; of a union the mean of each set's.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        optimizer: Optimizer,
        *,
        mos_range: tuple[float, float],
        lower_better: bool = False,
        warmup_steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer
        self.mos_range, self.lower_better = mos_range, lower_better
        self.warmup_steps, self.seed = warmup_steps, seed
        self.best: dict[str, Tensor] = {}
        self.best_srocc = -1.0
        self._validated: dict[str, tuple[float, float, str]] = {}

    def setup(self, stage: str) -> None:
        """Let all weights be trained; BatchNorm is part of the convolutions and keeps ImageNet's statistics."""
        self.network.requires_grad_(True)

    def share_of_scale(self, scores: Tensor) -> Tensor:
        """Return scores in [0, 1] over the scale, higher = better."""
        low, high = self.mos_range
        shares = (scores - low) / (high - low)
        return 1 - shares if self.lower_better else shares

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops."""
        images, epochs = batch["image"], batch["epoch"].tolist()
        keys = [
            noise_key(self.seed, "train", name, epoch) for name, epoch in zip(batch["image_id"], epochs, strict=True)
        ]
        mirrored = torch.tensor([key % 2 == 1 for key in keys], device=images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        scores, wanted = self.share_of_scale(self.network(images)), batch["mos_normalised"].to(images)
        of_set: dict[str, list[int]] = {}
        for row, name in enumerate(batch["source"]):
            of_set.setdefault(name, []).append(row)
        within = torch.stack([correlation(scores[rows], wanted[rows]) for rows in of_set.values()]).mean()
        loss = F.mse_loss(scores, wanted) + (1 - within) / 2
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keep the scores of whole images."""
        scores = self.network(batch["image"]).tolist() if batch["image_id"] else []
        told = zip(scores, batch["mos"].tolist(), batch["source"] if scores else [], strict=True)
        self._validated |= dict(zip(batch["image_id"], told, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log the SROCC, and keep the network if it is the best so far."""
        srocc = mean_srocc(*zip(*self._validated.values(), strict=True))
        self._validated = {}
        self.log("val/srocc", srocc, prog_bar=True)
        if srocc > self.best_srocc:
            self.best_srocc = srocc
            self.best = {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer with the schedule of every training here."""
        optimizer = self.optimizer(self.network.parameters())
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = warm_cosine(optimizer, [steps], self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best network beside the newest."""
        checkpoint["best"] = {"srocc": self.best_srocc, "state": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the best network so far."""
        self.best_srocc, self.best = checkpoint["best"]["srocc"], checkpoint["best"]["state"]
