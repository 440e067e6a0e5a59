"""The learning rate of every training here: linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_cosine(optimizer: Optimizer, steps: int, warmup: int) -> LambdaLR:
    """Return the schedule over ``steps``; the warm-up takes at most a quarter of them."""
    warmup = min(warmup, max(1, steps // 4))

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, share)
