"""The development images of the NIPS 2017 adversarial-attack competition: 1,000 PNG, no opinion scores.

They measure robustness; correlations with opinion there are none of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images, tables_in
from certiqa.data.published import PublishedSet, Table
from certiqa.data.scored import ScoreTable, records_of
from certiqa.data.splits import dataset_of
from certiqa.data.tables import find_column, read_table
from certiqa.errors import UserError
from certiqa.options import Choices, Seed

SPLITS = ("all", "random")
NIPS2017 = PublishedSet(
    name="nips2017",
    title="the NIPS 2017 development set",
    page="https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set",
    size=1_000,
    folders=("images",),
    needs=(("images.csv", "dev_dataset.csv"),),
    tree="""
images/0c7ac4a8c9dfa802.png, ...       299x299
images.csv                             ImageId, ..., TrueLabel, ...; or dev_dataset.csv, the same
""",
    spellings=(
        "nips17",
        "nips_2017_dev",
        "nips2017_adversarial",
        "nips-2017-adversarial-learning-development-set",
    ),
    tables=tuple(Table(file, ("ImageId",), suffix=".png") for file in ("images.csv", "dev_dataset.csv")),
    manual="Kaggle gives it to those who are logged in",
    licence="per image, in images.csv",
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
    base = NIPS2017.find(root)
    tables = [path for path in tables_in(base) if find_column(read_table(path), ["ImageId"])]
    if not tables:
        raise UserError(f"no csv with a column ImageId in '{base}'. {NIPS2017.advice()}")
    cells = read_table(tables[0])
    table = ScoreTable(cells, tables[0], find_column(cells, ["ImageId"]) or "")
    folder = child(base, "images")
    folder = folder if folder and folder.is_dir() else base
    sizes = listing(folder)
    records, parts = records_of(table, folder, sizes, published=NIPS2017, splits="random", split_seed=split_seed)
    return dataset_of(
        split,
        parts,
        records,
        sizes,
        name=NIPS2017.name,
        mos_range=None,
        mos_kind="none",
        whole_test=splits == "all",
        published=NIPS2017,
    )
