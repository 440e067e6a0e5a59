"""What files hold, as digests; those of files that have not changed since are not read again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from certiqa.errors import UserError
from certiqa.storage.cache import cache_root
from certiqa.storage.files import write_aside
from certiqa.storage.sealed import seal, unseal

UNREADABLE = ""
"""The digest of a file that cannot be read."""
SETTLED = 2.0
"""Seconds after which a further change of a file is sure to show in its times, whose ticks are coarse."""
THREADS = 8  # hashing lets go of Python's lock, and a disk or network answers several requests faster

Stamp = tuple[int, ...]
_known: dict[str, tuple[Stamp, str]] = {}


def content_digest(path: str | Path) -> str:
    """Return 32 hexadecimal digits of a file's content (blake2b), ``UNREADABLE`` where it cannot be read.

    A file whose size, times of change (also of its inode, which no program sets) and inode are those of the last call
    is not read again.

    >>> content_digest("no such file")
    ''
    """
    path = os.path.abspath(path)
    try:
        stamp = _stamp(path)
        if path in _known and _known[path][0] == stamp:
            return _known[path][1]
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if _stamp(path) == stamp and time.time() - max(stamp[1:3]) / 1e9 > SETTLED:
            _known[path] = stamp, digest
        return digest
    except OSError:
        return UNREADABLE


def content_digests(paths: Iterable[str | Path]) -> list[str]:
    """Return the digest of every file, in order; what was read is kept in the cache folder for the next process."""
    files = [Path(os.path.abspath(path)) for path in paths]
    if not files:
        return []
    kept = _kept_file(files)
    before = _recall(kept)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(content_digest, files))
    known = {str(path): _known[str(path)] for path in files if str(path) in _known}
    if kept is not None and any(before.get(path) != entry for path, entry in known.items()):
        # where the cache cannot be written the files are read again
        with suppress(OSError), write_aside(kept, durable=False) as partial:
            partial.write_bytes(seal(before | known))
    return digests


def _stamp(path: str) -> Stamp:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def _kept_file(files: list[Path]) -> Path | None:
    """Return where the digests of these files are kept: by the folder that holds them all; None without a cache."""
    folder = os.path.commonpath([path.parent for path in files])
    name = hashlib.blake2b(folder.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    try:
        place = cache_root() / "digests"
        place.mkdir(exist_ok=True)
    except (OSError, UserError):
        return None
    return place / f"{name}.json"


def _recall(kept: Path | None) -> dict[str, tuple[Stamp, str]]:
    """Return what the cache knows, and know it in this process too."""
    try:
        found = {} if kept is None else unseal(kept.read_bytes())
        entries = {path: (tuple(stamp), digest) for path, (stamp, digest) in found.items()}
    except (OSError, ValueError):
        return {}
    for path, entry in entries.items():
        _known.setdefault(path, entry)
    return entries
