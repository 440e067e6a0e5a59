"""Runs that differ in nothing but their seed as one row: mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

import numpy as np

from certiqa.reports.comparison.columns import (
    ATTACKED,
    CERTIFIED,
    QUALITY,
    SETTINGS,
    Column,
    Spread,
    Table,
    Value,
    settings_text,
)
from certiqa.reports.comparison.gather import ComparedRun, plural, settings_that_differ
from certiqa.storage.csv_cells import safe_cell

SEED = re.compile(r"(.*\.)?(split_)?seed$")
"""Keys of a run's identity that are seeds: of noise and training, and of how a data set was split."""
NO_PART = ("format", "task", "weights", "data", "device")
"""Keys that follow from the seeds (trained weights, the images of a split) or say where a run was made."""
SEEDS = Column("seeds", "Seeds", SETTINGS, "the seeds that mean and standard deviation are over")


def over_seeds(table: Table) -> Table | None:
    """Return one row for all finished runs that differ in seeds alone, their figures as ``Spread``.

    Runs with random weights and runs whose records do not say how they were made take no part. A run of which there
    is one seed keeps its figures. None where no two runs are of one kind.
    """
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(table.runs):
        if run.finished and not run.random_weights and run.identity:
            groups.setdefault(kind_of(run), []).append(number)
    chosen, repeated = [], 0
    for kind in groups.values():
        for numbers in _of_the_same_data(table, kind):
            distinct = {seeds_of(table.runs[number]): number for number in reversed(numbers)}
            repeated += len(numbers) - len(distinct)
            chosen.append([distinct[seeds] for seeds in sorted(distinct)])
    if all(len(numbers) == 1 for numbers in chosen):
        return None
    first = [table.runs[numbers[0]] for numbers in chosen]
    rows = []
    for place, (numbers, differing) in enumerate(zip(chosen, settings_that_differ(first), strict=True)):
        told = {key: value for key, value in differing.items() if not SEED.match(key)}
        row = dict(table.rows[numbers[0]]) | {"number": float(place), "settings": settings_text(told)}
        rows.append(row | {"name": _name(table, numbers), "seed": None, **_figures(table, numbers)})
    columns = [column for column in table.columns if column.key not in ("seed", "seconds", "gain_interval")]
    notes = [*table.notes, *_notes(table, chosen, repeated)]
    return Table(first, [*columns, SEEDS], rows, [], table.radius, notes, averaged=True)


def _of_the_same_data(table: Table, numbers: Sequence[int]) -> list[list[int]]:
    """Return runs of one kind in parts whose data differ by their split alone: another copy of a set is another set."""
    fingerprints = {number: str(table.runs[number].summary.get("data_fingerprint")) for number in numbers}
    by_split: dict[int, set[str]] = {}
    for number in numbers:
        by_split.setdefault(seeds_of(table.runs[number])[1], set()).add(fingerprints[number])
    if all(len(found) == 1 for found in by_split.values()):
        return [list(numbers)]
    return [[number for number in numbers if fingerprints[number] == one] for one in sorted(set(fingerprints.values()))]


def kind_of(run: ComparedRun) -> str:
    """Return what runs must share to be averaged: everything that decides their numbers, seeds aside."""
    settings = {key: value for key, value in run.identity.items() if key not in NO_PART and not SEED.match(key)}
    facts = [run.summary.get(key) for key in ("data", "metric", "defense", "num_images")]
    return json.dumps([facts, run.attacks, settings], sort_keys=True, default=str)


def seeds_of(run: ComparedRun) -> tuple[int, int]:
    """Return a run's seed, and the one that its data set was split by."""
    seeds = (run.identity.get(key) for key in ("seed", "data.split_seed"))
    seed, split = (value if isinstance(value, int) else 0 for value in seeds)
    return seed, split


def _name(table: Table, numbers: Sequence[int]) -> str:
    names = {str(table.runs[number].summary.get("name") or table.runs[number].key) for number in numbers}
    return names.pop() if len(names) == 1 and len(numbers) > 1 else table.runs[numbers[0]].key


def _figures(table: Table, numbers: Sequence[int]) -> dict[str, Value]:
    """Return mean and deviation of every figure; none where a run lacks it, as a mean of the others would mislead."""
    seeds = [seeds_of(table.runs[number]) for number in numbers]
    splits = len({split for _, split in seeds}) > 1
    images = {hash(table.runs[number].images) for number in numbers}
    found: dict[str, Value] = {
        "seeds": ", ".join(f"{seed} (split {split})" if splits else str(seed) for seed, split in seeds),
        "over": f"{sorted(seeds)} {sorted(images)}",
    }
    for column in table.columns:
        if column.group not in (QUALITY, CERTIFIED, ATTACKED) or not column.is_number:
            continue
        values = [table.rows[number].get(column.key) for number in numbers]
        known = [value for value in values if isinstance(value, float)]
        found[column.key] = Spread.of(known) if len(known) == len(values) else None
    return found


def _notes(table: Table, chosen: Sequence[Sequence[int]], repeated: int) -> list[str]:
    notes = [
        "Cells with ± are the mean and the standard deviation (ddof 1) over the seeds listed; others are of one run. "
        "The seed decides the noise, and the training of runs that trained. Bold is the best mean of the rows of its "
        "block over the same seeds, without a test."
    ]
    if any(column.group == CERTIFIED for column in table.columns):
        notes.append(
            "Certified columns are means of figures that are proven each for its own smoothed metric; a mean of them "
            "certifies nothing."
        )
    if any(len({table.runs[number].images for number in numbers}) > 1 for numbers in chosen):
        notes.append("Some rows are over splits that differ: their seeds scored different images.")
    if repeated:
        notes.append(f"{plural(repeated)} with a seed that was there already left out of the means.")
    return notes


def seeds_to_csv(table: Table) -> str:
    """Return the averaged rows with a mean, a deviation and the number of seeds for every figure."""
    with io.StringIO(newline="") as buffer:
        names = ["run"]
        for column in table.columns:
            at = f"certified.{column.key}@{table.radius:g}" if column.group == CERTIFIED else column.key
            names += [f"{at}.mean", f"{at}.sd"] if column.group in (QUALITY, CERTIFIED, ATTACKED) else [at]
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        for row in table.rows:
            cells: list[Value] = [row["name"]]
            for column in table.columns:
                value = row.get(column.key)
                cells.append(value)
                if column.group in (QUALITY, CERTIFIED, ATTACKED):
                    cells.append(value.sd if isinstance(value, Spread) and np.isfinite(value.sd) else None)
            writer.writerow(map(safe_cell, cells))
        return buffer.getvalue()
