"""The lines of ``records/rank-K.jsonl``, and which of them are not what was written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certiqa.storage.sealed import unseal

NO_ATTACK = "none"
INTERVALS = (("lower", "upper"), ("joint_lower", "joint_upper"), ("median_lower", "median_upper"))
"""Columns of intervals around the score."""
NUMBERS = ("score", "score_clean", "mos", "radius", *(end for interval in INTERVALS for end in interval))

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line: its bytes with the newline, and its rows, which are None where it is damaged or was cut short."""

    content: bytes
    rows: list[Row] | None


def read_files(folder: str | Path) -> dict[Path, list[Line]]:
    """Read the lines of all ranks of a run, by file."""
    paths = sorted((Path(folder) / "records").glob("rank-*.jsonl"))
    return {path: _lines(path.read_bytes()) for path in paths}


def read_lines(folder: str | Path) -> list[Row]:
    """Read the rows of all ranks of a run; lines that are damaged, or cut short by a kill, are left out."""
    return [row for lines in read_files(folder).values() for line in lines for row in line.rows or ()]


def _lines(content: bytes) -> list[Line]:
    *whole, cut = content.split(b"\n")
    lines = [_line(part + b"\n") for part in whole]
    return [*lines, Line(cut, None)] if cut else lines


def _line(content: bytes) -> Line:
    try:
        rows = unseal(content)
    except ValueError:
        rows = _unsealed(content)
    return Line(content, rows if _of_one_image(rows) else None)


def _unsealed(content: bytes) -> Any:
    """Return the rows of a line from before there were checksums; None where they show that it is not whole."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    rows = [found] if isinstance(found, dict) else found
    return rows if _of_one_image(rows) and all(_in_order(row) for row in rows) else None


def _of_one_image(rows: Any) -> bool:
    """Return whether these are the rows of one image, under one attack or as it is."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return False
    keys = [(row.get("image_id"), row.get("attack")) for row in rows]
    return all(isinstance(part, str) for part in keys[0]) and all(key == keys[0] for key in keys)


def _in_order(row: Row) -> bool:
    """Return whether the numbers are numbers, and the score is inside its intervals."""
    values = {name: row.get(name) for name in NUMBERS}
    if not all(value is None or isinstance(value, int | float) for value in values.values()):
        return False
    known = {name: value for name, value in values.items() if value is not None}
    score = known.get("score", math.nan)  # none: the image could not be scored, and no comparison finds it wrong
    return not any(known.get(low, score) > score or known.get(high, score) < score for low, high in INTERVALS)


def has_radii(rows: Sequence[Row], radii: Sequence[float]) -> bool:
    """Return whether there is one row for every radius, or one without a radius where there are none.

    That holds of an image as it is; attacked ones, and those that could not be read, have one row.
    """
    single = rows[0]["attack"] != NO_ATTACK or rows[0].get("skipped") or not radii
    found: list[Any] = [row.get("radius") for row in rows]
    return found == [None] if single else None not in found and sorted(map(float, found)) == sorted(radii)
