"""The one LightningModule: trains any denoiser in front of any frozen metric, and scores any defense."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from certiqa.defenses import MedianSmoothing, noise_key, reported_scores, undefended
from certiqa.errors import UserError
from certiqa.evaluation.failing import one_by_one
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import load_strictly
from certiqa.training.corruption import Corruption, GaussianNoise
from certiqa.training.objective import DenoisingObjective
from certiqa.training.schedule import warm_cosine

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class DefenseModule(pl.LightningModule):
    """A defended metric under Lightning.

    Args:
        defense: the defended metric, or a plain one.
        objective: what its network, a denoiser's or a purifier's, is trained for; None where there is nothing to train.
        optimizer: builds the optimizer of the network's parameters.
        sigma: noise level of a denoiser's training images, or its range (low, high); default the defense's.
        corruption: what a purifier's network is given in training; a denoiser gets noise.
        warmup_steps: see ``certiqa.training.schedule``.
        restart: whether the learning rate starts again where the objective begins to go through the metric.
        seed: of the training noise, which is a function of (seed, image id, epoch).
    """

    def __init__(
        self,
        defense: QualityMetric,
        objective: DenoisingObjective | None = None,
        optimizer: Optimizer | None = None,
        *,
        sigma: float | Sequence[float] | None = None,
        corruption: Corruption | None = None,
        warmup_steps: int = 20,
        restart: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.defense = defense
        self.base_metric = undefended(defense)
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.restart = restart
        self.seed = seed
        self.strict_loading = False  # checkpoints hold the denoiser alone; on_load_checkpoint is strict about that
        self._clean_scores: dict[str, Tensor] = {}
        self.corruption = corruption
        if objective is None:
            return
        objective.check_metric(self.base_metric)
        if corruption is not None:
            self._check_corruption(objective, corruption)
            return
        smooth = self._smoothing
        if smooth is None or smooth.denoiser is None:
            raise UserError(f"objective={objective.name} trains a denoiser, but defense '{defense.name}' has none")
        levels = [sigma if sigma is not None else smooth.sigma] if not isinstance(sigma, Sequence) else list(sigma)
        self.sigma_range = (float(levels[0]), float(levels[-1]))
        if len(levels) > 2 or not 0 < self.sigma_range[0] <= self.sigma_range[1]:
            raise UserError(f"training.sigma must be a positive level or a range [low, high], got {sigma}")
        self.corruption = GaussianNoise(smooth, self.sigma_range, seed)

    def _check_corruption(self, objective: DenoisingObjective, corruption: Corruption) -> None:
        """Refuse to train a purifier that has no network, or a network that gives no image for its score."""
        if self.defense.purified_by is None or self.defense.trained_network is None:
            raise UserError(f"objective={objective.name} trains a network, but defense '{self.defense.name}' has none")
        if objective.needs_metric and not corruption.restores:
            raise UserError(
                f"objective={objective.name} scores what a network gives, but that of defense '{self.defense.name}' "
                "gives no image; train it with objective=mse"
            )

    @property
    def denoiser(self) -> nn.Module:
        """The network under training, of a smoothing or of a purifier."""
        network = self.defense.trained_network
        assert network is not None
        return network

    @property
    def _smoothing(self) -> MedianSmoothing | None:
        """The defense where it is a median smoothing, whose noise is what its denoiser is trained and tested on."""
        return self.defense if isinstance(self.defense, MedianSmoothing) else None

    @property
    def _train_set(self) -> Any:
        """The training images of a data module of this project, None with other loaders."""
        return getattr(getattr(self.trainer, "datamodule", None), "train_set", None)

    # -- training ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Unfreeze the denoiser, which a defense otherwise keeps frozen, before DDP looks for what to train."""
        if stage == "fit":
            self.denoiser.requires_grad_(True)

    def on_fit_start(self) -> None:
        """Raise UserError before any step if the objective needs opinion scores that are lacking or not comparable."""
        if self.objective is not None and self._train_set is not None:
            self.objective.check_opinions(self._train_set.has_opinions, self._train_set.sources)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Put the denoiser in training mode: the defense around it stays in eval mode.

        What a network of one's own draws from the global generators, as dropout does, is a function of (seed, pass,
        batch, process) too, so that a run that is continued draws it again.
        """
        self.denoiser.train()
        key = noise_key(self.seed, "train", f"batch|{self.current_epoch}|{batch_idx}", self.global_rank)
        torch.manual_seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        random.seed(key)

    def on_fit_end(self) -> None:
        """Freeze it again."""
        self.denoiser.requires_grad_(False).eval()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the objective on noisy, or otherwise corrupted, copies of one batch."""
        assert self.objective is not None
        assert self.corruption is not None
        images, ids, epochs = self._prepared(batch), batch["image_id"], batch["epoch"].tolist()
        mse_only = self.global_step < self.objective.mse_steps(self._num_steps)
        whole = not bool(batch["is_crop"].any())
        if mse_only and self.objective.mse_crop is not None:
            cropped = self._crop(images, self.objective.mse_crop)
            images, whole = cropped, whole and cropped.shape == images.shape
        inputs, wanted = self.corruption.pair(images, ids, epochs, whole=whole)
        denoised = self.denoiser(*inputs)
        terms = {"mse": F.mse_loss(denoised, wanted)}
        if not mse_only:
            scores = self.base_metric(denoised.clamp(0, 1))
            clean, opinions = self._scores_of_clean(batch), batch["mos_normalised"].to(scores)
            scores, clean, opinions = (self._of_all_processes(values) for values in (scores, clean, opinions))
            terms |= self.objective.score_terms(scores, clean, opinions, self.base_metric)
        loss = self.objective.total(terms)
        self.log("train/loss", loss, prog_bar=True)
        if self.corruption.restores:
            self.log("train/psnr", -10 * torch.log10(terms["mse"].detach()), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer with the schedule of ``certiqa.training.schedule``, over one or two phases."""
        assert self.optimizer is not None
        assert self.objective is not None
        optimizer = self.optimizer(self.denoiser.parameters())
        steps, alone = self._num_steps, self.objective.mse_steps(self._num_steps)
        phases = [alone, steps - alone] if self.restart else [steps]
        schedule = warm_cosine(optimizer, phases, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _of_all_processes(self, values: Tensor) -> Tensor:
        """Return the values ``(n,)`` of this process's share of the batch with those of the others, ``(N,)``.

        Pairs are ranked across the whole batch then. The gradient of gathered values sums over the processes what
        DDP's mean divides again, so that a step is that of one process with the whole batch.
        """
        gathered = self.all_gather(values, sync_grads=values.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten()

    @property
    def _num_steps(self) -> int:
        return max(1, int(self.trainer.estimated_stepping_batches))

    def _crop(self, images: Tensor, side: int) -> Tensor:
        """Return one random crop of the batch; its place is a function of (seed, step)."""
        height, width = images.shape[-2:]
        if side >= min(height, width):
            return images
        key = noise_key(self.seed, "train", "crop", self.global_step)
        top, left = key % (height - side + 1), (key >> 32) % (width - side + 1)
        return images[..., top : top + side, left : left + side]

    def _prepared(self, batch: dict[str, Any]) -> Tensor:
        """Return the clean images as the noise meets them, after a linear step if there is one."""
        images: Tensor = batch["image"]
        return self._smoothing.prepared(images) if self._smoothing else images

    @torch.no_grad()
    def _scores_of_clean(self, batch: dict[str, Any]) -> Tensor:
        """Return the metric's scores of the clean images, computed once for each whole image."""
        images, ids = self._prepared(batch), batch["image_id"]
        if bool(batch["is_crop"].any()):
            return self.base_metric(images)
        rows = [row for row, name in enumerate(ids) if name not in self._clean_scores]
        if rows:
            for row, score in zip(rows, self.base_metric(images[rows]), strict=True):
                self._clean_scores[ids[row]] = score
        return torch.stack([self._clean_scores[name].to(images.device) for name in ids])

    # -- evaluation ----------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Log the PSNR of restored validation images; returns the undefended scores. All in full precision."""
        with torch.autocast(self.device.type, enabled=False):
            return self._validated(batch)

    def _validated(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, ids = batch["image"], batch["image_id"]
        if not ids:
            return {"score_clean": images.new_empty(0)}  # none of the batch's images could be read
        if self.defense.purified_by is not None and self.corruption is not None:
            inputs, wanted = self.corruption.pair(images, ids, [0] * len(ids), whole=True)
            output = self.denoiser(*inputs)
            values = {"val/mse": F.mse_loss(output, wanted)}
            if self.corruption.restores:
                values["val/psnr"] = -10 * torch.log10(F.mse_loss(output.clamp(0, 1), wanted))
                values["val/psnr_unpurified"] = -10 * torch.log10(F.mse_loss(inputs[0], wanted))
            self.log_dict(values, prog_bar=True, batch_size=len(ids), sync_dist=True)
        smooth = self._smoothing
        if smooth is not None and smooth.denoiser is not None:
            noisy = smooth.noisy(images, ids, [0] * len(ids), self.seed, "validate")
            error = F.mse_loss(smooth.denoise(noisy), self._prepared(batch))
            self.log("val/psnr", -10 * torch.log10(error), prog_bar=True, batch_size=len(ids), sync_dist=True)
        return self._undefended(images)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the undefended scores; callbacks do what else a test does.

        Of an image on which the metric raises the score is NaN, and the exception stands in "raised" by its place.
        """
        if not batch["image_id"]:
            return {"score_clean": batch["image"].new_empty(0)}  # none of the batch's images could be read
        return self._undefended(batch["image"])

    def _undefended(self, images: Tensor) -> dict[str, Any]:
        def scores(places: list[int]) -> Iterable[tuple[int, Tensor]]:
            whole = len(places) == len(images)
            return zip(places, reported_scores(self.base_metric, images if whole else images[places]), strict=True)

        found = dict(one_by_one(scores, range(len(images))))
        raised = {place: error for place, error in found.items() if isinstance(error, Exception)}
        nothing = images.new_tensor(torch.nan)
        values = [score if isinstance(score := found[place], Tensor) else nothing for place in range(len(images))]
        return {"score_clean": torch.stack(values), "raised": raised}

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the denoiser alone: the metric is frozen and has its own weights.

        The metric's scores of clean images are kept too: of another batch they would differ by rounding.
        """
        checkpoint["state_dict"] = {f"denoiser.{key}": value for key, value in self.denoiser.state_dict().items()}
        names, scores = list(self._clean_scores), [score.cpu() for score in self._clean_scores.values()]
        shares: list[Any] = [(names, torch.stack(scores) if scores else torch.empty(0))]
        if torch.distributed.is_initialized():
            (share,), shares = shares, [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, share)
        checkpoint["clean_scores"] = shares

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the denoiser strictly."""
        prefix = "denoiser."
        state = {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items()}
        load_strictly(self.denoiser, state, "the run's checkpoint")
        checkpoint["state_dict"] = {}
        shares = checkpoint.get("clean_scores", [])
        several = torch.distributed.is_initialized()
        if len(shares) == (torch.distributed.get_world_size() if several else 1):  # each process goes on with its own
            names, scores = shares[torch.distributed.get_rank() if several else 0]
            self._clean_scores = dict(zip(names, scores, strict=True))
