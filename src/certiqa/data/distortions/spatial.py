"""Spatial distortions: jitter, patches, pixels, gray levels and blocks (KADID-10k types 19 to 23)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from certiqa.data.distortions.pixels import Pixels

Region = tuple[int, int, int, int]

PATCH, PATCH_MARGIN, PATCH_OFFSET = 16, 16, 8
BLOCK = 32


def jitter(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Sample each pixel at a place N(0, k^2) pixels away (bilinear), five times over."""
    height, width, _ = image.shape
    grid = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(5):
        places = grid + np.float32(strength) * rng.standard_normal(grid.shape, dtype=np.float32)
        channels = [
            ndimage.map_coordinates(image[..., c], places, order=1, mode="nearest", prefilter=False) for c in range(3)
        ]
        image = np.stack(channels, axis=-1)
    return image


def non_eccentricity_patch(
    image: Pixels, patches: int, rng: np.random.Generator, focus: Region | None = None
) -> Pixels:
    """Fill ``patches`` places, one after another, with the 16x16 patch up to 8 pixels off each way."""
    height, width, _ = image.shape
    margin = min(PATCH_MARGIN, (min(height, width) - PATCH) // 2)
    corners = place_squares(rng, patches, PATCH, margin, (height, width), focus)
    sources = corners + np.rint(rng.uniform(-PATCH_OFFSET, PATCH_OFFSET, size=corners.shape)).astype(int)
    patched = image.copy()
    for (top, left), (from_top, from_left) in zip(corners, sources, strict=True):
        patch = patched[from_top : from_top + PATCH, from_left : from_left + PATCH].copy()
        patched[top : top + PATCH, left : left + PATCH] = patch
    return patched


def color_block(image: Pixels, blocks: int, rng: np.random.Generator, focus: Region | None = None) -> Pixels:
    """Cover ``blocks`` places with 32x32 squares of one uniformly random color each."""
    height, width, _ = image.shape
    corners = place_squares(rng, blocks, BLOCK, 0, (height, width), focus)
    covered = image.copy()
    for (top, left), paint in zip(corners, rng.random((blocks, 3), dtype=np.float32), strict=True):
        covered[top : top + BLOCK, left : left + BLOCK] = paint
    return covered


def place_squares(
    rng: np.random.Generator, count: int, size: int, margin: int, shape: tuple[int, int], focus: Region | None
) -> NDArray[np.intp]:
    """Return the (count, 2) top-left corners of squares that stay ``margin`` away from the border.

    Without a focus they are uniform. With one, its share by area, rounded, has its centers inside and the
    rest outside, both uniform: a later crop to the focus then shows its due number of squares, and not a
    number left to luck.
    """
    height, width = shape
    rows = np.arange(margin, height - margin - size + 1)
    columns = np.arange(margin, width - margin - size + 1)
    if focus is None:
        return np.stack([rng.choice(rows, count), rng.choice(columns, count)], axis=1)
    top, left, focus_height, focus_width = focus
    below_top, after_left = rows + size / 2 - top, columns + size / 2 - left
    inside = np.outer(
        (below_top >= 0) & (below_top < focus_height), (after_left >= 0) & (after_left < focus_width)
    ).ravel()
    within = round(count * focus_height * focus_width / (height * width))
    if not inside.any() or inside.all():  # no choice: the focus holds no place, or every one
        within = count * int(inside.all())
    # Shuffled, since later squares cover earlier ones.
    kinds = rng.permutation(np.arange(count) < within)
    places = np.empty(count, dtype=np.intp)
    for kind in (True, False):
        if (kinds == kind).any():
            places[kinds == kind] = rng.choice(np.flatnonzero(inside == kind), np.count_nonzero(kinds == kind))
    return np.stack([rows[places // len(columns)], columns[places % len(columns)]], axis=1)


def pixelate(image: Pixels, strength: float) -> Pixels:
    """Shrink by the factor .95 - k^.6 and enlarge back, both by nearest neighbor."""
    scale = 0.95 - strength**0.6
    rows, columns = (_there_and_back(side, scale) for side in image.shape[:2])
    return image[rows][:, columns]


def _there_and_back(side: int, scale: float) -> NDArray[np.intp]:
    """Return, for each pixel of one axis, the pixel it shows after the nearest-neighbor round trip."""
    small = math.ceil(scale * side)
    shrunk = ((np.arange(small) + 0.5) * side / small).astype(np.intp)
    return shrunk[((np.arange(side) + 0.5) * small / side).astype(np.intp)]


def quantization(image: Pixels, thresholds: int) -> Pixels:
    """Reduce all elements to ``thresholds`` + 1 values with Otsu's thresholds over the whole image.

    The values are 0, the thresholds from the second on, and 1.
    """
    cuts = otsu_thresholds(image, thresholds)
    values = np.concatenate([[0], cuts[1:], [1]]).astype(np.float32)
    return values[np.searchsorted(cuts, image)]


def otsu_thresholds(values: Pixels, count: int) -> Pixels:
    """Return the ``count`` thresholds in [0, 1] that leave the least variance within classes.

    Exact over 256 bins by dynamic programming: the best split of the bins below j into c + 1 classes extends
    the best split of those below some i into c. The least variance is the greatest sum of mass * mean^2.
    """
    histogram = np.bincount(np.rint(values * 255).astype(np.intp).ravel(), minlength=256).astype(float)
    mass = np.concatenate([[0], np.cumsum(histogram)])
    moment = np.concatenate([[0], np.cumsum(histogram * np.arange(256))])
    # gain[i, j]: mass * mean^2 of a class of the bins i .. j - 1; impossible unless i < j.
    class_mass, class_moment = mass[None] - mass[:, None], moment[None] - moment[:, None]
    gain = np.where(np.tri(257, dtype=bool), -np.inf, class_moment**2 / np.maximum(class_mass, 1e-12))
    best, starts = gain[0], []
    for _ in range(count):
        totals = best[:, None] + gain
        starts.append(totals.argmax(axis=0))
        best = totals.max(axis=0)
    cuts, end = [], 256
    for start in reversed(starts):
        end = start[end]
        cuts.append((end - 0.5) / 255)
    return np.array(cuts[::-1], dtype=np.float32)
