"""Data sets of images with opinion scores, and the items they yield."""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from certiqa.data.reading import (
    Resize,
    Size,
    UnreadableError,
    check_resize,
    image_header,
    read_image,
    require_memory,
)
from certiqa.data.tables import first_three
from certiqa.errors import UserError
from certiqa.storage.digests import content_digest, content_digests

ON_ERROR = ("raise", "skip")
SCORING_BYTES = 100
"""The memory that a pixel takes at least where a network scores it: the image, a noisy copy, a first layer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: unique, the path relative to the data set's folder.
        path: the file.
        mos: opinion score in native units, None where there is none.
        reference_id: the pristine image it was made from, or the prompt; None where there is none. Images that share it
            stay in one split.
        prepared: a resized copy in the cache that is read in its place, see ``certiqa.data.shrunk``; None without.
        source: the data set of a union that it is of, see ``certiqa.data.union``; empty where there is but one.
    """

    image_id: str
    path: Path
    mos: float | None
    reference_id: str | None = None
    prepared: Path | None = None
    source: str = ""


class ImageDataset(Dataset[dict[str, Any]]):
    """Images with opinion scores: item -> ``image (3, H, W)`` float32 in [0, 1], ``mos``, ``mos_normalised``, ids,
    and the ``digest`` of the file.

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
        self.resize: Resize = None
        self.resize_filter = "bicubic"
        self.on_error = "raise"
        self.least_sides: Size | None = None
        self._sizes: list[Size | None] | None = None
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
        pixels = read_image(record.prepared or record.path, self.resize, self.resize_filter)
        self._require_scorable(record, (pixels.shape[0], pixels.shape[1]))
        return {"image": to_tensor(pixels), **self.facts(index)}

    def facts(self, index: int) -> dict[str, Any]:
        """Return what is known of an image without decoding it."""
        record = self.records[index]
        mos = math.nan if record.mos is None else record.mos
        return {
            "mos": mos,
            "mos_normalised": self.normalised(mos),
            "image_id": record.image_id,
            "reference_id": record.reference_id or "",
            "source": record.source,
            "path": str(record.path),
            "digest": content_digest(record.path),
        }

    def digests(self) -> dict[str, str]:
        """Return what the file of every image holds, as a digest, by image id; empty where it cannot be read."""
        found = content_digests([record.path for record in self.records])
        return dict(zip((record.image_id for record in self.records), found, strict=True))

    def normalised(self, mos: float) -> float:
        """Return an opinion score in [0, 1], higher = better; NaN where there is no scale."""
        if self.mos_range is None:
            return math.nan
        low, high = self.mos_range
        share = (mos - low) / (high - low)
        return 1 - share if self.mos_lower_better else share

    @property
    def sources(self) -> dict[str, int]:
        """How many images there are of each data set of a union, in the order of the list."""
        return dict(Counter(record.source for record in self.records))

    @property
    def has_opinions(self) -> bool:
        """Whether every image has an opinion score."""
        return all(record.mos is not None for record in self.records)

    def sizes(self) -> list[Size]:
        """Return (height, width) of every image whose header can be read; see ``sizes_or_none``."""
        return [size for size in self.sizes_or_none() if size is not None]

    def sizes_or_none(self) -> list[Size | None]:
        """Return (height, width) of every image, from the files' headers; read once.

        A header that cannot be read, or an image below ``at_least``, gives None where ``on_error`` is "skip".

        Raises:
            UserError: naming the first such file where it is "raise", or if there is no other.
        """
        if self._sizes is None:
            moving: list[str] = []
            sizes = [self._size(record, moving) for record in self.records]
            if moving:
                log.warning("of %d images that move the first frame counts: %s", len(moving), first_three(moving))
            if sizes and not any(sizes):
                least = self.least_sides or (1, 1)
                needed = "" if least == (1, 1) else f" at {_by(least)} pixels or more"
                raise UserError(
                    f"none of the {len(sizes)} images of data set '{self.name}' can be read{needed}, the first of them "
                    f"'{self.records[0].path}'; is the data set complete?"
                )
            self._sizes = sizes
        return self._sizes

    def _size(self, record: ImageRecord, moving: list[str]) -> Size | None:
        try:
            header = image_header(record.prepared or record.path, self.resize)
            self._require_scorable(record, header.size)
            if header.is_animated:
                moving.append(record.image_id)
            return header.size
        except UnreadableError as error:
            if self.on_error == "raise":
                raise UnreadableError(f"{error}, or pass over such images with data.on_error=skip") from error
            log.warning("%s (skipped)", error)
            return None

    def _require_scorable(self, record: ImageRecord, size: Size) -> None:
        if self.least_sides is None:
            return
        require_memory(record.path, size, SCORING_BYTES)
        if size[0] < self.least_sides[0] or size[1] < self.least_sides[1]:
            raise UnreadableError(
                f"the image '{record.path}' is {_by(size)} pixels, smaller than the {_by(self.least_sides)} that it "
                "takes to score it; leave it out, enlarge images with data.resize"
            )

    def at_least(self, sides: Size) -> ImageDataset:
        """Return the same images to be scored whole: those smaller than (height, width) count as unreadable.

        So do those that are too large for the memory of this machine.
        """
        images = self.with_records(self.records)
        images.least_sides = sides
        return images

    def reading(
        self,
        resize: int | Sequence[int] | None = None,
        resize_filter: str = "bicubic",
        on_error: str = "raise",
    ) -> ImageDataset:
        """Return the same images, read otherwise.

        Args:
            resize: length of the shorter side, or (height, width); None for the files' own sizes.
            resize_filter: "bicubic", "bilinear" or "lanczos", all antialiased.
            on_error: "raise" stops at an image that cannot be read, "skip" goes on with the others.
        """
        if on_error not in ON_ERROR:
            raise UserError(f"data.on_error must be raise or skip, got '{on_error}'")
        images = self.with_records(self.records)
        images.resize = check_resize(resize, resize_filter)
        images.resize_filter = resize_filter
        images.on_error = on_error
        return images

    def subset(self, ids: Iterable[str]) -> ImageDataset:
        """Return the data set of these image ids, in this order."""
        by_id = {record.image_id: record for record in self.records}
        return self.with_records([by_id[name] for name in ids])

    def with_records(self, records: Sequence[ImageRecord]) -> ImageDataset:
        """Return a data set like this one of other records; their ids are not looked at again."""
        images = copy.copy(self)
        images.records = list(records)
        images._sizes = None
        return images


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return ``(H, W, 3)`` uint8 pixels as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div_(255)
