"""Where a data set's files are: its root folder, folders inside it by any spelling, and lists of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certiqa.data.tables import TABLE_SUFFIXES
from certiqa.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
ENVIRONMENT = "CERTIQA_DATA"

Listing = Callable[[Path], Mapping[str, int]]
"""From a folder to {path of an image relative to it, POSIX: bytes}."""


@dataclass(frozen=True)
class Layout:
    """What a data set looks like on disk.

    Attributes:
        name: the option's name, e.g. ``koniq``.
        title: how people call it.
        spellings: usual names of its folder, the usual one first; case, spaces, hyphens and underscores do not count.
        parts: files or folders of which at least one lies in its root.
        tree: the expected tree, for messages.
        size: how many images the published data set has.
    """

    name: str
    title: str
    spellings: tuple[str, ...]
    parts: tuple[str, ...]
    tree: str
    size: int

    def advice(self) -> str:
        """Return the expected tree and what to do, to end a message with."""
        tree = "\n".join(f"    {line}" for line in self.tree.strip().splitlines())
        return (
            f"Expected:\n{tree}\nFetch it with `certiqa-data fetch {self.name}`, or say where it is with "
            f"data.root=FOLDER or {ENVIRONMENT}=FOLDER-ABOVE."
        )


def find_root(layout: Layout, root: str | Path | None) -> Path:
    """Return the folder of a data set: ``root``, else ``$CERTIQA_DATA``; in both it may lie one folder deeper.

    Raises:
        UserError: with the expected tree, where no folder looks like it.
    """
    given = str(root) if root else os.environ.get(ENVIRONMENT)
    if not given:
        raise UserError(f"where is {layout.title}? {ENVIRONMENT} is not set. {layout.advice()}")
    base = Path(given).expanduser()
    source = f"data.root={base}" if root else f"{ENVIRONMENT}={base}"
    if not base.is_dir():
        raise UserError(f"{source} is not a folder, so {layout.title} is not found. {layout.advice()}")
    inside = [folder for name in layout.spellings if (folder := child(base, name)) and folder.is_dir()]
    # some archives hold a folder of the same name once more
    nested = [deeper for folder in inside for name in layout.spellings if (deeper := child(folder, name))]
    # the folder itself comes last: one that holds several data sets may have an images/ of its own
    candidates = [*(folder for folder in nested if folder.is_dir()), *inside, base]
    for folder in candidates:
        if any(child(folder, part) for part in layout.parts):
            return folder
    raise UserError(f"no {layout.title} in {source}: it has none of {', '.join(layout.parts)}. {layout.advice()}")


def child(folder: Path, name: str) -> Path | None:
    """Return the file or folder of this name in ``folder``, by any spelling where the exact one is not there."""
    exact = folder / name
    if exact.exists():
        return exact
    alike = sorted(path for path in folder.iterdir() if _plain(path.name) == _plain(name))
    return alike[0] if alike else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).casefold()


def require_folder(layout: Layout, root: Path, names: Sequence[str]) -> Path:
    """Return the first folder of these names in ``root``; raises UserError with the tree where there is none."""
    for name in names:
        found = child(root, name)
        if found and found.is_dir():
            return found
    raise UserError(f"{layout.title} in '{root}' has no folder {' or '.join(names)}. {layout.advice()}")


def tables_in(folder: Path) -> list[Path]:
    """Return the tables that lie in a folder, hidden files left out, in order of their names."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith((".", "~$")) and path.is_file()
    )


def list_images(folder: Path) -> dict[str, int]:
    """Return {relative POSIX path: bytes} of all images below a folder, in order of their paths.

    Hidden files and folders, and what macOS adds to archives, are left out; links to folders are followed once.
    """
    found: dict[str, int] = {}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))
