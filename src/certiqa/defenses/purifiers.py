"""The purifiers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from certiqa.defenses.purified import Purifier
from certiqa.errors import UserError


class Jpeg(Purifier):
    """JPEG compression and decompression (Pillow, libjpeg, chroma 4:2:0); no gradient of its own.

    Args:
        quality: 1 to 95.
    """

    name = "jpeg"
    differentiable = False

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 95:
            raise UserError(f"the quality of jpeg must be 1 to 95, got {quality}")
        self.quality = int(quality)

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the decompressed images."""
        pixels = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        decoded = []
        for image in pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
            decoded.append(torch.from_numpy(np.array(Image.open(buffer))))
        return torch.stack(decoded).permute(0, 3, 1, 2).to(images) / 255


class Rotate(Purifier):
    """Rotation by a random angle about the centre, bilinear, what lies outside filled by reflection.

    Args:
        degrees: largest angle; each image's is drawn uniformly from -degrees to degrees.
    """

    name = "rotate"
    is_random = True

    def __init__(self, degrees: float = 15.0) -> None:
        super().__init__()
        if not 0 <= degrees <= 180:
            raise UserError(f"the degrees of rotate must be 0 to 180, got {degrees}")
        self.degrees = float(degrees)

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the rotated images."""
        draws = generators or [torch.Generator().manual_seed(0)] * len(images)
        turns = torch.tensor([(2 * float(torch.rand((), generator=draw)) - 1) * self.degrees for draw in draws])
        height, width = images.shape[-2:]
        cosine, sine = (turns * math.pi / 180).cos(), (turns * math.pi / 180).sin()
        zero = torch.zeros_like(turns)
        # grid coordinates span [-1, 1] on both sides, so that a rotation of pixels needs the ratio of the sides
        first = torch.stack([cosine, sine * height / width, zero], dim=1)
        second = torch.stack([-sine * width / height, cosine, zero], dim=1)
        grid = F.affine_grid(torch.stack([first, second], dim=1).to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


PURIFIERS: dict[str, type[Purifier]] = {purifier.name: purifier for purifier in (Jpeg, Rotate)}
