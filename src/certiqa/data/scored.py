"""What the loaders of published data sets share: the table to read, its columns, its rows as records with splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from certiqa.data.images import ImageRecord
from certiqa.data.matching import match_rows, row_list
from certiqa.data.published import PublishedSet
from certiqa.data.splits import SHARES, split_by_column, split_seeded
from certiqa.data.tables import IMAGE_COLUMNS, find_column, numbers, read_table, require_column
from certiqa.errors import UserError

OFFICIAL_COLUMNS = ("official_split", "set", "split")
SEEDED = ("random", "reference")


@dataclass(frozen=True)
class ScoreTable:
    """A table of opinion scores: its cells, where they are from, and which columns hold what."""

    cells: pd.DataFrame
    path: Path
    image: str
    mos: str | None = None
    reference: str | None = None

    def text(self, column: str) -> list[str]:
        """Return a column as text."""
        return [str(cell) for cell in self.cells[column]]

    @property
    def scores(self) -> list[float] | None:
        """The opinion scores, checked to be numbers; None where the table has none."""
        return None if self.mos is None else numbers(self.cells, self.path, self.mos)

    @property
    def official(self) -> str | None:
        """The column with the official split, None if there is none."""
        return find_column(self.cells, OFFICIAL_COLUMNS)


def score_table(path: Path, mos: Sequence[str], images: Sequence[str] = IMAGE_COLUMNS) -> ScoreTable:
    """Read a table whose image and score columns have these names; raises UserError where it has none."""
    cells = read_table(path)
    return ScoreTable(
        cells,
        path,
        require_column(cells, path, images, "image names"),
        require_column(cells, path, mos, "opinion scores"),
    )


def require_scale(
    scores: Sequence[float], allowed: Mapping[str, Callable[[float, float], bool]], source: str, advice: str
) -> str:
    """Return the first scale whose test the least and the greatest score pass; raises UserError if none does."""
    low, high = min(scores), max(scores)
    for name, fits in allowed.items():
        if fits(low, high):
            return name
    raise UserError(
        f"the opinion scores in {source} run from {low:g} to {high:g}, which fits no scale of this data set "
        f"({' or '.join(allowed)}); {advice}"
    )


def meta_path(meta: str | Path, root: Path) -> Path:
    """Return the path of a table that the user names: as it is, or relative to the data set's folder."""
    path = Path(meta).expanduser()
    return root / path if not path.exists() and (root / path).exists() else path


def records_of(
    table: ScoreTable,
    folder: Path,
    sizes: Mapping[str, int],
    *,
    published: PublishedSet,
    splits: str,
    split_seed: int,
    references: Sequence[str] | None = None,
    spare: Sequence[str] = (),
    shares: tuple[float, float, float] = SHARES,
) -> tuple[list[ImageRecord], list[str]]:
    """Return (records, their splits) of a table's rows, in order of the image ids.

    Args:
        table: the rows.
        folder: of the images.
        sizes: {image path relative to ``folder``: bytes}.
        published: the data set, for messages.
        splits: "official" reads the table's own split column, "random" and "reference" are seeded, anything else is the
            name of a split column.
        split_seed: of seeded splits.
        references: of every row, None where there are none.
        spare: images that need no row.
        shares: of (train, validation, test) in a seeded split.
    """
    column = split_column(table, splits, published)
    rows = row_list(table.text(table.image), table.scores, references, None if column is None else table.text(column))
    matched = match_rows(rows, sizes, table=table.path, folder=folder, spare=spare)
    records = [ImageRecord(file, folder / file, row.mos, row.reference) for file, row in matched.items()]
    groups = [record.reference_id or record.image_id for record in records]
    if column is None:
        return records, split_seeded(groups, split_seed, shares)
    words = [row.split or "" for row in matched.values()]
    return records, split_by_column(words, groups, column=column, table=table.path, seed=split_seed)


def split_column(table: ScoreTable, splits: str, published: PublishedSet) -> str | None:
    """Return the column that the option ``splits`` names, None where the split is seeded; UserError if it is absent."""
    if splits in SEEDED:
        return None
    column = table.official if splits == "official" else find_column(table.cells, [splits])
    if column is None:
        columns = ", ".join(map(str, table.cells.columns))
        raise UserError(
            f"data.splits={splits}: '{table.path}' has no {'split column' if splits == 'official' else 'such column'} "
            f"(it has {columns}); name one of its columns, or take a seeded split of {published.title} with "
            "data.splits=random; another data.split_seed is another split"
        )
    return column
