"""The 25 distortions of KADID-10k at their five levels (Lin, Hosu, Saupe: KADID-10k, QoMEX 2019)."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from certiqa.data.distortions import blur, color, compression, noise, spatial, tone
from certiqa.data.distortions.pixels import Bytes, Pixels, stretch, to_bytes, to_pixels
from certiqa.data.distortions.spatial import BLOCK, Region
from certiqa.errors import UserError, suggest

__all__ = ["DISTORTIONS", "NAMES", "Distortion", "distort"]


@dataclass(frozen=True)
class Distortion:
    """One type of distortion: the number KADID-10k gives it, its name, and what its five levels mean.

    ``function(pixels, levels[level - 1])`` maps stretched RGB float32 (H, W, 3) to the same shape; it also
    takes a generator ``rng`` where ``is_random``, and a region ``focus`` where ``is_placed``.
    """

    type_id: int
    name: str
    levels: tuple[float, ...]
    function: Callable[..., Pixels]
    is_random: bool = False
    is_placed: bool = False


_TYPES = (
    Distortion(1, "gaussian_blur", (0.1, 0.5, 1, 2, 5), blur.gaussian_blur),
    Distortion(2, "lens_blur", (1, 2, 4, 6, 8), blur.lens_blur),
    Distortion(3, "motion_blur", (1, 2, 4, 6, 10), blur.motion_blur, is_random=True),
    Distortion(4, "color_diffusion", (1, 3, 6, 8, 12), color.color_diffusion),
    Distortion(5, "color_shift", (1, 3, 6, 8, 12), color.color_shift, is_random=True),
    Distortion(6, "color_quantization", (64, 48, 32, 16, 8), color.color_quantization),
    Distortion(7, "saturation_hsv", (0.4, 0.2, 0.1, 0, -0.4), color.saturation_hsv),
    Distortion(8, "saturation_lab", (1, 2, 3, 6, 9), color.saturation_lab),
    Distortion(9, "jpeg2000", (16, 32, 45, 120, 400), compression.jpeg2000),
    Distortion(10, "jpeg", (43, 36, 24, 7, 4), compression.jpeg),
    Distortion(11, "white_noise", (0.001, 0.002, 0.003, 0.005, 0.01), noise.white_noise, is_random=True),
    Distortion(
        12,
        "white_noise_color",
        (0.0001, 0.0005, 0.001, 0.002, 0.003),
        noise.white_noise_color,
        is_random=True,
    ),
    Distortion(13, "impulse_noise", (0.001, 0.005, 0.01, 0.02, 0.03), noise.impulse_noise, is_random=True),
    Distortion(
        14,
        "multiplicative_noise",
        (0.001, 0.005, 0.01, 0.02, 0.05),
        noise.multiplicative_noise,
        is_random=True,
    ),
    Distortion(15, "denoising", (0.01, 0.03, 0.05, 0.1, 0.15), noise.denoising, is_random=True),
    Distortion(16, "brighten", (0.1, 0.2, 0.4, 0.7, 1.1), tone.brighten),
    Distortion(17, "darken", (0.05, 0.1, 0.2, 0.4, 0.8), tone.darken),
    Distortion(18, "mean_shift", (0.15, 0.08, 0, -0.08, -0.15), tone.mean_shift),
    Distortion(19, "jitter", (0.05, 0.1, 0.2, 0.5, 1), spatial.jitter, is_random=True),
    Distortion(
        20,
        "non_eccentricity_patch",
        (20, 40, 60, 80, 100),
        spatial.non_eccentricity_patch,
        is_random=True,
        is_placed=True,
    ),
    Distortion(21, "pixelate", (0.01, 0.05, 0.1, 0.2, 0.5), spatial.pixelate),
    Distortion(22, "quantization", (20, 16, 13, 10, 7), spatial.quantization),
    Distortion(23, "color_block", (2, 4, 6, 8, 10), spatial.color_block, is_random=True, is_placed=True),
    Distortion(24, "high_sharpen", (1, 2, 3, 6, 12), tone.high_sharpen),
    Distortion(25, "contrast_change", (0.3, 0.15, 0, -0.4, -0.6), tone.contrast_change),
)
DISTORTIONS: dict[str, Distortion] = {distortion.name: distortion for distortion in _TYPES}
"""The 25 distortions of KADID-10k by name, in the order of their numbers."""
NAMES: tuple[str, ...] = tuple(DISTORTIONS)


def distort(
    image: NDArray[np.uint8] | NDArray[np.floating],
    name: str | int,
    level: int,
    seed: int = 0,
    *,
    focus: Region | None = None,
) -> Bytes:
    """Distort a photograph as KADID-10k does: stretch to the full range, apply the operator, stretch, round.

    The stretch maps the least and greatest value over all pixels and channels to 0 and 1, so that a mean
    shift, for instance, is partly undone. Three quirks are KADID-10k's own: ``mean_shift`` and
    ``contrast_change`` are mildest at level 3, not 1, and ``saturation_lab`` at level 1 changes nothing.

    Args:
        image: RGB (H, W, 3), uint8, or float32/float64 in [0, 1]; sides of 32 pixels or more. Never modified.
        name: one of ``NAMES``, or the number of the type in KADID-10k, 1 to 25.
        level: strength, 1 to 5.
        seed: an integer; with the name and the level, all that the random types draw from. Others ignore it.
        focus: (top, left, height, width) in pixels of the part that a later crop keeps.
            ``non_eccentricity_patch`` and ``color_block`` then center that part's share by area of their
            patches or blocks inside it; ``None`` places them uniformly. Other types ignore it.

    Returns:
        RGB uint8 of the same shape.

    Raises:
        UserError: the name or level is unknown, the image is not RGB of such a type and size, or the focus is
            not inside it.

    Source: Lin, Hosu, Saupe, KADID-10k: A Large-scale Artificially Distorted IQA Database, QoMEX 2019.
    ``denoising`` and the palette of ``color_quantization`` are approximations of MATLAB functions.
    """
    distortion = _find(name)
    if isinstance(level, bool) or level not in range(1, 6):
        raise UserError(f"No distortion level {level!r}; levels are the integers 1 (mildest) to 5.")
    pixels = stretch(_read(image))
    region = _check_focus(focus, pixels.shape[0], pixels.shape[1])
    extra: dict[str, object] = {}
    if distortion.is_random:
        extra["rng"] = _generator(operator.index(seed), distortion.name, int(level))
    if distortion.is_placed:
        extra["focus"] = region
    distorted = distortion.function(pixels, distortion.levels[int(level) - 1], **extra)
    return to_bytes(stretch(distorted))


def _find(name: str | int) -> Distortion:
    if isinstance(name, str) and name in DISTORTIONS:
        return DISTORTIONS[name]
    if not isinstance(name, str | bool) and name in range(1, len(_TYPES) + 1):
        return _TYPES[int(name) - 1]
    raise UserError(
        f"No distortion {name!r}; known are the numbers 1 to {len(_TYPES)} and {', '.join(NAMES)}."
        + suggest(str(name), NAMES)
    )


def _read(image: NDArray[np.uint8] | NDArray[np.floating]) -> Pixels:
    """Check the image and return it as float32 in [0, 1]."""
    values = np.asarray(image)
    if values.ndim != 3 or values.shape[2] != 3:
        raise UserError(
            f"An image to distort is RGB of shape (H, W, 3), not {values.shape}; "
            "convert it first, for instance with PIL.Image.convert('RGB')."
        )
    if min(values.shape[:2]) < BLOCK:
        raise UserError(f"An image to distort is at least {BLOCK}x{BLOCK} pixels, not {values.shape[:2]}.")
    if values.dtype == np.uint8:
        return to_pixels(values)
    if values.dtype not in (np.float32, np.float64):
        raise UserError(f"An image to distort is uint8, float32 or float64, not {values.dtype}; convert it first.")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise UserError(f"A float image to distort lies in [0, 1], not [{low:g}, {high:g}]; rescale it first.")
    return values.astype(np.float32)


def _generator(seed: int, name: str, level: int) -> np.random.Generator:
    """Key the random numbers by what is asked for, so that neither order nor process matters."""
    digest = hashlib.blake2b(f"{seed}|{name}|{level}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _check_focus(focus: Region | None, height: int, width: int) -> Region | None:
    if focus is None:
        return None
    top, left, focus_height, focus_width = focus
    inside = 0 <= top < top + focus_height <= height and 0 <= left < left + focus_width <= width
    if not inside:
        raise UserError(
            f"The focus (top, left, height, width) = {tuple(focus)} is not inside the image, "
            f"which is {height} pixels high and {width} wide."
        )
    return focus
