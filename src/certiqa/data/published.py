"""What a published data set is called, where it comes from, and what it looks like on disk.

Each has one ``PublishedSet``, beside its loader, which runs and ``certiqa-data`` share. Addresses as of 2026, as the
data sets' pages and public code that uses them give them; none of them has been downloaded here, so no digest is known
beforehand: the one that is found is remembered beside the data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from certiqa.data.listing import child
from certiqa.errors import UserError

ENVIRONMENT = "CERTIQA_DATA"


@dataclass(frozen=True)
class Part:
    """One file to download.

    Attributes:
        name: what ``--parts`` calls it.
        url: its address.
        lands: files and folders of the data set that it brings; an archive may hold them one folder deeper.
        max_bytes: limit of what an archive may unpack to; None for a file that is no archive.
        max_files: limit of how many files it may hold; likewise.
        optional: fetched only when named.
    """

    name: str
    url: str
    lands: tuple[str, ...]
    max_bytes: int | None = None
    max_files: int = 20_000
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """A csv whose rows name images: the file, its columns (the first has each image once), and what the names lack."""

    file: str
    columns: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True)
class PublishedSet:
    """A published data set.

    Attributes:
        name: what options and commands call it, and its folder below ``$CERTIQA_DATA``.
        title: what people call it.
        page: where it is described.
        size: how many images it has.
        folders: image folders, of which at least one must be there; each holds all images.
        needs: of each group one file must be there.
        tree: what lies in its folder, for messages.
        spellings: other usual names of its folder; case, spaces, hyphens and underscores do not count.
        references: how many more lie in each folder, of which those were made.
        tables: those of its tables that are csv, to compare with the images.
        parts: what can be downloaded.
        manual: how its page gives it, if it cannot be.
        licence: under what its authors give it, for the cards of what is trained on it.
    """

    name: str
    title: str
    page: str
    size: int
    folders: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    tree: str
    spellings: tuple[str, ...] = ()
    references: int = 0
    tables: tuple[Table, ...] = ()
    parts: tuple[Part, ...] = ()
    manual: str = ""
    licence: str = "see its page"

    def advice(self) -> str:
        """Return the expected tree, how to get it and how to say where it is, to end a message with."""
        by_hand = f"from {self.page} ({self.manual}), put it as above, then `certiqa-data verify {self.name}`"
        get = f"with `certiqa-data fetch {self.name}`" if self.parts else by_hand
        return (
            f"Expected:\n    {self.name}/ ({self.size:,} images)\n{indent(self.tree.strip(), ' ' * 6)}\n"
            f"Get it {get}; or say where it is with {ENVIRONMENT}=FOLDER-ABOVE, in a run data.root=FOLDER, in "
            "certiqa-data --root FOLDER."
        )

    def find(self, root: str | Path | None) -> Path:
        """Return its folder: ``root``, else ``$CERTIQA_DATA``; in both it may lie deeper, by any of its names.

        Raises:
            UserError: with the expected tree, where no folder looks like it.
        """
        given = root or os.environ.get(ENVIRONMENT)
        if not given:
            raise UserError(f"where is {self.title}? {ENVIRONMENT} is not set. {self.advice()}")
        base = Path(given).expanduser()
        place = f"'{base}'" if root else f"{ENVIRONMENT}={base}"
        if not base.is_dir():
            raise UserError(f"{place} is not a folder, so {self.title} is not found. {self.advice()}")
        # the folder itself comes last: one that holds several data sets may have an images/ of its own
        for folder in (*self._inside(base), base):
            if self._looks_like(folder):
                return folder
        raise UserError(f"no {self.title} in {place}: it has none of {', '.join(self._marks)}. {self.advice()}")

    def destination(self, root: str | Path | None) -> Path:
        """Return where it is downloaded to: ``root``, else where it is in ``$CERTIQA_DATA``, else a new folder there.

        Raises:
            UserError: if neither is given.
        """
        if root:
            return Path(root).expanduser()
        if not os.environ.get(ENVIRONMENT):
            raise UserError(f"where is {self.title} to go? Give --root FOLDER or set {ENVIRONMENT}")
        base = Path(os.environ[ENVIRONMENT]).expanduser()
        inside = self._inside(base) if base.is_dir() else ()
        return next(filter(self._looks_like, inside), base / self.name)

    def require_folder(self, root: Path, *names: str) -> Path:
        """Return the first folder of these names in ``root``, by default of images; raises UserError without one."""
        names = names or self.folders
        for name in names:
            found = child(root, name)
            if found and found.is_dir():
                return found
        raise UserError(f"{self.title} in '{root}' has no folder {' or '.join(names)}. {self.advice()}")

    @property
    def _marks(self) -> tuple[str, ...]:
        """Files and folders of which one tells its folder."""
        return (*self.folders, *dict.fromkeys(name.partition("/")[0] for group in self.needs for name in group))

    def _looks_like(self, folder: Path) -> bool:
        return any(child(folder, mark) for mark in self._marks)

    def _inside(self, base: Path) -> Iterator[Path]:
        """Yield the folders of its names; some archives hold a folder of the same name once more."""
        names = (self.name, *self.spellings)
        inside = [folder for name in names if (folder := child(base, name)) and folder.is_dir()]
        nested = (deeper for folder in inside for name in names if (deeper := child(folder, name)))
        yield from (folder for folder in nested if folder.is_dir())
        yield from inside
