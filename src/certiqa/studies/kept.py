"""What a study keeps on disk: attacked images by id and the records of its parts, each named after what decides it."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import fingerprint
from certiqa.storage.files import DamagedFileError, read_json, write_aside

FACTS = ("score_range", "lower_better", "hard_bounds", "backward", "seed")
"""What decides an attack on a metric, defended or not, beside its weights."""
COMPLETE = "complete"


def mark(metric: QualityMetric, data_fingerprint: str, *settings: Any) -> str:
    """Return eight hexadecimal digits of a metric, purifier included, of the data and of settings."""
    metrics = [module for module in metric.modules() if isinstance(module, QualityMetric)]
    facts = [[getattr(module, name, None) for name in FACTS] for module in metrics]
    text = f"{fingerprint(metric)} {data_fingerprint} {json.dumps(described([settings, facts]), sort_keys=True)}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def described(value: Any) -> Any:
    """Return what decides a result, as JSON carries it: the options of objects and their parts, functions by name.

    Raises:
        UserError: a function without a name of its own, which another one could be taken for.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if name := getattr(value, "__qualname__", None):
        if "<" in name:
            raise UserError(
                f"a study keeps its parts by what made them, and '{name}' in {value.__module__} has no name of its "
                "own; define the function at the top of a module"
            )
        return f"{value.__module__}.{name}"
    if not hasattr(value, "__dict__"):
        return str(value)
    public = {key: part for key, part in vars(value).items() if not key.startswith("_")}  # the rest is state
    weights = fingerprint(value) if isinstance(value, nn.Module) else None
    return [type(value).__qualname__, weights, described(public)]


def file_of(folder: Path, image_id: str) -> Path:
    """Return the file of an image, whose id may be no name for a file."""
    digest = hashlib.blake2b(image_id.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return folder / f"{digest}.npy"


def keep(folder: Path, ids: Sequence[str], values: Tensor) -> None:
    """Write attacked images, one file each, with a checksum behind the array."""
    for image_id, value in zip(ids, values.cpu().numpy(), strict=True):
        content = io.BytesIO()
        np.save(content, value)
        with written(file_of(folder, image_id)) as partial:
            partial.write_bytes(content.getvalue() + _checksum(content.getvalue()))


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "big")


def is_kept(path: Path) -> bool:
    """Return whether an attacked image is there as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) > 4 and content[-4:] == _checksum(content[:-4])


def all_kept(folder: Path) -> bool:
    """Return whether all images of an attack were made and are still there."""
    try:
        said = read_json(folder / COMPLETE, dict) or {}
    except DamagedFileError:  # also of older versions, which left it empty
        return False
    kept = [path for path in folder.glob("*.npy") if is_kept(path)]
    return len(kept) == said.get("num_images")


def mark_complete(folder: Path) -> None:
    """Note that all images of an attack were made."""
    with written(folder / COMPLETE) as partial:
        partial.write_text(json.dumps({"num_images": len(list(folder.glob("*.npy")))}), encoding="utf-8")


def replayed(folder: Path, ids: Sequence[str], images: Tensor) -> Tensor:
    """Return the attacked images that were kept under ``ids``, on the device of ``images``."""
    values = torch.from_numpy(np.stack([np.load(file_of(folder, image_id)) for image_id in ids]))
    if values.shape != images.shape:
        raise UserError(f"the images in '{folder}' are of another size than those of the data set; remove that folder")
    return values.to(images) / 255 if values.dtype == torch.uint8 else values.to(images)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a part's records at once or not at all."""
    with written(path) as partial:
        table.to_parquet(partial, index=False)


def saved(path: Path, columns: Collection[str]) -> pd.DataFrame | None:
    """Return a part's records, None where they are missing or damaged and have to be made."""
    try:
        table = pd.read_parquet(path)
    except Exception:  # a damaged file raises nearly anything
        return None
    return table if {*columns} <= {*table} else None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes ``path`` in the end; raises UserError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; finished parts are safe, free space and run again") from error
