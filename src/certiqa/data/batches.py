"""Batches, and what becomes of images that cannot be read.

A worker process cannot raise an error for the person at the keyboard: PyTorch wraps it into a traceback. So workers
hand a failure over as an item, and the loader, in the main process, raises it or passes it on in the batch's "failed".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from certiqa.data.images import ImageDataset
from certiqa.data.reading import UnreadableError
from certiqa.errors import UserError

Item = dict[str, Any]

log = logging.getLogger(__name__)
_told: set[str] = set()


class ReadOrSay(Dataset[Item]):
    """The items of a data set; of an image that cannot be read its facts, and why in "failure"."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        try:
            return self.images[index]
        except UnreadableError as error:
            if self.images.on_error == "skip":
                return {**self.images.facts(index), "failure": str(error)}
            return {"failure": f"{error}, or pass over such images with data.on_error=skip"}


def first_readable(images: ImageDataset, index: int) -> Item:
    """Return an item for training; with ``on_error="skip"`` the next readable one in the place of an unreadable.

    It depends on nothing but the files, so two runs train on the same images; each that is replaced is logged once per
    process.
    """
    read = ReadOrSay(images)
    for offset in range(len(images)):
        item = read[(index + offset) % len(images)]
        if "failure" not in item or images.on_error == "raise":
            return item
        if item["image_id"] not in _told:
            _told.add(item["image_id"])
            log.warning("%s (skipped: the next one is trained on in its place)", item["failure"])
    return {"failure": f"none of the {len(images)} images of data set '{images.name}' can be read"}


def collate_whole(items: Sequence[Item]) -> Item:
    """Return the readable items as one batch, and the others as the list "failed"; a batch may have no images."""
    failed = [item for item in items if "failure" in item]
    good = [item for item in items if "failure" not in item]
    if good:
        return {**default_collate(good), "failed": failed}
    nothing = {"image": torch.empty(0, 3, 1, 1), "mos": torch.empty(0), "mos_normalised": torch.empty(0)}
    return {**nothing, "image_id": [], "reference_id": [], "path": [], "failed": failed}


def collate_crops(items: Sequence[Item]) -> Item:
    """Return a batch for training; a failure, or images of several sizes, become the batch's one "failed"."""
    failed = [{"failure": item["failure"]} for item in items if "failure" in item]
    sizes = {tuple(item["image"].shape[-2:]) for item in items if "image" in item}
    if not failed and len(sizes) > 1:
        (one, two), crop = sorted(sizes)[:2], min(min(size) for size in sizes)
        failed = [
            {
                "failure": f"images of several sizes ({one[0]}x{one[1]}, {two[0]}x{two[1]}, ...) make no batch; train "
                f"on crops, e.g. data.crop={min(crop, 224)}, or resize all to one size with data.resize=[height,width]"
            }
        ]
    return {"failed": failed} if failed else default_collate(list(items))


class CheckedLoader(DataLoader[Item]):
    """A loader that raises the failures of its batches as UserErrors, in the main process.

    Those of images that are to be skipped, which carry their ids and facts, stay in the batch.
    """

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        for batch in super().__iter__():
            for item in batch.get("failed", ()):
                if "image_id" not in item:
                    raise UserError(item["failure"])
            yield batch
