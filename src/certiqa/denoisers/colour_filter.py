"""The purification paper's colour filter (Gushchin et al., arXiv 2404.06957): a small FCN against colour attacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ColourFilter(nn.Module):
    """Three 3x3 convolutions, 3 -> 64 -> 16 -> 3, and a tanh: ``(N, 3, H, W)`` -> ``(N, 3, H, W)``, 11,459 parameters.

    The maps of the second convolution are normalised over the whole image, so that every pixel depends on all of them:
    a filter of colours, not of patches. Nothing is clipped.

    Args:
        residual: add the tanh to the image instead of returning it. Ours, not the paper's: with a last convolution of
            zeros it starts as the identity, which a tanh alone can only come near to.
    """

    SLOPE = 0.2
    thread_safe = True

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = bool(residual)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 3, 3, padding=1)
        if self.residual:
            for parameter in self.conv3.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return filtered images."""
        maps = F.leaky_relu(self.conv1(images), self.SLOPE)
        maps = F.leaky_relu(F.instance_norm(self.conv2(maps)), self.SLOPE)
        change = torch.tanh(self.conv3(maps))
        return images + change if self.residual else change
