"""Any images in a folder, with or without a table of opinion scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from certiqa.data.images import ImageDataset, ImageRecord
from certiqa.data.listing import Listing, left_out, list_images, printable, tables_in
from certiqa.data.matching import match_rows, row_list
from certiqa.data.reading import IMAGE_SUFFIXES
from certiqa.data.scored import OFFICIAL_COLUMNS, ScoreTable, meta_path
from certiqa.data.splits import dataset_of, split_by_column, split_seeded
from certiqa.data.tables import (
    IMAGE_COLUMNS,
    MOS_COLUMNS,
    OPINION_COLUMNS,
    REFERENCE_COLUMNS,
    find_column,
    first_three,
    read_table,
    require_column,
)
from certiqa.errors import UserError
from certiqa.options import Choices, Range, Seed, Text

log = logging.getLogger(__name__)

UNMATCHED = ("raise", "ignore")
SPLITS = ("auto", "all", "random", "reference")


def load_folder(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    scores: str | Path | None = None,
    image_column: Text | None = None,
    mos_column: Text | None = None,
    reference_column: Text | None = None,
    mos_range: Range | None = None,
    lower_better: bool | None = None,
    splits: Text = "auto",
    unmatched: Annotated[str, Choices("raise", "ignore")] = "raise",
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of the images below a folder.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: the folder; subfolders count, hidden ones do not.
        cache: not used.
        split_seed: of seeded splits.
        scores: csv or xlsx with a row per image; None for the one in ``root`` with image names and a column that is
            called MOS, DMOS or opinion score, if any. A column "score" may be another tool's: such a table is named.
        image_column: of the table; None for the usual names.
        mos_column: of the table; None for the usual names.
        reference_column: of the table; None for the usual names.
        mos_range: scale of the scores (low, high); None for 0-1, 1-5, 0-10 or 0-100, by their extremes.
        lower_better: of the scores, as of a DMOS; they stay as they are, normalised ones are turned round. None: they
            are not, but a column called dmos is refused, since that is said of both.
        splits: "auto" takes a split column where there is one; else it splits scored images 80/10/10, by reference
            where there is a column of them, and tests all images that have no scores. "all" tests all, "random" splits
            by image, "reference" by reference; anything else names a split column.
        unmatched: "raise" refuses rows without an image and images without a row, "ignore" leaves them out.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing, ambiguous or wrong, and what to do.
    """
    if unmatched not in UNMATCHED:
        raise UserError(f"data.unmatched must be {' or '.join(UNMATCHED)}, got '{unmatched}'")
    if not root:
        raise UserError("data=folder needs the folder of the images: data.root=FOLDER")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"data.root={base} is not a folder; give the one that holds the images")
    sizes = listing(base)
    if not sizes:
        raise UserError(
            f"no images in '{base}' or below ({', '.join(IMAGE_SUFFIXES)}); "
            "give the folder that holds them with data.root"
        )
    table, notes = find_scores(base, scores, image_column, mos_column, reference_column)
    if others := left_out(base):
        count = "1 file that is no image is" if len(others) == 1 else f"{len(others)} files that are no images are"
        notes.append(f"{count} left out: {first_three(others)}")
    if table is None:
        if splits not in ("auto", "all", "random"):
            raise UserError(
                f"data.splits={splits} needs a table, and '{base}' has none; give it with data.scores=FILE, or choose "
                "auto, all or random"
            )
        records = [ImageRecord(file, base / file, None) for file in sizes]
        parts = split_seeded(list(sizes), split_seed)
        return dataset_of(
            split,
            parts,
            records,
            sizes,
            name="folder",
            mos_range=None,
            mos_kind="none",
            whole_test=splits != "random",
            notes=notes,
        )
    if lower_better is None and table.mos is not None and "dmos" in table.mos.lower():
        raise UserError(
            f"'{table.path.name}' has its scores in the column '{table.mos}', where lower is better (LIVE, CSIQ) or "
            "worse (KADID-10k): say data.lower_better=true or false"
        )
    values = table.scores
    assert values is not None
    scale = scale_of(values, mos_range, table.path)
    column = split_column(table, splits)
    rows = row_list(
        table.text(table.image),
        values,
        None if table.reference is None else table.text(table.reference),
        None if column is None else table.text(column),
    )
    advice = "correct them, or leave them out with data.unmatched=ignore"
    matched = match_rows(
        rows, sizes, table=table.path, folder=base, ignore=unmatched == "ignore", spare=_references(rows), advice=advice
    )
    records = [ImageRecord(file, base / file, row.mos, row.reference or None) for file, row in matched.items()]
    by_image = splits == "random"
    groups = [record.image_id if by_image else record.reference_id or record.image_id for record in records]
    if column is None:
        parts = split_seeded(groups, split_seed)
        if splits == "auto" and split == "test":
            log.info("%d of %d images are tested; data.splits=all tests every one", parts.count("test"), len(parts))
    else:
        words = [row.split or "" for row in matched.values()]
        parts = split_by_column(words, groups, column=column, table=table.path, seed=split_seed)
    return dataset_of(
        split,
        parts,
        records,
        sizes,
        name="folder",
        mos_range=scale,
        mos_lower_better=bool(lower_better),
        whole_test=splits == "all",
        notes=notes,
    )


def find_scores(
    root: Path, scores: str | Path | None, image: str | None, mos: str | None, reference: str | None
) -> tuple[ScoreTable | None, list[str]]:
    """Return the table of scores, and what to say of those that are not read.

    It is the given one, else the one in ``root`` with image names and a column that nobody calls anything but opinion
    scores; None without any.
    """
    notes: list[str] = []
    if scores is None:
        usable = []
        for path in tables_in(root):
            if path.suffix.lower() == ".txt":
                continue  # a note, more often than not
            cells, shown = read_table(path), printable(path.name)
            has_image = find_column(cells, [image] if image else IMAGE_COLUMNS)
            if has_image and find_column(cells, [mos] if mos else OPINION_COLUMNS):
                usable.append(path)
            elif has_image and not mos and (doubtful := find_column(cells, MOS_COLUMNS)):
                notes.append(
                    f"{shown} has image names and a column '{doubtful}', which may be another tool's: it is not read; "
                    f"if these are opinion scores, say data.scores={shown}"
                )
            else:
                notes.append(
                    f"{shown} has no columns of image names and opinion scores and is not read; data.scores names it"
                )
        if len(usable) > 1:
            raise UserError(
                f"'{root}' has {len(usable)} tables of scores: {', '.join(printable(path.name) for path in usable)}; "
                "choose one with data.scores=FILE"
            )
        if not usable:
            if image or mos or reference:
                raise UserError(f"no table in '{root}' has the columns asked for; give it with data.scores=FILE")
            return None, notes
        path = usable[0]
    else:
        path = meta_path(scores, root)
    cells = read_table(path)
    distorted = find_column(cells, ["dist_img", "dist_name"])  # beside a reference, the distorted image is meant
    table = ScoreTable(
        cells,
        path,
        require_column(cells, path, IMAGE_COLUMNS, "image names", image or distorted, "data.image_column"),
        require_column(cells, path, MOS_COLUMNS, "opinion scores", mos, "data.mos_column"),
        require_column(cells, path, REFERENCE_COLUMNS, "references", reference, "data.reference_column")
        if reference
        else find_column(cells, REFERENCE_COLUMNS),
    )
    return table, notes


def _references(rows: Sequence[object]) -> list[str]:
    return sorted({reference for row in rows if (reference := getattr(row, "reference", None))})


def split_column(table: ScoreTable, splits: str) -> str | None:
    """Return the column that holds the splits, None where they are seeded."""
    if splits == "auto":
        return find_column(table.cells, OFFICIAL_COLUMNS)
    if splits == "reference" and table.reference is None:
        raise UserError(
            f"data.splits=reference: '{table.path}' has no column of references; name it with data.reference_column"
        )
    if splits in SPLITS:
        return None
    return require_column(table.cells, table.path, [], "splits", splits, "data.splits")


def scale_of(scores: Sequence[float], given: Sequence[float] | None, path: Path) -> tuple[float, float]:
    """Return the scale of the scores, the given one or the one that their extremes leave no doubt about.

    Raises:
        UserError: scores outside the given scale, or of no usual one.
    """
    least, most = min(scores), max(scores)
    if given is not None:
        ends = [float(end) for end in given]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise UserError(f"data.mos_range must be [low,high] with low < high, got {list(given)}")
        if least < ends[0] or most > ends[1]:
            raise UserError(
                f"the scores in '{path}' run from {least:g} to {most:g}, "
                f"outside data.mos_range=[{ends[0]:g},{ends[1]:g}]; give the scale they are on"
            )
        return (ends[0], ends[1])
    if least >= 0 and most <= 1:
        return (0.0, 1.0)
    if least >= 1 and most <= 5:
        return (1.0, 5.0)
    if least >= 0 and 5 < most <= 10:
        return (0.0, 10.0)
    if least >= 0 and 10 < most <= 100:
        return (0.0, 100.0)
    raise UserError(
        f"the scores in '{path}' run from {least:g} to {most:g}, and their scale may be several; say it with "
        "data.mos_range=[low,high], e.g. [1,5] or [0,100]"
    )
