"""What the distortions share: the stretch to the full range, bytes and floats, Lab, the Gaussian filter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import color

Pixels = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def stretch(values: Pixels) -> Pixels:
    """Map the least value of the whole array to 0 and the greatest to 1; a constant array stays as it is."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values.copy()


def to_bytes(pixels: Pixels) -> Bytes:
    """Round [0, 1] to the nearest of 256 levels."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def to_pixels(values: NDArray[np.uint8]) -> Pixels:
    """Map 0..255 to [0, 1] in float32."""
    return values.astype(np.float32) / np.float32(255)


def to_lab(pixels: Pixels) -> Pixels:
    """Convert RGB in [0, 1] to CIE Lab (D65): L in [0, 100], a and b about [-110, 110]."""
    return np.asarray(color.rgb2lab(pixels), dtype=np.float32)


def from_lab(lab: Pixels) -> Pixels:
    """Convert CIE Lab to RGB and clip it to [0, 1]."""
    lightness = np.maximum(lab[..., 0], 0)
    # Above this b, Z is negative, hence meaningless; scikit-image clips it too, but warns at each image.
    highest_b = (lightness + 15.999) * (200 / 116)
    clipped = np.stack([lightness, lab[..., 1], np.minimum(lab[..., 2], highest_b)], axis=-1)
    return np.asarray(color.lab2rgb(clipped), dtype=np.float32)


def gaussian(values: Pixels, sigma: float) -> Pixels:
    """Filter rows and columns with a Gaussian of ``sigma`` pixels cut at 2 sigma, edges replicated."""
    return ndimage.gaussian_filter(
        values, sigma, radius=math.ceil(2 * sigma), axes=(0, 1), mode="nearest", output=np.float32
    )
