"""Where the field's data sets come from, and what they look like on disk.

Addresses as of 2026, as the data sets' pages and public code that uses them give them; none of them has been downloaded
here, so no digest is known beforehand: the one that is found is remembered beside the data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certiqa.errors import UserError, suggest

ENVIRONMENT = "CERTIQA_DATA"
VQA = "https://datasets.vqa.mmsp-kn.de/archives"


@dataclass(frozen=True)
class Part:
    """One file to download.

    Attributes:
        name: what ``--parts`` calls it.
        url: its address.
        lands: files and folders of the data set that it brings; an archive may hold them one folder deeper.
        max_bytes: limit of what an archive may unpack to; None for a file that is no archive.
        max_files: limit of how many files it may hold; likewise.
        optional: fetched only when named.
    """

    name: str
    url: str
    lands: tuple[str, ...]
    max_bytes: int | None = None
    max_files: int = 20_000
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """A csv whose rows name images: the file, its column, and the folders of which one or all hold them."""

    file: str
    column: str
    folders: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Source:
    """A data set's home, tree and size.

    Attributes:
        name: what options call it.
        title: what people call it.
        page: where it is described.
        folders: image folders, of which at least one must be there, and how many images each holds.
        tree: the expected tree, for messages.
        tables: opinion scores or lists of images; those that are csv are compared with the files.
        needs: of each group one file must be there.
        parts: what can be downloaded.
        manual: how to get what cannot.
        licence: under what its authors give it, for the cards of what is trained on it.
        spellings: usual names of its folder below ``$CERTIQA_DATA``.
    """

    name: str
    title: str
    page: str
    folders: Mapping[str, int]
    tree: str
    tables: tuple[Table, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    parts: tuple[Part, ...] = ()
    manual: str = ""
    licence: str = "not known here; see its page"
    spellings: tuple[str, ...] = field(default=())

    def root(self, given: str | Path | None, *, must_exist: bool = True) -> Path:
        """Return its folder: ``given``, else the one of its name in ``$CERTIQA_DATA``; raises UserError without."""
        if given is None and not os.environ.get(ENVIRONMENT):
            raise UserError(f"where is {self.title}, or where is it to go? Give --root FOLDER or set {ENVIRONMENT}")
        base = Path(given).expanduser() if given else Path(os.environ[ENVIRONMENT]).expanduser()
        names = ("",) if given else (self.name, *self.spellings)
        found = next((base / name for name in names if (base / name).is_dir()), None)
        if found is None and must_exist:
            raise UserError(f"there is no folder '{base / names[0]}'. {self.advice()}")
        return found or base / names[0]

    def advice(self) -> str:
        """Return the expected tree and how to get it, to end a message with."""
        tree = "\n".join(f"    {line}" for line in self.tree.strip().splitlines())
        command = self.manual or f"Run: certiqa-data fetch {self.name}"
        return f"{command}\nExpected:\n{tree}"


_SOURCES = (
    Source(
        name="koniq",
        title="KonIQ-10k",
        page="http://database.mmsp-kn.de/koniq-10k-database.html",
        folders={"1024x768": 10073, "512x384": 10073},
        tree="""
koniq/1024x768/10004473376.jpg ...               10,073 images; or 512x384/
koniq/koniq10k_scores_and_distributions.csv      MOS on 1 to 5, MOS_zscore on 0 to 100
koniq/koniq10k_distributions_sets.csv            MOS on 0 to 100, and the official split""",
        tables=tuple(
            Table(file, "image_name", ("1024x768", "512x384"))
            for file in ("koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv")
        ),
        needs=(("koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv"),),
        parts=(
            Part("1024x768", f"{VQA}/koniq10k_1024x768.zip", ("1024x768",), 12 * 10**9),
            Part("512x384", f"{VQA}/koniq10k_512x384.zip", ("512x384",), 4 * 10**9, optional=True),
            Part(
                "scores",
                f"{VQA}/koniq10k_scores_and_distributions.zip",
                ("koniq10k_scores_and_distributions.csv",),
                10**8,
                max_files=10,
            ),
            # the official split is only in this table, of the authors' repository
            Part(
                "split",
                "https://raw.githubusercontent.com/subpic/koniq/master/metadata/koniq10k_distributions_sets.csv",
                ("koniq10k_distributions_sets.csv",),
            ),
        ),
        spellings=("koniq10k", "koniq-10k", "KonIQ-10k"),
    ),
    Source(
        name="kadid",
        title="KADID-10k",
        page="https://database.mmsp-kn.de/kadid-10k-database.html",
        folders={"images": 10206},  # 81 references, 10,125 distorted
        tree="""
kadid/images/I01.png ... I81.png                 81 references
kadid/images/I01_01_01.png ... I81_25_05.png     10,125 distorted images
kadid/dmos.csv                                   dist_img,ref_img,dmos,var""",
        tables=(Table("dmos.csv", "dist_img", ("images",)), Table("dmos.csv", "ref_img", ("images",))),
        needs=(("dmos.csv",),),
        # 3,067,408,471 bytes, by a note in public code
        parts=(Part("all", f"{VQA}/kadid10k.zip", ("images", "dmos.csv"), 12 * 10**9),),
        spellings=("kadid10k", "kadid-10k", "KADID-10k"),
    ),
    Source(
        name="spaq",
        title="SPAQ",
        page="https://github.com/h4nwei/SPAQ",
        folders={"TestImage": 11125},
        tree="""
spaq/TestImage/00001.jpg ... 11125.jpg           11,125 images
spaq/Annotations/MOS and Image attribute scores.xlsx""",
        needs=(("Annotations/MOS and Image attribute scores.xlsx",),),
        manual=(
            "SPAQ cannot be downloaded by a program: its authors share it on Google Drive and Baidu, see 'Database' on "
            "https://github.com/h4nwei/SPAQ. Download TestImage and Annotations there and put them as below, then run: "
            "certiqa-data verify spaq, certiqa-data prepare spaq"
        ),
        spellings=("SPAQ",),
    ),
    Source(
        name="nips2017",
        title="the NIPS 2017 development set",
        page="https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set",
        folders={"images": 1000},
        tree="""
nips2017/images/0c7ac4a8c9dfa802.png ...         1,000 images, 299x299
nips2017/images.csv                              ImageId,...,TrueLabel,...""",
        tables=(Table("images.csv", "ImageId", ("images",), suffix=".png"),),
        needs=(("images.csv",),),
        manual=(
            "Kaggle gives it to those who are logged in: download 'NIPS 2017: Adversarial Learning Development Set' "
            "from https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set and "
            "unpack it as below, then run: certiqa-data verify nips2017"
        ),
        spellings=("nips-2017", "nips-2017-adversarial-learning-development-set"),
    ),
    Source(
        name="livec",
        title="LIVE In the Wild",
        page="https://live.ece.utexas.edu/research/ChallengeDB/index.html",
        folders={"Images": 1162},
        tree="""
livec/Images/3.bmp, 1000.JPG, ...                1,162 photographs; trainingImages/ is not used
livec/Data/AllImages_release.mat, AllMOS_release.mat, AllStdDev_release.mat""",
        needs=(("Data/AllImages_release.mat",), ("Data/AllMOS_release.mat",), ("Data/AllStdDev_release.mat",)),
        manual=(
            "LIVE gives it to those who ask: fill in the form on https://live.ece.utexas.edu/research/ChallengeDB/"
            "index.html, unpack ChallengeDB_release.zip as below, then run: certiqa-data verify livec"
        ),
        licence=(
            "use, copy, modify and distribute with its copyright notice and acknowledgement of the University of Texas "
            "at Austin (Ghadiyaram and Bovik, IEEE TIP 2016)"
        ),
        spellings=("ChallengeDB_release", "LIVE_Challenge"),
    ),
    Source(
        name="agiqa3k",
        title="AGIQA-3K",
        page="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
        folders={"AGIQA-3K": 2982},
        tree="""
agiqa3k/AGIQA-3K/AttnGAN_normal_000.jpg ...      2,982 images
agiqa3k/data.csv                                 name,prompt,...,mos_quality,std_quality,...""",
        tables=(Table("data.csv", "name", ("AGIQA-3K",)),),
        needs=(("data.csv",),),
        manual=(
            "AGIQA-3K is shared on a file host: follow the links of https://github.com/lcysyzxdxc/AGIQA-3k-Database, "
            "put images and data.csv as below, then run: certiqa-data verify agiqa3k"
        ),
        licence="MIT (Li et al., IEEE TCSVT 2023)",
        spellings=("AGIQA-3K", "AGIQA-3k-Database"),
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _SOURCES}


def source_of(name: str) -> Source:
    """Return a data set's source by its name; raises UserError for one that is not known."""
    if name not in SOURCES:
        raise UserError(f"no data set '{name}'; there are: {', '.join(SOURCES)}.{suggest(name, SOURCES)}")
    return SOURCES[name]
