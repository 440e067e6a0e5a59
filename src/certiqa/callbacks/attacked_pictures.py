"""Attacked images as pictures: in the report's gallery, and as PNGs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from certiqa.callbacks.gallery import save_picture
from certiqa.errors import UserError
from certiqa.evaluation.gallery import read_gallery, write_gallery
from certiqa.evaluation.records import plain
from certiqa.metrics import QualityMetric


def show(
    folder: Path, metric: QualityMetric, images: Tensor, attacked: Tensor, facts: Sequence[dict[str, Any]]
) -> None:
    """Add attacked pictures and ten times their difference to the report's gallery, where it shows the image.

    Args:
        folder: the run's.
        metric: whose scores stand below the pictures.
        images: clean ones, ``(N, 3, H, W)``.
        attacked: the same, attacked.
        facts: "image_id" and "attack" of each.
    """
    entries = read_gallery(folder)
    places = {row["image_id"]: place for place, row in enumerate(facts)}
    for number, entry in enumerate(entries):
        place = places.get(entry["image_id"])
        if place is None:
            continue
        label, picture = facts[place]["attack"], attacked[place]
        if any(panel["label"] == label for panel in entry["panels"]):
            continue
        difference = (0.5 + 10 * (picture - images[place])).clamp(0, 1)
        score = plain(float(metric(picture[None])[0]))
        for name, shown, value in ((label, picture, score), (f"{label}, x10", difference, None)):
            file = f"gallery/{number}-{file_name(name)}.png"
            save_picture(folder / file, shown)
            entry["panels"].append({"label": name, "file": file, "score": value})
    if entries:
        write_gallery(folder, entries)


def save(folder: Path, image: Tensor, label: str, image_id: str) -> str:
    """Write one attacked image ``(3, H, W)`` as PNG; returns its path in the run's folder.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / "attacked" / file_name(label) / picture_name(image_id)
    try:
        save_picture(path, image)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; free space, or attack.save_images=false") from error
    return str(path.relative_to(folder))


def picture_name(image_id: str) -> str:
    """Return the PNG's name of an image, its own: where the id is no file's name, with a hash of it."""
    name = re.sub(r"[^\w.-]+", "_", image_id).removesuffix(".png")[:100]
    if f"{name}.png" != image_id:
        digest = hashlib.blake2b(image_id.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        name = f"{name}-{digest}"
    return f"{name}.png"


def file_name(label: str) -> str:
    """Return a label as part of a file's name: ``ifgsm (transfer)`` -> ``ifgsm_transfer``."""
    return re.sub(r"\W+", "_", label).strip("_")
