"""KADID-10k: 81 references under 25 distortions at 5 levels, 10,125 images (Lin, Hosu and Saupe, QoMEX 2019).

Its scores are called dmos, on 1-5, and higher is better in spite of the name. It has no official split: it is split by
reference.
"""

from __future__ import annotations

from pathlib import Path

from certiqa.data.images import ImageDataset
from certiqa.data.roots import Layout, Listing, child, find_root, list_images, require_folder
from certiqa.data.scored import meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import IMAGE_COLUMNS, MOS_COLUMNS, REFERENCE_COLUMNS, find_column
from certiqa.errors import UserError
from certiqa.options import Seed, Text

# tables with a reference beside the image: the distorted one is meant
DISTORTED_COLUMNS = ("dist_img", "dist_name", *IMAGE_COLUMNS)

LAYOUT = Layout(
    name="kadid",
    title="KADID-10k",
    spellings=("kadid10k", "kadid"),
    parts=("dmos.csv", "images"),
    tree="""
kadid10k/
  dmos.csv                  dist_img, ref_img, dmos, var
  images/                   10,125 of I01_01_01.png to I81_25_05.png, and the 81 references
""",
    size=10_125,
)


def load_kadid(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    splits: Text = "reference",
    meta: str | Path | None = None,
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of KADID-10k: of its 81 references 65 / 8 / 8, none in two splits.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: another one puts other references into the test.
        splits: "reference", or a column of the table; one that tears a reference apart is refused.
        meta: another table to read, e.g. pyiqa's.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    base = find_root(LAYOUT, root)
    path = meta_path(meta, base) if meta else child(base, "dmos.csv")
    if path is None:
        raise UserError(f"KADID-10k in '{base}' has no dmos.csv. {LAYOUT.advice()}")
    if splits == "random":
        raise UserError(
            "data.splits=random would put one reference into two splits; KADID-10k takes data.splits=reference"
        )
    table = score_table(path, MOS_COLUMNS, DISTORTED_COLUMNS)
    require_scale(
        table.scores or [],
        {"1-5": lambda low, high: low >= 1 and 1 < high <= 5},
        f"'{path}'",
        "fetch dmos.csv again, or use data=folder for other scores",
    )
    names = [_last(name) for name in table.text(table.image)]
    references = [name.partition("_")[0].partition(".")[0].upper() for name in names]
    column = find_column(table.cells, REFERENCE_COLUMNS)
    written = table.text(column) if column else references
    for name, reference, said in zip(names, references, written, strict=True):
        if _last(said).partition(".")[0].upper() != reference:
            raise UserError(
                f"'{path}' gives '{name}' the reference '{said}', its name says {reference}; fetch it again"
            )
    folder = require_folder(LAYOUT, base, ["images"])
    sizes = listing(folder)
    records, parts = records_of(
        table,
        folder,
        sizes,
        layout=LAYOUT,
        splits=splits,
        split_seed=split_seed,
        references=references,
        spare=sorted(set(references)),
    )
    return dataset_of(split, parts, records, sizes, name="kadid", mos_range=(1.0, 5.0), layout=LAYOUT)


def _last(path: str) -> str:
    """Return a path's last part, as it is written in a table."""
    return path.replace("\\", "/").rpartition("/")[2]
