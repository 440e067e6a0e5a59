"""Archives from elsewhere, unpacked whole or not at all and never outside their folder."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from certiqa.errors import UserError
from certiqa.storage.files import aside, byte_progress, check_space, in_bytes
from certiqa.storage.listings import BLOCK, FAILURES, DamagedError, Entry, entries


class RefusedError(UserError):
    """An archive that is damaged or must not be unpacked: fetched again it may be another."""


def extract(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int,
    max_files: int,
    members: Collection[str] | None = None,
    progress: bool = True,
) -> Path:
    """Unpack a zip or a tar (plain, gz, bz2, xz) to ``folder`` and return it.

    The whole listing is checked before anything is written: one entry that would leave the folder, is a link or a
    device, or has the name of another one refuses the archive. The files get this user's default permissions.

    Args:
        archive: the file.
        folder: made; it must not exist or be empty.
        max_bytes: limit for all files together, unpacked.
        max_files: limit for the number of entries, folders included.
        members: names of files or folders to unpack; None for all. ``max_bytes`` counts only these.
        progress: show a bar on stderr if that is a terminal.

    Raises:
        RefusedError: if the archive is damaged or refused.
        UserError: it is one too, and if it cannot be written. Nothing is left behind then.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"'{folder}' is there already and not empty; move it away or give another folder")
        partial = aside(folder.absolute())
        try:
            with ExitStack() as stack:
                chosen = _checked(archive, entries(archive, stack), max_bytes, max_files, members)
                check_space(folder.parent, sum(entry.size for entry in chosen.values()), f"unpacking '{archive}'")
                partial.mkdir(parents=True)
                _write(archive, chosen, partial, progress=progress)
            if folder.exists():
                folder.rmdir()  # fails where somebody has put something there meanwhile
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except FAILURES as error:
        # bz2 and gzip tell damage as an OSError, but one without a number
        if not isinstance(error, OSError) or error.errno is None:
            raise RefusedError(
                f"the archive '{archive}' is damaged, cut short or of an unknown kind: {error}; fetch it again"
            ) from error
        raise UserError(
            f"cannot unpack '{archive}' to '{folder}': {error}; nothing was left behind: free space there or choose "
            "another folder"
        ) from error
    return folder


def _checked(
    archive: Path, listing: Iterator[Entry], max_bytes: int, max_files: int, members: Collection[str] | None
) -> dict[PurePosixPath, Entry]:
    """Return what to unpack by its path; refuses the archive for anything in its listing that should not be there."""
    found: dict[PurePosixPath, Entry] = {}
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    wanted = None if members is None else {PurePosixPath(member) for member in members}
    total = count = 0

    def refuse(reason: str) -> UserError:
        return RefusedError(
            f"the archive '{archive}' is refused: {reason}; nothing was unpacked, get it from its source"
        )

    for entry in listing:
        count += 1
        path = PurePosixPath(entry.name)
        if fault := _name_fault(entry.name) or entry.fault:
            raise refuse(f"its entry {entry.name!r} {fault}")
        if count > max_files:
            raise refuse(f"it has more than {max_files} entries")
        if not path.parts:
            continue  # "./", the folder itself
        # no two files may be one where case or the form of accents does not count
        key = _folded(path)
        other = files.get(key) or (None if entry.is_folder else folders.get(key))
        other = other or next((files[name] for name in map(_folded, path.parents) if name in files), None)
        if other is not None:
            raise refuse(
                f"its entries {other!r} and {entry.name!r} are the same file, at least where case does not count"
            )
        (folders if entry.is_folder else files)[key] = entry.name
        folders.update((_folded(parent), entry.name) for parent in path.parents)
        if wanted is None or wanted & {path, *path.parents}:
            total += entry.size
            found[path] = entry
        if total > max_bytes:
            raise refuse(f"unpacked it has more than the {in_bytes(max_bytes)} that are allowed")
    for member in wanted or ():
        if not any(member in (path, *path.parents) for path in found):
            raise UserError(f"the archive '{archive}' has no '{member}'; it is another one than expected")
    return found


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path).casefold())


def _name_fault(name: str) -> str | None:
    if not name or any(ord(letter) < 32 for letter in name):
        return "has no proper name"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or "\\" in name:
        return "has an absolute path, a drive or a backslash in its name"
    return "leads out of the folder" if ".." in name.split("/") else None


def _write(archive: Path, chosen: dict[PurePosixPath, Entry], folder: Path, *, progress: bool) -> None:
    with byte_progress(shown=progress) as bar:
        task = bar.add_task(f"unpacking {archive.name}", total=sum(entry.size for entry in chosen.values()))
        for path, entry in chosen.items():
            goal = folder / path
            (goal if entry.is_folder else goal.parent).mkdir(parents=True, exist_ok=True)
            if entry.is_folder:
                continue
            source = entry.open()
            assert source is not None
            written = 0
            with source, open(goal, "xb") as file:
                while block := source.read(BLOCK):
                    written += len(block)
                    if written > entry.size:
                        break
                    file.write(block)
                    bar.advance(task, len(block))
            if written != entry.size:
                raise DamagedError(f"{entry.name!r} does not have the {entry.size} bytes it claims")
