"""Attacks that move pixels instead of changing them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.attacks.adam import AdamAttack, Problem, non_negative
from certiqa.attacks.target import Target
from certiqa.options import NonNegative, PositiveInt, Step


class StAdv(AdamAttack):
    """A flow field that displaces pixels (Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018).

    Adam in place of L-BFGS, whose line search and curvature would couple the images of a batch; J in place of a
    ratio of the score that has a pole; the flow's squared differences, which have a gradient at zero flow, in place of
    their roots. Unrestricted: the strength is ``learning_rate``. At a sharp edge a tenth of a pixel is a large change,
    so the largest change of a value (l_inf) is that of the sharpest edge.

    Args:
        learning_rate: of Adam, in pixels; no pixel moves much farther than this times ``steps``.
        steps: gradients.
        weight: of the flow's roughness, summed over the image, per share of the metric's range.
        options: ``best``, ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "stadv"

    def __init__(
        self, learning_rate: Step = 0.02, *, steps: PositiveInt = 10, weight: NonNegative = 1e-5, **options: object
    ) -> None:
        super().__init__(learning_rate, steps=steps, **options)  # type: ignore[arg-type]
        non_negative(self, weight=weight)
        self.weight = float(weight)

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return flows ``(N, 2, H, W)`` as parameters."""
        start = images.new_zeros(len(images), 2, *images.shape[-2:])
        return Problem(start, lambda flow: displaced(images, flow), lambda _, flow: self.weight * roughness(flow))


def displaced(images: Tensor, flow: Tensor) -> Tensor:
    """Return images that take their pixel (r, c) from (r + flow[0], c + flow[1]), bilinearly; borders are continued.

    Args:
        images: ``(N, 3, H, W)``.
        flow: ``(N, 2, H, W)``, rows then columns, in pixels.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 0]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 1]
    grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def roughness(flow: Tensor) -> Tensor:
    """Return the summed squared differences ``(N,)`` of flows to their four neighbours, each pair counted twice."""
    across = (flow[..., 1:] - flow[..., :-1]).square().flatten(1).sum(1)
    down = (flow[..., 1:, :] - flow[..., :-1, :]).square().flatten(1).sum(1)
    return 2 * (across + down)
