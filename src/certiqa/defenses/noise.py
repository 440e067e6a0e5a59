"""Noise as a function of (seed, stream, image id, draw), and of nothing else.

Not of the batch size, the order of the images, the rank of the process or an interruption: so a certificate can be
computed in any pieces, anywhere, and stay the same.

A generator of torch on a CPU starts from the low 32 bits of its seed: there are 2^32 noise images of one size there,
and keys that agree in these bits give the same one. With keys from a hash, taken to be random, draws are picks from
these 2^32 with replacement, independent and identically distributed as the ranks of a certificate ask; that the 2^32
stand for the normal distribution is what any pseudo-random noise assumes. Nothing but chance keeps two draws apart: m
of one stream and n of another have m n / 2^32 pairs in common on average, 2e-4 for 1,000 and 1,000.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable

import torch
from torch import Tensor

from certiqa.errors import UserError

STREAMS = ("train", "validate", "certify", "score", "attack")
"""Streams with keys of their own: but by chance, an attack sees no draw that a certificate or a score is made of."""


def noise_key(seed: int, stream: str, image_id: str, draw: int) -> int:
    """Return the 63-bit generator seed of one draw, from a stable hash (blake2b).

    Raises:
        UserError: an unknown stream, a seed that is no whole number, or an image id that is not text.
    """
    if not isinstance(seed, numbers.Integral):
        raise UserError(f"seed={seed!r} must be a whole number, e.g. 0")
    if stream not in STREAMS:
        raise UserError(f"no noise stream '{stream}'; there are: {', '.join(STREAMS)}")
    # the id comes last: it is the only part that may hold any character
    return hashed(f"{int(seed)}|{stream}|{draw}|", image_id)


def hashed(what: str, image_id: str) -> int:
    """Return 63 bits of blake2b; raises UserError for an image id that is not text."""
    try:
        content = f"{what}{image_id}".encode(errors="surrogateescape")  # file names that are not UTF-8 have their bytes
    except UnicodeEncodeError as error:
        raise UserError(
            f"image id {image_id!a} holds a lone surrogate, which is no character; rename the image"
        ) from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def fill_noise(out: Tensor, keys: Iterable[int]) -> Tensor:
    """Fill ``out`` ``(K, C, H, W)``, contiguous float32, with standard normal noise, one key per row; returns it.

    On a CPU only the low 32 bits of a key count, see the head of this file. Rows are filled
    flat: filling a channels_last tensor is about nine times slower there.
    """
    generator = torch.Generator(device=out.device)
    for row, key in zip(out, keys, strict=True):
        generator.manual_seed(key)
        row.view(-1).normal_(generator=generator)
    return out
