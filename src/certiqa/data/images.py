"""Data sets of images with opinion scores, and the items they yield."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from certiqa.errors import UserError


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: unique, the path relative to the data set's folder.
        path: the file.
        mos: opinion score in native units, None where there is none.
        reference_id: the pristine image it was made from; None where there is none.
    """

    image_id: str
    path: Path
    mos: float | None
    reference_id: str | None = None


class ImageDataset(Dataset[dict[str, Any]]):
    """Images with opinion scores: item -> ``image (3, H, W)`` float32 in [0, 1], ``mos``, ``mos_normalised``, ids.

    Args:
        records: what it holds; ids must be unique.
        mos_range: scale of the opinion scores in native units; None where there are no scores.
        name: what tables call it.
        fingerprint: changes when an image or a label does.
        mos_kind: "MOS" or "pseudo-MOS", said wherever correlations are shown; "none" where there are no scores.
        mos_lower_better: native scores are better the lower they are, as a DMOS is; normalised ones never are.
        notes: what whoever reads results on it must know, one sentence each.

    Raises:
        UserError: for a duplicate id or an opinion score outside its scale.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        *,
        mos_range: tuple[float, float] | None,
        name: str,
        fingerprint: str,
        mos_kind: str = "MOS",
        mos_lower_better: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.records = list(records)
        self.mos_range = mos_range
        self.name = name
        self.fingerprint = fingerprint
        self.mos_kind = mos_kind
        self.mos_lower_better = mos_lower_better
        self.notes = tuple(notes)
        self._sizes: list[tuple[int, int]] | None = None
        seen: set[str] = set()
        low, high = mos_range or (-math.inf, math.inf)
        for record in self.records:
            if record.image_id in seen:
                raise UserError(f"image id '{record.image_id}' occurs twice in data set '{name}'; ids key the noise")
            seen.add(record.image_id)
            if record.mos is not None and not low <= record.mos <= high:
                raise UserError(
                    f"opinion score {record.mos} of '{record.image_id}' is outside the scale {low}..{high} of '{name}'"
                )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        mos = math.nan if record.mos is None else record.mos
        return {
            "image": to_tensor(read_image(record.path)),
            "mos": mos,
            "mos_normalised": self.normalised(mos),
            "image_id": record.image_id,
            "reference_id": record.reference_id or "",
            "path": str(record.path),
        }

    def normalised(self, mos: float) -> float:
        """Return an opinion score in [0, 1], higher = better; NaN where there is no scale."""
        if self.mos_range is None:
            return math.nan
        low, high = self.mos_range
        share = (mos - low) / (high - low)
        return 1 - share if self.mos_lower_better else share

    @property
    def has_opinions(self) -> bool:
        """Whether every image has an opinion score."""
        return all(record.mos is not None for record in self.records)

    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of every image, from the files' headers; read once."""
        if self._sizes is None:
            self._sizes = [image_size(record.path) for record in self.records]
        return self._sizes

    def subset(self, ids: Iterable[str]) -> ImageDataset:
        """Return the data set of these image ids, in this order."""
        by_id = {record.image_id: record for record in self.records}
        return ImageDataset(
            [by_id[name] for name in ids],
            mos_range=self.mos_range,
            name=self.name,
            fingerprint=self.fingerprint,
            mos_kind=self.mos_kind,
            mos_lower_better=self.mos_lower_better,
            notes=self.notes,
        )


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file without decoding it; raises UserError naming an unreadable file."""
    with _opened(path) as image:
        return image.height, image.width


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB uint8 ``(H, W, 3)``; raises UserError naming an unreadable file."""
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"no image at '{path}'; is the data set complete?") from error
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"cannot read the image '{path}': {error}; replace the file") from error


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return ``(H, W, 3)`` uint8 pixels as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div_(255)
