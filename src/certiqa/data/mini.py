"""The embedded data set ``mini``: 22 photographs under all 25 KADID-10k distortions at 5 levels.

Labels are pseudo-MOS: the mean human rating of the (type, level) cell over KADID-10k's 81 references. On KADID
itself that mean predicts the rating of an unseen reference with PLCC .94 and SROCC .94; correlations with it are not
comparable with published ones.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from certiqa.data.distortions import DISTORTIONS, distort
from certiqa.data.guises import random_guise
from certiqa.data.images import ImageDataset, ImageRecord, read_image
from certiqa.errors import UserError, suggest
from certiqa.options import Count
from certiqa.storage.cache import cache_root
from certiqa.storage.files import write_aside
from certiqa.storage.workers import worker_pool

ASSETS = Path(__file__).parent.parent / "assets"
MOS_RANGE = (1.0, 5.0)
CROP = 224
LEVELS = (1, 2, 3, 4, 5)

# Split by photograph. The order is that of the blake2b hash of the file names, cut 14/3/5: no look at a result went
# into it. Everything shipped is trained on TRAIN and tuned on VALIDATION, never on TEST.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "lomiri_friends",
        "palapeli_cincinnati-bridge",
        "lomiri_aitzgorri",
        "libjxl_flower",
        "scikit_china",
        "palapeli_citrus-fruits",
        "palapeli_european-honey-bee",
        "scikit_rocket",
        "lomiri_life",
        "libjxl_tmshre_riaphotographs_srgb8",
        "scikit_astronaut",
        "scikit_coffee",
        "libjxl_cvo9xd_keong_macan_srgb8",
        "scikit_flower",
    ),
    "validation": ("lomiri_picosdeeuropa", "lomiri_sunset", "lomiri_Picture_1A"),
    "test": (
        "lomiri_Wine",
        "scikit_chelsea",
        "libjxl_u76c0g_bliznaca_srgb8",
        "lomiri_Picture_0B",
        "lomiri_seeding",
    ),
}


# What can be loaded, and the photographs it draws on. The quick lists hold each of the 125 (type, level) cells once.
LISTS = {**{name: name for name in SPLITS}, "quick_validation": "validation", "quick": "test"}
GUISE = "guise"
"""With a number, the list of the training images in one more guise."""
Cell = tuple[str, int, int, int]
"""Photograph, type id, level and guise of an image; guise 0 is the photograph as it is."""


def split_of(photograph: str) -> str:
    """Return the split of a photograph by its name without suffix."""
    return next(split for split, names in SPLITS.items() if photograph in names)


def image_id(photograph: str, type_id: int, level: int, guise: int = 0) -> str:
    """Return the id of a distorted image, its path relative to the data set's folder."""
    return f"{photograph}/{type_id:02d}_{level}{f'_guise{guise}' if guise else ''}.png"


def load_mini(split: str = "test", *, cache: str | Path | None = None, guises: Count = 0) -> ImageDataset:
    """Return a split of the embedded data set; makes the images first if the cache does not have them.

    Args:
        split: "train" (1,750 images), "validation" (375), "test" (625), or the rotating lists in which each of the 125
            (type, level) cells occurs once: "quick_validation" and "quick" (of the test photographs).
        cache: folder of the cache; None for the default one.
        guises: so many more copies of the training images, each with another tone, colour and orientation before the
            distortion and another crop, see ``certiqa.data.guises``.
    """
    if split not in LISTS:
        raise UserError(f"no split '{split}' of mini; there are: {', '.join(LISTS)}.{suggest(split, LISTS)}")
    lists = [split, *(f"{GUISE}{number}" for number in range(1, guises + 1) if split == "train")]
    folder = prepare_mini(cache, splits=lists)
    ratings = cell_means()
    records = []
    for photograph, type_id, level, guise in (cell for part in lists for cell in cells_of(part)):
        name = image_id(photograph, type_id, level, guise)
        records.append(ImageRecord(name, folder / name, ratings[type_id, level], photograph))
    fingerprint = " ".join([mini_fingerprint(), *lists[1:]])
    return ImageDataset(records, mos_range=MOS_RANGE, name="mini", fingerprint=fingerprint, mos_kind="pseudo-MOS")


def cells_of(split: str) -> list[Cell]:
    """Return the cells of a split's images, or of the training images in one of their guises."""
    guise = int(split.removeprefix(GUISE)) if split.startswith(GUISE) else 0
    photographs = SPLITS["train" if guise else LISTS[split]]
    cells = [(kind.type_id, level) for kind in DISTORTIONS.values() for level in LEVELS]
    if split.startswith("quick"):
        # the photograph rotates over types and levels, so that no type or level meets one photograph only
        return [(photographs[(type_id + level) % len(photographs)], type_id, level, 0) for type_id, level in cells]
    return [(photograph, type_id, level, guise) for photograph in photographs for type_id, level in cells]


def cell_means() -> dict[tuple[int, int], float]:
    """Return the mean KADID-10k rating (1 to 5) of every (type id, level)."""
    with open(ASSETS / "kadid10k_mean_by_type_level.csv", newline="", encoding="utf-8") as file:
        return {(int(row["type_id"]), int(row["level"])): float(row["mean"]) for row in csv.DictReader(file)}


def mini_fingerprint() -> str:
    """Return 16 hexadecimal digits of all that decides the pixels: photographs, code, library versions."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted((ASSETS / "photos").glob("*.png")):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update((ASSETS / "kadid10k_mean_by_type_level.csv").read_bytes())
    here = Path(__file__)
    for path in [here, here.with_name("guises.py"), *sorted((here.parent / "distortions").glob("*.py"))]:
        digest.update(path.read_bytes())
    for package in ("numpy", "scipy", "scikit-image", "pillow"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


def prepare_mini(cache: str | Path | None = None, splits: Sequence[str] | None = None) -> Path:
    """Return the folder of the images, making what these splits (None: all) lack with all cores and a progress bar.

    The folder is named after the fingerprint, so a change of code or photographs makes a new one. Each image is
    written aside and renamed, and the index of a split is written last: a build that was cut short never looks like a
    whole one.
    """
    root = cache_root(cache)
    folder = root / f"mini-{mini_fingerprint()}"
    lacking = {split: damage for split in splits or LISTS if (damage := find_damage(folder, split)) is not None}
    if not lacking:
        return folder
    for split, damage in lacking.items():
        if _index(folder, split).exists():
            print(f"the images of data set mini in '{folder}' are not whole ({damage}): making them again")
            _index(folder, split).unlink()
    try:
        folder.mkdir(exist_ok=True)
        cells = {cell for split in lacking for cell in cells_of(split)}
        known = {name: size for split in {*LISTS, *lacking} for name, size in (_sizes(folder, split) or {}).items()}
        missing = sorted(cell for cell in cells if not _is_whole(folder, image_id(*cell), known))
        sizes = known | dict(_make_images(folder, missing))
        for split in lacking:
            index = {name: sizes[name] for name in (image_id(*cell) for cell in cells_of(split))}
            with write_aside(_index(folder, split)) as partial:
                partial.write_text(json.dumps(index), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the images of data set mini to '{root}': {error}; free about 250 MB, "
            "or set CERTIQA_CACHE or data.cache to another folder"
        ) from error
    return folder


def find_damage(folder: Path, split: str) -> str | None:
    """Return what a split lacks in a built folder, None if every file is there with the size it was written with."""
    sizes = _sizes(folder, split)
    if sizes is None:
        return "its index is missing or cut short"
    damaged = next((name for name in sizes if not _is_whole(folder, name, sizes)), None)
    return None if damaged is None else f"{damaged} is missing or cut short"


def _index(folder: Path, split: str) -> Path:
    return folder / f"index-{split}.json"


def _sizes(folder: Path, split: str) -> dict[str, int] | None:
    try:
        return dict(json.loads(_index(folder, split).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError):
        return None


def _is_whole(folder: Path, name: str, sizes: Mapping[str, int]) -> bool:
    path = folder / name
    return name in sizes and path.is_file() and path.stat().st_size == sizes[name]


def _make_images(folder: Path, cells: Sequence[Cell]) -> Iterator[tuple[str, int]]:
    """Make these images, in parallel over (photograph, type); yields (image id, bytes)."""
    jobs = [
        (folder, photograph, type_id, [(level, guise) for _, _, level, guise in group])
        for (photograph, type_id), group in itertools.groupby(cells, key=lambda cell: cell[:2])
    ]
    columns = (TextColumn("making data set mini"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, worker_pool(_cores()) as pool:
        task = progress.add_task("", total=len(cells))
        futures = [pool.submit(_make_levels, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                made = future.result()
                progress.advance(task, len(made))
                yield from made
        except BrokenProcessPool as error:
            raise UserError("a worker process died while making data set mini; is there enough memory?") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_levels(
    folder: Path, photograph: str, type_id: int, wanted: Sequence[tuple[int, int]]
) -> list[tuple[str, int]]:
    pixels = read_image(ASSETS / "photos" / f"{photograph}.png")
    height, width = pixels.shape[:2]
    made = []
    for level, guise in wanted:
        name = image_id(photograph, type_id, level, guise)
        shown, seed = pixels, photograph_seed(photograph)
        top, left = (height - CROP) // 2, (width - CROP) // 2
        if guise:
            generator = np.random.default_rng(photograph_seed(name))
            shown = random_guise(pixels, generator)
            top, left, seed = (int(generator.integers(end)) for end in (height - CROP + 1, width - CROP + 1, 2**30))
        distorted = distort(shown, type_id, level, seed=seed, focus=(top, left, CROP, CROP))
        crop = np.ascontiguousarray(distorted[top : top + CROP, left : left + CROP])
        file = io.BytesIO()
        Image.fromarray(crop).save(file, "png", compress_level=1)
        (folder / name).parent.mkdir(exist_ok=True)
        # not durable, that costs more than making them: a file that a power cut emptied fails find_damage
        with write_aside(folder / name, durable=False) as partial:
            partial.write_bytes(file.getvalue())
        made.append((name, len(file.getvalue())))
    return made


def photograph_seed(name: str) -> int:
    """Return the seed of random distortions by a name, so that no two photographs share their noise."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
