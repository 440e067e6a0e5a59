"""What an archive says it holds, read without unpacking anything."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

BLOCK = 1 << 18
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DRAINED = 16 << 20  # bytes of padding after the end of a tar; real ones have up to half a megabyte


class DamagedError(Exception):
    """An archive that is not what it says it is."""


# what the libraries raise for content that is no archive or not all of one, beside OSError for both this and the disk;
# NotImplementedError is for an unknown compression
FAILURES: tuple[type[Exception], ...] = (
    *(DamagedError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, NotImplementedError, ValueError, OverflowError, OSError),
)


@dataclass(frozen=True)
class Entry:
    """A file or folder of the listing: ``fault`` is why it must not be unpacked, ``open`` reads it."""

    name: str
    size: int
    is_folder: bool
    fault: str | None
    open: Callable[[], IO[bytes] | None]


def entries(archive: Path, stack: ExitStack) -> Iterator[Entry]:
    """Yield the listing of a zip or a tar (plain, gz, bz2, xz), which stays open as long as ``stack``.

    Raises:
        FAILURES: one of them, if it cannot be read or is damaged; a tar's damage shows at its end.
    """
    with open(archive, "rb") as file:
        start = file.read(6)
    if start.startswith(b"PK"):
        yield from _zip_entries(stack.enter_context(zipfile.ZipFile(archive)))
        return
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), Path.open)
    content = _Blocks(stack.enter_context(opener(archive, "rb")))
    yield from _tar_entries(stack.enter_context(tarfile.TarFile(fileobj=cast(IO[bytes], content))), content)


class _Blocks(io.RawIOBase):
    """A file that is read in small pieces: a header that claims gigabytes must not be read into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell  # type: ignore[method-assign]

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * BLOCK:
            raise DamagedError(f"it has a header of {size} bytes")
        return self._file.read(size)


def _library_filter(info: tarfile.TarInfo, folder: str) -> None:
    if hasattr(tarfile, "data_filter"):  # not before Python 3.11.4
        tarfile.data_filter(info, folder)


def _tar_entries(tar: tarfile.TarFile, content: _Blocks) -> Iterator[Entry]:
    for info in tar:
        fault = None
        if info.issym() or info.islnk():
            fault = "is a link"
        elif not (info.isreg() or info.isdir()) or info.size < 0:
            fault = "is a device or something else that is neither file nor folder"
        else:
            try:
                _library_filter(info, "/folder")  # its own opinion, on top of what is checked here
            except tarfile.FilterError as error:
                fault = f"is refused: {error}"
        yield Entry(info.name, info.size, info.isdir(), fault, lambda info=info: tar.extractfile(info))  # type: ignore[misc]
    # a header that does not parse ends the listing without an error, as does a file cut between two entries
    content.seek(tar.offset)
    if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DamagedError("it does not end as a tar does")
    # a compressed file has its checksum behind its last byte
    drained = 0
    while block := content.read(BLOCK):
        drained += len(block)
        if drained > DRAINED:
            raise DamagedError("it goes on behind its end")


def _zip_entries(file: zipfile.ZipFile) -> Iterator[Entry]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        fault = None
        if info.flag_bits & 0x41:
            fault = "is encrypted"
        elif kind == stat.S_IFLNK:
            fault = "is a link"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "is a device or something else that is neither file nor folder"
        # filename has been cut at a NUL byte and, on Windows, had its backslashes turned
        yield Entry(info.orig_filename, info.file_size, info.is_dir(), fault, lambda info=info: file.open(info))  # type: ignore[misc]
