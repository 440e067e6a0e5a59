"""Whether the pixels of a JPEG file go on to its last row.

libjpeg fills up what is missing with grey, and says so in a warning that PIL does not hand on.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

BITS = bytes(byte for byte in range(1, 255)) * 4  # that decode to something, whatever the tables
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""What ends a scan: a marker, but none of those that restart it."""
EOI, SOS = 0xD9, 0xDA
HUFFMAN = (0xC0, 0xC1, 0xC2)
"""Frames whose bits are read one after the other, so that more of them behind the end change nothing."""


def ends_early(path: Path, decoded: Image.Image) -> bool:
    """Return whether the last pixels of a JPEG file are missing: whether bits added to its end change the picture.

    Args:
        path: the file.
        decoded: the picture that PIL made of it.
    """
    content = path.read_bytes()
    end = _end(content)
    if end is None:
        return False
    with Image.open(io.BytesIO(content[:end] + BITS + b"\xff\xd9"), formats=["JPEG"]) as more:
        return more.tobytes() != decoded.tobytes()


def _end(content: bytes) -> int | None:
    """Return where the marker stands that ends the (first) picture; None where it cannot be told."""
    place, huffman = 2, False
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind = content[place + 1]
        if kind == 0xFF:  # a filling byte
            place += 1
        elif kind == EOI:
            return place if huffman else None
        else:
            huffman |= kind in HUFFMAN
            place += 2 + int.from_bytes(content[place + 2 : place + 4])
            if kind == SOS:
                found = NEXT_MARKER.search(content, place)
                if found is None:
                    return None
                place = found.end() - 2
    at_end = content[place : place + 2] == b"\xff\xd9"
    return place if at_end and huffman else None
