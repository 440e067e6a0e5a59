"""Purifiers that compress."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
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
