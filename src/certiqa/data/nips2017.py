"""The development images of the NIPS 2017 adversarial-attack competition: 1,000 PNG, no opinion scores.

They measure robustness; correlations with opinion there are none of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from certiqa.data.images import ImageDataset
from certiqa.data.roots import Layout, Listing, child, find_root, list_images, tables_in
from certiqa.data.scored import ScoreTable, records_of
from certiqa.data.splits import dataset_of
from certiqa.data.tables import find_column, read_table
from certiqa.errors import UserError
from certiqa.options import Choices, Seed

SPLITS = ("all", "random")
LAYOUT = Layout(
    name="nips2017",
    title="the NIPS-2017 development set",
    spellings=("nips2017", "nips17", "nips_2017_dev", "nips2017_adversarial"),
    parts=("images.csv", "dev_dataset.csv", "images"),
    tree="""
nips2017/
  images.csv                ImageId, TrueLabel, ...
  images/                   1,000 .png, 299x299
""",
    size=1_000,
)


def load_nips2017(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    splits: Annotated[str, Choices("all", "random")] = "all",
    listing: Listing = list_images,
) -> ImageDataset:
    """Return the 1,000 images, or a seeded part of them to train a denoiser on.

    Args:
        split: "test", "quick" (125 of it), "train", "validation" or "quick_validation".
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: of the parts.
        splits: "all" tests every image, as the field does: train and validation are parts of the test then, which is
            said when training. "random" keeps them apart: 800 / 100 / 100.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    if splits not in SPLITS:
        raise UserError(f"data.splits must be {' or '.join(SPLITS)} for nips2017, got '{splits}'")
    base = find_root(LAYOUT, root)
    tables = [path for path in tables_in(base) if find_column(read_table(path), ["ImageId"])]
    if not tables:
        raise UserError(f"no csv with a column ImageId in '{base}'. {LAYOUT.advice()}")
    cells = read_table(tables[0])
    table = ScoreTable(cells, tables[0], find_column(cells, ["ImageId"]) or "")
    folder = child(base, "images")
    folder = folder if folder and folder.is_dir() else base
    sizes = listing(folder)
    records, parts = records_of(table, folder, sizes, layout=LAYOUT, splits="random", split_seed=split_seed)
    return dataset_of(
        split,
        parts,
        records,
        sizes,
        name="nips2017",
        mos_range=None,
        mos_kind="none",
        whole_test=splits == "all",
        layout=LAYOUT,
    )
