"""Image files of every kind as RGB with 8 bits, and their sizes from the headers alone.

The rules, also in docs/data.md: EXIF orientation is applied; grey is repeated; an alpha channel is dropped, as by the
``convert("RGB")`` of the field's loaders (pyiqa's among them), so that a transparent pixel counts with the colour it
hides; CMYK goes through PIL, which undoes Adobe's inversion; of 16 bits the upper 8 are kept; of an animation the first
frame; a file that is not all there is an error, never a picture with a grey or black rest; notes and colour profiles
count for nothing, however large; an image that this machine has no memory for is an error before it is decoded.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from certiqa.data import jpeg, png
from certiqa.errors import UserError, suggest
from certiqa.storage.files import in_bytes
from certiqa.storage.memory import memory_bytes

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "GIF", "AVIF")
"""What is read, as PIL calls it: formats of photographs. PIL has more, some of which start other programs."""
IMAGE_SUFFIXES = tuple(
    sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
)
"""The endings, in lower case, of the files that are images; AVIF and JPEG 2000 where PIL was built with them."""
READING_BYTES = 20
"""A pixel takes 8 bytes to decode and 12 as three floats."""
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


class Header(NamedTuple):
    """What a file says before its pixels: (height, width) once it is turned and resized, and whether it moves."""

    size: Size
    is_animated: bool


def image_header(path: Path, resize: Resize = None) -> Header:
    """Return what an image file says of itself before its pixels.

    Raises:
        UnreadableError: naming the file, also where it is too large to be read.
    """
    with _opened(path, header=True) as image:
        size = _turned_size(image)
        require_memory(path, size, READING_BYTES)
        # of other files with several pictures (TIFF, a phone's MPO) the first is the picture, and nobody expects more
        is_animated = image.format in ("GIF", "PNG", "WEBP", "AVIF") and bool(getattr(image, "is_animated", False))
    return Header(target_size(size, resize), is_animated)


def image_size(path: Path, resize: Resize = None) -> Size:
    """Return (height, width) of the array that ``read_image`` returns, from the file's header alone.

    Raises:
        UnreadableError: naming the file, also where it is too large to be read.
    """
    return image_header(path, resize).size


def require_memory(path: Path, size: Size, bytes_per_pixel: int) -> None:
    """Raise UnreadableError where an image of (height, width) takes more memory than there is."""
    needed, there = size[0] * size[1] * bytes_per_pixel, memory_bytes()
    if there is not None and needed > there:
        raise UnreadableError(
            f"the image '{path}' is {size[0]}x{size[1]} pixels ({size[0] * size[1] / 1e6:.0f} megapixels), which take "
            f"about {in_bytes(needed)} of memory where there are {in_bytes(there)}; make a smaller copy, or resize "
            "images as they are read with data.resize, e.g. data.resize=1024"
        )


def read_image(path: Path, resize: Resize = None, resize_filter: str = "bicubic") -> NDArray[np.uint8]:
    """Read an image file as RGB uint8 ``(H, W, 3)``; the module's docstring has the rules.

    Args:
        path: the file.
        resize: length of the shorter side, or (height, width); None for the file's own size.
        resize_filter: one of ``FILTERS``.

    Raises:
        UnreadableError: naming the file, if it is missing, empty, cut short, damaged, too large for the memory, or has
            no known white.
    """
    with _opened(path) as image:
        require_memory(path, image.size[::-1], READING_BYTES)
        turn = TURNS.get(_orientation(image))
        image.load()
        _require_last_row(path, image)
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
def _opened(path: Path, *, header: bool = False) -> Iterator[Image.Image]:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no file but a device or a pipe"
            raise UnreadableError(f"cannot read the image '{path}': it is {kind}; replace it")
        if facts.st_size == 0:
            raise UnreadableError(f"cannot read the image '{path}': it is empty; replace the file")
        # pyiqa sets this to True for the whole process when it is imported: what is missing then comes out grey
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with open(path, "rb") as file, _decoder(file, header) as image:
            yield image
    except FileNotFoundError as error:
        if path.is_symlink():
            target = os.readlink(path)
            raise UnreadableError(
                f"no image at '{path}': it is a link to '{target}', where nothing is; mend or remove the link"
            ) from error
        raise UnreadableError(f"no image at '{path}'; is the data set complete?") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(
            f"cannot read the image '{path}': {error}. If it is meant to be that large, make a smaller copy"
        ) from error
    except DAMAGE as error:
        # PIL's own text repeats the path
        reason: object = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no image of a known kind"
        raise UnreadableError(f"cannot read the image '{path}': {reason}; replace the file") from error


def _decoder(file: IO[bytes], header: bool) -> Image.Image:
    """Return the image in an open file, as PIL has it before the pixels are decoded."""
    content: IO[bytes] = file
    if file.read(len(png.SIGNATURE)) == png.SIGNATURE:
        content = png.without_notes(file, header=header)
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is refused by this module
        return Image.open(content, formats=FORMATS)


def _require_last_row(path: Path, image: Image.Image) -> None:
    """Raise UnreadableError where a decoded PNG or JPEG has pixels that its file does not; PIL itself refuses others.

    What is missing comes out black or of one grey: only where the last pixels are so the file is looked at again.
    """
    width, height = image.size
    if image.format == "PNG":
        last = np.asarray(image.crop((0, height - 1, width, height)))
        missing = (bool(image.info.get("interlace")) or not last.any()) and png.ends_early(path)
    elif image.format in ("JPEG", "MPO"):
        corner = np.asarray(image.crop((max(0, (width - 1) // 8 * 8), max(0, (height - 1) // 8 * 8), width, height)))
        missing = bool((corner == corner[-1, -1]).all()) and jpeg.ends_early(path, image)
    else:
        return
    if missing:
        raise UnreadableError(f"cannot read the image '{path}': its pixels end before the last row; replace the file")


def _turned_size(image: Image.Image) -> Size:
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, from what is read before the pixels."""
    if image.format == "TIFF":
        return 1  # PIL turns it itself, and has the size right from the start
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        # not PNG's own, which looks for it behind the pixels, and decodes them for that
        orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
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
