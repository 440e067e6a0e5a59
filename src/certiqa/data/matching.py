"""Rows of a score table and the image files they speak of, brought together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from certiqa.data.reading import IMAGE_SUFFIXES
from certiqa.data.tables import first_three
from certiqa.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """What a table says of one image: its name as written, opinion score, reference, and split as written."""

    name: str
    mos: float | None = None
    reference: str | None = None
    split: str | None = None


def match_rows(
    rows: Sequence[Row],
    files: Iterable[str],
    *,
    table: Path,
    folder: Path,
    ignore: bool = False,
    spare: Iterable[str] = (),
    advice: str = "fetch the data set again, or correct the table",
) -> dict[str, Row]:
    """Return {file: its row}, in order of the files.

    A name stands for the file of that path, or for one of which it is the end (or the reverse), in this spelling or
    another case, with or without the extension; what is not unambiguous is refused.

    Args:
        rows: of the table, in any order; equal rows count once.
        files: paths relative to ``folder``, POSIX.
        table: for messages.
        folder: for messages.
        ignore: leave rows without a file and files without a row out, instead of refusing them.
        spare: names of files that need no row, such as references.
        advice: what to do about a mismatch, for the message.

    Raises:
        UserError: names that fit several files, rows that contradict each other, rows or files that are left over.
    """
    index = FileIndex(files)
    if not index.files:
        raise UserError(f"no images in '{folder}' (.jpg, .png, ...); {advice}")
    matched: dict[str, Row] = {}
    homeless: list[str] = []
    repeated: list[str] = []
    for row in rows:
        file = index.find(row.name, table)
        if file is None:
            homeless.append(row.name)
        elif file not in matched:
            matched[file] = row
        elif (earlier := matched[file]) and (row.mos, row.reference, row.split) == (
            *(earlier.mos, earlier.reference, earlier.split),
        ):
            repeated.append(row.name)
        else:
            raise UserError(
                f"two rows of '{table}' contradict each other about '{file}': {_said(earlier)} and {_said(row)}; "
                "remove the wrong one"
            )
    if repeated:
        log.warning("%d rows of %s stand there more than once and count once: %s", len(repeated), table.name,
                    first_three(repeated))  # fmt: skip
    spared = {index.find(name, table) for name in spare}
    left = [file for file in index.files if file not in matched and file not in spared]
    if homeless or left:
        _report(homeless, left, table, folder, ignore, advice)
    if not matched:
        raise UserError(f"no row of '{table}' names an image of '{folder}'; {advice}")
    return {file: matched[file] for file in index.files if file in matched}


def _report(homeless: list[str], left: list[str], table: Path, folder: Path, ignore: bool, advice: str) -> None:
    said = []
    if homeless:
        said.append(f"{len(homeless)} rows of '{table}' have no image in '{folder}': {first_three(homeless)}")
    if left:
        said.append(f"{len(left)} images in '{folder}' have no row in '{table}': {first_three(left)}")
    if not ignore:
        raise UserError(f"{'; '.join(said)}; {advice}")
    log.warning("%s; they are left out", "; ".join(said))


def _said(row: Row) -> str:
    facts = {"score": row.mos, "reference": row.reference, "split": row.split}
    return f"'{row.name}' (" + ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None) + ")"


class FileIndex:
    """Finds files by names that may lack folders or the extension, or differ in case."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = list(files)
        self._exact = set(self.files)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for file in self.files:
            name = file.rpartition("/")[2].casefold()
            self._by_name.setdefault(name, []).append(file)
            self._by_stem.setdefault(name.rpartition(".")[0], []).append(file)

    def find(self, name: str, table: Path) -> str | None:
        """Return the file that a table's name stands for, None if there is none; UserError if there are several."""
        name = name.replace("\\", "/").removeprefix("./").lstrip("/")
        if name in self._exact:
            return name
        last = name.rpartition("/")[2].casefold()
        found = [file for file in self._by_name.get(last, []) if _same_end(name, file)]
        if not found and not last.endswith(IMAGE_SUFFIXES):
            found = [file for file in self._by_stem.get(last, []) if _same_end(name, file.rpartition(".")[0])]
        if len(found) > 1:
            # files that differ in case alone are told apart by case
            found = [file for file in found if _same_end(name, file, exact=True)] or found
        if len(found) > 1:
            raise UserError(
                f"'{name}' in '{table}' may be any of {len(found)} images: {first_three(found)}; "
                "write its path and extension as the file has them"
            )
        return found[0] if found else None


def _same_end(first: str, second: str, exact: bool = False) -> bool:
    """Whether one path is the other, or its end from some folder on."""
    if not exact:
        first, second = first.casefold(), second.casefold()
    one, other = first.split("/"), second.split("/")
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]


def row_list(
    names: Sequence[str],
    mos: Sequence[float] | None = None,
    references: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> list[Row]:
    """Return rows from columns of one length."""
    columns = [column if column is not None else [None] * len(names) for column in (mos, references, splits)]
    return [Row(name, *rest) for name, *rest in zip(names, *columns, strict=True)]
