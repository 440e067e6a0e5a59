"""Combinatorial search over the corners of the l_inf ball, block by block."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from certiqa.attacks.blackbox import BlackBox, Query, Search, single
from certiqa.options import Budget, PositiveInt

Block = tuple[int, int, int, int, int]
"""Channel, top, bottom, left, right."""


class Parsimonious(BlackBox):
    """Lazy greedy insertion and deletion of +eps blocks (Moon et al., "Parsimonious Black-Box Attacks", ICML 2019).

    Every pixel is at -eps or +eps, at first all at -eps. Blocks of a grid over each channel are visited in random
    order; of a mini-batch those are flipped whose flip still raises J, the largest gain first, to +eps and then back.
    After a pass over all blocks the grid is twice as fine. Unlike the authors' code the first flip of a heap is taken
    only if it gains, and the search ends where a pass over single pixels changes nothing.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        blocks: blocks along each side at first, whatever the size of the image: 8, which are 32x32 pixels at 256x256.
        group: blocks per mini-batch.
        options: of ``BlackBox``.
    """

    name = "parsimonious"

    def __init__(
        self, eps: Budget = 10 / 255, *, blocks: PositiveInt = 8, group: PositiveInt = 64, **options: object
    ) -> None:
        super().__init__(eps, **options)  # type: ignore[arg-type]
        self.blocks = self.at_least("blocks", blocks, 1)
        self.group = self.at_least("group", group, 1)

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Pass over finer and finer grids; see ``BlackBox.search``."""
        corner = _Corner(image, self.eps, torch.full_like(image, -1))
        corner.value = float((yield single(corner.image())))
        grid, finest = self.blocks, max(image.shape[-2:])
        while True:
            before = corner.value
            blocks = blocks_of(image, grid)
            order = torch.randperm(len(blocks), generator=draws).tolist()
            for start in range(0, len(order), self.group):
                group = [blocks[index] for index in order[start : start + self.group]]
                yield from flip_greedily(corner, [block for block in group if not corner.is_up(block)])
                yield from flip_greedily(corner, [block for block in group if corner.is_up(block)])
            if grid >= finest and corner.value == before:
                return
            grid = min(2 * grid, max(finest, grid))


@dataclass
class _Corner:
    """A corner of the ball: signs ``(3, H, W)`` and J there."""

    clean: Tensor
    eps: float
    signs: Tensor
    value: float = -torch.inf

    def image(self) -> Tensor:
        """Return the image at this corner, clipped to [0, 1]."""
        return (self.clean + self.eps * self.signs).clamp(0, 1)

    def is_up(self, block: Block) -> bool:
        """Say whether a block is at +eps."""
        channel, top, _, left, _ = block
        return bool(self.signs[channel, top, left] > 0)

    def flip(self, block: Block) -> None:
        """Turn a block around."""
        channel, top, bottom, left, right = block
        self.signs[channel, top:bottom, left:right].neg_()

    def flipped(self, blocks: list[Block], start: int, stop: int) -> Tensor:
        """Return images ``(stop - start, 3, H, W)``, each with one block turned around."""
        images = self.image().repeat(stop - start, 1, 1, 1)
        for image, (channel, top, bottom, left, right) in zip(images, blocks[start:stop], strict=True):
            place = (channel, slice(top, bottom), slice(left, right))
            image[place] = (self.clean[place] - self.eps * self.signs[place]).clamp(0, 1)
        return images


def flip_greedily(corner: _Corner, blocks: list[Block]) -> Generator[Query, Tensor, None]:
    """Flip blocks while one of them raises J, the largest gain first.

    Gains are asked for once, all together, and asked again only for the block that leads the heap: those of others can
    hardly have grown (Minoux's lazy greedy, exact where J is submodular).
    """
    if not blocks:
        return
    values = yield Query(len(blocks), partial(corner.flipped, blocks))
    heap = [(corner.value - value, index) for index, value in enumerate(values.tolist())]
    heapq.heapify(heap)
    fresh = True  # whether the gain that leads the heap is of the corner as it is
    while heap:
        loss, index = heapq.heappop(heap)
        if not fresh:
            answer = float((yield Query(1, partial(corner.flipped, [blocks[index]])))[0])
            loss = corner.value - answer
            if heap and loss > heap[0][0]:
                heapq.heappush(heap, (loss, index))
                continue
        else:
            answer = corner.value - loss
        if not loss < 0:
            return
        corner.flip(blocks[index])
        corner.value, fresh = answer, False


def blocks_of(image: Tensor, grid: int) -> list[Block]:
    """Return the blocks of a grid of ``grid`` by ``grid`` per channel, at most one per pixel."""
    height, width = image.shape[-2:]
    rows, columns = _spans(height, grid), _spans(width, grid)
    return [(channel, *row, *column) for channel in range(3) for row in rows for column in columns]


def _spans(length: int, grid: int) -> list[tuple[int, int]]:
    # ceilings, as nearest-neighbour enlargement has them; then every grid divides the one twice as coarse
    parts = min(grid, length)
    edges = [-(-length * part // parts) for part in range(parts + 1)]
    return list(itertools.pairwise(edges))
