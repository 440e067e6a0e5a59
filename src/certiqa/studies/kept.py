"""What a study keeps on disk: attacked images by id and the records of its parts, each named after what decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import fingerprint
from certiqa.storage.files import write_aside


def mark(metric: QualityMetric, data_fingerprint: str, *settings: Any) -> str:
    """Return eight hexadecimal digits of a metric's weights, purifier included, of the data and of settings."""
    text = f"{fingerprint(metric)} {data_fingerprint} {json.dumps(settings, sort_keys=True, default=str)}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def file_of(folder: Path, image_id: str) -> Path:
    """Return the file of an image, whose id may be no name for a file."""
    digest = hashlib.blake2b(image_id.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return folder / f"{digest}.npy"


def keep(folder: Path, ids: Sequence[str], values: Tensor) -> None:
    """Write attacked images, one file each."""
    for image_id, value in zip(ids, values.cpu().numpy(), strict=True):
        with written(file_of(folder, image_id), durable=False) as partial, open(partial, "wb") as file:
            np.save(file, value)


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


@contextmanager
def written(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to that becomes ``path`` in the end; raises UserError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path, durable=durable) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; finished parts are safe, free space and run again") from error
