"""The embedded data set ``mini``: 22 photographs under all 25 KADID-10k distortions at 5 levels.

Labels are pseudo-MOS: the mean human rating of the (type, level) cell over KADID-10k's 81 references. On KADID
itself that mean predicts the rating of an unseen reference with PLCC .94 and SROCC .94; correlations with it are not
comparable with published ones.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from certiqa.data.cache import cache_root
from certiqa.data.distortions import DISTORTIONS, distort
from certiqa.data.images import ImageDataset, ImageRecord, read_image
from certiqa.errors import UserError, suggest

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


def split_of(photograph: str) -> str:
    """Return the split of a photograph by its name without suffix."""
    return next(split for split, names in SPLITS.items() if photograph in names)


def image_id(photograph: str, type_id: int, level: int) -> str:
    """Return the id of a distorted image, its path relative to the data set's folder."""
    return f"{photograph}/{type_id:02d}_{level}.png"


def load_mini(split: str = "test", *, cache: str | Path | None = None) -> ImageDataset:
    """Return a split of the embedded data set; makes the images first if the cache does not have them.

    Args:
        split: "train" (1,750 images), "validation" (375), "test" (625), or the rotating lists in which each of the 125
            (type, level) cells occurs once: "quick_validation" and "quick" (of the test photographs).
        cache: folder of the cache; None for the default one.
    """
    lists = {**{name: name for name in SPLITS}, "quick_validation": "validation", "quick": "test"}
    if split not in lists:
        raise UserError(f"no split '{split}' of mini; there are: {', '.join(lists)}.{suggest(split, lists)}")
    folder = prepare_mini(cache)
    photographs = SPLITS[lists[split]]
    cells = [(kind.type_id, level) for kind in DISTORTIONS.values() for level in LEVELS]
    if split.startswith("quick"):
        # the photograph rotates over types and levels, so that no type or level meets one photograph only
        chosen = [(photographs[(type_id + level) % len(photographs)], type_id, level) for type_id, level in cells]
    else:
        chosen = [(photograph, type_id, level) for photograph in photographs for type_id, level in cells]
    ratings = cell_means()
    records = []
    for photograph, type_id, level in chosen:
        name = image_id(photograph, type_id, level)
        records.append(ImageRecord(name, folder / name, ratings[type_id, level], photograph))
    return ImageDataset(
        records, mos_range=MOS_RANGE, name="mini", fingerprint=mini_fingerprint(), mos_kind="pseudo-MOS"
    )


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
    for path in [Path(__file__), *sorted((Path(__file__).parent / "distortions").glob("*.py"))]:
        digest.update(path.read_bytes())
    for package in ("numpy", "scipy", "scikit-image", "pillow"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


def prepare_mini(cache: str | Path | None = None) -> Path:
    """Return the folder of the images, making them with all cores and a progress bar if they are not whole.

    The folder is named after the fingerprint, so a change of code or photographs makes a new one; it is built
    aside and renamed, so a build that was cut short never looks like a whole one.
    """
    root = cache_root(cache)
    folder = root / f"mini-{mini_fingerprint()}"
    if folder.exists():
        damage = find_damage(folder)
        if damage is None:
            return folder
        print(f"the images of data set mini in '{folder}' are not whole ({damage}): making them again")
        shutil.rmtree(folder)
    partial = root / f".{folder.name}.{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sizes = dict(_make_images(partial))
        (partial / "index.json").write_text(json.dumps(sizes), encoding="utf-8")
        # another process may have finished first: the bytes are the same, keep its folder
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        if find_damage(folder) is not None:
            raise UserError(
                f"cannot write the images of data set mini to '{root}': {error}; free about 250 MB, "
                "or set CERTIQA_CACHE or data.cache to another folder"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a built folder, None if every file is there with the size it was written with."""
    try:
        sizes = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return "its index is missing or cut short"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or cut short"
    return None


def _make_images(folder: Path) -> Iterator[tuple[str, int]]:
    """Make all images, in parallel over (photograph, type); yields (image id, bytes)."""
    jobs = [
        (folder, name, kind.type_id) for names in SPLITS.values() for name in names for kind in DISTORTIONS.values()
    ]
    columns = (TextColumn("making data set mini"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(_cores()) as pool:
        task = progress.add_task("", total=len(jobs) * len(LEVELS))
        futures = [pool.submit(_make_cell, *job) for job in jobs]
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


def _make_cell(folder: Path, photograph: str, type_id: int) -> list[tuple[str, int]]:
    pixels = read_image(ASSETS / "photos" / f"{photograph}.png")
    height, width = pixels.shape[:2]
    top, left = (height - CROP) // 2, (width - CROP) // 2
    made = []
    for level in LEVELS:
        distorted = distort(pixels, type_id, level, seed=photograph_seed(photograph), focus=(top, left, CROP, CROP))
        crop = np.ascontiguousarray(distorted[top : top + CROP, left : left + CROP])
        name = image_id(photograph, type_id, level)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(crop).save(path, compress_level=1)
        made.append((name, path.stat().st_size))
    return made


def photograph_seed(photograph: str) -> int:
    """Return the seed of a photograph's random distortions, so that no two photographs share their noise."""
    return int.from_bytes(hashlib.blake2b(photograph.encode(), digest_size=4).digest(), "little")
