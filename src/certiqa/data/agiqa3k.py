"""AGIQA-3K: 2,982 images that six generators made of 300 prompts, rated for quality on 0-5 (Li et al., 2023).

There is no official split. Images of one prompt are alike, so it is split by prompt.
"""

from __future__ import annotations

from pathlib import Path

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images
from certiqa.data.published import PublishedSet, Table
from certiqa.data.scored import meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import require_column
from certiqa.errors import UserError

SHARES = (0.7, 0.1, 0.2)  # the field trains on 80 % and tests on 20 %; validation images come out of the 80 %
AGIQA3K = PublishedSet(
    name="agiqa3k",
    title="AGIQA-3K",
    page="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    size=2_982,
    folders=("AGIQA-3K", "ACGIQA-3K", "images"),
    needs=(("data.csv",),),
    tree="""
AGIQA-3K/AttnGAN_normal_000.jpg, ...     or in ACGIQA-3K/, images/ or beside data.csv
data.csv                                 name, prompt, ..., mos_quality, std_quality, ...
""",
    spellings=("ACGIQA-3K", "AGIQA-3k-Database"),
    tables=(Table("data.csv", ("name",)),),
    manual="on a file host, linked there",
    licence="MIT (Li et al., IEEE TCSVT 2023)",
)


def load_agiqa3k(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: int = 0,
    splits: str = "reference",
    meta: str | Path | None = None,
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of AGIQA-3K with its scores of quality: of its 300 prompts 210 / 30 / 60, none in two splits.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: another one puts other prompts into the test.
        splits: "reference", which is by prompt here, or a column of the table, which must not tear a prompt apart.
        meta: another table to read, with columns name, prompt and mos_quality.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    if splits == "random":
        raise UserError("data.splits=random would put one prompt into two splits; AGIQA-3K takes data.splits=reference")
    base = AGIQA3K.find(root)
    path = meta_path(meta, base) if meta else child(base, "data.csv")
    if path is None:
        raise UserError(f"AGIQA-3K in '{base}' has no data.csv. {AGIQA3K.advice()}")
    table = score_table(path, ["mos_quality"])
    prompts = table.text(require_column(table.cells, path, ["prompt"], "prompts"))
    require_scale(
        table.scores or [],
        {"0-5": lambda low, high: low >= 0 and 1 < high <= 5},
        f"'{path}'",
        "fetch data.csv again, or use data=folder for other scores",
    )
    folder = next((found for name in AGIQA3K.folders if (found := child(base, name)) and found.is_dir()), base)
    sizes = listing(folder)
    records, parts = records_of(
        table,
        folder,
        sizes,
        published=AGIQA3K,
        splits=splits,
        split_seed=split_seed,
        references=prompts,
        shares=SHARES,
    )
    return dataset_of(split, parts, records, sizes, name=AGIQA3K.name, mos_range=(0.0, 5.0), published=AGIQA3K)
