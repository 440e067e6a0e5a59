"""A compact residual U-Net (Ronneberger et al., MICCAI 2015) that works at half resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.options import PositiveInt


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip; the identity before training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``(N, channels, H, W)`` for the same shape."""
        return maps + self.second(F.relu(self.first(maps)))


class UNet(nn.Module):
    """Predicts the noise and subtracts it: ``(N, 3, H, W)`` -> ``(N, 3, H, W)``, any size.

    Pixels are first folded 2x2 into channels, which makes every layer four times cheaper than a
    U-Net at full resolution: thousands of noisy copies go through it for one certificate. Skips are added, not
    concatenated, for the same reason. Nothing is clipped on the way of the finest scale, whose few channels
    carry the noise itself.

    Args:
        channels: width of each scale, from half resolution downwards.
    """

    FOLD = 2
    thread_safe = True
    GAIN = 4.0  # pixels in [0, 1] become features in [-2, 2]

    def __init__(self, channels: Annotated[Sequence[PositiveInt], Len(2)] = (16, 32, 64)) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise UserError(f"denoiser.channels needs two or more positive widths, got {list(channels)}")
        self.channels = tuple(int(width) for width in channels)
        folded = 3 * self.FOLD**2
        pairs = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.inlet = nn.Conv2d(folded, self.channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(upper, lower, 3, stride=2, padding=1) for upper, lower in pairs)
        self.encode = nn.ModuleList(ResidualBlock(lower) for _, lower in pairs)
        self.up = nn.ModuleList(nn.Conv2d(lower, upper, 1) for upper, lower in pairs)
        self.decode = nn.ModuleList(ResidualBlock(upper) for upper, _ in pairs)
        self.outlet = nn.Conv2d(self.channels[0], folded, 3, padding=1)
        for parameter in self.outlet.parameters():
            nn.init.zeros_(parameter)  # before training, nothing is removed

    def forward(self, images: Tensor) -> Tensor:
        """Denoise images; the output is not clipped, so that gradients pass near 0 and 1."""
        height, width = images.shape[-2:]
        multiple = self.FOLD * 2 ** len(self.down)
        bottom, right = -height % multiple, -width % multiple
        padded = F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
        maps = self.inlet(F.pixel_unshuffle((padded - 0.5) * self.GAIN, self.FOLD))
        skips = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(maps)
            maps = encode(down(maps))
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            maps = decode(skip + F.interpolate(up(maps), scale_factor=2.0, mode="nearest"))
        noise = F.pixel_shuffle(self.outlet(maps), self.FOLD) / self.GAIN
        return images - noise[..., :height, :width]
