"""In which order images are read: those of a training by (seed, pass) alone, those of a test by their size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from certiqa.data.batches import CheckedLoader
from certiqa.data.reading import Size


class EpochOrder(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that is a function of (seed, epoch); ranks take turns, equally many each.

    Of several data sets, one after the other in the list, each takes its turn too: a pass shows as many images of each
    as the smallest has, and a larger one is shown whole over several passes.

    Args:
        sizes: of the data sets.
        seed: another one is another order.
        rank: this process.
        world: how many there are.
    """

    def __init__(self, sizes: Sequence[int], seed: int, rank: int = 0, world: int = 1) -> None:
        self.sizes = sizes
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = self.resumed_epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def go_on(self, epoch: int, start: int) -> None:
        """Begin at this epoch, and in it after ``start`` of this rank's images, as an earlier session read them."""
        self.epoch = self.resumed_epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return len(self.sizes) * min(self.sizes) // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = min(self.sizes)
        turns = []
        for first, size in zip(np.cumsum([0, *self.sizes]), self.sizes, strict=False):
            whole, part = divmod(self.epoch, size // share)
            shuffled = first + np.random.default_rng([self.seed, whole]).permutation(size)
            turns.append(shuffled[part * share : (part + 1) * share])
        order = np.stack(turns, axis=1).ravel()
        start = self.start if self.epoch == self.resumed_epoch else 0
        mine = order[self.rank :: self.world][start : len(self)]
        return iter([(self.epoch, int(index)) for index in mine])


class TrainingLoader(CheckedLoader):
    """A loader of training batches that can go on in the middle of a pass, without reading what comes before."""

    def go_on(self, epoch: int, batches: int) -> None:
        """Begin after so many batches of a pass; to be called before the first one is taken."""
        assert isinstance(self.sampler, EpochOrder)
        assert self.batch_size is not None
        self.sampler.go_on(epoch, batches * self.batch_size)


class SizeBatches(Sampler[list[int]]):
    """Batches of images of one size; of several ranks each takes its share, none twice and none left out.

    Args:
        sizes: (height, width) of every image, None where that is not known.
        batch_size: images per batch at most.
        rank: this process.
        world: how many there are.
    """

    def __init__(self, sizes: Sequence[Size | None], batch_size: int, rank: int = 0, world: int = 1) -> None:
        groups: dict[Size | None, list[int]] = {}
        for row in range(rank, len(sizes), world):
            groups.setdefault(sizes[row], []).append(row)
        self.batches = [
            rows[start : start + batch_size] for rows in groups.values() for start in range(0, len(rows), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
