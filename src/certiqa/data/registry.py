"""Data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from certiqa.data.agiqa3k import AGIQA3K, load_agiqa3k
from certiqa.data.folder import load_folder
from certiqa.data.images import ImageDataset
from certiqa.data.kadid import KADID, load_kadid
from certiqa.data.koniq import KONIQ, load_koniq
from certiqa.data.livec import LIVEC, load_livec
from certiqa.data.mini import load_mini
from certiqa.data.nips2017 import NIPS2017, load_nips2017
from certiqa.data.published import PublishedSet
from certiqa.data.spaq import SPAQ, load_spaq
from certiqa.data.union import load_union
from certiqa.errors import UserError, suggest
from certiqa.signatures import options_of

_PUBLISHED: tuple[tuple[PublishedSet, Callable[..., ImageDataset]], ...] = (
    (KONIQ, load_koniq),
    (KADID, load_kadid),
    (SPAQ, load_spaq),
    (NIPS2017, load_nips2017),
    (LIVEC, load_livec),
    (AGIQA3K, load_agiqa3k),
)
PUBLISHED: dict[str, PublishedSet] = {published.name: published for published, _ in _PUBLISHED}
"""What ``certiqa-data`` fetches, verifies and prepares by name."""
DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "mini": load_mini,
    **{published.name: load for published, load in _PUBLISHED},
    "folder": load_folder,
    "union": load_union,
}
"""What ``load_dataset`` and ``data=`` know by name: functions that return a split as an ``ImageDataset``."""


def published_set(name: str) -> PublishedSet:
    """Return the description of a published data set by its name; raises UserError for one that is not known."""
    if name not in PUBLISHED:
        raise UserError(f"no data set '{name}'; there are: {', '.join(PUBLISHED)}.{suggest(name, PUBLISHED)}")
    return PUBLISHED[name]


def load_dataset(
    name: str,
    split: str = "test",
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: int = 0,
    **options: Any,
) -> ImageDataset:
    """Load a split of a data set by name, e.g. ``load_dataset("koniq", "test", root="/data/koniq10k")``.

    Args:
        name: one of ``DATASETS``.
        split: "train", "validation", "test", or another the data set has.
        root: its folder, or the one above; None for ``$CERTIQA_DATA``.
        cache: folder for what is made or prepared; None for ``$CERTIQA_CACHE`` or the platform's.
        split_seed: of splits that are not official.
        options: what else the data set's loader takes, e.g. ``size="1024x768"`` of koniq.

    Raises:
        UserError: for a name, split or option there is not, and for whatever is missing or wrong on disk.
    """
    check_options(name, options)
    if name == "mini":
        return load_mini(split, cache=cache, **options)  # embedded, and split once and for all
    return DATASETS[name](split, root=root, cache=cache, split_seed=split_seed, **options)


def options_of_loader(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the loader of the data set named takes beside what all take, with its annotations."""
    loader = DATASETS.get(str(given.get("name")))
    if loader is None:
        return None
    taken = options_of(loader).named
    return {key: option.annotation for key, option in taken.items() if key not in ("split", "listing")}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise UserError for a data set or an option that there is not."""
    if name not in DATASETS:
        raise UserError(f"no data set '{name}'; there are: {', '.join(DATASETS)}.{suggest(name, DATASETS)}")
    shared = {"split", "root", "cache", "split_seed"}
    known = [key for key in inspect.signature(DATASETS[name]).parameters if key not in shared]
    for key in options:
        if key not in known:
            raise UserError(
                f"data set '{name}' has no option '{key}'; it has: {', '.join(known) or 'none'}.{suggest(key, known)}"
            )
