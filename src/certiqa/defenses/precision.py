"""Float32 that is float32: what a proof assumes of a step, and what records call fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


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
