"""The embedded metric: MobileNetV2 trained on photographs that people rated and on KADID-10k's types of distortion.

Made by ``python train.py experiment=mini_metric`` (see assets/weights/mini_metric.md). It is shipped with the package,
so that a first run needs no download; it is small, and no substitute for a published metric.
"""

from __future__ import annotations

from pathlib import Path

from certiqa.metrics.published import Device
from certiqa.metrics.trained import TrainedFacts, TrainedMetric
from certiqa.metrics.weights import SHIPPED


class MiniMetric(TrainedMetric):
    """The embedded metric ``mini``: scores in 1 to 5, higher is better, sides of at least 32 pixels.

    It was trained on images whose shorter side is 224 pixels: score larger ones with ``data.resize=224``.

    Args:
        weights: of another training of it; "random"; None takes the shipped ones.
        device: where the weights are read to.
        seed: of random weights.
    """

    facts_without_file = TrainedFacts(mos_range=(1.0, 5.0))

    def __init__(self, weights: str | Path | None = None, *, device: Device = "cpu", seed: int = 0) -> None:
        super().__init__(weights or SHIPPED / "mini_metric.safetensors", device=device, seed=seed)
        self.name = "mini"
        if weights is None:
            self.weights_source = "shipped"
