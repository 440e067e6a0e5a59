"""Purifiers that compress: JPEG and JPEG 2000 by Pillow, a thread per core, and a JPEG with a gradient by kornia."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image, features
from torch import Tensor

from certiqa.defenses.purified import Generators, Purifier
from certiqa.defenses.purifiers.geometric import is_number
from certiqa.errors import UserError
from certiqa.options import Choices

STAND_INS = ("identity", "diff_jpeg")


class Jpeg(Purifier):
    """JPEG compression and decompression (libjpeg, chroma 4:2:0); no gradient of its own.

    Args:
        quality: 1 to 95.
        stand_in: what BPDA differentiates in its place: "identity", or "diff_jpeg" of the same quality.
    """

    name = "jpeg"
    differentiable = False
    thread_safe = True

    def __init__(
        self,
        quality: Annotated[int, Interval(ge=1, le=95)] = 50,
        stand_in: Annotated[str, Choices("identity", "diff_jpeg")] = "identity",
    ) -> None:
        super().__init__()
        check_quality(quality, 95, self.name)
        if stand_in not in STAND_INS:
            raise UserError(f"jpeg.stand_in must be {' or '.join(STAND_INS)}, got '{stand_in}'")
        self.quality = int(quality)
        self.stand_in = None if stand_in == "identity" else DiffJpeg(quality)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the decompressed images."""
        return _through_files(images, "JPEG", quality=self.quality, subsampling="4:2:0")

    def surrogate(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the images, or what the differentiable JPEG makes of them."""
        return images if self.stand_in is None else self.stand_in(images)


class Jpeg2000(Purifier):
    """JPEG 2000 compression and decompression with the lossy 9/7 wavelet (OpenJPEG); no gradient of its own.

    Args:
        ratio: how many times smaller than the raw pixels the file is to be, 1 to 1000.
    """

    name = "jpeg2000"
    differentiable = False
    thread_safe = True

    def __init__(self, ratio: Annotated[float, Interval(ge=1, le=1000)] = 20.0) -> None:
        super().__init__()
        if not (is_number(ratio) and 1 <= ratio <= 1000):
            raise UserError(f"the ratio of jpeg2000 must be a number from 1 to 1000, e.g. 20, got {ratio!r}")
        if not features.check("jpg_2000"):
            raise UserError("this Pillow has no JPEG 2000 codec; install Pillow from PyPI, whose wheels have it")
        self.ratio = float(ratio)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the decompressed images."""
        return _through_files(
            images, "JPEG2000", quality_mode="rates", quality_layers=[self.ratio], irreversible=True, mct=1
        )


class DiffJpeg(Purifier):
    """A JPEG that lets a gradient through (Reich et al., WACV 2024; kornia), with a polynomial in place of rounding.

    The values are therefore near those of JPEG, not equal. ``defense.backward=identity`` follows the identity instead.

    Args:
        quality: 1 to 99.
    """

    name = "diff_jpeg"
    thread_safe = True

    def __init__(self, quality: Annotated[int, Interval(ge=1, le=99)] = 50) -> None:
        super().__init__()
        check_quality(quality, 99, self.name)
        self.quality = int(quality)

    def forward(self, images: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the compressed images."""
        from kornia.enhance import jpeg_codec_differentiable

        quality = torch.tensor([float(self.quality)], device=images.device)
        # the codec's own soft clipping leaves values a hair outside
        return jpeg_codec_differentiable(images, quality).clamp(0, 1)


def check_quality(quality: float, greatest: int, name: str) -> None:
    """Raise UserError unless a quality is a whole number from 1 to ``greatest``."""
    if not (is_number(quality) and quality == int(quality) and 1 <= quality <= greatest):
        raise UserError(f"the quality of {name} must be 1 to {greatest}, a whole number, e.g. 50, got {quality!r}")


def _through_files(images: Tensor, file_format: str, **options: Any) -> Tensor:
    """Return 8-bit images as files of a format give them back; a thread per core, Pillow lets go of the GIL."""

    def one(pixels: np.ndarray) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, file_format, **options)
        return torch.from_numpy(np.array(Image.open(file).convert("RGB")))

    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = torch.stack(_spread(one, list(pixels)))
    return decoded.permute(0, 3, 1, 2).to(images.device).to(images.dtype) / 255


def _spread(function: Callable[[np.ndarray], Tensor], items: list[np.ndarray]) -> list[Tensor]:
    workers = min(len(items), torch.get_num_threads())
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
