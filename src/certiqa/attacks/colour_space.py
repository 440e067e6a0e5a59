"""sRGB <-> CIE Lab, differentiable everywhere.

IEC 61966-2-1 (sRGB, its ITU-R BT.709 primaries) and CIE 15:2004 (Lab, white D65 of the 2 degree observer).
"""

from __future__ import annotations

import torch
from torch import Tensor

XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
DELTA = 6 / 29


def rgb_to_lab(images: Tensor) -> Tensor:
    """Return Lab ``(N, 3, H, W)``, L in [0, 100], of sRGB images in [0, 1]."""
    linear = torch.where(images > 0.04045, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
    xyz = _mixed(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64), linear) / images.new_tensor(WHITE).view(3, 1, 1)
    root = xyz.clamp(min=DELTA**3) ** (1 / 3)
    x, y, z = torch.where(xyz > DELTA**3, root, xyz / (3 * DELTA**2) + 4 / 29).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB ``(N, 3, H, W)`` of Lab; colours that sRGB does not have come out below 0 or above 1."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    roots = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(roots > DELTA, roots**3, 3 * DELTA**2 * (roots - 4 / 29))
    xyz = xyz * lab.new_tensor(WHITE).view(3, 1, 1)
    linear = _mixed(torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _mixed(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix.to(images), images)
