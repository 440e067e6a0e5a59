"""A metric that was trained here on rated images: pooled features of a network, and a linear head.

``python train.py experiment=metric data=...`` makes its file, see ``certiqa.training.metric``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics.backbones import PooledFeatures
from certiqa.metrics.base import FrozenMetric, Range
from certiqa.metrics.published import RANDOM, Device, random_label, seeded
from certiqa.metrics.weights import load_strictly, read_weights, save_weights

FORMAT = "certiqa trained metric 2"
DIGITS = 12
"""Of the digest of an image that a file says the metric was trained on."""


@dataclass(frozen=True)
class TrainedFacts:
    """What the file of a trained metric says of it.

    Attributes:
        backbone: see ``certiqa.metrics.backbones.PooledFeatures``.
        layers: likewise.
        num_features: of all layers.
        mos_range: the scale of the opinion scores, which is that of its scores.
        lower_better: whether a lower score means better quality, as of a DMOS.
        data: the data set that it was trained on.
        resize: ``data.resize`` of the images; None for their own sizes.
        images: the first digits of the digests of the images that it was trained on.
    """

    backbone: str = "mobilenet_v2"
    layers: Sequence[str | int] | None = None
    num_features: int | None = None
    mos_range: Range = (0.0, 100.0)
    lower_better: bool = False
    data: str | None = None
    resize: int | Sequence[int] | None = None
    images: Sequence[str] = ()


def plain_resize(resize: int | Sequence[int] | None) -> int | list[int] | None:
    """Return a ``data.resize`` as JSON has it."""
    return resize if resize is None or isinstance(resize, int) else [int(side) for side in resize]


class TrainedNetwork(nn.Module):
    """Features and head: images ``(N, 3, H, W)`` in [0, 1] -> scores ``(N,)`` on the scale of the opinion scores.

    A sigmoid keeps the scores inside the scale, so that a certificate has hard bounds. In the middle of the scale its
    slope is 1: there the scores are those of the linear head.

    Args:
        features: of the images.
        num_features: how many.
        mos_range: the scale.
    """

    def __init__(self, features: PooledFeatures, num_features: int, mos_range: Range) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(num_features, 1)
        self.mos_range = mos_range

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)``."""
        return within(self.head(self.features(images)).squeeze(1), self.mos_range)


def within(values: Tensor, bounds: Range) -> Tensor:
    """Return values between two bounds, in the same order, by a sigmoid whose slope is 1 in the middle.

    >>> within(torch.tensor([-1000.0, 50.0, 60.0, 1000.0]), (0.0, 100.0)).round()
    tensor([  0.,  50.,  60., 100.])
    """
    low, high = bounds
    width = high - low
    return low + width * torch.sigmoid(4 / width * (values - (low + high) / 2))


def save_metric(network: TrainedNetwork, path: str | Path, facts: TrainedFacts) -> None:
    """Write weights as safetensors with what ``TrainedMetric`` needs to know as metadata."""
    save_weights(network, path, {"format": FORMAT, "facts": json.dumps(asdict(facts))})


def build_network(facts: TrainedFacts) -> TrainedNetwork:
    """Build the network of a trained metric with random weights."""
    features = PooledFeatures(facts.backbone, facts.layers)
    width = facts.num_features
    if width is None:
        with torch.inference_mode():
            width = features(torch.zeros(1, 3, 224, 224)).shape[1]
    return TrainedNetwork(features, width, facts.mos_range).eval()


class TrainedMetric(FrozenMetric):
    """``trained``: a metric that ``train.py experiment=metric`` made; its scores stay inside the scale of its data.

    Args:
        weights: the ``metric.safetensors`` of that run; "random" for a smoke run. It has to be given.
        device: where the weights are read to.
        seed: of random weights.

    Attributes:
        facts: what its file says of it; with random weights ``facts_without_file``.

    Raises:
        UserError: no file, or one that is no trained metric.
    """

    thread_safe = True
    keeps_contract = True
    facts_without_file = TrainedFacts()

    def __init__(self, weights: str | Path | None = None, *, device: Device = "cpu", seed: int = 0) -> None:
        if weights is None:
            raise UserError(
                "metric 'trained' needs the metric.safetensors of a run of train.py experiment=metric: "
                "metric.weights=PATH (load_metric('trained', weights=PATH))"
            )
        if weights == RANDOM:
            facts, source = self.facts_without_file, random_label(seed)
            network = seeded(lambda: build_network(facts), seed)
        else:
            path = Path(weights).expanduser()
            state, metadata = read_weights(path, device=device)
            if metadata.get("format") != FORMAT:
                raise UserError(
                    f"'{path}' is no metric that this version of certiqa trained; give the metric.safetensors of a run "
                    "of train.py experiment=metric"
                )
            try:
                facts, source = TypeAdapter(TrainedFacts).validate_json(metadata.get("facts", "")), path.name
            except ValidationError as error:
                raise UserError(f"what '{path}' says of itself is damaged; copy or make it again") from error
            network = build_network(facts)
            load_strictly(network, state, path)
        network.to(device).to(memory_format=torch.channels_last)
        super().__init__(
            network,
            name="trained",
            score_range=facts.mos_range,
            hard_bounds=facts.mos_range,
            lower_better=facts.lower_better,
            min_size=32,
            weights_source=source,
        )
        self.facts = facts
