"""What lies in a folder: files and folders by any spelling, tables, and lists of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from certiqa.data.reading import IMAGE_SUFFIXES
from certiqa.data.tables import TABLE_SUFFIXES, first_three
from certiqa.errors import UserError

Listing = Callable[[Path], Mapping[str, int]]
"""From a folder to {path of an image relative to it, POSIX: bytes}."""


def child(folder: Path, path: str) -> Path | None:
    """Return the file or folder at this path in ``folder``, by any spelling where the exact one is not there."""
    exact = folder / path
    if exact.exists():
        return exact
    name, _, rest = path.partition("/")
    alike = sorted(Path(entry) for entry in entries_in(folder) if _plain(entry.name) == _plain(name))
    if rest:
        return next((child(deeper, rest) for deeper in alike if deeper.is_dir()), None)
    return alike[0] if alike else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).casefold()


def tables_in(folder: Path) -> list[Path]:
    """Return the tables that lie in a folder, hidden files left out, in order of their names."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in map(Path, entries_in(folder))
        if path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith((".", "~$")) and path.is_file()
    )


def entries_in(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder; raises UserError naming it where the system does not let it be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"cannot read the folder '{printable(folder)}': {error.strerror}; change its permissions, or move it "
            "elsewhere if its images are not meant"
        ) from error


def list_images(folder: Path) -> dict[str, int]:
    """Return {relative POSIX path: bytes} of all images below a folder, in order of their paths.

    Hidden files and folders, and what macOS adds to archives, are left out. Links to folders are followed, but what a
    folder holds is listed once, under the name it has without links where there is one. A link to a file that is not
    there is listed with 0 bytes, and reading it will say so.

    Raises:
        UserError: a folder cannot be read, or the name of an image is not UTF-8.
    """
    found = {name: entry for name, entry in _files_below(folder).items() if name.lower().endswith(IMAGE_SUFFIXES)}
    if wrong := [name for name in found if printable(folder / name) != str(folder / name)]:
        raise UserError(
            f"the names of {len(wrong)} images below '{printable(folder)}' are not UTF-8, and records, tables and "
            f"reports could not carry them: {first_three([printable(name) for name in wrong])}; rename them, e.g. with "
            "convmv -r -f ENCODING -t utf8 --notest FOLDER"
        )
    return {name: _size(entry) for name, entry in found.items()}


def left_out(folder: Path) -> list[str]:
    """Return the relative paths of the files below a folder that are no images, and no tables in the folder itself."""
    return [
        printable(name)
        for name in _files_below(folder)
        if not name.lower().endswith(IMAGE_SUFFIXES)
        and ("/" in name or not name.lower().endswith(TABLE_SUFFIXES) or not (folder / name).is_file())
    ]


def printable(path: str | Path) -> str:
    r"""Return a path as text that every file and terminal takes: what is not UTF-8 as ``\xd5``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _files_below(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Return {relative POSIX path: entry} of all files that are not hidden, in order of their paths."""
    found: dict[str, os.DirEntry[str]] = {}
    seen: set[str] = set()
    folders: list[tuple[str, str]] = [(str(folder), "")]  # where, and how its files' names begin
    links: list[tuple[str, str]] = []
    while folders or links:
        if not folders:  # a folder behind links comes before those inside it
            links.sort(key=lambda link: (os.path.realpath(link[0]), link[1]), reverse=True)
            folders.append(links.pop())
        place, prefix = folders.pop()
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        for entry in entries_in(place):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append((entry.path, f"{prefix}{entry.name}/"))
            else:
                found[prefix + entry.name] = entry
    return dict(sorted(found.items()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link that leads round in a circle
        return entry.is_dir()
    return False


def _size(entry: os.DirEntry[str]) -> int:
    with suppress(OSError):
        return entry.stat().st_size
    return 0
