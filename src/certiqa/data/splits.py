"""Splits of a data set: seeded by group, read from a column, and the short lists that quick runs take."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from certiqa.data.images import ImageDataset, ImageRecord
from certiqa.data.published import PublishedSet
from certiqa.errors import UserError, suggest

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
LISTS = (*SPLITS, "quick", "quick_validation")
QUICK = 125
SHARES = (0.8, 0.1, 0.1)
WORDS = {
    **dict.fromkeys(("train", "training", "0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "1"), "validation"),
    **dict.fromkeys(("test", "testing", "2"), "test"),
}
"""What split columns say, in the words used here; pyiqa's are train, val and test."""


def split_seeded(groups: Sequence[str], seed: int, shares: tuple[float, float, float] = SHARES) -> list[str]:
    """Return the split of every row, so that rows of one group share it.

    Groups are put in the order of the blake2b hash of (seed, group), which no library's version changes, and cut by
    ``shares`` of (train, validation, test), each getting at least one group where there are three.

    Args:
        groups: for each row what must not be torn apart: its reference, or the image itself.
        seed: another one is another split.
        shares: of the groups, not of the rows.
    """
    order = sorted(set(groups), key=lambda group: hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=16).digest())
    counts = [round(share * len(order)) for share in shares[1:]]
    if len(order) >= len(SPLITS):
        counts = [max(1, count) if share else 0 for count, share in zip(counts, shares[1:], strict=True)]
    validation, test = counts
    train = len(order) - validation - test
    of_group = {group: SPLITS[(place >= train) + (place >= train + validation)] for place, group in enumerate(order)}
    return [of_group[group] for group in groups]


def split_by_column(words: Sequence[str], groups: Sequence[str], *, column: str, table: Path, seed: int) -> list[str]:
    """Return the splits that a column of a table writes down, as train/val/test or 0/1/2.

    A column without validation rows has a tenth of its training groups put there, seeded. One with train and val but no
    test, as pyiqa's ratio splits may be, has its val rows tested.

    Args:
        words: the column.
        groups: for each row what must not be torn apart.
        column: for messages.
        table: for messages.
        seed: of the part of the training rows that becomes validation.

    Raises:
        UserError: for a word that names no split, a column without test rows, and a group in two splits.
    """
    unknown = Counter(word for word in words if _word(word) not in WORDS)
    if unknown:
        found = ", ".join(f"'{word}' ({count} rows)" for word, count in unknown.most_common(3))
        raise UserError(
            f"column '{column}' of '{table}' holds {found}; a split is train, val or test, or 0, 1 or 2; "
            "choose another column with data.splits=NAME"
        )
    splits = [WORDS[_word(word)] for word in words]
    if "test" not in splits and {"train", "validation"} <= set(splits):
        log.info("column %s of %s has no test rows: its validation rows are tested", column, table.name)
        splits = ["test" if split == "validation" else split for split in splits]
    if "validation" not in splits and "train" in splits:
        mine = [row for row, split in enumerate(splits) if split == "train"]
        parts = split_seeded([groups[row] for row in mine], seed, (0.9, 0.1, 0.0))
        for row, part in zip(mine, parts, strict=True):
            splits[row] = part
        log.info("column %s of %s has no validation rows: a tenth of the training ones are", column, table.name)
    require_apart(groups, splits, f"column '{column}' of '{table}'")
    return splits


def _word(word: str) -> str:
    return word.strip().casefold().removesuffix(".0")


def require_apart(groups: Sequence[str], splits: Sequence[str], source: str) -> None:
    """Raise UserError if a group (a reference) is in two splits."""
    seen: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if seen.setdefault(group, split) != split:
            raise UserError(
                f"{source} puts images of the reference '{group}' into {seen[group]} and {split}; "
                "a reference must stay in one split"
            )


def dataset_of(
    split: str,
    splits: Sequence[str],
    records: Sequence[ImageRecord],
    sizes: Mapping[str, int],
    *,
    name: str,
    mos_range: tuple[float, float] | None,
    mos_kind: str = "MOS",
    mos_lower_better: bool = False,
    whole_test: bool = False,
    published: PublishedSet | None = None,
    notes: Sequence[str] = (),
) -> ImageDataset:
    """Return one split of a data set, or one of its short lists.

    "quick" and "quick_validation" are at most 125 images of test and validation, evenly spaced in the order of
    (opinion score, id): a list that depends on nothing else.

    Args:
        split: one of ``LISTS``.
        splits: of every record.
        records: the whole data set.
        sizes: {image id: bytes}, for the fingerprint.
        name: see ``ImageDataset``.
        mos_range: see ``ImageDataset``.
        mos_kind: see ``ImageDataset``.
        mos_lower_better: see ``ImageDataset``.
        whole_test: test every image, whatever its split.
        published: the data set as it was published, where it was; a copy of another length is told.
        notes: what else there is to tell.

    Raises:
        UserError: for an unknown split or one without images.
    """
    if split not in LISTS:
        raise UserError(f"no split '{split}' of {name}; there are: {', '.join(LISTS)}.{suggest(split, LISTS)}")
    part = {"quick": "test", "quick_validation": "validation"}.get(split, split)
    everything = whole_test and part == "test"
    chosen = [record for record, here in zip(records, splits, strict=True) if everything or here == part]
    if not chosen:
        counts = Counter(splits)
        parts = ", ".join(f"{word} {counts[word]}" for word in SPLITS)
        raise UserError(
            f"split {part} of {name} has no images (of {len(records)}: {parts}); add images, or choose other splits "
            "with data.splits=..."
        )
    notes = list(notes)
    if whole_test and part == "train":
        notes.append(
            f"every image of {name} is tested, also the {len(chosen)} trained on; data.splits=random keeps them apart"
        )
    if published is not None and len(records) != published.size:
        notes.append(
            f"{published.title} has {published.size:,} images, this copy {len(records):,}: "
            "results are not comparable with published ones"
        )
    for note in notes:
        log.warning(note)
    if split.startswith("quick"):
        chosen.sort(key=lambda record: (0.0 if record.mos is None else record.mos, record.image_id))
        rows = np.linspace(0, len(chosen) - 1, min(QUICK, len(chosen))).round().astype(int)
        chosen = [chosen[row] for row in rows]
    return ImageDataset(
        chosen,
        mos_range=mos_range,
        name=name,
        fingerprint=fingerprint(chosen, sizes),
        mos_kind=mos_kind,
        mos_lower_better=mos_lower_better,
        notes=notes,
    )


def fingerprint(records: Iterable[ImageRecord], sizes: Mapping[str, int]) -> str:
    """Return 16 hexadecimal digits of ids, opinion scores, references and file sizes; the same on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for record in sorted(records, key=lambda record: record.image_id):
        facts = (record.image_id, record.mos, record.reference_id, sizes[record.image_id])
        digest.update(repr(facts).encode())
    return digest.hexdigest()
