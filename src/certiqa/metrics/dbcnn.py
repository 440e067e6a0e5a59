"""DBCNN: Zhang et al., "Blind Image Quality Assessment Using a Deep Bilinear CNN", TCSVT 2020.

The layers are pyiqa's, whose constructor downloads ImageNet and SCNN weights whatever it is told, though the weights of
the whole network then replace them; here nothing is downloaded but those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certiqa.metrics.base import at_least_float32
from certiqa.metrics.published import NATIVE, Device, Preprocess, PublishedMetric, Size, build_network


def _untrained(build: Callable[..., nn.Module], **_: object) -> nn.Module:
    return build(weights=None)


@contextmanager
def without_pretrained_parts() -> Iterator[None]:
    """Let pyiqa's constructor build DBCNN without the weights of its two halves."""
    import torchvision
    from pyiqa.archs import dbcnn_arch

    with (
        mock.patch.object(torchvision.models, "vgg16", functools.partial(_untrained, torchvision.models.vgg16)),
        mock.patch.object(dbcnn_arch, "load_pretrained_network"),
    ):
        yield


class DbcnnNetwork(nn.Module):
    """VGG-16 and SCNN features, pooled bilinearly, and one linear layer."""

    def __init__(self, resize: Size = NATIVE) -> None:
        from pyiqa.archs.dbcnn_arch import DBCNN

        super().__init__()
        with without_pretrained_parts():
            parts = DBCNN(pretrained=False)
        self.preprocess = Preprocess(resize)
        self.features1, self.features2, self.fc = parts.features1, parts.features2, parts.fc

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        pixels = self.preprocess(images)
        semantic, synthetic = self.features1(pixels), self.features2(pixels)
        if synthetic.shape[-2:] != semantic.shape[-2:]:
            synthetic = F.interpolate(synthetic, semantic.shape[-2:], mode="bilinear", align_corners=True)
        with torch.autocast(images.device.type, enabled=False):
            # sums over all pixels and a root with slope 5e3 at 0: not in bfloat16
            first, second = (at_least_float32(maps).flatten(2) for maps in (semantic, synthetic))
            pooled = torch.bmm(first, second.transpose(1, 2)).flatten(1) / first.shape[-1]
            return self.fc(F.normalize((pooled + 1e-8).sqrt())).squeeze(1)


class DbcnnMetric(PublishedMetric):
    """``dbcnn``, trained on KonIQ-10k: about 0 to 1, higher is better; images at their own size.

    Args:
        weights: pyiqa's checkpoint or one with upstream's keys; "random"; None for the published ones, downloaded if
            need be.
        resize: (height, width) in pixels that images are resized to, or "native" for images as they are.
        device: where the weights are read to.
        seed: of random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        resize: Size = NATIVE,
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        network, source = build_network(lambda: DbcnnNetwork(resize), "dbcnn", weights, device=device, seed=seed)
        super().__init__(network, name="dbcnn", weights_source=source, score_range=(0, 1))
