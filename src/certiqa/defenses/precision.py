"""Float32 that is float32: what a proof assumes of a step, and what records call fp32."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from certiqa.metrics.base import at_least_float32


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 and nothing less: no autocast of a caller's, no TF32, which convolutions take by default.

    The flags of a caller's come back as they were, whichever of torch's interfaces set them.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        flags = _flags()
        before = [getattr(owner, name) for owner, name, _ in flags]
        try:
            for owner, name, exact in flags:
                setattr(owner, name, exact)
            yield
        finally:
            for (owner, name, _), value in zip(flags, before, strict=True):
                setattr(owner, name, value)


def _flags() -> list[tuple[Any, str, Any]]:
    """Return the flags that may let less than float32 in: (owner, name, value that does not)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if not hasattr(cudnn, "conv"):  # torch < 2.9
        return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    flags = [(owner, "fp32_precision", "ieee") for owner in (cudnn.conv, cudnn.rnn, matmul)]
    # cuDNN's older flag first, so that what reads it meanwhile finds the two in agreement; it cannot be read where the
    # caller has them disagree. That of matmul stays alone: put back, it would turn "medium" into "high"
    with contextlib.suppress(RuntimeError):
        _ = cudnn.allow_tf32
        return [(cudnn, "allow_tf32", False), *flags]
    return flags


def keep_heads_in_fp32(metric: nn.Module) -> None:
    """Make every linear layer with a single output leave autocast, in place.

    In bfloat16 its output alone would have some 27 distinct values in 100 draws, and order statistics need ties as
    little as they need noise.
    """
    for module in metric.modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and not hasattr(module, "leaves_autocast"):
            # a partial of a bound method is copied and pickled with its module; a closure would stay with the original
            module.forward = functools.partial(_outside_autocast, module.forward)  # type: ignore[method-assign]
            module.leaves_autocast = True  # type: ignore[assignment]


def _outside_autocast(forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return forward(at_least_float32(features))
