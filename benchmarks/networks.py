"""Networks of the sizes the field uses, for speed alone: random weights, so their scores mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg16

from certiqa.metrics import FrozenMetric, load_metric
from certiqa.metrics.mini import fuse_batch_norms


class MetaSized(nn.Module):
    """ResNet-18 with MetaIQA's three-layer head (Zhu et al., CVPR 2020), at 224x224."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = resnet18(weights=None)
        self.head = nn.Sequential(
            nn.Linear(1000, 1024), nn.PReLU(), nn.Linear(1024, 512), nn.PReLU(), nn.Linear(512, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Score images ``(N, 3, H, W)``."""
        return torch.sigmoid(self.head(self.resnet(images))).squeeze(1)


class DbcnnSized(nn.Module):
    """VGG-16 with DBCNN's bilinear pooling (Zhang et al., TCSVT 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16(weights=None).features[:-1]
        self.head = nn.Linear(512 * 512, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Score images ``(N, 3, H, W)``."""
        maps = self.features(images).flatten(2)
        pooled = (maps @ maps.transpose(1, 2) / maps.shape[-1]).flatten(1)
        return self.head(nn.functional.normalize((pooled + 1e-8).sqrt())).squeeze(1)


class FusedResNet(MetaSized):
    """The same with BatchNorm folded, as certiqa's own metrics have it."""

    def fused(self) -> FusedResNet:
        """Fold every BatchNorm into its convolution, in place."""
        from torch.nn.utils.fusion import fuse_conv_bn_eval

        for block in self.resnet.modules():
            for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2")):
                if hasattr(block, convolution) and isinstance(getattr(block, norm, None), nn.BatchNorm2d):
                    setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        fuse_batch_norms(self)
        return self


def build(name: str, *, fast: bool) -> nn.Module:
    """Return a metric by name: ``fast`` as certiqa would hold it, else as the reference loop does (contiguous)."""
    if name == "mini":
        metric = load_metric("mini")
        return metric if fast else metric.to(memory_format=torch.contiguous_format)
    torch.manual_seed(0)
    network = (FusedResNet() if name == "metaiqa-sized" else DbcnnSized()).eval()
    if not fast:
        return FrozenMetric(network, name=name)
    if isinstance(network, FusedResNet):
        network.fused()
    metric = FrozenMetric(network.to(memory_format=torch.channels_last), name=name)
    metric.thread_safe = True
    return metric
