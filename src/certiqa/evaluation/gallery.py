"""``gallery.json``: which pictures of a run's images its report shows, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from certiqa.storage.files import DamagedFileError, read_json, write_json

FILE = "gallery.json"


def read_gallery(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's gallery: "image_id", and "panels" that each have a "label" and a "file".

    None where it is damaged: the run makes the pictures again, and a report does without.
    """
    try:
        entries = read_json(folder / FILE, list) or []
    except DamagedFileError:
        return []
    return entries if all(map(_is_whole, entries)) else []


def write_gallery(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write the entries of a run's gallery."""
    write_json(folder / FILE, entries)


def _is_whole(entry: Any) -> bool:
    panels = entry.get("panels") if isinstance(entry, dict) else None
    if not isinstance(panels, list) or not isinstance(entry.get("image_id"), str):
        return False
    return all(isinstance(panel, dict) and {"label", "file"} <= panel.keys() for panel in panels)
