"""The published networks with random weights, for speed alone: their scores mean nothing."""

from __future__ import annotations

import warnings
from unittest import mock

import torch
from torch import Tensor, nn

from certiqa.metrics import FrozenMetric, load_metric
from certiqa.metrics.clipiqa import make_clip
from certiqa.metrics.dbcnn import without_pretrained_parts
from certiqa.metrics.spaq import SpaqNetwork, patches_of


class OneByOne(SpaqNetwork):
    """SPAQ as its authors run it: one patch after another."""

    def forward(self, images: Tensor) -> Tensor:
        """Score images ``(N, 3, H, W)``."""
        patches = patches_of(images)
        return torch.stack([self.backbone(patch[None])[0, 0] for patch in patches]).view(len(images), -1).mean(1)


def upstream(name: str) -> nn.Module:
    """Return a network as upstream holds it: nothing folded, contiguous."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if name == "metaiqa":
        from pyiqa.archs.metaiqa_arch import MetaIQA

        return MetaIQA(pretrained=False).eval()
    if name == "dbcnn":
        from pyiqa.archs.dbcnn_arch import DBCNN

        with without_pretrained_parts():
            return DBCNN(pretrained=False).eval()
    if name == "clipiqa_plus":
        from pyiqa.archs import clipiqa_arch

        with mock.patch.object(clipiqa_arch, "load", return_value=make_clip()):
            return clipiqa_arch.CLIPIQA("clipiqa+", pretrained=False).eval()
    if name == "spaq":
        return OneByOne().eval()
    raise ValueError(name)


def build(name: str, *, fast: bool) -> nn.Module:
    """Return a metric by name: ``fast`` as certiqa holds it, else as the reference loop does (contiguous)."""
    if name == "mini":
        metric = load_metric("mini")
        return metric if fast else metric.to(memory_format=torch.contiguous_format)
    if fast:
        return load_metric(name, weights="random")
    return FrozenMetric(upstream(name), name=name)
