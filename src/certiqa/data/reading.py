"""Image files of every kind as RGB with 8 bits, and their sizes from the headers alone.

The rules, also in docs/data.md: EXIF orientation is applied; grey is repeated; an alpha channel is dropped, as by the
``convert("RGB")`` of the field's loaders (pyiqa's among them), so that a transparent pixel counts with the colour it
hides; CMYK goes through PIL, which undoes Adobe's inversion; of 16 bits the upper 8 are kept; of an animation the first
frame; a file that is not all there is an error, never a picture with a grey rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from certiqa.errors import UserError, suggest

Size = tuple[int, int]
Resize = int | tuple[int, int] | None
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,  # torchvision's default, hence that of the SPAQ authors' code
    "lanczos": Image.Resampling.LANCZOS,
}
"""Filters of PIL, all antialiased: their support grows with the factor of a reduction."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what PIL raises for a damaged file, beside OSError; which one depends on where the damage is
DAMAGE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, struct.error, EOFError, IndexError, KeyError)


class UnreadableError(UserError):
    """An image file that cannot be read."""


def image_size(path: Path, resize: Resize = None) -> Size:
    """Return (height, width) of the array that ``read_image`` returns, from the file's header alone.

    Raises:
        UnreadableError: naming the file.
    """
    with _opened(path) as image:
        height, width = image.height, image.width
        if _orientation(image) >= 5:
            height, width = width, height
    return target_size((height, width), resize)


def read_image(path: Path, resize: Resize = None, resize_filter: str = "bicubic") -> NDArray[np.uint8]:
    """Read an image file as RGB uint8 ``(H, W, 3)``; the module's docstring has the rules.

    Args:
        path: the file.
        resize: length of the shorter side, or (height, width); None for the file's own size.
        resize_filter: one of ``FILTERS``.

    Raises:
        UnreadableError: naming the file, if it is missing, empty, cut short, damaged, or has no known white.
    """
    with _opened(path) as image:
        turn = TURNS.get(_orientation(image))
        image.load()
        rgb = _to_rgb(path, image)
        if turn is not None:
            rgb = rgb.transpose(turn)
        height, width = target_size((rgb.height, rgb.width), resize)
        if (height, width) != (rgb.height, rgb.width):
            rgb = rgb.resize((width, height), FILTERS[resize_filter])
        return np.asarray(rgb)


def target_size(size: Size, resize: Resize) -> Size:
    """Return the (height, width) to which an image is resized, by torchvision's rule for the longer side."""
    if resize is None:
        return size
    if not isinstance(resize, int):
        return resize
    shorter = min(size)
    height, width = (int(resize * side / shorter) for side in size)
    return height, width


def check_resize(resize: int | Sequence[int] | None, resize_filter: str) -> Resize:
    """Return the option ``data.resize`` as this module takes it; raises UserError for what it cannot be."""
    if resize_filter not in FILTERS:
        hint = suggest(resize_filter, FILTERS)
        raise UserError(f"data.resize_filter must be one of {', '.join(FILTERS)}, got '{resize_filter}'.{hint}")
    sides = [resize] if isinstance(resize, int) else list(resize or ())
    if resize is not None and (
        len(sides) not in (1, 2) or any(not isinstance(side, int) or side < 1 for side in sides)
    ):
        raise UserError(f"data.resize must be null, the length of the shorter side, or [height,width], got {resize}")
    if len(sides) == 2:
        return sides[0], sides[1]
    return sides[0] if sides else None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.stat().st_size == 0:
            raise UnreadableError(f"cannot read the image '{path}': it is empty; replace the file")
        # pyiqa sets this to True for the whole process when it is imported: what is missing then comes out grey
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UnreadableError(f"no image at '{path}'; is the data set complete?") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(
            f"cannot read the image '{path}': {error}. If it is meant to be that large, make a smaller copy"
        ) from error
    except DAMAGE as error:
        # PIL's own text repeats the path
        reason = "it is no image of a known kind" if isinstance(error, UnidentifiedImageError) else error
        raise UnreadableError(f"cannot read the image '{path}': {reason}; replace the file") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, from what is read before the pixels."""
    if image.format == "TIFF":
        return 1  # PIL turns it itself, and has the size right from the start
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # else PIL looks for it behind the pixels, and decodes them for that
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DAMAGE:
        return 1  # an image with broken notes is still an image
    return orientation if orientation in TURNS else 1


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Return a decoded image as RGB with 8 bits."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint32), _bits(image))
    if image.mode == "I":
        # PIL before 11 opens grey PNG of 16 bits so; of other integers nobody knows what white is
        if image.format not in ("PNG", "PPM"):
            _refuse(path, "its pixels are 32-bit integers, of which nobody knows what white is")
        return _grey(np.asarray(image), 16)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            _refuse(path, "its pixels are floats that are not all in [0, 1], so that nobody knows what white is")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _grey(values: NDArray[np.generic], bits: int) -> Image.Image:
    # the upper 8 bits, as PIL (and libpng) do for RGB with 16: white is white, nothing is clipped, and 8-bit images
    # stored as 16 come back exactly, whether they were multiplied by 256 or 257; convert() would clip at 255
    return Image.fromarray((values.astype(np.int64) >> (bits - 8)).astype(np.uint8)).convert("RGB")


def _bits(image: Image.Image) -> int:
    """Return how many of the 16 bits are used: TIFF may say 12."""
    found = getattr(image, "tag_v2", {}).get(258, 16)  # BitsPerSample
    return int(found[0] if isinstance(found, tuple) else found)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise UnreadableError(f"cannot read the image '{path}': {reason}; convert it to 8 bits")
