"""Score tables as people have them: csv of any dialect, and xlsx; every cell is read as text and judged here."""

from __future__ import annotations

import csv
import functools
import io
import math
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import openpyxl
import pandas as pd

from certiqa.errors import UserError, suggest
from certiqa.storage.files import in_bytes

IMAGE_COLUMNS = (
    *(
        "image",
        "image_name",
        "imagename",
        "dist_img",
        "dist_name",
        "img",
        "img_name",
        "image_id",
        "imageid",
        "image_path",
    ),
    *("img_path", "name", "file", "filename", "file_name", "path"),
)
OPINION_COLUMNS = ("mos", "dmos", "mean_opinion_score", "opinion_score", "mos_zscore")
"""What nobody calls anything but opinion scores: enough to take a table that is found, not named."""
MOS_COLUMNS = ("mos", "dmos", "score", "mean_opinion_score", "opinion_score", "quality", "rating", "mos_zscore")
"""What opinion scores are called in a table that is said to have them."""
REFERENCE_COLUMNS = ("ref_img", "ref_name", "reference", "reference_id", "reference_image", "ref")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
LARGEST_TABLE = 256 << 20
"""Bytes of a table, unpacked; that of the largest data set here has one."""


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a csv or xlsx file with a header; every cell as stripped text, the index its line in the file.

    A byte-order mark, any of comma, semicolon and tab, any line ends, quotes and blank lines are understood. A file
    is parsed once as long as it does not change.

    Raises:
        UserError: no such file, not a table, no rows, a column twice, or a row longer than the header.
    """
    path = Path(path)
    try:
        facts = path.stat()
    except OSError as error:
        raise UserError(f"cannot read the table '{path}': {error.strerror}; check the path") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"the table '{path}' is a folder or a device; give a csv or xlsx file")
    _require_small(path, facts.st_size)
    return _read(path, facts.st_size, facts.st_mtime_ns).copy()


def _require_small(path: Path, size: int) -> None:
    if size > LARGEST_TABLE:
        raise UserError(
            f"the table '{path}' holds {in_bytes(size)}, more than the {in_bytes(LARGEST_TABLE)} that a table of "
            "images may have; is it the right file? Save its columns of names and scores as csv"
        )


@functools.lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> pd.DataFrame:
    found = _xlsx_lines(path) if path.suffix.lower() == ".xlsx" else _csv_lines(path)
    # a trailing separator leaves an empty cell behind every row
    lines = ((number, cells) for number, cells in found if any(cells))
    _, header = next(lines, (0, []))
    if not header:
        raise UserError(f"the table '{path}' is empty; fetch it again")
    while not header[-1]:
        header.pop()
    folded = [fold(name) for name in header]
    if twice := next((name for place, name in enumerate(folded) if name and name in folded[:place]), None):
        raise UserError(f"the table '{path}' has the column '{twice}' twice; rename one")
    width, named = len(header), [place for place, name in enumerate(header) if name]
    body: list[list[str]] = []
    numbers: list[int] = []
    for number, cells in lines:  # a row at a time: rows may be thousands of cells wide with nothing but one in them
        if any(cells[width:]):
            raise UserError(
                f"line {number} of '{path}' has {len(cells)} cells, its header {width}: {', '.join(header)}; "
                "put names that hold a separator into quotes"
            )
        body.append([cells[place] if place < len(cells) else "" for place in named])
        numbers.append(number)
    if not body:
        raise UserError(f"the table '{path}' has a header ({', '.join(header)}) and no rows; fetch it again")
    return pd.DataFrame(body, columns=pd.Index([header[place] for place in named]), index=numbers, dtype=object)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped cells) of every line."""
    text = _decoded(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    outside_quotes = re.sub(r'"[^"]*"', "", first)
    separator = max(",;\t", key=outside_quotes.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t")
    try:
        for cells in reader:
            yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of '{path}' cannot be read: {error}; is it a csv file?") from error


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the table '{path}': {error.strerror}; check the file") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings: tuple[str, ...] = ("utf-16",)  # what Excel calls "Unicode text"
    else:
        encodings = ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"'{path}' is not a text table; save it as csv in UTF-8")


def _xlsx_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (row number, stripped cells) of the first sheet.

    It is read row by row as its cells come, whatever extent it claims: one cell in its last row and column must not
    cost a table of that size.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            _require_small(path, sum(part.file_size for part in parts.infolist()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and extensions that openpyxl leaves out
            book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        with closing(book):
            sheet = book.worksheets[0]
            sheet.reset_dimensions()
            for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
                yield number, [_cell_text(cell) for cell in cells]
    except UserError:
        raise
    except Exception as error:  # openpyxl and zipfile raise whatever a broken file provokes
        raise UserError(f"cannot read '{path}' as an xlsx file: {error}; fetch it again, or save it as csv") from error


def _cell_text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # a name made of digits, which a spreadsheet took for a number
    return str(cell).strip()


def fold(name: str) -> str:
    """Return a column's name without case, spaces, hyphens and underscores, as names are compared."""
    return re.sub(r"[\s_\-]", "", name).casefold()


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the table's column for the first of these names that it has, None if it has none of them."""
    columns = {fold(str(column)): str(column) for column in table.columns}
    return next((columns[fold(name)] for name in names if fold(name) in columns), None)


def require_column(
    table: pd.DataFrame, path: Path, names: Sequence[str], what: str, chosen: str | None = None, option: str = ""
) -> str:
    """Return the column that holds ``what``: the ``chosen`` one, else the first known name.

    Args:
        table: the table, read from ``path``.
        path: for the message.
        names: usual names.
        what: what the column holds, for the message.
        chosen: the user's choice, None to look for a usual name.
        option: the option that chooses, for the message, e.g. ``data.mos_column``.

    Raises:
        UserError: if there is no such column.
    """
    found = find_column(table, [chosen] if chosen else names)
    if found is not None:
        return found
    columns = [str(column) for column in table.columns]
    asked = f"no column '{chosen}'" if chosen else f"no column with {what} (such as {', '.join(names[:4])})"
    hint = suggest(chosen, columns) if chosen else ""
    action = f"; name it with {option}=" if option else "; is it the right file?"
    raise UserError(f"the table '{path}' has {asked}; its columns are: {', '.join(columns)}.{hint}{action}")


def numbers(table: pd.DataFrame, path: Path, column: str) -> list[float]:
    """Return a column as finite numbers; raises UserError naming the first cells that are none, and their lines."""
    values: list[float] = []
    wrong: list[str] = []
    for line, cell in table[column].items():
        text = str(cell)
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            text = text.replace(",", ".")  # a decimal comma, which comes with semicolons
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            wrong.append(f"'{cell}' in line {line}")
        values.append(value)
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(values)} cells of column '{column}' in '{path}' are not numbers: "
            f"{first_three(wrong)}; correct the cells or remove their rows"
        )
    return values


def first_three(names: Sequence[str]) -> str:
    """Return the first three names, and that there are more where there are."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
