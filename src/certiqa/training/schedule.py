"""The learning rate of every training here: in each phase linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_cosine(optimizer: Optimizer, phases: Sequence[int], warmup: int) -> LambdaLR:
    """Return the schedule.

    Args:
        optimizer: whose learning rate it scales.
        phases: steps of each phase, perhaps 0. What is trained for changes between them, so each starts at a high rate
            again (warm restarts: Loshchilov and Hutter, ICLR 2017).
        warmup: steps of warm-up in each; at most a quarter of the phase.
    """

    def share(step: int) -> float:
        for steps in phases:
            if step < steps:
                break
            step -= steps
        else:
            return 0.0
        rise = min(warmup, max(1, steps // 4))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return LambdaLR(optimizer, share)
