"""Certification as a callback: a few images at validation, every image at test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Gt, Len

from certiqa.callbacks.records import Records, Row, refuse_unless_skipped
from certiqa.certification import (
    CertificationRequest,
    ImageCertificate,
    Stopping,
    certify,
    certify_each,
    require_certifiable,
    smallest_num_samples,
)
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.evaluation import srocc
from certiqa.evaluation.failing import one_by_one
from certiqa.evaluation.records import plain
from certiqa.options import Confidence, Count, PositiveInt, Probability, Radius, Seed
from certiqa.training import DefenseModule

VALIDATION_SAMPLES = 20  # enough for a curve


class Certification(Records):
    """Certifies a smoothed metric under Lightning.

    At validation a few images with few draws become curves (``val/srocc``, ``val/certified_delta``); at test every
    image is certified at all radii from one set of draws and recorded.

    Args:
        folder: the run's folder.
        radii: l2 radii at the input, in [0, 1] pixel units.
        radius: the primary one, whose figures carry no suffix; must be among ``radii``.
        num_samples: draws per image at test; None for the defense's own.
        confidence: per side and per image.
        joint_confidence: of the set's guarantees over all images and radii; None leaves them out.
        tolerance: half-width at ``radius``, as a share of the score range, at which an image has had enough draws;
            None makes all of them.
        saturation: see ``certiqa.certification.Stopping``.
        first_look: see ``certiqa.certification.Stopping``.
        look_ratio: see ``certiqa.certification.Stopping``.
        randomised: randomised ranks, whose coverage is exact.
        validation_samples: draws per image at validation; None for 20, or as many as the primary radius takes; 0
            leaves certification out there.
        seed: of the draws.
    """

    each_alone = True

    def __init__(
        self,
        folder: str | Path,
        *,
        radii: Annotated[Sequence[Radius], Len(1)],
        radius: Radius,
        num_samples: PositiveInt | None = None,
        confidence: Confidence = 0.999,
        joint_confidence: Probability | None = None,
        tolerance: Probability | None = None,
        saturation: Probability | None = None,
        first_look: PositiveInt = 50,
        look_ratio: Annotated[float, Gt(1)] = 1.1,
        randomised: bool = False,
        validation_samples: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(folder)
        self.radii = sorted(float(value) for value in radii)
        self.radius = float(radius)
        if not any(np.isclose(self.radius, self.radii)):
            raise UserError(f"certification.radius={radius} must be one of certification.radii={self.radii}")
        self.num_samples = num_samples
        self.confidence = confidence
        self.joint_confidence = joint_confidence
        self.stopping = (
            None if tolerance is None else Stopping(tolerance, self.radius, saturation, first_look, look_ratio)
        )
        self.randomised = randomised
        self.validation_samples = validation_samples
        self.seed = seed
        self._validation: list[tuple[float, float, float]] = []

    @property
    def recorded_radii(self) -> Sequence[float]:
        """The radii that every image has a row for."""
        return self.radii

    def check(self, defense: object, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise UserError before any work if a radius cannot be certified, at validation or test.

        Args:
            defense: the smoothed metric.
            sizes: (height, width) of every image of the set.
        """
        smooth = require_certifiable(defense)
        lipschitz = max((smooth.lipschitz(size) for size in set(sizes)), default=1.0)
        self.request(smooth, len(sizes), lipschitz)
        if draws := self.draws_at_validation(smooth, lipschitz):
            try:
                CertificationRequest(
                    (self.radius,),
                    smooth.sigma,
                    draws,
                    self.confidence,
                    largest_lipschitz=lipschitz,
                )
            except UserError as error:
                raise UserError(f"at validation, certification.validation_samples: {error}") from error

    def draws_at_validation(self, smooth: MedianSmoothing, lipschitz: float = 1.0) -> int:
        """Return how many draws an image gets at validation, where steps before the noise stretch by ``lipschitz``."""
        if self.validation_samples is not None:
            return self.validation_samples
        return max(VALIDATION_SAMPLES, smallest_num_samples(self.radius * lipschitz, smooth.sigma, self.confidence))

    def request(self, smooth: MedianSmoothing, set_size: int, largest_lipschitz: float = 1.0) -> CertificationRequest:
        """Return the checked request of a test of ``set_size`` images."""
        return CertificationRequest(
            radii=tuple(self.radii),
            sigma=smooth.sigma,
            num_samples=smooth.num_samples if self.num_samples is None else self.num_samples,
            confidence=self.confidence,
            joint_confidence=self.joint_confidence,
            set_size=set_size,
            stopping=self.stopping,
            randomised=self.randomised,
            largest_lipschitz=largest_lipschitz,
        )

    def settings(self, module: DefenseModule) -> dict[str, Any]:
        """Return what decides the certificates: the request, and the draws that it is answered from."""
        smooth = require_certifiable(module.defense)
        asked = {key: getattr(self, key) for key in ("radii", "confidence", "joint_confidence", "randomised", "seed")}
        asked["num_samples"] = smooth.num_samples if self.num_samples is None else self.num_samples
        asked["stopping"] = None if self.stopping is None else asdict(self.stopping)
        return super().settings(module) | asked

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self._validation = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Certify a batch at the primary radius with few draws, from a stream of its own."""
        assert isinstance(pl_module, DefenseModule)
        smooth = require_certifiable(pl_module.defense)
        draws = self.draws_at_validation(smooth, smooth.lipschitz(tuple(batch["image"].shape[-2:])))
        if not draws or not batch["image_id"]:
            return

        def certified(rows: list[int]) -> Iterator[tuple[int, tuple[float, float, float]]]:
            bounds = certify(
                smooth,
                batch["image"][rows],
                self.radius,
                num_samples=draws,
                confidence=self.confidence,
                image_ids=[batch["image_id"][row] for row in rows],
                seed=self.seed,
                stream="validate",
            )
            mos = [float(batch["mos_normalised"][row]) for row in rows]  # higher = better, whatever the native ones are
            return zip(rows, zip(bounds.score, bounds.certified_delta[:, 0], mos, strict=True), strict=True)

        for row, found in one_by_one(certified, range(len(batch["image_id"]))):
            if isinstance(found, Exception):
                refuse_unless_skipped(trainer, f"metric '{smooth.name}'", batch["image_id"][row], found)
            else:
                self._validation.append(found)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the curves, over the images of all processes."""
        shares: list[list[tuple[float, float, float]]] = [self._validation]
        if trainer.world_size > 1:
            shares = [[]] * trainer.world_size
            torch.distributed.all_gather_object(shares, self._validation)
        found = [row for share in shares for row in share]
        if not found:
            return
        assert isinstance(pl_module, DefenseModule)
        score, delta, mos = (np.array(column) for column in zip(*found, strict=True))
        pl_module.log("val/certified_delta", float(np.median(delta)))
        spread = float(np.std(score, ddof=1)) if len(score) > 1 else 0.0
        pl_module.log("val/score_sd", spread)
        if spread:
            pl_module.log("val/certified_delta_sd_share", float(np.median(delta)) / spread)
        if not np.isnan(mos).any():
            pl_module.log("val/srocc", srocc(pl_module.base_metric.quality_sign * score, mos), prog_bar=True)

    def score(
        self,
        trainer: pl.Trainer,
        module: DefenseModule,
        images: torch.Tensor,
        ids: list[str],
    ) -> Iterator[tuple[int, list[Row]]]:
        """Yield each image's place in the batch and its rows, one per radius, as soon as it is certified."""
        smooth = require_certifiable(module.defense)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        request = self.request(smooth, len(datamodule.test_set), smooth.lipschitz(images.shape[-2:]))
        for place, certificate in certify_each(smooth, images, request, image_ids=ids, seed=self.seed):
            yield place, certificate_rows(certificate, request)


def certificate_rows(certificate: ImageCertificate, request: CertificationRequest) -> list[Row]:
    """Return the records of one image, one per radius."""
    rows = []
    for column, radius in enumerate(request.radii):
        lower, upper = float(certificate.lower[column]), float(certificate.upper[column])
        row: Row = {
            "score": plain(certificate.score),
            "lower": lower,
            "upper": upper,
            "median_lower": certificate.median_lower,
            "median_upper": certificate.median_upper,
            "radius": radius,
            "radius_at_noise": radius * certificate.lipschitz,
            "sigma": request.sigma,
            "num_samples": certificate.draws,
            "confidence": request.confidence,
            "randomised": request.randomised,
            "abstained": not np.isfinite(upper - lower),
            "stop": certificate.stop,
            "failure": certificate.failure,
        }
        if certificate.joint_lower is not None and certificate.joint_upper is not None:
            row["joint_lower"] = float(certificate.joint_lower[column])
            row["joint_upper"] = float(certificate.joint_upper[column])
            row["joint_confidence"] = request.joint_confidence
        rows.append(row)
    return rows
