"""A universal pattern that a U-Net makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from certiqa.attacks.target import Target
from certiqa.attacks.universal import UniversalAttack
from certiqa.errors import UserError
from certiqa.options import Budget, PositiveInt


class PatternUNet(nn.Module):
    """The U-Net of pix2pix (Isola et al., CVPR 2017): ``(1, 3, s, s)`` -> ``(1, 3, s, s)`` in (-1, 1).

    Eight halvings down to a side of ``s / 256`` and as many doublings, joined by skips; instance normalisation without
    weights except at the ends and at the innermost level, where there is nothing to normalise over; dropout in the
    three innermost doublings with a skip.

    Args:
        width: channels of the first level; deeper ones have 2, 4 and then 8 times as many.
    """

    MULTIPLE = 256  # sides must be multiples of 2 to the number of levels
    FACTORS = (1, 2, 4, 8, 8, 8, 8, 8)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = [3, *(factor * width for factor in self.FACTORS)]
        last = len(self.FACTORS) - 1
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(last + 1):
            outer, inner = channels[level], channels[level + 1]
            down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, stride=2, padding=1)]
            if level > 0:
                down.insert(0, nn.LeakyReLU(0.2))
            if 0 < level < last:
                down.append(nn.InstanceNorm2d(inner))
            joined = inner if level == last else 2 * inner
            up: list[nn.Module] = [nn.ReLU(), nn.ConvTranspose2d(joined, outer, 4, stride=2, padding=1)]
            up.append(nn.InstanceNorm2d(outer) if level > 0 else nn.Tanh())
            if last - 4 < level < last:
                up.append(nn.Dropout(0.5))
            self.down.append(nn.Sequential(*down))
            self.up.append(nn.Sequential(*up))

    def forward(self, latent: Tensor) -> Tensor:
        """Return a pattern in (-1, 1) for a latent of the same shape; sides are multiples of 256."""
        maps, skips = latent, []
        for down in self.down:
            maps = down(maps)
            skips.append(maps)
        maps = self.up[-1](skips.pop())
        for up in reversed(self.up[:-1]):
            maps = up(torch.cat([skips.pop(), maps], dim=1))
        return maps


class GenerativeUAP(UniversalAttack):
    """``eps * U(z)``: a U-Net's answer to one fixed latent z, its weights trained by Adam (MSU benchmark's variant).

    Weights, latent and dropout are drawn from the seed, and dropout is off where the pattern is taken.

    Args:
        size: side of the pattern in pixels, a multiple of 256 for the U-Net's eight halvings; images may have any.
        width: channels of the U-Net's first level.
        options: of ``UniversalAttack``.
    """

    name = "generative_uap"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        size: PositiveInt = 256,
        epochs: PositiveInt = 1,
        width: PositiveInt = 64,
        **options: object,
    ) -> None:
        if self.at_least("size", size, 1) % PatternUNet.MULTIPLE:
            raise UserError(
                f"attack.size of {self.name} must be a multiple of {PatternUNet.MULTIPLE}, which its U-Net halves "
                f"eight times, got {size}; the pattern is cropped to smaller images by itself"
            )
        super().__init__(eps, size=size, epochs=epochs, **options)  # type: ignore[arg-type]
        self.width = self.at_least("width", width, 1)

    def begin(self, device: torch.device, seed: int) -> None:
        """Draw weights and latent."""
        self._network = PatternUNet(self.width).to(device).train()
        self._latent = torch.rand(1, 3, self.size, self.size).to(device)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=self.lr)

    def step(self, target: Target, images: Tensor) -> None:
        """Take a step of Adam."""
        self._adam.zero_grad()
        self.loss(target, images, self.eps * self._network(self._latent)).backward()
        self._adam.step()

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the pattern without dropout."""
        return self.eps * self._network.eval()(self._latent)
