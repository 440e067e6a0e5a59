"""BatchNorm folded into the convolutions before it: the same function to rounding, in less time."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
"""Names under which residual networks (torchvision's, CLIP's) keep a convolution and the BatchNorm right after it."""
RESIDUAL = ("BasicBlock", "Bottleneck", "ResNet", "ModifiedResNet")
"""Classes that call those pairs one after the other; in others the names promise nothing."""


def fold_batch_norms(module: nn.Module) -> None:
    """Fold BatchNorms into the convolutions and linear layers right before them, in place.

    Those of a Sequential, and the named pairs of residual networks. Everything else is left alone. The module must
    be meant for evaluation only.
    """
    for child in module.children():
        fold_batch_norms(child)
    if isinstance(module, nn.Sequential):
        for index in range(len(module) - 1):
            folded = _folded(module[index], module[index + 1])
            if folded is not None:
                module[index], module[index + 1] = folded, nn.Identity()
    if type(module).__name__ in RESIDUAL:
        for layer, norm in PAIRS:
            folded = _folded(getattr(module, layer, None), getattr(module, norm, None))
            if folded is not None:
                setattr(module, layer, folded)
                setattr(module, norm, nn.Identity())


def _folded(layer: nn.Module | None, norm: nn.Module | None) -> nn.Module | None:
    # exactly these classes: timm's subclasses of BatchNorm hold an activation too
    if isinstance(layer, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
        return fuse_conv_bn_eval(layer.eval(), norm.eval())
    if isinstance(layer, nn.Linear) and type(norm) is nn.BatchNorm1d:
        return fuse_linear_bn_eval(layer.eval(), norm.eval())
    return None
