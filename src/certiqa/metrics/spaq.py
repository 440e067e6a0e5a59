"""The SPAQ baseline: Fang et al., "Perceptual Quality Assessment of Smartphone Photography", CVPR 2020.

Written from the paper and the layout of the authors' checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

from certiqa.errors import UserError
from certiqa.metrics.base import at_least_float32
from certiqa.metrics.published import NATIVE, Device, PublishedMetric, build_network
from certiqa.options import Choices, PositiveInt, Side

PATCH, STRIDE = 224, 112


def patch_corners(side: int) -> list[int]:
    """Return where patches start along a side: every 112 pixels, and one that ends at the far border."""
    starts = list(range(0, side - PATCH + 1, STRIDE))
    return starts if starts[-1] == side - PATCH else [*starts, side - PATCH]


def patches_of(images: Tensor) -> Tensor:
    """Return the patches ``(N * P, 3, 224, 224)`` of images ``(N, 3, H, W)``, those of one image together."""
    height, width = images.shape[-2:]
    patches = [
        images[..., top : top + PATCH, left : left + PATCH]
        for top in patch_corners(height)
        for left in patch_corners(width)
    ]
    return torch.stack(patches, dim=1).flatten(0, 1)


class SpaqNetwork(nn.Module):
    """ResNet-50 on overlapping patches, and the mean of their scores.

    Args:
        resize: length in pixels of the shorter side, to which images with both sides at least as long are resized;
            "native" for images as they are.
        patches_at_once: patches per forward pass, which bounds memory; None for all of a batch.
    """

    def __init__(
        self, resize: Side | Annotated[str, Choices("native")] = 512, patches_at_once: PositiveInt | None = None
    ) -> None:
        super().__init__()
        self.backbone = resnet50(weights=None)
        self.backbone.fc = nn.Linear(self.backbone.fc.in_features, 1)
        self.resize = None if isinstance(resize, str) else resize
        self.patches_at_once = patches_at_once

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        shorter = min(images.shape[-2:])
        if self.resize is not None and shorter > self.resize:
            height, width = images.shape[-2:]
            # torchvision's rule for the longer side, so that patches fall where the authors' do
            size = [int(self.resize * side / shorter) for side in (height, width)]
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        patches = patches_of(images).contiguous(memory_format=torch.channels_last)
        at_once = self.patches_at_once or len(patches)
        scores = torch.cat([self.backbone(chunk) for chunk in patches.split(at_once)])
        return at_least_float32(scores).view(len(images), -1).mean(dim=1)


class SpaqMetric(PublishedMetric):
    """``spaq``: about 0 to 100, higher is better; sides of at least 224 pixels, one patch.

    Pixels enter in [0, 1] without mean and deviation, as by the authors.

    Args:
        weights: the authors' ``BL_release.pt``; "random"; None for the cache.
        resize: length of the shorter side, see ``SpaqNetwork``.
        patches_at_once: patches per forward pass; None for all, which is fastest.
        device: where the weights are read to.
        seed: of random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        resize: Side | Annotated[str, Choices("native")] = 512,
        patches_at_once: PositiveInt | None = None,
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        if resize != NATIVE and (isinstance(resize, str) or resize < PATCH):
            raise UserError(f"metric.resize must be at least {PATCH}, the side of a patch, or {NATIVE}, got {resize}")
        if patches_at_once is not None and patches_at_once < 1:
            raise UserError(f"metric.patches_at_once must be at least 1, or null for all, got {patches_at_once}")
        network, source = build_network(
            lambda: SpaqNetwork(resize, patches_at_once), "spaq", weights, device=device, seed=seed
        )
        super().__init__(network, name="spaq", weights_source=source, score_range=(0, 100), min_size=PATCH)
