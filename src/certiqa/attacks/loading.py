"""Training images for universal attacks, from whatever yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from rich.markup import escape
from rich.progress import track
from torch import Tensor

from certiqa.console import plain_console
from certiqa.errors import UserError


def shown(loader: Iterable[Any], title: str, progress: bool) -> Iterable[Any]:
    """Return the loader under a bar on stderr, where that is a terminal."""
    console = plain_console(stderr=True)
    total = len(loader) if isinstance(loader, Sized) else None
    hidden = not (progress and console.is_terminal)
    return track(loader, escape(title), total, console=console, disable=hidden, transient=True)


def batches(loader: Iterable[Any], batch_size: int | None) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield images and their ids in steps of at most ``batch_size``."""
    for number, batch in enumerate(loader):
        images, ids = batch, None
        if isinstance(batch, dict):
            images, ids = batch.get("image"), batch.get("image_id")
        elif isinstance(batch, list | tuple):
            images = batch[0]
        if not isinstance(images, Tensor) or images.ndim not in (3, 4):
            raise UserError(
                "the loader of a universal attack must yield dicts with 'image', or tensors (N, 3, H, W), got "
                f"{type(batch).__name__}"
            )
        images = images[None] if images.ndim == 3 else images
        names = [f"{number}|{row}" for row in range(len(images))] if ids is None else [str(name) for name in ids]
        size = batch_size or len(images)
        for start in range(0, len(images), size):
            yield images[start : start + size], names[start : start + size]
