"""Brightness, contrast and sharpness (KADID-10k types 16 to 18, 24 and 25)."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline

from certiqa.data.distortions.pixels import Pixels, from_lab, gaussian, to_lab


def brighten(image: Pixels, strength: float) -> Pixels:
    """Lift the midtones by k/2: two parts the curve on RGB, one part the same curve on Lab's lightness."""
    lab = to_lab(image)
    lab[..., 0] = 100 * _midtone_curve(lab[..., 0] / np.float32(100), strength)
    return (2 * np.clip(_midtone_curve(image, strength), 0, 1) + from_lab(lab)) / np.float32(3)


def darken(image: Pixels, strength: float) -> Pixels:
    """Lower the midtones of RGB by k/2."""
    return np.clip(_midtone_curve(image, -strength), 0, 1)


def _midtone_curve(values: Pixels, strength: float) -> Pixels:
    """Evaluate the parabola through (0, 0), (1/2, 1/2 + k/2) and (1, 1); it may leave [0, 1]."""
    return values + np.float32(2 * strength) * values * (1 - values)


def mean_shift(image: Pixels, shift: float) -> Pixels:
    """Add ``shift`` and clip; the final stretch undoes part of it, and level 3 (shift 0) changes nothing."""
    return np.clip(image + np.float32(shift), 0, 1)


def high_sharpen(image: Pixels, amount: float) -> Pixels:
    """Sharpen the lightness of Lab with an unsharp mask of sigma 3 pixels."""
    lab = to_lab(image)
    lab[..., 0] += amount * (lab[..., 0] - gaussian(lab[..., 0], 3))
    return from_lab(lab)


def contrast_change(image: Pixels, strength: float) -> Pixels:
    """Pass RGB through ``contrast_curve``."""
    return contrast_curve(image, strength).astype(np.float32)


def contrast_curve(values: np.ndarray, strength: float) -> np.ndarray:
    """Evaluate the S-curve of type 25, clipped to [0, 1].

    A cubic spline (not-a-knot) through (0, 0), (.3, .25 - k/4), (.5, .5), (.7, .75 + k/4) and (1, 1). It is
    the identity at k = -.2, not at 0: above it contrast grows, below it contrast falls.
    """
    knots = [0, 0.3, 0.5, 0.7, 1]
    heights = [0, 0.25 - strength / 4, 0.5, 0.75 + strength / 4, 1]
    return np.clip(CubicSpline(knots, heights, bc_type="not-a-knot")(values), 0, 1)
