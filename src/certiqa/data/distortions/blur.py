"""Blurs: Gaussian, lens and motion (KADID-10k types 1 to 3)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from certiqa.data.distortions.pixels import Pixels, gaussian


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Blur with a Gaussian of ``sigma`` pixels."""
    return gaussian(image, sigma)


def lens_blur(image: Pixels, radius: int) -> Pixels:
    """Blur with a disk of ``radius`` pixels, as a lens out of focus does."""
    return _convolve(image, disk_kernel(radius))


def motion_blur(image: Pixels, length: int, rng: np.random.Generator) -> Pixels:
    """Blur along a line of ``length`` pixels at a random angle; a length of 1 changes nothing."""
    return _convolve(image, motion_kernel(length, angle=rng.uniform(0, 180)))


def disk_kernel(radius: int) -> NDArray[np.float64]:
    """Return the (2r+1, 2r+1) share of each pixel that a disk covers; it sums to 1."""
    size, steps = 2 * radius + 1, 256
    edges = np.arange(size)[:, None] - size / 2
    # Exact along one axis (a chord against a pixel), a fine Riemann sum along the other.
    across = (np.arange(size * steps) + 0.5) / steps - size / 2
    half_chord = np.sqrt(np.maximum(radius**2 - across**2, 0))
    covered = np.clip(half_chord, edges, edges + 1) - np.clip(-half_chord, edges, edges + 1)
    kernel = covered.reshape(size, size, steps).mean(axis=-1)
    return kernel / kernel.sum()


def motion_kernel(length: int, angle: float) -> NDArray[np.float64]:
    """Return an anti-aliased line through the center, ``angle`` degrees counter-clockwise; it sums to 1."""
    half = (length - 1) / 2
    reach = math.ceil(half)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = right * cosine - down * sine
    beyond = np.maximum(np.abs(along) - half, 0)
    kernel = np.maximum(1 - np.hypot(right * sine + down * cosine, beyond), 0)
    return kernel / kernel.sum()


def _convolve(image: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Convolve each channel with a square kernel of odd size, edges replicated."""
    if kernel.size == 1:
        return image
    margin = kernel.shape[0] // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    sides = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    response = fft.rfft2(kernel.astype(np.float32), sides)[..., None]
    blurred = fft.irfft2(fft.rfft2(padded, sides, axes=(0, 1)) * response, sides, axes=(0, 1))
    # The circular product wraps only into the first rows and columns, and those are cut off. The clip keeps
    # rounding errors from moving the extremes that the stretch looks for.
    height, width, _ = image.shape
    return np.clip(blurred[2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width], 0, 1)
