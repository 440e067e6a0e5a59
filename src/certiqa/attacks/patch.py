"""One square patch of any colours, found by random search."""

from __future__ import annotations

import torch
from torch import Tensor

from certiqa.attacks.blackbox import BlackBox, Search, single
from certiqa.attacks.square import draw_below, draw_signs, window_share
from certiqa.errors import UserError
from certiqa.options import PositiveInt, PositiveShare


class PatchRS(BlackBox):
    """Random search over place and colours of a patch (Croce et al., "Sparse-RS", AAAI 2022).

    Colours are corners of the RGB cube. Every fourth query moves the patch, by less and less; others recolour a square
    of it, smaller and smaller, and once that is a pixel: first by a new colour, then one channel at a time. Horizontal
    moves scale with the width, where the authors' code takes the height for both. A small square of ``side`` pixels
    changes by up to 1, so the attack has no place in tables of equal l_inf.

    Args:
        side: of the patch in pixels; 13, about the paper's area of 169.
        p_init: share of the patch recoloured at first, in (0, 1].
        options: of ``BlackBox``.
    """

    name = "patch_rs"
    norm = "none"
    MOVE_EVERY = 4
    REACH = 0.75  # of the image, the first moves' largest
    FIRST_SQUARES = 1000  # painted over one another for the first patch

    def __init__(self, *, side: PositiveInt = 13, p_init: PositiveShare = 0.8, **options: object) -> None:
        super().__init__(None, **options)  # type: ignore[arg-type]
        self.side = self.at_least("side", side, 1)
        self.p_init = self.share("p_init", p_init)
        pixels = [step for step in range(self.queries) if self.part(step) == 1]
        first = pixels[0] if pixels else self.queries
        self.channels_from = first + (self.queries - first) // 2

    def check_image(self, images: Tensor) -> None:
        """Raise UserError where the patch does not fit."""
        height, width = images.shape[-2:]
        if self.side > min(height, width):
            raise UserError(
                f"attack.side={self.side} of {self.name} does not fit into images of {height}x{width} pixels; "
                f"use at most {min(height, width)}"
            )

    def part(self, step: int) -> int:
        """Return the side of the square recoloured at a step, in pixels."""
        return max(1, int(window_share(self.p_init, step, self.queries) ** 0.5 * self.side))

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Move and recolour one patch; see ``BlackBox.search``.

        The patch that is searched on is the best one, even where the clean image is better than all.
        """
        height, width = image.shape[-2:]
        patch = self.first_patch(draws)
        top, left = draw_below(draws, height - self.side + 1), draw_below(draws, width - self.side + 1)
        value = float((yield single(self.pasted(image, patch, top, left))))
        for step in range(1, self.queries):
            new = (patch, top, left)
            reach = self.REACH * (1 - step / self.queries)
            if step % self.MOVE_EVERY == 0 and int(reach * max(height, width)) > 0:
                down = shifted(top, int(reach * height), height - self.side, draws)
                new = (patch, down, shifted(left, int(reach * width), width - self.side, draws))
            else:
                new = (self.recoloured(patch, step, draws), top, left)
            answer = float((yield single(self.pasted(image, *new))))
            if answer > value:
                value, (patch, top, left) = answer, new

    def first_patch(self, draws: torch.Generator) -> Tensor:
        """Return a patch ``(3, s, s)`` of many random squares, on the CPU."""
        patch = torch.zeros(3, self.side, self.side)
        largest = max(1, round(self.side**0.5))
        for _ in range(self.FIRST_SQUARES):
            side = 1 + draw_below(draws, largest)
            top, left = draw_below(draws, self.side - side + 1), draw_below(draws, self.side - side + 1)
            patch[:, top : top + side, left : left + side] = draw_signs(draws, 3, 1, 1).clamp(min=0)
        return patch

    def recoloured(self, patch: Tensor, step: int, draws: torch.Generator) -> Tensor:
        """Return the patch with a square of it, or one channel of a pixel, recoloured."""
        patch, side = patch.clone(), self.part(step)
        top, left = draw_below(draws, self.side - side + 1), draw_below(draws, self.side - side + 1)
        window = patch[:, top : top + side, left : left + side]
        if step >= self.channels_from:
            channel = draw_below(draws, 3)
            window[channel] = 1 - window[channel]
            return patch
        old = window.clone()
        while torch.equal(window, old):  # a colour that is there already is drawn anew
            # +-1 added and clipped, in the authors' words: since colours are 0 or 1, this sets them
            window[:] = draw_signs(draws, 3, 1, 1).clamp(min=0)
        return patch

    def pasted(self, image: Tensor, patch: Tensor, top: int, left: int) -> Tensor:
        """Return the image ``(3, H, W)`` with the patch on it."""
        image = image.clone()
        image[:, top : top + self.side, left : left + self.side] = patch.to(image)
        return image


def shifted(position: int, reach: int, last: int, draws: torch.Generator) -> int:
    """Return a position moved by up to ``reach`` either way, within 0 to ``last``."""
    return max(0, min(last, position + draw_below(draws, 2 * reach + 1) - reach))
