"""Files that nobody ever sees half written, state kept as JSON, hashes, and whether there is room on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from certiqa.console import plain_column, plain_console
from certiqa.errors import UserError, first_line

Shape = TypeVar("Shape", dict[str, Any], list[Any])
KINDS = {dict: "object", list: "list"}  # as JSON calls them
CHECKSUM = "checksum"
"""The key under which ``write_json`` notes what the rest of the file sums up to."""


class DamagedFileError(UserError):
    """A file of this project's own cannot be read: it was cut short, edited, or written by something else.

    Args:
        path: the file.
        reason: what is wrong with it.
        advice: what to do about it.
    """

    def __init__(
        self, path: str | Path, reason: object, advice: str = "delete it and run the same command again"
    ) -> None:
        super().__init__(f"'{path}' cannot be read ({reason}); {advice}")
        self.path = Path(path)
        self.reason = reason


def read_json(path: str | Path, shape: type[Shape]) -> Shape | None:
    """Return the state that ``write_json`` left in a file; None where there is no such file.

    Args:
        path: the file.
        shape: ``dict`` or ``list``, as the file was written.

    Raises:
        DamagedFileError: it is there and cannot be read, is not JSON, holds something of another shape, or is not what
            was written. A file of an older version, which has no checksum, is taken as it is.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(path, getattr(error, "strerror", None) or first_line(error)) from error
    if isinstance(content, dict) and CHECKSUM in content:
        said = content.pop(CHECKSUM)
        content = content.get("content") if shape is list else content
        if said != _checksum(content):
            raise DamagedFileError(path, "it is not as it was written")
    if not isinstance(content, shape):
        raise DamagedFileError(path, f"it holds no JSON {KINDS[shape]}")
    return content


def _checksum(content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def write_json(
    path: str | Path,
    content: dict[str, Any] | list[Any],
    *,
    durable: bool = True,
    allow_nan: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Write state for ``read_json`` with its checksum, whole or not at all; see ``write_aside``.

    Args:
        path: the file; its folder must exist.
        content: what to write.
        durable: wait for the disk.
        allow_nan: write NaN and infinities as Python reads them back; False raises ValueError, for other readers.
        default: turns what JSON does not know into something that it does.
    """
    plain = json.loads(json.dumps(content, default=default, allow_nan=allow_nan))
    sealed = {CHECKSUM: _checksum(plain)} | (plain if isinstance(plain, dict) else {"content": plain})
    with write_aside(path, durable=durable) as partial:
        partial.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")


@contextmanager
def write_aside(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; what is there at the end of the block becomes ``path``.

    A reader finds the old file or the whole new one, never a part, even after a crash or a power cut. If the block
    raises, ``path`` stays as it was and the part is removed.

    Args:
        path: the file to write; its folder must exist.
        durable: wait for the disk. False where the file is checked before it is used and can be made again.

    Raises:
        OSError: if the file cannot be written, for the caller to say what it was and what is safe.
    """
    partial = aside(path)
    try:
        yield partial
        put_in_place(partial, path, durable=durable)
    finally:
        partial.unlink(missing_ok=True)


def aside(path: str | Path) -> Path:
    """Return a hidden name in the same folder that no other process or thread uses, not even on another machine."""
    path = Path(path)
    # the name is cut so that with its additions it still fits into the 255 bytes of a file name
    return path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def put_in_place(partial: Path, path: str | Path, *, durable: bool = True) -> None:
    """Rename a finished file to ``path``, replacing what is there, once its content is on the disk."""
    path = Path(path)
    if durable:
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
    partial.replace(path)
    if durable and hasattr(os, "O_DIRECTORY"):
        # the new name is on the disk only when the folder is; some network file systems cannot sync one
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: str | Path) -> int:
    """Return the bytes this user may still write to ``folder``, or to where it would be made."""
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_space(folder: str | Path, needed: int, what: object) -> None:
    """Refuse to start what cannot be finished.

    Args:
        folder: where the bytes are to go.
        needed: how many.
        what: what they are, to open the message.

    Raises:
        UserError: if the disk has less, saying how much is missing.
    """
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"{what} needs {in_bytes(needed)} and the disk of '{folder}' has {in_bytes(free)} free: "
            f"{in_bytes(needed - free)} missing; free them or choose another folder"
        )


def in_bytes(count: int) -> str:
    """Return a number of bytes as a person reads it, e.g. ``123 MB``."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.{1 if amount < 9.95 and unit != 'bytes' else 0}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def byte_progress(*, shown: bool = True) -> Progress:
    """Return a progress display in bytes with speed and time left; on stderr, and only if that is a terminal."""
    console = plain_console(stderr=True)
    columns = (plain_column(), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not (shown and console.is_terminal))
