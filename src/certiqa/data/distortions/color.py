"""Color: diffusion, shift, quantization and two kinds of saturation (KADID-10k types 4 to 8)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2gray

from certiqa.data.distortions.pixels import (
    Bytes,
    Pixels,
    from_lab,
    gaussian,
    stretch,
    to_bytes,
    to_lab,
    to_pixels,
)


def color_diffusion(image: Pixels, strength: float) -> Pixels:
    """Blur the chroma of Lab with sigma 1.5 k + 2 pixels and multiply it by k; the lightness stays sharp."""
    lab = to_lab(image)
    lab[..., 1:] = strength * gaussian(lab[..., 1:], 1.5 * strength + 2)
    return from_lab(lab)


def color_shift(image: Pixels, distance: float, rng: np.random.Generator) -> Pixels:
    """Move the green channel ``distance`` pixels down and right at a random angle, most of all near edges."""
    across, down = rng.uniform(size=2)
    norm = math.hypot(across, down)
    rows = np.maximum(np.arange(image.shape[0]) - round(distance * down / norm), 0)
    columns = np.maximum(np.arange(image.shape[1]) - round(distance * across / norm), 0)
    green = image[..., 1]
    mask = _edge_mask(image)
    shifted = image.copy()
    shifted[..., 1] = mask * green[rows][:, columns] + (1 - mask) * green
    return shifted


def _edge_mask(image: Pixels) -> Pixels:
    """Return (H, W) weights, 1 around strong edges and 0 in flat areas."""
    gray = rgb2gray(image)
    slope = np.hypot(ndimage.sobel(gray, axis=0, mode="nearest"), ndimage.sobel(gray, axis=1, mode="nearest"))
    edges = np.clip(stretch(gaussian(slope, 4)), 0.1, 1)
    low, high = np.percentile(edges, (1, 99))
    return np.clip((edges - low) / (high - low), 0, 1) if high > low else edges


def color_quantization(image: Pixels, colors: int) -> Pixels:
    """Keep ``colors`` colors of least variance, with Floyd-Steinberg dithering (MATLAB's rgb2ind)."""
    values = to_bytes(image)
    palette = Image.new("P", (1, 1))
    palette.putpalette(minimum_variance_palette(values, colors).tobytes())
    dithered = Image.fromarray(values).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return to_pixels(np.asarray(dithered.convert("RGB")))


def minimum_variance_palette(values: Bytes, colors: int) -> Bytes:
    """Return at most ``colors`` colors (n, 3), the means of boxes split where the squared error falls most.

    Xiaolin Wu's greedy method, over a histogram of 32 cells per channel.
    """
    cells = (values.reshape(-1, 3) >> 3) @ np.array([1024, 32, 1])
    counts = np.bincount(cells, minlength=32**3)
    used = np.flatnonzero(counts)
    weights = counts[used].astype(float)
    sums = [np.bincount(cells, channel, minlength=32**3)[used] for channel in values.reshape(-1, 3).T]
    means = np.stack(sums, axis=1) / weights[:, None]

    def split(box: NDArray[np.intp]) -> tuple[float, list[NDArray[np.intp]]]:
        """Return how much error the best cut of these cells saves, and the two parts."""
        best, parts = 0.0, [box]
        for axis in range(3):
            ordered = box[np.argsort(means[box, axis], kind="stable")]
            mass = np.cumsum(weights[ordered])
            moment = np.cumsum(weights[ordered, None] * means[ordered], axis=0)
            lower = (moment[:-1] ** 2).sum(axis=1) / mass[:-1]
            upper = ((moment[-1] - moment[:-1]) ** 2).sum(axis=1) / (mass[-1] - mass[:-1])
            saved = lower + upper - (moment[-1] ** 2).sum() / mass[-1]
            if saved.size and saved.max() > best:
                cut = int(saved.argmax()) + 1
                best, parts = float(saved.max()), [ordered[:cut], ordered[cut:]]
        return best, parts

    boxes = [split(np.arange(len(used)))]
    while len(boxes) < colors:
        most = max(range(len(boxes)), key=lambda i: boxes[i][0])
        if boxes[most][0] == 0:  # fewer cells than colors
            break
        boxes += [split(part) for part in boxes.pop(most)[1]]
    final = [np.concatenate(parts) for _, parts in boxes]
    centers = [np.average(means[box], axis=0, weights=weights[box]) for box in final]
    return np.rint(centers).astype(np.uint8)


def saturation_hsv(image: Pixels, factor: float) -> Pixels:
    """Multiply the saturation of HSV by ``factor``; 0 is gray, a negative factor gives complementary hues.

    With hue and value fixed every channel is V (1 - S w), so scaling S is linear in RGB. A negative factor
    leads beyond 1, which the final stretch brings back.
    """
    value = image.max(axis=-1, keepdims=True)
    return value - np.float32(factor) * (value - image)


def saturation_lab(image: Pixels, factor: float) -> Pixels:
    """Multiply the chroma (a and b of Lab) by ``factor``."""
    lab = to_lab(image)
    lab[..., 1:] *= factor
    return from_lab(lab)
