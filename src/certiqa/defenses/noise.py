"""Noise as a function of (seed, stream, image id, draw), and of nothing else.

Not of the batch size, the order of the images, the rank of the process or an interruption: so a certificate can be
computed in any pieces, anywhere, and stay the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from certiqa.errors import UserError

STREAMS = ("train", "validate", "certify", "score", "attack")
"""Independent streams: an attack never sees the draws a certificate or a score is made of."""


def noise_key(seed: int, stream: str, image_id: str, draw: int) -> int:
    """Return the 63-bit generator seed of one draw, from a stable hash (blake2b)."""
    if stream not in STREAMS:
        raise UserError(f"no noise stream '{stream}'; there are: {', '.join(STREAMS)}")
    # the id comes last: it is the only part that may hold any character
    text = f"{seed}|{stream}|{draw}|{image_id}"
    digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fill_noise(out: Tensor, keys: Iterable[int]) -> Tensor:
    """Fill ``out`` ``(K, C, H, W)``, contiguous float32, with standard normal noise, one key per row; returns it.

    Rows are filled flat: filling a channels_last tensor is about nine times slower on a CPU.
    """
    generator = torch.Generator(device=out.device)
    for row, key in zip(out, keys, strict=True):
        generator.manual_seed(key)
        row.view(-1).normal_(generator=generator)
    return out
