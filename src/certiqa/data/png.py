"""PNG files as far as pixels need them: without the notes around them, with their checksums, and to their last row.

PIL refuses a file whose text or colour profile is larger than 1 MB, passes over the checksums of pixels, and takes
pixels that end early for black rows.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF = b"Raw profile type exif\0"  # the text in which ImageMagick keeps what eXIf is for
LONGEST_EXIF = 1 << 16  # of a JPEG, where it comes from
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel by colour type."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""(first column, first row, step of columns, step of rows) of each pass of an interlaced image."""


def without_notes(file: IO[bytes], *, header: bool = False) -> io.BytesIO:
    """Return a PNG file without text, colour profile and whatever else its pixels do not need; orientation stays.

    Args:
        file: the PNG file, open at its start.
        header: only what stands before the pixels, and whether there are several frames.

    Raises:
        ValueError: a part that the pixels need is cut short or does not fit its checksum.
    """
    kept = io.BytesIO(SIGNATURE)
    kept.seek(0, io.SEEK_END)
    for kind, length, body in _chunks(file):
        if header and kind == b"IDAT":
            kept.write(struct.pack(">I4s", length, kind))
            break
        if _needed(kind, body) or (header and kind == b"acTL"):
            kept.write(struct.pack(">I4s", length, kind) + body + struct.pack(">I", zlib.crc32(kind + body)))
    kept.seek(0)
    return kept


def _needed(kind: bytes, body: bytes) -> bool:
    if kind == b"zTXt" or kind == b"tEXt":
        return body.startswith(EXIF) and len(body) < LONGEST_EXIF
    return kind[:1].isupper() or kind in (b"tRNS", b"eXIf")  # a capital says that no reader may pass it over


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (kind, length, body) of every part; the body of one that pixels cannot need is empty and not read."""
    whole = os.fstat(file.fileno()).st_size
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if not (kind[:1].isupper() or kind in (b"tRNS", b"eXIf", b"zTXt", b"tEXt", b"acTL")):
            file.seek(length + 4, io.SEEK_CUR)
            yield kind, length, b""
            continue
        if file.tell() + length + 4 > whole and kind != b"IEND":
            raise ValueError("it is cut short")
        body, checksum = file.read(length), file.read(4)
        if kind[:1].isupper() and kind != b"IEND" and checksum != struct.pack(">I", zlib.crc32(kind + body)):
            raise ValueError("its pixels do not fit their checksum")
        yield kind, length, body
        if kind == b"IEND":
            return


def ends_early(path: Path) -> bool:
    """Return whether the compressed pixels of a PNG file end before its last row."""
    unpacker = zlib.decompressobj()
    count, wanted = 0, 0
    with open(path, "rb") as file:
        for kind, _, body in _chunks(file):
            if kind == b"IHDR":
                wanted = _length(body)
            if kind == b"IDAT":
                while body and count < wanted and not unpacker.eof:
                    count += len(unpacker.decompress(body, 1 << 20))
                    body = unpacker.unconsumed_tail
    return count < wanted


def _length(header: bytes) -> int:
    """Return how many bytes the pixels of an image with this header are, each row with a byte for its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * CHANNELS[colour]
    length = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            length += rows * (1 + (columns * bits + 7) // 8)
    return length
