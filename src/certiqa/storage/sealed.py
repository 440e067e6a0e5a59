"""JSON that says whether it is what was written: content and its checksum in one line."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

_SEALED = re.compile(rb'\{"crc32": "([0-9a-f]{8})", "content": (.*)\}', re.DOTALL)


def seal(content: Any) -> bytes:
    """Return content as one line of JSON, ``{"crc32": ..., "content": ...}``, without a newline at its end."""
    body = json.dumps(content).encode()
    return b'{"crc32": "%08x", "content": %s}' % (zlib.crc32(body), body)


def unseal(line: bytes) -> Any:
    """Return what ``seal`` was given; raises ValueError for anything but a whole, unchanged line of it."""
    found = _SEALED.fullmatch(line.strip())
    if found is None or int(found[1], 16) != zlib.crc32(found[2]):
        raise ValueError("not as it was written")
    return json.loads(found[2])
