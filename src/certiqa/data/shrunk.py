"""Resized copies in the cache, for data sets of photographs that take longer to decode than to score.

A copy is a PNG of exactly the pixels that reading the original with the same ``data.resize`` gives, so a run's numbers
do not depend on whether the copies are there. (JPEG of quality 95 would be a quarter of the size and decode faster,
but is 43 to 48 dB away from these pixels: benchmarks/data.py measures it.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from filelock import FileLock
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from certiqa.data.images import ImageRecord
from certiqa.data.reading import Resize, UnreadableError, check_resize, image_size, read_image
from certiqa.errors import UserError
from certiqa.storage.cache import cache_root
from certiqa.storage.digests import content_digest, content_digests
from certiqa.storage.files import check_space, write_aside
from certiqa.storage.workers import worker_pool

SHORTER_SIDE = 512
BYTES_PER_PIXEL = 2  # of a PNG of a photograph, rather more than less
CHUNK = 4  # images per task of a worker process


def shrunken(
    records: Sequence[ImageRecord],
    cache: str | Path | None = None,
    resize: int | Sequence[int] = SHORTER_SIDE,
    resize_filter: str = "bilinear",
    *,
    make: bool = False,
) -> list[ImageRecord]:
    """Return the records with ``prepared`` set to the resized copy wherever there is one.

    The data module calls this for every data set once ``data.resize`` is set, so a loader needs not: the option of a
    data set of large photographs says ``resize: 512`` and ``resize_filter: bilinear`` (for SPAQ, the protocol of its
    authors), and the user says ``data.prepare=true`` or ``certiqa-data prepare spaq`` once. A loader that is used
    without the data module may call it on its records and must then read them with
    ``dataset.reading(resize, resize_filter)``.

    Args:
        records: of images as they are.
        cache: folder of the cache; None for the default one.
        resize: as ``certiqa.data.read_image`` takes them.
        resize_filter: as ``certiqa.data.read_image`` takes them.
        make: make the copies that are not there; an image that cannot be read gets none and fails when it is read.
    """
    folder = copies_folder(cache)
    if make:
        prepare_shrunk([record.path for record in records], folder, resize, resize_filter)
    elif not folder.is_dir():
        return list(records)
    wanted, found = check_resize(resize, resize_filter), []
    content_digests([record.path for record in records])  # all at once, and kept
    for record in records:
        copy = copy_of(record.path, folder, wanted, resize_filter)
        found.append(dataclasses.replace(record, prepared=copy if copy.is_file() else None))
    return found


def copies_folder(cache: str | Path | None = None) -> Path:
    """Return the folder of the copies in a cache."""
    return cache_root(cache) / "resized"


def copy_of(source: Path, folder: Path, resize: Resize, resize_filter: str) -> Path:
    """Return where the copy of an image belongs.

    Its name holds a hash of the settings and of the source's content: a source that was edited or replaced, whatever
    its size and times, or another of the same name, never gets a copy that is not its own.
    """
    key = f"{content_digest(source)}\0{resize}\0{resize_filter}\0{Image.__version__}"
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return folder / digest[:2] / f"{source.stem[:60]}-{digest}.png"


def prepare_shrunk(
    images: Sequence[Path],
    folder: str | Path,
    resize: int | Sequence[int] = SHORTER_SIDE,
    resize_filter: str = "bilinear",
    *,
    workers: int | None = None,
) -> dict[Path, str]:
    """Make the resized copies that are not there, in parallel with a progress bar; the next call goes on from there.

    Images that the resize would not make smaller get none. Each copy is written aside and renamed, so that one under
    its name is whole; of several processes that prepare the same folder one works and the others wait.

    Args:
        images: the files.
        folder: where the copies go.
        resize: as ``certiqa.data.read_image`` takes them.
        resize_filter: as ``certiqa.data.read_image`` takes them.
        workers: processes; None for one per core.

    Returns:
        the images that cannot be read, and why.

    Raises:
        UserError: if the folder cannot be written, or has no room for all.
    """
    folder = Path(folder)
    wanted = check_resize(resize, resize_filter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            content_digests(images)  # all at once, and kept
            wished = {Path(image): copy_of(Path(image), folder, wanted, resize_filter) for image in images}
            jobs = [image for image, copy in wished.items() if not copy.is_file()]
            side = wanted if isinstance(wanted, int) else max(wanted or (0,))
            check_space(folder, len(jobs) * side * side * 4 // 3 * BYTES_PER_PIXEL, f"preparing {len(jobs)} images")
            return _make_all(jobs, folder, wanted, resize_filter, workers or cores())
    except OSError as error:
        raise UserError(
            f"cannot write resized images to '{folder}': {error}; free space there, or set CERTIQA_CACHE or data.cache "
            "to another folder, and run the same command again: it goes on from here"
        ) from error


def _make_all(jobs: Sequence[Path], folder: Path, resize: Resize, resize_filter: str, workers: int) -> dict[Path, str]:
    failures: dict[Path, str] = {}
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    columns = (TextColumn("resizing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if not chunks:
        return failures
    with Progress(*columns) as progress, worker_pool(min(workers, len(chunks))) as pool:
        task = progress.add_task("", total=len(jobs))
        futures = {pool.submit(_make_some, chunk, folder, resize, resize_filter): len(chunk) for chunk in chunks}
        try:
            for future in as_completed(futures):
                failures |= future.result()
                progress.advance(task, futures[future])
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died while resizing images; is there enough memory? The same command goes on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


def _make_some(images: Sequence[Path], folder: Path, resize: Resize, resize_filter: str) -> Mapping[Path, str]:
    failures = {}
    for image in images:
        try:
            if math.prod(image_size(image, resize)) < math.prod(image_size(image)):
                goal = copy_of(image, folder, resize, resize_filter)
                pixels = read_image(image, resize, resize_filter)
                if copy_of(image, folder, resize, resize_filter) != goal:
                    continue  # it was replaced while it was read
                goal.parent.mkdir(parents=True, exist_ok=True)
                with write_aside(goal) as partial:
                    # the least compression is an eighth larger than the default and several times faster to write
                    Image.fromarray(pixels).save(partial, "png", compress_level=1)
        except UnreadableError as error:
            failures[image] = str(error)
    return failures


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
