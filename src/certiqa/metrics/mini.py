"""The embedded metric: a truncated ImageNet MobileNetV2 with a linear head, shipped with the package.

Made by ``python train.py experiment=mini_metric`` (see assets/weights/mini_metric.md). It exists so that a
first run needs no download; it is trained on fourteen photographs and is no substitute for a published metric.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from certiqa.metrics.backbones import mean_and_deviation
from certiqa.metrics.base import FrozenMetric, at_least_float32
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.published import RANDOM, Device, random_label, seeded
from certiqa.metrics.weights import SHIPPED, load_strictly, read_weights

NUM_BLOCKS = 14  # torchvision's features[0] (stem) to features[13], the last block with 96 channels
TAPS = (0, 2, 4, 6, 8, 10, 12, 13)  # 32, 24, 32, 32, 64, 64, 96 and 96 channels
NUM_FEATURES = 3 * (32 + 24 + 32 + 32 + 64 + 64 + 96 + 96)
MOS_RANGE = (1.0, 5.0)


class MiniBackbone(nn.Module):
    """MobileNetV2 up to block 13; pools mean, deviation and maximum of eight blocks' channels.

    Sandler et al., "MobileNetV2", CVPR 2018. Deviations and maxima keep what local distortions (noise,
    impulses, blocks) do to a feature map and the mean averages away.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features[:NUM_BLOCKS]
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
        self.register_buffer("scale", 1 / deviation, persistent=False)
        self.register_buffer("shift", -mean / deviation, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features ``(N, NUM_FEATURES)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        maps = torch.addcmul(self.shift, images, self.scale)
        pooled = []
        for index, block in enumerate(self.features):
            maps = block(maps)
            if index in TAPS:
                pooled += pool(at_least_float32(maps))
        return torch.cat(pooled, dim=1)


def pool(maps: Tensor) -> list[Tensor]:
    """Return mean, standard deviation and maximum ``(N, C)`` of maps ``(N, C, H, W)``."""
    return [*mean_and_deviation(maps), F.adaptive_max_pool2d(maps, 1).flatten(1)]


class MiniNetwork(nn.Module):
    """Backbone and head: 1 + 4 * sigmoid(w . f + b), so every score lies inside the opinion scale."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MiniBackbone()
        self.head = nn.Linear(NUM_FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` in (1, 5)."""
        low, high = MOS_RANGE
        return low + (high - low) * torch.sigmoid(self.head(self.backbone(images))).squeeze(1)


class MiniMetric(FrozenMetric):
    """The embedded metric ``mini``: pseudo-MOS in (1, 5), higher is better, sides of at least 32 pixels.

    Args:
        weights: path of a safetensors file; "random"; None takes the shipped one.
        device: where the weights are read to.
        seed: of random weights.
    """

    thread_safe = True
    keeps_contract = True

    def __init__(self, weights: str | Path | None = None, *, device: Device = "cpu", seed: int = 0) -> None:
        if weights == RANDOM:
            network, source = seeded(MiniNetwork, seed), random_label(seed)
        else:
            path = Path(weights) if weights else SHIPPED / "mini_metric.safetensors"
            network, source = MiniNetwork(), path.name if weights else "shipped"
            load_strictly(network, read_weights(path, device=device)[0], path)
        fold_batch_norms(network.eval())
        network.to(device).to(memory_format=torch.channels_last)
        super().__init__(
            network,
            name="mini",
            score_range=MOS_RANGE,
            hard_bounds=MOS_RANGE,
            min_size=32,
            weights_source=source,
        )
