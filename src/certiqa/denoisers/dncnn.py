"""DnCNN (Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017), the denoiser of the reference DMS code."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.options import PositiveInt


class DnCNN(nn.Module):
    """Residual DnCNN: ``(N, 3, H, W)`` -> ``(N, 3, H, W)``; 17 layers of 64 channels by default (~558k parameters).

    Keys are ``dncnn.{i}.*`` with convolution, BatchNorm and ReLU as separate entries, as in common checkpoints.

    Args:
        depth: number of convolutions, at least 2.
        width: channels of the hidden layers.
    """

    thread_safe = True

    def __init__(self, depth: Annotated[int, Ge(2)] = 17, width: PositiveInt = 64) -> None:
        super().__init__()
        if depth < 2 or width < 1:
            raise UserError(f"DnCNN needs depth >= 2 and width >= 1, got depth={depth}, width={width}")
        self.depth, self.width = depth, width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(width, 3, 3, padding=1, bias=False))
        self.dncnn = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Denoise images; the network predicts the noise."""
        return images - self.dncnn(images)
