"""A few pixels changed at will, found by differential evolution."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from certiqa.attacks.blackbox import BlackBox, Query, Search
from certiqa.errors import UserError
from certiqa.options import PositiveInt


class OnePixel(BlackBox):
    """Differential evolution over places and colours of k pixels (Su et al., "One Pixel Attack", TEVC 2019).

    SciPy's best1bin with crossover 1 and factors dithered in [0.5, 1), from a Latin hypercube; a whole generation is
    asked for at once, and evolution goes on until the queries are spent. With queries=3300 and 300 members this is the
    usual setting of ten generations. Colours are 8-bit values; the rest of the image stays as it is, and where no
    candidate gains the clean image is returned.

    Args:
        pixels: how many pixels may differ.
        members: of the population; None takes queries / 11, from 8 to 300.
        options: of ``BlackBox``.
    """

    name = "onepixel"
    norm = "l0"

    def __init__(self, *, pixels: PositiveInt = 3, members: PositiveInt | None = None, **options: object) -> None:
        super().__init__(None, **options)  # type: ignore[arg-type]
        self.pixels = self.at_least("pixels", pixels, 1)
        chosen = max(8, min(300, self.queries // 11)) if members is None else members
        self.members = self.at_least("members", chosen, 3)

    def check_image(self, images: Tensor) -> None:
        """Raise UserError where the image has fewer pixels."""
        height, width = images.shape[-2:]
        if self.pixels > height * width:
            raise UserError(f"attack.pixels={self.pixels} is more than {height}x{width} pixels; use fewer")

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Evolve a population in the unit cube of ``pixels`` x (row, column, r, g, b); see ``BlackBox.search``."""
        genes = 5 * self.pixels
        ranks = torch.stack([torch.randperm(self.members, generator=draws) for _ in range(genes)], dim=1)
        members = (ranks + torch.rand(self.members, genes, generator=draws)) / self.members
        values = yield Query(self.members, partial(self.painted, image, members))
        while True:
            trials = self.trials(members, members[values.argmax()], draws)
            answers = yield Query(self.members, partial(self.painted, image, trials))
            better = answers >= values
            members = torch.where(better[:, None], trials, members)
            values = torch.where(better, answers, values)

    def trials(self, members: Tensor, best: Tensor, draws: torch.Generator) -> Tensor:
        """Return best + F * (one member - another) ``(P, 5k)``; what leaves the cube is drawn anew, as SciPy does."""
        scores = torch.rand(self.members, self.members, generator=draws).fill_diagonal_(2.0)  # never the parent
        first, second = scores.topk(2, dim=1, largest=False).indices.unbind(dim=1)
        factor = 0.5 + 0.5 * torch.rand(1, generator=draws)
        trials = best + factor * (members[first] - members[second])
        anew = torch.rand(members.shape, generator=draws)
        return torch.where((trials >= 0) & (trials < 1), trials, anew)

    def painted(self, image: Tensor, members: Tensor, start: int, stop: int) -> Tensor:
        """Return the image with each member's pixels, ``(stop - start, 3, H, W)``."""
        height, width = image.shape[-2:]
        genes = members[start:stop].view(stop - start, self.pixels, 5)
        # a float32 just below 1 can round up to the size
        rows = (genes[..., 0] * height).long().clamp(max=height - 1).to(image.device)
        columns = (genes[..., 1] * width).long().clamp(max=width - 1).to(image.device)
        colours = ((genes[..., 2:] * 256).floor().clamp(max=255) / 255).to(image)
        painted = image.repeat(stop - start, 1, 1, 1)
        each = torch.arange(stop - start, device=image.device)
        for pixel in range(self.pixels):  # in order, so that of two at one place the last counts on any device
            painted[each, :, rows[:, pixel], columns[:, pixel]] = colours[:, pixel]
        return painted
