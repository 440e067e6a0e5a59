"""Compression: JPEG 2000 and JPEG (KADID-10k types 9 and 10)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from certiqa.data.distortions.pixels import Pixels, to_bytes, to_pixels


def jpeg2000(image: Pixels, ratio: float) -> Pixels:
    """Compress ``ratio`` to 1 with the lossy (9/7) wavelet of JPEG 2000."""
    return _round_trip(image, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Compress with baseline JPEG, chroma halved in both directions."""
    return _round_trip(image, "JPEG", quality=quality, subsampling="4:2:0")


def _round_trip(image: Pixels, file_format: str, **options: Any) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(file, file_format, **options)
    return to_pixels(np.asarray(Image.open(file).convert("RGB")))
