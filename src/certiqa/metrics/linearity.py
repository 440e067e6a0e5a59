"""Linearity (LinearityIQA): Li et al., "Norm-in-Norm Loss with Faster Convergence and Better Performance for Image
Quality Assessment", ACM Multimedia 2020. Written from the paper and the layout of the authors' checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnext101_32x8d

from certiqa.errors import UserError
from certiqa.metrics.base import at_least_float32
from certiqa.metrics.published import RANDOM, Device, Preprocess, PublishedMetric, Size, random_label, seeded
from certiqa.metrics.sources import files_of
from certiqa.metrics.weights import load_strictly, read_content, unwrap

TAPS = {6: "6", 7: "7"}  # index in ``features`` -> the suffix of its reduction


def reduction(channels: int) -> nn.Sequential:
    """Return the layers that reduce pooled features ``(N, channels)`` to ``(N, 64)``."""
    return nn.Sequential(
        nn.Linear(channels, 1024),
        nn.BatchNorm1d(1024),
        nn.Linear(1024, 256),
        nn.BatchNorm1d(256),
        nn.Linear(256, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
    )


class LinearityNetwork(nn.Module):
    """ResNeXt-101, two taps, and a linear map to the opinion scale.

    ``regr6`` and ``regr7`` only served training; they are kept so that loading stays strict.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, resize: Size = (498, 664)) -> None:
        super().__init__()
        self.preprocess = Preprocess(resize, antialias=True)
        self.features = nn.Sequential(*list(resnext101_32x8d(weights=None).children())[:-2])
        self.dr6, self.dr7 = reduction(1024), reduction(2048)
        self.regr6, self.regr7 = nn.Linear(64, 1), nn.Linear(64, 1)
        self.regression = nn.Linear(128, 1)
        # buffers outside the state dict: upstream keeps them beside it
        with torch.device("cpu"):
            self.register_buffer("slope", torch.tensor(1.0), persistent=False)
            self.register_buffer("offset", torch.tensor(0.0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        maps = self.preprocess(images)
        reduced = []
        for index, layer in enumerate(self.features):
            maps = layer(maps)
            if index in TAPS:
                reduce = self.dr6 if index == 6 else self.dr7
                reduced.append(reduce(maps.mean(dim=(2, 3))))
        return at_least_float32(self.regression(torch.cat(reduced, dim=1)).squeeze(1)) * self.slope + self.offset


class LinearityMetric(PublishedMetric):
    """``linearity``: about 0 to 100, higher is better; images are resized to 498x664 as by the authors.

    Args:
        weights: the authors' ``p1q2.pth`` (a dict with ``model``, ``k`` and ``b``); "random"; None for the cache.
        resize: (height, width) in pixels that images are resized to, or "native" for images as they are.
        device: where the weights are read to.
        seed: of random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        resize: Size = (498, 664),
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        if weights == RANDOM:
            network, source = seeded(lambda: LinearityNetwork(resize), seed).to(device), random_label(seed)
        else:
            path = Path(weights).expanduser() if weights else files_of("linearity")[0].locate()
            content, _ = read_content(path, device=device)
            with torch.device("meta"):
                network = LinearityNetwork(resize)
            load_strictly(network, unwrap(content, path), path)
            slope, offset = opinion_scale(content, path)
            network.slope, network.offset = torch.tensor(slope), torch.tensor(offset)
            network, source = network.to(device), path.name
        super().__init__(network, name="linearity", weights_source=source, score_range=(0, 100))


def opinion_scale(content: object, source: str | Path) -> tuple[float, float]:
    """Return (slope, offset) of the map to the opinion scale: upstream's first entries of ``k`` and ``b``."""
    try:
        slope, offset = (float(content[key][0]) for key in ("k", "b"))  # type: ignore[index]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(
            f"'{source}' has no 'k' and 'b', which map its output to opinion scores; give the authors' whole "
            "checkpoint (a dict with model, k and b), not its state dict alone"
        ) from error
    return slope, offset
