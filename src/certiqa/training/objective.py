"""What a denoiser in front of a frozen metric is trained for."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.errors import UserError, require_count
from certiqa.metrics import QualityMetric
from certiqa.options import Choices, NonNegative, PositiveInt, Share

RANKINGS = ("hinge", "plcc")
TARGETS = ("l1", "mse", "plcc")


def ranking_hinge(quality: Tensor, opinions: Tensor, margin: float, gap: float) -> Tensor:
    """Pairwise hinge: how far the scores of a batch are from the order of its opinion scores.

    The mean over pairs with ``opinions_i - opinions_j > gap`` of ``max(0, margin - (quality_i - quality_j))``; zero
    where a batch has no such pair.

    Args:
        quality: ``(N,)`` scores normalised to [0, 1], higher is better.
        opinions: ``(N,)`` opinion scores normalised to [0, 1].
        margin: by how much the better image should score higher, in the same units.
        gap: pairs closer than this in opinion do not count, in the same units.
    """
    better = (opinions[:, None] - opinions[None, :]) > gap
    shortfall = torch.relu(margin - (quality[:, None] - quality[None, :]))
    return (shortfall * better).sum() / better.sum().clamp(min=1)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two ``(N,)``, differentiable; 0 where one does not vary."""
    first, second = first - first.mean(), second - second.mean()
    return (first * second).sum() / (first.norm() * second.norm() + 1e-8)


@dataclass
class DenoisingObjective:
    """MSE to the clean image (DMS), plus a target and a ranking term through the frozen metric (DMS-IQA).

    ``loss = mse_weight * |D(x_noisy) - x|^2 + ranking_weight * ranking(M(D(x_noisy)), MOS)
    + target_weight * target(M(D(x_noisy)), M(x))`` with scores and opinions normalised to [0, 1].
    arXiv 2411.12575, section on DMS-IQA; its weights are not public. Those of this project's configs were compared
    with a few others on the validation photographs of mini (docs/mini.md).

    Args:
        name: what tables call it.
        mse_weight: weight of the mean squared error per pixel value.
        ranking_weight: weight of the ranking term; 0 leaves it out.
        ranking: "plcc", one minus Pearson's correlation of a batch's scores with its opinion scores, or "hinge", see
            ``ranking_hinge``.
        ranking_margin: of the hinge.
        ranking_gap: of the hinge.
        target_weight: weight of the target term; 0 leaves it out.
        target: "plcc", one minus the correlation of a batch's scores with the metric's scores of the clean images,
            "l1", their mean distance, or "mse", their mean squared distance.
        mse_share: share of the training steps, from the first, with MSE alone: the metric's gradients help
            once there is an image to score.
        mse_crop: side in pixels of random crops during that phase, which needs no whole image; None for none.
    """

    name: str = "mse"
    mse_weight: NonNegative = 1.0
    ranking_weight: NonNegative = 0.0
    ranking: Annotated[str, Choices(*RANKINGS)] = "hinge"
    ranking_margin: NonNegative = 0.1
    ranking_gap: NonNegative = 0.04
    target_weight: NonNegative = 0.0
    target: Annotated[str, Choices(*TARGETS)] = "l1"
    mse_share: Share = 0.0
    mse_crop: PositiveInt | None = None

    def __post_init__(self) -> None:
        for key in ("mse_weight", "ranking_weight", "target_weight", "ranking_margin", "ranking_gap"):
            if getattr(self, key) < 0:
                raise UserError(f"objective.{key} must be at least 0, got {getattr(self, key)}")
        if not 0 <= self.mse_share <= 1:
            raise UserError(f"objective.mse_share must be in [0, 1], got {self.mse_share}")
        for key, known in (("ranking", RANKINGS), ("target", TARGETS)):
            if getattr(self, key) not in known:
                raise UserError(f"objective.{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        require_count("objective.mse_crop", self.mse_crop)
        if self.mse_weight == self.ranking_weight == self.target_weight == 0:
            raise UserError("every weight of the objective is 0; set objective.mse_weight=1")

    @property
    def needs_metric(self) -> bool:
        """Whether any term goes through the metric."""
        return self.ranking_weight > 0 or self.target_weight > 0

    def mse_steps(self, steps: int) -> int:
        """Return how many of ``steps``, from the first, are with MSE alone; the others go through the metric."""
        return math.ceil(self.mse_share * steps) if self.needs_metric else steps

    def check_metric(self, metric: QualityMetric) -> None:
        """Raise UserError if a term through the metric cannot be normalised."""
        if self.needs_metric and not metric.range_width:
            raise UserError(
                f"objective={self.name} normalises scores by the metric's range, but '{metric.name}' states none; "
                "give it score_range=(low, high), or train with defense=dms (objective=mse)"
            )

    def check_opinions(self, everywhere: bool, sets: Collection[str] = ("",)) -> None:
        """Raise UserError if a term needs opinion scores, and they are lacking or not comparable.

        Args:
            everywhere: whether every training image has one.
            sets: the data sets of a union that the images are of.
        """
        if self.ranking_weight > 0 and not everywhere:
            raise UserError(
                f"objective={self.name} ranks images by opinion scores, but some training images have none; "
                "train with defense=dms (objective=mse) or objective.ranking_weight=0"
            )
        if self.ranking_weight > 0 and len(sets) > 1:
            raise UserError(
                f"objective={self.name} ranks images by opinion scores, but those of {' and '.join(sets)} are not "
                "comparable; train on one of them or with objective.ranking_weight=0"
            )

    def score_terms(
        self, scores: Tensor, clean_scores: Tensor, opinions: Tensor, metric: QualityMetric
    ) -> dict[str, Tensor]:
        """Return the unweighted terms through the metric.

        Args:
            scores: ``(N,)`` of denoised images, with gradients, native units.
            clean_scores: ``(N,)`` of the clean images, native units.
            opinions: ``(N,)`` normalised to [0, 1]; NaN where there are none.
            metric: gives range and direction.
        """
        quality, clean = normalise(scores, metric), normalise(clean_scores, metric)
        terms = {}
        if self.ranking_weight > 0:
            self.check_opinions(not bool(opinions.isnan().any()))
            if self.ranking == "plcc":
                terms["ranking"] = 1 - correlation(quality, opinions)
            else:
                terms["ranking"] = ranking_hinge(quality, opinions, self.ranking_margin, self.ranking_gap)
        if self.target_weight > 0:
            distances = {"l1": F.l1_loss, "mse": F.mse_loss, "plcc": lambda *both: 1 - correlation(*both)}
            terms["target"] = distances[self.target](quality, clean)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms that are there."""
        weights = {"mse": self.mse_weight, "ranking": self.ranking_weight, "target": self.target_weight}
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def normalise(scores: Tensor, metric: QualityMetric) -> Tensor:
    """Map native scores to [0, 1] over the metric's nominal range, higher = better."""
    if metric.score_range is None or not metric.range_width:
        raise UserError(f"metric '{metric.name}' states no score_range to normalise by")
    shares = (scores - metric.score_range[0]) / metric.range_width
    return 1 - shares if metric.lower_better else shares
