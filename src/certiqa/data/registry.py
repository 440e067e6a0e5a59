"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from certiqa.data.images import ImageDataset
from certiqa.data.mini import load_mini
from certiqa.errors import UserError, suggest

DATASETS: dict[str, Callable[..., ImageDataset]] = {"mini": load_mini}


def load_dataset(name: str, split: str = "test", *, cache: str | Path | None = None) -> ImageDataset:
    """Load a split of a data set by name, e.g. ``load_dataset("mini", "test")``.

    Args:
        name: one of ``DATASETS``.
        split: "train", "validation", "test", or another the data set has.
        cache: folder for what is made or prepared; None for ``$CERTIQA_CACHE`` or the platform's.
    """
    if name not in DATASETS:
        raise UserError(f"no data set '{name}'; there are: {', '.join(DATASETS)}.{suggest(name, DATASETS)}")
    return DATASETS[name](split, cache=cache)
