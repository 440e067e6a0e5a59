"""The mean score over crops, as a metric of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from certiqa.errors import UserError
from certiqa.metrics.base import QualityMetric


def crop_corners(size: int, number: int, height: int, width: int) -> list[tuple[int, int]]:
    """Return (top, left) of ``number`` square crops, placed evenly from border to border; fewer where they coincide.

    Rows of crops are spread over the height and the crops of each row over the width, as many of each as suit the
    room there is: 25 crops of a square image are 5 by 5, one crop is the centre.
    """
    room_down, room_right = height - size, width - size
    rows = number if room_right == 0 else round((number * room_down / room_right) ** 0.5)
    rows = min(max(rows, 1), number)
    corners = []
    for row, top in enumerate(_even(rows, room_down)):
        count = (row + 1) * number // rows - row * number // rows
        corners += [(top, left) for left in _even(count, room_right)]
    return list(dict.fromkeys(corners))


def _even(count: int, room: int) -> list[int]:
    return [room // 2] if count == 1 else [round(place * room / (count - 1)) for place in range(count)]


class CropAveraged(QualityMetric):
    """The mean of a metric's scores over evenly placed crops: a test protocol of networks trained on crops.

    It is a metric of the whole image, deterministic and differentiable, so that a certificate or an attack speaks of
    the whole image too. All crops of a batch are scored as one batch.

    Args:
        metric: the frozen base metric.
        size: side of the square crops in pixels.
        number: how many.
    """

    def __init__(self, metric: QualityMetric, size: int, number: int) -> None:
        super().__init__()
        if size < metric.min_size:
            raise UserError(
                f"data.test_crops.size={size} is too small: metric '{metric.name}' needs at least "
                f"{metric.min_size} pixels"
            )
        if number < 1:
            raise UserError(f"data.test_crops.number must be at least 1, got {number}")
        # not `metric`: that is how a defense calls what it wraps, and this is part of the metric under defense
        self.base = metric
        self.size, self.number = size, number
        self.min_size = size
        self.name = metric.name
        self.score_range = metric.score_range
        self.lower_better = metric.lower_better
        self.hard_bounds = metric.hard_bounds
        self.is_random = metric.is_random
        self.thread_safe = metric.thread_safe
        self.keeps_contract = metric.keeps_contract
        self.weights_source = metric.weights_source

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score images; see ``QualityMetric.forward``."""
        self.check_images(images)
        corners = crop_corners(self.size, self.number, *images.shape[-2:])
        crops = [images[..., top : top + self.size, left : left + self.size] for top, left in corners]
        scores = self.base(torch.stack(crops, dim=1).flatten(0, 1)).view(len(images), len(corners)).mean(dim=1)
        # a mean can leave bounds that all its terms keep by a rounding
        return scores if self.hard_bounds is None else scores.clamp(*self.hard_bounds)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, as the metric inside does."""
        return super().train(False)
