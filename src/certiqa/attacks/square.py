"""Random search over square windows at the border of the l_inf ball."""

from __future__ import annotations

import torch
from torch import Tensor

from certiqa.attacks.blackbox import BlackBox, Search, single
from certiqa.options import Budget, PositiveInt, PositiveShare

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the windows' share of the image is halved (Andriushchenko et al.)."""


def window_share(p_init: float, step: int, queries: int) -> float:
    """Return the share of the image that windows cover at a step; the schedule is stretched to the budget."""
    position = step * 10_000 / queries
    return p_init / 2 ** sum(position > threshold for threshold in HALVINGS)


def draw_signs(draws: torch.Generator, *shape: int) -> Tensor:
    """Return random +1 and -1, on the CPU."""
    return torch.randint(0, 2, shape, generator=draws) * 2.0 - 1


def draw_below(draws: torch.Generator, bound: int) -> int:
    """Return a random whole number from 0 to ``bound`` - 1."""
    return int(torch.randint(0, bound, (1,), generator=draws))


class Square(BlackBox):
    """Square windows set to +-eps per channel, kept where J rises (Andriushchenko et al., "Square Attack", ECCV 2020).

    For regression J is the score instead of a margin. Windows may lie at any place, the last row and column included,
    which the authors' code leaves out, and the stripes are kept only where they are better than the clean image.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        p_init: share of the image that the first windows cover, in (0, 1]; it shrinks over the budget.
        stripes: start from vertical stripes of +-eps, as the paper does; costs one query.
        windows: windows changed per query.
        options: of ``BlackBox``.
    """

    name = "square"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        p_init: PositiveShare = 0.05,
        stripes: bool = True,
        windows: PositiveInt = 1,
        **options: object,
    ) -> None:
        super().__init__(eps, **options)  # type: ignore[arg-type]
        self.p_init = self.share("p_init", p_init)
        self.stripes = stripes
        self.windows = self.at_least("windows", windows, 1)

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Change windows one query after another; see ``BlackBox.search``."""
        state = image
        if self.stripes:
            striped = (image + self.eps * draw_signs(draws, 3, 1, image.shape[-1]).to(image)).clamp(0, 1)
            answer = float((yield single(striped)))
            if answer > value:
                state, value = striped, answer
        for step in range(self.queries):
            candidate = self.moved(image, state, step, draws)
            answer = float((yield single(candidate)))
            if answer > value:
                state, value = candidate, answer

    def moved(self, image: Tensor, state: Tensor, step: int, draws: torch.Generator) -> Tensor:
        """Return the state ``(3, H, W)`` with new signs in random windows."""
        height, width = image.shape[-2:]
        side = round((window_share(self.p_init, step, self.queries) * height * width) ** 0.5)
        side = max(1, min(side, height - 1, width - 1))
        candidate = state.clone()
        for _ in range(self.windows):
            top, left = draw_below(draws, height - side + 1), draw_below(draws, width - side + 1)
            place = (slice(None), slice(top, top + side), slice(left, left + side))
            # the box can make other signs the same pixels; some signs always change something
            for _ in range(100):
                window = (image[place] + self.eps * draw_signs(draws, 3, 1, 1).to(image)).clamp(0, 1)
                if not torch.equal(window, candidate[place]):
                    break
            candidate[place] = window
        return candidate


class Ran(Square):
    """The query attack on quality metrics of Ran et al. (arXiv 2402.17533): Square with two windows per query.

    Their direction, away from the metric's own score of each clean image, is ``direction="away"``; it compares with
    the middle of the metric's range, where they map scores to 0 to 10 by a logistic and compare with 5.
    """

    name = "ran"

    def __init__(
        self,
        eps: Budget = 3 / 255,
        *,
        p_init: PositiveShare = 0.04,
        windows: PositiveInt = 2,
        stripes: bool = True,
        **options: object,
    ) -> None:
        super().__init__(eps, p_init=p_init, windows=windows, stripes=stripes, **options)
