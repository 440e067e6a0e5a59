"""Splits: seeded by group, read from columns, short lists, and the fingerprint."""

from pathlib import Path

import pytest

from certiqa.data.images import ImageRecord
from certiqa.data.splits import SPLITS, dataset_of, fingerprint, split_by_column, split_seeded
from certiqa.errors import UserError

TABLE = Path("meta.csv")


def test_seeded_splits_keep_groups_together_and_follow_the_seed():
    groups = [f"I{index % 20:02d}" for index in range(200)]
    splits = split_seeded(groups, 0)
    assert {split: splits.count(split) for split in SPLITS} == {"train": 160, "validation": 20, "test": 20}
    for group in set(groups):
        assert len({split for split, mine in zip(splits, groups, strict=True) if mine == group}) == 1
    assert splits == split_seeded(groups, 0)
    assert splits != split_seeded(groups, 1)


def test_a_seeded_split_does_not_depend_on_the_order_of_the_rows():
    groups = [f"{index}.jpg" for index in range(50)]
    one = dict(zip(groups, split_seeded(groups, 3), strict=True))
    other = dict(zip(groups[::-1], split_seeded(groups[::-1], 3), strict=True))
    assert one == other
    # written down once: another library version or machine must give the same
    assert [name for name, split in one.items() if split == "test"] == ["0.jpg", "6.jpg", "37.jpg", "43.jpg", "45.jpg"]


@pytest.mark.parametrize(("number", "counts"), [(1, (1, 0, 0)), (3, (1, 1, 1)), (5, (3, 1, 1)), (81, (65, 8, 8))])
def test_few_groups_still_make_three_parts(number, counts):
    splits = split_seeded([str(index) for index in range(number)], 0)
    assert tuple(splits.count(split) for split in SPLITS) == counts


@pytest.mark.parametrize(
    "words", [["train", "val", "test"], ["training", "validation", "test"], ["0", "1", "2"], ["0.0", "1.0", "2.0"]]
)
def test_words_of_split_columns(words):
    assert split_by_column(words, ["a", "b", "c"], column="split", table=TABLE, seed=0) == list(SPLITS)


def test_columns_without_validation_or_test():
    names = [f"{index}" for index in range(20)]
    splits = split_by_column(["train"] * 15 + ["test"] * 5, names, column="c", table=TABLE, seed=0)
    assert splits[15:] == ["test"] * 5
    assert sorted(splits[:15]) == ["train"] * 13 + ["validation"] * 2
    splits = split_by_column(["train"] * 15 + ["val"] * 5, names, column="c", table=TABLE, seed=0)
    assert splits[15:] == ["test"] * 5, "pyiqa's 8:2 splits call the tested part val"


def test_wrong_columns_are_named():
    with pytest.raises(UserError, match=r"column 'c' of 'meta.csv' holds 'maybe' \(2 rows\)"):
        split_by_column(["train", "maybe", "maybe"], ["a", "b", "c"], column="c", table=TABLE, seed=0)
    with pytest.raises(UserError, match=r"puts images of the reference 'a' into train and test"):
        split_by_column(["train", "test", "val"], ["a", "a", "b"], column="c", table=TABLE, seed=0)


def records(number):
    return [
        ImageRecord(f"{index:04d}.png", Path(f"{index:04d}.png"), float(index * 7 % 100)) for index in range(number)
    ]


def test_quick_lists_are_spread_over_the_scores():
    made = records(1000)
    sizes = {record.image_id: 1 for record in made}
    options = {"name": "x", "mos_range": (0, 100)}
    quick = dataset_of("quick", ["test"] * 1000, made, sizes, **options)
    scores = [record.mos for record in quick.records]
    assert len(scores) == 125
    assert scores == sorted(scores)
    assert (scores[0], scores[-1]) == (0, 99)
    assert len(dataset_of("quick", ["test"] * 9, made[:9], sizes, **options)) == 9
    with pytest.raises(UserError, match=r"split validation of x has no images \(of 1000: train 0, validation 0, test"):
        dataset_of("quick_validation", ["test"] * 1000, made, sizes, **options)
    with pytest.raises(UserError, match="no split 'tets' of x; .* Did you mean 'test'"):
        dataset_of("tets", ["test"] * 1000, made, sizes, **options)


def test_the_fingerprint_follows_ids_scores_and_sizes_alone():
    made = records(5)
    sizes = {record.image_id: 10 for record in made}
    first = fingerprint(made, sizes)
    assert len(first) == 16
    moved = [ImageRecord(record.image_id, Path("/elsewhere") / record.image_id, record.mos) for record in made]
    assert fingerprint(moved[::-1], sizes) == first
    assert fingerprint(made, sizes | {"0003.png": 11}) != first
    assert fingerprint([*made[:4], ImageRecord("0004.png", Path("x"), 1.0)], sizes) != first
