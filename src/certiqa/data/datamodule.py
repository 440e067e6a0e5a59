"""The Lightning data module of every data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from certiqa.data.batches import CheckedLoader, ReadOrSay, collate_crops, collate_whole, first_readable
from certiqa.data.images import ImageDataset
from certiqa.data.order import EpochOrder, SizeBatches, TrainingLoader
from certiqa.data.reading import Size
from certiqa.data.registry import DATASETS, check_options, load_dataset, options_of_loader
from certiqa.data.shrunk import shrunken
from certiqa.errors import UserError, require_count
from certiqa.options import Choices, Count, OptionsOf, PositiveInt, Seed, Side, Sides
from certiqa.signatures import hands_on


def crops(*, size: Side, number: PositiveInt) -> None:
    """Evenly placed square crops over which a metric is averaged: their side in pixels, and how many."""


@hands_on(options_of_loader)
class QualityDataModule(pl.LightningDataModule):
    """Training crops and whole test images of a data set.

    Args:
        name: data set, see ``certiqa.data.DATASETS``.
        test: which images are tested: "quick" (a short fixed list, where the data set has one) or "all".
        batch_size: images per training step.
        eval_batch_size: images per step of validation and test; does not change any score beyond rounding.
        crop: side of random square training crops in pixels; None trains on whole images.
        validation_images: how many images validation looks at, spread over its list; None for all.
        limit_test: test only so many images, spread evenly over the list; None for all.
        num_workers: processes that read images.
        seed: of the order and crops; both are functions of (seed, epoch, image) alone.
        cache: folder for what the data set makes; None for the default.
        resize: length of the shorter side to which every image is resized when it is read, or (height, width); None
            for the files' own sizes.
        resize_filter: "bicubic", "bilinear" or "lanczos", all antialiased.
        prepare: make the resized copies in the cache before they are needed; those that are there are read in any
            case, and are what reading the originals gives, see ``certiqa.data.shrunk``.
        test_crops: ``{size, number}``: the metric is to average over crops, see
            ``certiqa.metrics.CropAveraged``; acted on where the metric is built.
        on_error: "raise" stops at an image that cannot be read, or is smaller than ``least_sides``; "skip" records it
            as failed in a test, leaves it out of validation, and takes the next one in training.
        root: folder of the data set's files; None for ``$CERTIQA_DATA``.
        split_seed: of splits that are not official.
        options: what else the data set's loader takes, see ``certiqa.data.load_dataset``.

    Attributes:
        least_sides: (height, width) that a whole image of validation and test must have to be scored; to be set before
            the images are asked for.
    """

    def __init__(
        self,
        name: Annotated[str, Choices(of=DATASETS)] = "mini",
        *,
        test: Annotated[str, Choices("quick", "all")] = "quick",
        batch_size: PositiveInt = 16,
        eval_batch_size: PositiveInt = 5,
        crop: Side | None = None,
        validation_images: PositiveInt | None = None,
        limit_test: PositiveInt | None = None,
        num_workers: Count = 0,
        seed: Seed = 0,
        cache: str | Path | None = None,
        root: str | Path | None = None,
        split_seed: Seed = 0,
        resize: Sides | None = None,
        resize_filter: Annotated[str, Choices("bicubic", "bilinear", "lanczos")] = "bicubic",
        prepare: bool = False,
        test_crops: Annotated[Mapping[str, int], OptionsOf(crops)] | None = None,
        on_error: Annotated[str, Choices("raise", "skip")] = "raise",
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(name, options)
        if test not in ("quick", "all"):
            raise UserError(f"data.test must be quick or all, got '{test}'")
        if batch_size < 1 or eval_batch_size < 1:
            raise UserError(f"batch sizes must be at least 1, got {batch_size} and {eval_batch_size}")
        require_count("data.crop", crop)
        require_count("data.validation_images", validation_images)
        require_count("data.limit_test", limit_test)
        require_count("data.num_workers", num_workers, least=0)
        self.dataset_name = name
        self.test = test
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.crop = crop
        self.validation_images = validation_images
        self.limit_test = limit_test
        self.num_workers = num_workers
        self.seed = seed
        self.cache = cache
        self.root = root
        self.split_seed = split_seed
        self.options = options
        self.resize = resize
        self.resize_filter = resize_filter
        self.prepare = prepare
        self.test_crops = test_crops
        self.on_error = on_error
        self.least_sides: Size = (1, 1)
        self._sets: dict[str, ImageDataset] = {}
        self._parts: dict[str, ImageDataset] = {}

    def dataset(self, split: str) -> ImageDataset:
        """Return a split, loaded once."""
        if split not in self._sets:
            images = load_dataset(
                self.dataset_name,
                split,
                root=self.root,
                cache=self.cache,
                split_seed=self.split_seed,
                **self.options,
            )
            self._sets[split] = images.reading(self.resize, self.resize_filter, self.on_error)
        return self._sets[split]

    @property
    def train_set(self) -> ImageDataset:
        """The images trained on."""
        return self._once("train", lambda: self.dataset("train"))  # crops, whose size is their own

    @property
    def validation_set(self) -> ImageDataset:
        """The images that validation looks at: spread over the short list, or over all where it has too few."""
        return self._once("validation", self._choose_validation)

    def _choose_validation(self) -> ImageDataset:
        whole = self.dataset("quick_validation").at_least(self.least_sides)
        if self.validation_images is None or self.validation_images > len(whole):
            whole = self.dataset("validation").at_least(self.least_sides)
        if self.validation_images is None or self.validation_images >= len(whole):
            return whole
        return spread(whole, self.validation_images)

    @property
    def test_set(self) -> ImageDataset:
        """The images tested."""
        return self._once("test", self._choose_test)

    def _choose_test(self) -> ImageDataset:
        whole = self.dataset("quick" if self.test == "quick" else "test").at_least(self.least_sides)
        if self.limit_test is None or self.limit_test >= len(whole):
            return whole
        return spread(whole, self.limit_test)

    def _once(self, part: str, choose: Callable[[], ImageDataset]) -> ImageDataset:
        """Return the images of a part, chosen once, with the resized copies that there are or are to be made."""
        if part not in self._parts:
            images = choose()
            if self.resize is not None:
                images = images.with_records(
                    shrunken(images.records, self.cache, self.resize, self.resize_filter, make=self.prepare)
                )
            self._parts[part] = images
        return self._parts[part]

    def prepare_data(self) -> None:
        """Make or fetch what is missing, once per machine."""
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self.dataset("train")
            self.validation_set  # noqa: B018
        else:
            self.test_set  # noqa: B018

    def setup(self, stage: str) -> None:
        """Raise UserError before any step where a validation image cannot be read or scored."""
        if stage == "fit":
            self.validation_set.sizes_or_none()

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of training crops, in an order that depends on (seed, epoch) alone."""
        self._require_crops()
        crops = TrainingCrops(self.train_set, self.crop, self.seed)
        rank, world = self._rank_and_world()
        if self.batch_size % world:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world} processes; choose a multiple of {world}"
            )
        order, share = EpochOrder([*self.train_set.sources.values()], self.seed, rank, world), self.batch_size // world
        return TrainingLoader(
            crops,
            share,
            sampler=order,
            num_workers=self.num_workers,
            drop_last=len(order) >= share,
            collate_fn=collate_crops,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of whole validation images."""
        return self.whole_images(self.validation_set)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of whole test images."""
        return self.whole_images(self.test_set)

    def whole_images(self, images: ImageDataset) -> DataLoader[dict[str, Any]]:
        """Return batches of whole images, of one size each."""
        batches = SizeBatches(images.sizes_or_none(), self.eval_batch_size, *self._rank_and_world())
        return CheckedLoader(
            ReadOrSay(images), batch_sampler=batches, num_workers=self.num_workers, collate_fn=collate_whole
        )

    def _require_crops(self) -> None:
        """Raise UserError before any step where an image is smaller than the training crops.

        Without crops the images of a batch must share a size.
        """
        sizes = self.train_set.sizes()
        if self.crop is None:
            if len(set(sizes)) > 1 and self.batch_size > 1:
                raise UserError(
                    f"the training images of '{self.dataset_name}' have {len(set(sizes))} sizes, a batch needs one; "
                    f"train on crops with data.crop={min(map(min, sizes))} or less, or with data.batch_size=1"
                )
            return
        known = [
            (size, record)
            for size, record in zip(self.train_set.sizes_or_none(), self.train_set.records, strict=True)
            if size
        ]
        small = [(size, record) for size, record in known if min(size) < self.crop]
        if small:
            size, record = min(small, key=lambda pair: min(pair[0]))
            raise too_small(record.image_id, size, self.crop, len(small))

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class TrainingCrops(Dataset[dict[str, Any]]):
    """Random square crops, each a function of (seed, epoch, index) whatever worker reads it."""

    def __init__(self, images: ImageDataset, crop: Side | None, seed: Seed) -> None:
        self.images = images
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        item = first_readable(self.images, index)
        if "failure" in item:
            return item
        item["epoch"] = epoch
        item["is_crop"] = self.crop is not None
        if self.crop is not None:
            height, width = item["image"].shape[-2:]
            if min(height, width) < self.crop:
                item["failure"] = str(too_small(item["image_id"], (height, width), self.crop))
                return item
            generator = np.random.default_rng([self.seed, epoch, index])
            top = int(generator.integers(height - self.crop + 1))
            left = int(generator.integers(width - self.crop + 1))
            item["image"] = item["image"][:, top : top + self.crop, left : left + self.crop].contiguous()
        return item


def spread(images: ImageDataset, number: int) -> ImageDataset:
    """Return ``number`` images spread evenly over a list, whose neighbours are often alike."""
    rows = np.linspace(0, len(images) - 1, number).round().astype(int)
    return images.subset(images.records[row].image_id for row in rows)


def too_small(image_id: str, size: tuple[int, int], crop: int, number: int = 1) -> UserError:
    """Return the error of ``number`` images smaller than the crop, this one the smallest."""
    others = f" (the smallest of {number} such images)" if number > 1 else ""
    return UserError(
        f"image '{image_id}'{others} is {size[0]}x{size[1]}, smaller than the training crop of {crop}; "
        f"set data.crop={min(size)} or less, or resize the images to more with data.resize"
    )


def collect_images(dataset: ImageDataset, ids: Sequence[str]) -> torch.Tensor:
    """Return the images of these ids as one batch ``(N, 3, H, W)``; they must share a size."""
    chosen = dataset.subset(ids)
    return torch.stack([chosen[index]["image"] for index in range(len(chosen))])
