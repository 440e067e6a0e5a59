"""Noise, and what a denoiser leaves of it (KADID-10k types 11 to 15)."""

from __future__ import annotations

import math

import numpy as np
from skimage import color, restoration

from certiqa.data.distortions.pixels import Pixels


def white_noise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise to each channel of RGB and clip."""
    return np.clip(image + _normal(image, variance, rng), 0, 1)


def white_noise_color(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise to each component of YCbCr and clip.

    The variance is that of components in studio range over 255 (Y from 16/255 to 235/255), as in MATLAB.
    """
    components = color.rgb2ycbcr(image) / 255
    noisy = np.clip(components + _normal(image, variance, rng), 0, 1)
    return np.clip(color.ycbcr2rgb(255 * noisy), 0, 1).astype(np.float32)


def impulse_noise(image: Pixels, density: float, rng: np.random.Generator) -> Pixels:
    """Set a share ``density`` of all elements (each channel by itself) to 0 or 1, half and half."""
    chance = rng.random(image.shape, dtype=np.float32)
    noisy = np.where(chance < density, np.float32(1), image)
    return np.where(chance < density / 2, np.float32(0), noisy)


def multiplicative_noise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Add ``image * n`` and clip, n uniform around 0 with this variance (MATLAB's speckle)."""
    spread = np.float32(math.sqrt(12 * variance))
    return np.clip(image * (1 + spread * (rng.random(image.shape, dtype=np.float32) - np.float32(0.5))), 0, 1)


def denoising(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise to RGB, clip, and denoise each channel by itself with non-local means.

    An approximation: KADID-10k denoises with MATLAB's pretrained gray DnCNN, which was trained on noise of
    sigma up to 55/255 and leaves much of what lies beyond, at levels 4 and 5. Here the strength follows the
    noise up to sigma .25 and no further, so that the damage grows with the level in the same way; both
    constants were set once, by eye.
    """
    noisy = white_noise(image, variance, rng)
    strength = 1.1 * min(math.sqrt(variance), 0.25)
    channels = [
        restoration.denoise_nl_means(noisy[..., c], patch_size=5, patch_distance=2, h=strength) for c in range(3)
    ]
    return np.stack(channels, axis=-1)


def _normal(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    return np.float32(math.sqrt(variance)) * rng.standard_normal(image.shape, dtype=np.float32)
