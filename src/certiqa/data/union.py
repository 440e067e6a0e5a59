"""Several data sets as one, to train on all of them at once: every batch holds equally many images of each.

Opinion scores of two studies are not comparable, even on one scale: what is trained on a union compares images of one
set only, and its figures are those of each set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from certiqa.data.images import ImageDataset
from certiqa.errors import UserError
from certiqa.options import OptionsOf, Range, Seed
from certiqa.signatures import hands_on


def _options_by_set(given: Mapping[str, Any]) -> dict[str, Any]:
    from certiqa.data.registry import DATASETS, options_of_loader  # which knows the union too

    def of_one(name: str) -> Any:
        @hands_on(lambda given: options_of_loader({"name": name}))
        def options(**options: Any) -> None:
            """What the loader of one data set takes."""

        return Annotated[Mapping[str, Any], OptionsOf(options)] | None

    return {name: of_one(name) for name in DATASETS if name != "union"}


@hands_on(_options_by_set)
def data_sets(**sets: Any) -> None:
    """The data sets of a union by name, with what else each takes; null takes one out."""


def load_union(
    split: str = "test",
    *,
    sets: Annotated[Mapping[str, Any], OptionsOf(data_sets)],
    root: str | Path | None = None,
    cache: str | Path | None = None,
    split_seed: Seed = 0,
    mos_range: Range = (1.0, 5.0),
) -> ImageDataset:
    """Return one split of several data sets together.

    Args:
        split: "train", "validation", "test", or another that all of them have.
        sets: by name what else each one's loader takes, e.g. ``{"livec": {}, "mini": {"guises": 3}}``; None leaves a
            set out.
        root: the folder that holds those of the sets; None for ``$CERTIQA_DATA``. A set may name its own.
        cache: folder of what is made or prepared.
        split_seed: of splits that are not official; a set may name its own.
        mos_range: the scale to which the opinion scores of each set are mapped from its own, higher = better.

    Raises:
        UserError: no set, a union in a union, and whatever a set's loader refuses.
    """
    from certiqa.data.registry import load_dataset

    sets = {name: options for name, options in sets.items() if options is not None}
    if not sets or "union" in sets:
        raise UserError(f"data.sets must name data sets, and no union among them, got {list(sets)}")
    low, high = mos_range
    records, fingerprints, kinds = [], [], []
    notes: list[str] = []
    for name, options in sets.items():
        given = {"root": root, "cache": cache, "split_seed": split_seed, **options}
        images = load_dataset(name, split, **given)
        for record in images.records:
            mos = None if record.mos is None else low + (high - low) * images.normalised(record.mos)
            reference = None if record.reference_id is None else f"{name}/{record.reference_id}"
            records.append(
                replace(record, image_id=f"{name}/{record.image_id}", mos=mos, reference_id=reference, source=name)
            )
        fingerprints.append(f"{name} {images.fingerprint}")
        kinds.append(images.mos_kind)
        notes += images.notes
    if len(sets) > 1:
        notes.append(
            f"correlations over {' and '.join(sets)} together compare images of different sets, whose opinion scores "
            "are not comparable; judge each set by itself"
        )
    return ImageDataset(
        records,
        mos_range=mos_range,
        name="union",
        fingerprint=hashlib.blake2b(" ".join(fingerprints).encode(), digest_size=8).hexdigest(),
        mos_kind=" and ".join(dict.fromkeys(kinds)),
        notes=notes,
    )
