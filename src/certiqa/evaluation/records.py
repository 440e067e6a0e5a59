"""Per-image records: appended and synced while a run goes on, compiled to one parquet file at its end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from certiqa.errors import UserError
from certiqa.storage.files import write_aside

FORMAT = 2  # of a line in records/
KEY = ("image_id", "attack", "radius")
NO_ATTACK = "none"
COLUMNS = (
    *("image_id", "path", "reference_id", "mos", "mos_normalised"),
    *("score_clean", "score", "lower", "upper", "joint_lower", "joint_upper", "median_lower", "median_upper"),
    *("radius", "radius_at_noise", "sigma", "num_samples", "confidence", "joint_confidence", "abstained"),
    *("stop", "randomised", "failure", "skipped"),
    *("attack", "score_attacked", "linf", "l2", "psnr", "ssim"),
)
"""Columns every records file has, empty where they do not apply; a part of the run may add more."""


class RecordStore:
    """The records of one run: ``records/rank-K.jsonl`` while it goes on, ``records.parquet`` at the end.

    A line holds all rows (one per radius) of one image and is synced before the next image starts, so a killed run
    loses at most the image under way; a line that was cut short is dropped when the file is opened again.

    Args:
        folder: the run's folder.
        rank: the process's rank; each writes its own file.
        identity: everything that decides the numbers, by name. Records made with another one are refused.

    Raises:
        UserError: if the records there were made with another identity, naming the differences.
    """

    def __init__(self, folder: str | Path, rank: int = 0, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records" / f"rank-{rank}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_cut_line()
            if identity is not None:
                self._check_identity({"format": FORMAT, **identity}, write=rank == 0)
        except OSError as error:
            raise UserError(
                f"cannot write records to '{self.path}': {error}; free space or choose another folder"
            ) from error
        self._done = {(row["image_id"], row["attack"]) for row in read_lines(self.folder)}

    def _check_identity(self, identity: Mapping[str, Any], *, write: bool) -> None:
        path = self.folder / "records" / "identity.json"
        now = json.loads(json.dumps(identity, default=str))
        if not path.is_file():
            if read_lines(self.folder):
                raise UserError(
                    f"the records in '{path.parent}' do not say how they were made (another version of certiqa wrote "
                    "them); set fresh=true to start over, the old ones are kept aside"
                )
            if write:
                with write_aside(path) as partial:
                    partial.write_text(json.dumps(now, indent=1), encoding="utf-8")
            return
        then = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        if changed:
            listed = "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise UserError(
                f"the records in '{path.parent}' were made otherwise: {listed}{more}. Undo the change, or set "
                "fresh=true to start over (the old records are kept aside)"
            )

    def _drop_cut_line(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(whole)

    def __contains__(self, image_id: str) -> bool:
        return (image_id, NO_ATTACK) in self._done

    def has(self, image_id: str, attack: str) -> bool:
        """Return whether this image is recorded under this attack."""
        return (image_id, attack) in self._done

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of one finished image durably; raises UserError where the disk refuses."""
        rows = [{"attack": NO_ATTACK, **row} for row in rows]
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot append to '{self.path}': {error}; earlier records are safe, free space and run again"
            ) from error
        self._done.update((row["image_id"], row["attack"]) for row in rows)

    def compile(self) -> pd.DataFrame:
        """Merge all ranks into ``records.parquet``, sorted by key, and return the table."""
        table = to_table(read_lines(self.folder))
        path = self.folder / "records.parquet"
        try:
            with write_aside(path) as partial:
                table.to_parquet(partial, index=False)
        except OSError as error:
            raise UserError(
                f"cannot write '{path}': {error}; the records themselves are safe in records/, free space and run again"
            ) from error
        return table


def read_lines(folder: str | Path) -> list[dict[str, Any]]:
    """Read the rows of all ranks of a run; a line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    for path in sorted((Path(folder) / "records").glob("rank-*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                found = json.loads(line) if line else []
            except json.JSONDecodeError:
                continue
            rows += found if isinstance(found, list) else [found]
    return rows


def to_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with all ``COLUMNS``, one row per key, sorted by key."""
    table = pd.DataFrame(rows)
    extra = [column for column in table.columns if column not in COLUMNS]
    table = table.reindex(columns=[*COLUMNS, *extra])
    for column in ("score", "lower", "upper", "joint_lower", "joint_upper", "radius", "mos", "score_clean"):
        table[column] = table[column].astype(float)
    table = table.drop_duplicates(subset=list(KEY), keep="first")
    return table.sort_values(list(KEY), kind="stable").reset_index(drop=True)


def read_records(folder: str | Path) -> pd.DataFrame:
    """Read a run's records: the compiled file, or what a run that goes on, or was cut short, has by now."""
    folder = Path(folder)
    compiled = folder / "records.parquet"
    newest = max((path.stat().st_mtime_ns for path in folder.glob("records/rank-*.jsonl")), default=0)
    if compiled.is_file() and compiled.stat().st_mtime_ns >= newest:
        return pd.read_parquet(compiled)
    rows = read_lines(folder)
    if not rows:
        raise UserError(f"no records in '{folder}'; give the folder of a run, e.g. outputs/train/<name>")
    return to_table(rows)


def plain(value: float | None) -> float | None:
    """Return a float that JSON can carry: None for NaN, infinities kept (Python's json reads them back)."""
    return None if value is None or math.isnan(value) else float(value)
