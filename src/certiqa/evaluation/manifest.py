"""``attacked/manifest.csv``: which picture of an attacked image is of which image and attack."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from certiqa.storage.csv_cells import safe_cell
from certiqa.storage.files import write_aside

COLUMNS = ("file", "attack", "image_id")


def write_manifest(folder: Path, table: pd.DataFrame) -> None:
    """Write the manifest of the pictures that a run's records name, unless that is what it holds.

    Args:
        folder: the run's.
        table: its records, as ``to_table`` returns them.

    Raises:
        OSError: it cannot be written.
    """
    if "attacked_path" not in table or not (pictured := table[table["attacked_path"].notna()]).size:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in pictured[["attacked_path", "attack", "image_id"]].itertuples(index=False):
        writer.writerow(map(safe_cell, row))
    path, content = folder / "attacked" / "manifest.csv", text.getvalue().encode()
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(exist_ok=True)
        with write_aside(path) as partial:
            partial.write_bytes(content)
