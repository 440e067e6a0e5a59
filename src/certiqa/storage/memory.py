"""How much memory this process may have."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container, in the two layouts that Linux has."""


def memory_bytes() -> int | None:
    """Return the bytes of memory of the machine, or of the container where it has less; None where nobody says."""
    found = []
    with suppress(ValueError, OSError, AttributeError):  # no sysconf on Windows
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in LIMITS:
        with suppress(ValueError, OSError):  # "max" where there is none
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)
