"""Gradients estimated from scores, on a tile that repeats over the image."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from certiqa.attacks.blackbox import BlackBox, Query, Search, single
from certiqa.attacks.parts import project_linf, tile
from certiqa.errors import UserError
from certiqa.options import Budget, PositiveInt, Step


class NES(BlackBox):
    """Antithetic Gaussian probes of a tile, and steps along the estimate (Ilyas et al., ICML 2018).

    The estimate is of the gradient summed over the tiles. Every step costs 2 * pairs + 1 queries: the paper's 2 * pairs
    and one for the new image, so that the best one can be returned. The last step makes do with fewer pairs; one or
    two queries that are too few for a step are left.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        pairs: probes x + sigma * u and x - sigma * u per estimate.
        sigma: size of the probes, in [0, 1] pixel units; take at least 1/255 where the metric rounds to 8 bits.
        step_size: l2 length of each step, of the tile alone.
        tile_size: side of the tile in pixels.
        options: of ``BlackBox``.
    """

    name = "nes"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        pairs: PositiveInt = 20,
        sigma: Step = 0.001,
        step_size: Step = 0.1,
        tile_size: PositiveInt = 32,
        **options: object,
    ) -> None:
        super().__init__(eps, **options)  # type: ignore[arg-type]
        self.pairs = self.at_least("pairs", pairs, 1)
        self.tile_size = self.at_least("tile_size", tile_size, 1)
        self.sigma = self.share("sigma", sigma)
        if not step_size > 0:
            raise UserError(f"attack.step_size of {self.name} must be above 0, got {step_size}")
        self.step_size = float(step_size)

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Climb along estimates; see ``BlackBox.search``."""
        attacked, left = image, self.queries - 1
        while left >= 3:
            pairs = min(self.pairs, (left - 1) // 2)
            units = torch.randn(pairs, 3, self.tile_size, self.tile_size, generator=draws).to(image)
            values = yield Query(2 * pairs, partial(self.probes, attacked, units), kept=False)
            left -= 2 * pairs
            gradient = self.estimate(values, units)
            length = float(gradient.norm())
            if length == 0:  # no probe tells: a constant score, or differences below rounding
                continue
            step = tile(gradient * (self.step_size / length), *image.shape[-2:])
            attacked = project_linf(attacked + step, image, self.eps)
            yield single(attacked)
            left -= 1

    def probes(self, attacked: Tensor, units: Tensor, start: int, stop: int) -> Tensor:
        """Return probes ``(stop - start, 3, H, W)``: even ones x + sigma * u, odd ones x - sigma * u."""
        index = torch.arange(start, stop, device=attacked.device)
        moves = self.sigma * (1 - 2 * (index % 2)).view(-1, 1, 1, 1) * units[index // 2]
        return (attacked + tile(moves, *attacked.shape[-2:])).clamp(0, 1)

    def estimate(self, values: Tensor, units: Tensor) -> Tensor:
        """Return the gradient of the tile ``(3, t, t)`` from probes' values; pairs that are not finite count 0."""
        slopes = (values[0::2] - values[1::2]) / (2 * self.sigma * len(units))
        slopes = torch.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0).to(units)
        return (slopes.view(-1, 1, 1, 1) * units).sum(dim=0)
