"""KADID-10k: 81 references under 25 distortions at 5 levels, 10,125 images (Lin, Hosu and Saupe, QoMEX 2019).

Its scores are called dmos, on 1-5, and higher is better in spite of the name. It has no official split: it is split by
reference.
"""

from __future__ import annotations

from pathlib import Path

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images
from certiqa.data.published import Part, PublishedSet, Table
from certiqa.data.scored import meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import IMAGE_COLUMNS, MOS_COLUMNS, REFERENCE_COLUMNS, find_column
from certiqa.errors import UserError
from certiqa.options import Seed, Text

# tables with a reference beside the image: the distorted one is meant
DISTORTED_COLUMNS = ("dist_img", "dist_name", *IMAGE_COLUMNS)

KADID = PublishedSet(
    name="kadid",
    title="KADID-10k",
    page="https://database.mmsp-kn.de/kadid-10k-database.html",
    size=10_125,
    references=81,
    folders=("images",),
    needs=(("dmos.csv",),),
    tree="""
images/I01.png ... I81.png                     81 references
images/I01_01_01.png ... I81_25_05.png         10,125 distorted images
dmos.csv                                       dist_img, ref_img, dmos, var
""",
    spellings=("kadid10k",),
    tables=(Table("dmos.csv", ("dist_img", "ref_img")),),
    # 3,067,408,471 bytes, by a note in public code
    parts=(Part("all", "https://datasets.vqa.mmsp-kn.de/archives/kadid10k.zip", ("images", "dmos.csv"), 12 * 10**9),),
    licence="free for research",
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
    base = KADID.find(root)
    path = meta_path(meta, base) if meta else child(base, "dmos.csv")
    if path is None:
        raise UserError(f"KADID-10k in '{base}' has no dmos.csv. {KADID.advice()}")
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
    folder = KADID.require_folder(base)
    sizes = listing(folder)
    records, parts = records_of(
        table,
        folder,
        sizes,
        published=KADID,
        splits=splits,
        split_seed=split_seed,
        references=references,
        spare=sorted(set(references)),
    )
    return dataset_of(split, parts, records, sizes, name=KADID.name, mos_range=(1.0, 5.0), published=KADID)


def _last(path: str) -> str:
    """Return a path's last part, as it is written in a table."""
    return path.replace("\\", "/").rpartition("/")[2]
