"""LIVE In the Wild (the ChallengeDB release): 1,162 photographs rated by a crowd, MOS on 0-100, no official split.

Ghadiyaram and Bovik, "Massive Online Crowdsourced Study of Subjective and Objective Picture Quality", IEEE TIP 2016.
The names and scores lie in MATLAB files, whose first seven rows, t1.bmp to t7.bmp, trained the raters and are no part
of the data set.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from certiqa.data.images import ImageDataset
from certiqa.data.listing import Listing, child, list_images
from certiqa.data.published import PublishedSet
from certiqa.data.scored import ScoreTable, meta_path, records_of, require_scale, score_table
from certiqa.data.splits import dataset_of
from certiqa.data.tables import MOS_COLUMNS
from certiqa.errors import UserError, first_line

SHARES = (0.7, 0.1, 0.2)  # the field trains on 80 % and tests on 20 %; validation images come out of the 80 %
LIVEC = PublishedSet(
    name="livec",
    title="LIVE In the Wild",
    page="https://live.ece.utexas.edu/research/ChallengeDB/index.html",
    size=1_162,
    folders=("Images",),
    needs=(("Data/AllImages_release.mat",), ("Data/AllMOS_release.mat",), ("Data/AllStdDev_release.mat",)),
    tree="""
Images/3.bmp, 1000.JPG, ...       and trainingImages/, which is not used
Data/AllImages_release.mat        names of the photographs and of 7 that trained the raters
Data/AllMOS_release.mat           MOS on 0-100
Data/AllStdDev_release.mat        standard deviation of the ratings
""",
    spellings=("ChallengeDB_release", "LIVE_Challenge", "LIVE In the Wild", "clive"),
    manual="ChallengeDB_release.zip, for those who fill in the form there",
    licence=(
        "use, copy, modify and distribute with its copyright notice and acknowledgement of the University of Texas "
        "at Austin (Ghadiyaram and Bovik, IEEE TIP 2016)"
    ),
)


def load_livec(
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: int = 0,
    splits: str = "random",
    meta: str | Path | None = None,
    listing: Listing = list_images,
) -> ImageDataset:
    """Return a split of LIVE In the Wild, seeded 70/10/20: 814 / 116 / 232 photographs.

    Args:
        split: "train", "validation", "test", or "quick" and "quick_validation" of at most 125 images.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: not used.
        split_seed: another one is another split.
        splits: "random", or a column of the table given as ``meta``.
        meta: another table to read, e.g. pyiqa's.
        listing: lists the images of a folder.

    Raises:
        UserError: what is missing or wrong on disk, and what to do.
    """
    base = LIVEC.find(root)
    table = score_table(meta_path(meta, base), MOS_COLUMNS) if meta else read_release(base)
    require_scale(
        table.scores or [],
        {"0-100": lambda low, high: low >= 0 and 5 < high <= 100},
        f"'{table.path}'",
        "fetch the data set again, or use data=folder for other scores",
    )
    folder = LIVEC.require_folder(base)
    sizes = {name: size for name, size in listing(folder).items() if not trains_raters(name)}
    records, parts = records_of(
        table, folder, sizes, published=LIVEC, splits=splits, split_seed=split_seed, shares=SHARES
    )
    return dataset_of(split, parts, records, sizes, name=LIVEC.name, mos_range=(0.0, 100.0), published=LIVEC)


def trains_raters(name: str) -> bool:
    """Return whether a photograph was shown to the raters before the study: t1.bmp to t7.bmp.

    >>> trains_raters("trainingImages/t1.bmp"), trains_raters("1000.JPG")
    (True, False)
    """
    return re.fullmatch(r"t\d\.\w+", name.rpartition("/")[2], re.IGNORECASE) is not None


def read_release(root: Path) -> ScoreTable:
    """Return names, scores and standard deviations of the release's MATLAB files, without the raters' training."""
    folder = LIVEC.require_folder(root, "Data")
    names = [str(name[0]) for name in _column(folder, "AllImages_release.mat")]
    scores = _column(folder, "AllMOS_release.mat")
    deviations = _column(folder, "AllStdDev_release.mat")
    path = folder / "AllMOS_release.mat"
    if not len(names) == len(scores) == len(deviations):
        raise UserError(
            f"the files of '{folder}' hold {len(names)} names, {len(scores)} scores and {len(deviations)} standard "
            "deviations, which must be as many; fetch the data set again"
        )
    cells = pd.DataFrame({"image": names, "mos": scores, "std": deviations}, dtype=object)
    return ScoreTable(cells[[not trains_raters(name) for name in names]], path, "image", "mos")


def _column(folder: Path, name: str) -> np.ndarray:
    """Return the one variable of a MATLAB file, flat."""
    path = child(folder, name)
    if path is None:
        raise UserError(f"{LIVEC.title} has no '{folder / name}'. {LIVEC.advice()}")
    try:
        variables = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    except Exception as error:  # a damaged file provokes whatever its bytes happen to mean
        raise UserError(f"cannot read '{path}': {first_line(error)}; fetch the data set again") from error
    if len(variables) != 1:
        raise UserError(f"'{path}' holds {', '.join(variables) or 'nothing'}, not one variable; fetch it again")
    return np.ravel(next(iter(variables.values())))
