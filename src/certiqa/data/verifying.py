"""Whether a data set on disk is whole: counts, tables against files, and images that decode."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from certiqa.data.fetching import remembered
from certiqa.data.listing import child, entries_in
from certiqa.data.published import PublishedSet, Table
from certiqa.data.reading import IMAGE_SUFFIXES, UnreadableError, read_image
from certiqa.data.registry import DATASETS
from certiqa.data.shrunk import cores
from certiqa.errors import UserError
from certiqa.storage.workers import worker_pool

SAMPLE = 50
SHOWN = 5


def verify_dataset(
    published: PublishedSet, root: Path, *, all_images: bool = False, workers: int | None = None
) -> list[str]:
    """Return what is wrong with a data set, a line for each kind of fault; empty if nothing is.

    Args:
        published: the data set.
        root: its folder.
        all_images: decode every image, in parallel with a progress bar, instead of ``SAMPLE`` spread over all.
        workers: processes that decode; None for one per core.
    """
    images = images_of(published, root)
    if not images:
        return [f"none of its image folders {', '.join(published.folders)} is in '{root}'. {published.advice()}"]
    faults = []
    expected = published.size + published.references
    for folder, paths in images.items():
        if len(paths) != expected:
            faults.append(f"{folder} has {len(paths)} images where {expected} are expected")
    faults += [f"none of {', '.join(group)} is there" for group in published.needs if not _any_there(root, group)]
    for table in published.tables:
        if (file := child(root, table.file)) and file.is_file():
            faults += list(_compare(table, file, images))
    faults += list(_differ_from_fetched(root))
    paths = [path for group in images.values() for path in group]
    if not all_images and len(paths) > SAMPLE:
        paths = [paths[row] for row in np.linspace(0, len(paths) - 1, SAMPLE).round().astype(int)]
    faults += _undecodable(paths, workers or cores())
    faults += _unloadable(published, root) if not faults else []
    return faults


def images_of(published: PublishedSet, root: Path) -> dict[str, list[Path]]:
    """Return the image files of each image folder that is there, by name."""
    folders = {name: child(root, name) for name in published.folders}
    return {
        name: sorted(path for path in map(Path, entries_in(folder)) if path.suffix.lower() in IMAGE_SUFFIXES)
        for name, folder in folders.items()
        if folder and folder.is_dir()
    }


def _any_there(root: Path, names: Sequence[str]) -> bool:
    return any((file := child(root, name)) and file.is_file() for name in names)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _compare(table: Table, path: Path, images: dict[str, list[Path]]) -> Iterator[str]:
    """Yield how the rows of a csv and the files of its folders differ; case does not count."""
    file = table.file
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:
            first = opened.readline()
            opened.seek(0)
            rows = list(csv.DictReader(opened, delimiter=";" if first.count(";") > first.count(",") else ","))
    except (OSError, ValueError, csv.Error) as error:
        yield f"{file} cannot be read: {error}"
        return
    if lacking := [column for column in table.columns if not rows or column not in rows[0]]:
        yield f"{file} has no rows with a column {' or '.join(lacking)}"
        return
    columns = [[f"{(row[column] or '').strip()}{table.suffix}" for row in rows] for column in table.columns]
    twice = [name for name, count in Counter(columns[0]).items() if count > 1]
    if twice:
        yield f"{file} has {len(twice)} images in several rows: {_listed(twice)}"
    named = {name.lower(): name for names in columns for name in names}
    for folder, paths in images.items():
        files = {path.name.lower(): path.name for path in paths}
        if missing := [name for key, name in named.items() if key not in files]:
            yield f"{file} names {len(missing)} images that are not in {folder}: {_listed(missing)}"
        if unnamed := [name for key, name in files.items() if key not in named]:
            yield f"{folder} has {len(unnamed)} images that {file} does not name: {_listed(unnamed)}"


def _differ_from_fetched(root: Path) -> Iterator[str]:
    """Yield which files are not those that were fetched."""
    for part, memory in remembered(root).items():
        files: dict[str, int] = memory.get("files", {})
        wrong = [name for name, size in files.items() if not _has_size(root / name, size)]
        if wrong:
            yield f"of what was fetched as {part}, {len(wrong)} files are missing or changed: {_listed(wrong)}"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _undecodable(paths: Sequence[Path], workers: int) -> list[str]:
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failures = []
    with Progress(*columns) as progress, worker_pool(min(workers, len(paths) or 1)) as pool:
        for failure in progress.track(pool.map(_failure, paths, chunksize=16), total=len(paths)):
            if failure:
                failures.append(failure)
    if not failures:
        return []
    return [f"{len(failures)} of {len(paths)} images decoded cannot be read: {'; '.join(failures[:SHOWN])}"]


def _failure(path: Path) -> str | None:
    try:
        read_image(path)
    except UnreadableError as error:
        return str(error)
    return None


def _unloadable(published: PublishedSet, root: Path) -> list[str]:
    """Return why the data set's own loader refuses it."""
    try:
        DATASETS[published.name]("test", root=root)
    except UserError as error:
        return [str(error)]
    return []
