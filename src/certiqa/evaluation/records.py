"""Per-image records: appended and synced while a run goes on, compiled to one parquet file at its end."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from certiqa.errors import UserError
from certiqa.evaluation.identity import OtherRunError, check_identity, write_identity
from certiqa.evaluation.manifest import write_manifest
from certiqa.evaluation.record_lines import NO_ATTACK, Line, Row, has_radii, read_files, read_lines
from certiqa.storage.files import write_aside
from certiqa.storage.sealed import seal

FORMAT = 2  # of a line in records/
KEY = ("image_id", "attack", "radius")
COLUMNS = (
    *("image_id", "path", "digest", "reference_id", "mos", "mos_normalised"),
    *("score_clean", "score", "lower", "upper", "joint_lower", "joint_upper", "median_lower", "median_upper"),
    *("radius", "radius_at_noise", "sigma", "num_samples", "confidence", "joint_confidence", "abstained"),
    *("stop", "randomised", "failure", "skipped"),
    *("attack", "score_attacked", "linf", "l2", "psnr", "ssim"),
)
"""Columns every records file has, empty where they do not apply; a part of the run may add more."""

log = logging.getLogger(__name__)


class RecordStore:
    """The records of one run: ``records/rank-K.jsonl`` while it goes on, ``records.parquet`` at the end.

    A line holds all rows (one per radius) of one image with their checksum, and is synced before the next image
    starts, so a killed run loses at most the image under way. When the first rank opens the records it drops a line
    that was cut short, and lines that are damaged or do not belong to the set, which it logs: their images count as
    not recorded, and are made again.

    Args:
        folder: the run's folder.
        rank: the process's rank; each writes its own file.
        identity: everything that decides the numbers, by name. Records made with another one are refused.
        images: digest of the file by image id, of the whole set; None where that is not known. A record of an image
            whose file has changed since is refused.
        radii: of every image's certificate, empty without; None where that is not known.

    Raises:
        OtherRunError: if the records there were made with another identity or of other images, naming the differences.
    """

    def __init__(
        self,
        folder: str | Path,
        rank: int = 0,
        identity: Mapping[str, Any] | None = None,
        *,
        images: Mapping[str, str] | None = None,
        radii: Sequence[float] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records" / f"rank-{rank}.jsonl"
        self.images = images
        self.radii = radii
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if identity is not None and not check_records(folder, identity, images) and rank == 0:
                write_identity(folder, {"format": FORMAT, **identity})
            if identity is None and (said := changed_images(folder, read_lines(folder), images)):
                raise OtherRunError(said)
            files = {
                path: [line for line in lines if line.rows and self._belongs(line.rows)]
                for path, lines in read_files(folder).items()
            }
            if rank == 0:
                for path, lines in files.items():
                    self._keep(path, lines)
        except OSError as error:
            raise UserError(
                f"cannot write records to '{self.path}': {error}; free space or choose another folder"
            ) from error
        kept = [line.rows[0] for lines in files.values() for line in lines if line.rows]
        self._done = {(row["image_id"], row["attack"]) for row in kept}

    def _belongs(self, rows: Sequence[Row]) -> bool:
        known = self.images is None or rows[0]["image_id"] in self.images
        return known and (self.radii is None or has_radii(rows, self.radii))

    def _keep(self, path: Path, lines: Sequence[Line]) -> None:
        """Drop from a file what is not among ``lines``, and log what was more than cut short."""
        before = path.read_bytes()
        if before == (content := b"".join(line.content for line in lines)):
            return
        with write_aside(path) as partial:
            partial.write_bytes(content)
        if damaged := before.count(b"\n") - len(lines):
            said = "1 damaged record in %s is" if damaged == 1 else f"{damaged} damaged records in %s are"
            log.warning(f"{said} made again", path)

    def __contains__(self, image_id: str) -> bool:
        return (image_id, NO_ATTACK) in self._done

    def has(self, image_id: str, attack: str) -> bool:
        """Return whether this image is recorded under this attack."""
        return (image_id, attack) in self._done

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of one finished image durably.

        Raises:
            UserError: the disk refuses, or the image's file changed while the run went on.
        """
        rows = [{"attack": NO_ATTACK, **row} for row in rows]
        if said := changed_images(self.folder, rows, self.images):
            raise UserError(said)
        try:
            with open(self.path, "ab") as file:
                file.write(seal(rows) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot append to '{self.path}': {error}; earlier records are safe, free space and run again"
            ) from error
        self._done.update((row["image_id"], row["attack"]) for row in rows)

    def compile(self) -> pd.DataFrame:
        """Merge all ranks into ``records.parquet``, sorted by key, and return the table."""
        return compile_records(self.folder)


def check_records(
    folder: str | Path,
    identity: Mapping[str, Any],
    images: Mapping[str, str] | None = None,
    unknown: Collection[str] = (),
) -> bool:
    """Return whether a folder's records are known to be of this identity and these images; False where there are none.

    Args:
        folder: the run's; nothing in it is changed.
        identity: everything that decides the numbers, by name.
        images: digest of the file by image id, as ``RecordStore`` takes them.
        unknown: names in ``identity`` that cannot be told yet.

    Raises:
        OtherRunError: they are another run's, or do not say whose.
    """
    known = check_identity(folder, {"format": FORMAT, **identity}, unknown)
    rows = read_lines(folder)
    place = Path(folder) / "records"
    if rows and not known:
        raise OtherRunError(
            f"the records in '{place}' do not say how they were made (another version of certiqa wrote them); set "
            "fresh=true to start over, the old ones are kept aside"
        )
    if said := changed_images(folder, rows, images):
        raise OtherRunError(said)
    return known


def changed_images(folder: str | Path, rows: Iterable[Mapping[str, Any]], images: Mapping[str, str] | None) -> str:
    """Return what to say of rows of other images than those, which have the same ids; empty where there are none.

    Old records do not say which image it was.
    """
    then = {row["image_id"]: row["digest"] for row in rows if row.get("digest") is not None}
    now = images or {}
    changed = sorted(name for name in then if now.get(name, then[name]) != then[name])
    if not changed:
        return ""
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return (
        f"the records in '{Path(folder) / 'records'}' were made of other images: '{changed[0]}'{more} changed since. "
        "Undo the change, or set fresh=true to start over (the old records are kept aside)"
    )


def compile_records(folder: str | Path) -> pd.DataFrame:
    """Merge the lines of all ranks into ``records.parquet``, sorted by key, unless that is what it holds.

    So is the manifest of attacked images that were kept as pictures.

    Returns:
        the table.
    """
    table = to_table(read_lines(folder))
    path = Path(folder) / "records.parquet"
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, write_page_checksum=True)
    try:
        if not path.is_file() or path.read_bytes() != buffer.getvalue():
            with write_aside(path) as partial:
                partial.write_bytes(buffer.getvalue())
        write_manifest(Path(folder), table)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error}; the records themselves are safe in records/, free space and run again"
        ) from error
    return table


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
    """Read a run's records: the compiled file, or what a run that goes on, or was cut short, has by now.

    Raises:
        UserError: there are none, or none that can be read.
    """
    folder = Path(folder)
    compiled = folder / "records.parquet"
    newest = max((path.stat().st_mtime_ns for path in folder.glob("records/rank-*.jsonl")), default=0)
    rows: list[Row] = []
    if not compiled.is_file() or compiled.stat().st_mtime_ns < newest:
        rows = read_lines(folder)
    if not rows and compiled.is_file():
        try:
            return pd.read_parquet(compiled, page_checksum_verification=True)
        except Exception as error:  # a damaged file raises nearly anything
            rows = read_lines(folder)
            if not rows:
                raise UserError(f"'{compiled}' is damaged, and there are no records/ to make it of") from error
    if not rows:
        raise UserError(f"no records in '{folder}'; give the folder of a run, e.g. outputs/train/<name>")
    return to_table(rows)


def lacking(
    table: pd.DataFrame, images: Collection[str], radii: Sequence[float] = (), attacks: Iterable[str] = ()
) -> list[str]:
    """Return the images that are not recorded as a finished run records them, in order of their ids.

    Args:
        table: records as ``to_table`` returns them.
        images: ids of the whole set; one that is recorded and not among them counts too.
        radii: of every image's certificate, empty without.
        attacks: names of the attacks, which images that could not be scored as they are need not have met.
    """
    clean = table[table["attack"] == NO_ATTACK]
    wanted = sorted(radii) if len(radii) else [None]
    found: dict[str, list[float | None]] = {}
    for image_id, radius in zip(clean["image_id"], clean["radius"], strict=True):
        found.setdefault(image_id, []).append(None if math.isnan(radius) else radius)
    unread = set(clean[clean["skipped"].notna()]["image_id"])
    whole = {image_id for image_id, rows in found.items() if image_id in unread or rows == wanted}
    unscored = unread | set(clean[clean["failure"].notna()]["image_id"])
    for attack in attacks:
        whole &= unscored | set(table[table["attack"] == attack]["image_id"])
    return sorted({*images, *found} - (whole & set(images)))


def plain(value: float | None) -> float | None:
    """Return a float that JSON can carry: None for NaN, infinities kept (Python's json reads them back)."""
    return None if value is None or math.isnan(value) else float(value)
