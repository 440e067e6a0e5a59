"""SPAQ: 11,125 photographs taken with smartphones (Fang et al., CVPR 2020), MOS on 0-100, no official split."""

from __future__ import annotations

from pathlib import Path

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images, tables_in
from certiqa.data.published import PublishedSet
from certiqa.data.scored import ScoreTable, meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import IMAGE_COLUMNS, MOS_COLUMNS, find_column, read_table
from certiqa.errors import UserError
from certiqa.options import Seed, Text

TABLE = "MOS and Image attribute scores.xlsx"
SPAQ = PublishedSet(
    name="spaq",
    title="SPAQ",
    page="https://github.com/h4nwei/SPAQ",
    size=11_125,
    folders=("TestImage",),
    needs=((f"Annotations/{TABLE}",),),
    tree=f"""
TestImage/00001.jpg ... 11125.jpg
Annotations/{TABLE}  Image name, MOS, Brightness, ...; or a csv of these columns
""",
    spellings=("spaq_dataset",),
    manual="on Google Drive and Baidu, linked under 'Database'",
)


def load_spaq(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    splits: Text = "random",
    meta: str | Path | None = None,
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of SPAQ, seeded 80/10/10: 8,901 / 1,112 / 1,112 images.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: another one is another split.
        splits: "random", or a column of the table.
        meta: another table to read, e.g. pyiqa's.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    base = SPAQ.find(root)
    table = score_table(meta_path(meta, base), MOS_COLUMNS) if meta else find_table(base)
    require_scale(
        table.scores or [],
        {"0-100": lambda low, high: low >= 0 and 10 < high <= 100},
        f"'{table.path}'",
        "fetch the annotations again, or use data=folder for other scores",
    )
    folder = SPAQ.require_folder(base)
    sizes = listing(folder)
    records, parts = records_of(table, folder, sizes, published=SPAQ, splits=splits, split_seed=split_seed)
    return dataset_of(split, parts, records, sizes, name=SPAQ.name, mos_range=(0.0, 100.0), published=SPAQ)


def find_table(root: Path) -> ScoreTable:
    """Return the table with image names and MOS: by its official name, else by what it holds."""
    annotations = child(root, "Annotations") or root
    official = child(annotations, TABLE)
    for path in [official] if official else [*tables_in(annotations), *tables_in(root)]:
        cells = read_table(path)
        if find_column(cells, IMAGE_COLUMNS) and find_column(cells, ["MOS"]):
            return score_table(path, ["MOS"])
    raise UserError(f"SPAQ in '{root}' has no table with columns Image name and MOS. {SPAQ.advice()}")
