"""MetaIQA: Zhu et al., "MetaIQA: Deep Meta-Learning for No-Reference Image Quality Assessment", CVPR 2020.

The layers are pyiqa's, whose constructor loads the weights of the prior, before fine-tuning, under a script whose name
contains "train.py"; here it loads none.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from certiqa.metrics.base import at_least_float32
from certiqa.metrics.published import Device, Preprocess, PublishedMetric, Size, build_network, without_prefix


class MetaiqaNetwork(nn.Module):
    """ResNet-18 with its 1000 outputs, three more layers and a sigmoid."""

    def __init__(self, resize: Size = (224, 224)) -> None:
        from pyiqa.archs.metaiqa_arch import MetaIQA

        super().__init__()
        parts = MetaIQA(pretrained=False)
        self.preprocess = Preprocess(resize)
        self.resnet_layer, self.head = parts.resnet_layer, parts.head

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        return at_least_float32(self.head(self.resnet_layer(self.preprocess(images))).squeeze(1))


def upstream_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the keys of the authors' and of pyiqa's files to the network's."""
    state = without_prefix(state, "net_g.")
    renamed = {f"head.{key.removeprefix('net.')}" if key.startswith("net.") else key: state[key] for key in state}
    # pyiqa's own files also hold the constants of its preprocessing
    return {key: value for key, value in renamed.items() if key not in ("mean", "std")}


class MetaiqaMetric(PublishedMetric):
    """``metaiqa``, fine-tuned on LIVE Challenge: 0 to 1, higher is better; images are resized to 224x224.

    Args:
        weights: pyiqa's or the authors' checkpoint; "random"; None for the published ones, downloaded if need be.
        resize: (height, width) in pixels that images are resized to (bilinear, as upstream), or "native" for images as
            they are.
        device: where the weights are read to.
        seed: of random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        resize: Size = (224, 224),
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        network, source = build_network(
            lambda: MetaiqaNetwork(resize), "metaiqa", weights, device=device, seed=seed, rename=upstream_names
        )
        super().__init__(network, name="metaiqa", weights_source=source, score_range=(0, 1), hard_bounds=(0, 1))
