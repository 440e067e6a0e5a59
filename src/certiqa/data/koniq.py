"""KonIQ-10k: 10,073 photographs with authentic distortions (Hosu et al., IEEE TIP 2020).

Two csv files are in the wild, and the column named MOS means two scales: ``koniq10k_distributions_sets.csv`` has it on
0-100 (3.91 to 88.39) with the official split in ``set``; ``koniq10k_scores_and_distributions.csv`` has it on 1-5 beside
a MOS_zscore on 0-100, and no split. Which is which is read from their contents.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images, tables_in
from certiqa.data.published import Part, PublishedSet, Table
from certiqa.data.scored import ScoreTable, meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import IMAGE_COLUMNS, MOS_COLUMNS, find_column, read_table
from certiqa.errors import UserError
from certiqa.options import Choices, Seed, Text

log = logging.getLogger(__name__)

SIZES = ("512x384", "1024x768")
SETS, SCORES = "koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv"
ARCHIVES = "https://datasets.vqa.mmsp-kn.de/archives"
KONIQ = PublishedSet(
    name="koniq",
    title="KonIQ-10k",
    page="http://database.mmsp-kn.de/koniq-10k-database.html",
    size=10_073,
    folders=SIZES,
    needs=((SETS, SCORES),),
    tree=f"""
512x384/10004473376.jpg, ...           all images; either folder is enough
1024x768/10004473376.jpg, ...          the same, larger
{SETS}        MOS on 0-100, and the official split in `set`
{SCORES}  MOS on 1-5, MOS_zscore on 0-100; no split
""",
    spellings=("koniq10k",),
    tables=(Table(SETS, ("image_name",)), Table(SCORES, ("image_name",))),
    parts=(
        Part("1024x768", f"{ARCHIVES}/koniq10k_1024x768.zip", ("1024x768",), 12 * 10**9),
        Part("512x384", f"{ARCHIVES}/koniq10k_512x384.zip", ("512x384",), 4 * 10**9, optional=True),
        Part("scores", f"{ARCHIVES}/koniq10k_scores_and_distributions.zip", (SCORES,), 10**8, max_files=10),
        # the official split is only in this table, of the authors' repository
        Part("split", f"https://raw.githubusercontent.com/subpic/koniq/master/metadata/{SETS}", (SETS,)),
    ),
)
# no score of a ten-point scale reaches 20
SCALES = {"1-5": lambda low, high: low >= 1 and high <= 5, "0-100": lambda low, high: low >= 0 and 20 < high <= 100}
RANGES = {"1-5": (1.0, 5.0), "0-100": (0.0, 100.0)}


def load_koniq(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    size: Annotated[str, Choices("512x384", "1024x768")] | None = None,
    splits: Text = "official",
    meta: str | Path | None = None,
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of KonIQ-10k; officially 7,058 / 1,000 / 2,015 images.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: of ``splits="random"``.
        size: "512x384" or "1024x768"; None for the first of them that is there.
        splits: "official", "random" (80/10/10), or a column of the table.
        meta: another table to read, e.g. pyiqa's, with image names, opinion scores on 1-5 or 0-100 and splits.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    if size is not None and size not in SIZES:
        raise UserError(f"data.size must be {' or '.join(SIZES)}, got '{size}'")
    base = KONIQ.find(root)
    table = score_table(meta_path(meta, base), MOS_COLUMNS) if meta else find_table(base, splits)
    scale = scale_of(table)
    folder = KONIQ.require_folder(base, *([size] if size else SIZES))
    if size is None and all(child(base, name) for name in SIZES):
        log.info("KonIQ-10k has both %s; data.size chooses, %s is taken", " and ".join(SIZES), folder.name)
    if splits == "official" and table.official is None:
        raise UserError(
            f"'{table.path}' does not say which images are for testing, so the official split of KonIQ-10k is unknown; "
            f"add {SETS} to '{base}' (column `set`), or take a seeded split, not comparable "
            "with published results, with data.splits=random"
        )
    sizes = listing(folder)
    records, parts = records_of(table, folder, sizes, published=KONIQ, splits=splits, split_seed=split_seed)
    return dataset_of(split, parts, records, sizes, name=KONIQ.name, mos_range=RANGES[scale], published=KONIQ)


def find_table(root: Path, splits: str) -> ScoreTable:
    """Return the table to read: of those with image names and MOS the first with a split, where one is asked for."""
    found = []
    for path in tables_in(root):
        if path.suffix.lower() == ".txt":
            continue
        cells = read_table(path)
        if find_column(cells, IMAGE_COLUMNS) and find_column(cells, ["MOS"]):
            found.append(score_table(path, ["MOS"]))
    found.sort(key=lambda table: (table.official is None, table.path.name))
    if not found:
        raise UserError(f"{KONIQ.title} in '{root}' has no csv with image names and a column MOS. {KONIQ.advice()}")
    if splits not in ("official", "random"):
        return next((table for table in found if find_column(table.cells, [splits])), found[0])
    return found[0]


def scale_of(table: ScoreTable) -> str:
    """Return "1-5" or "0-100", by the scores and by what else the table has; raises UserError for neither."""
    scores = table.scores
    assert scores is not None
    advice = "1-5 comes with MOS_zscore, 0-100 with `set`; fetch the file again, or use data=folder for other scores"
    scale = require_scale(scores, SCALES, f"column {table.mos} of '{table.path}'", advice)
    expected = scale
    if find_column(table.cells, ["MOS_zscore"]):
        expected = "1-5"
    elif find_column(table.cells, ["set"]):
        expected = "0-100"
    if scale != expected:
        raise UserError(
            f"column {table.mos} of '{table.path}' runs from {min(scores):g} to {max(scores):g}, on the scale {scale}, "
            f"but its other columns are those of the file with {expected}; {advice}"
        )
    return scale
