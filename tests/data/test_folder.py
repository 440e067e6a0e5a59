"""A folder of a user's own images: with and without scores, columns, scales, splits, and what is refused."""

import math

import pytest

from certiqa.data import load_dataset
from certiqa.data.folder import scale_of
from certiqa.data.splits import SPLITS
from certiqa.errors import UserError


@pytest.fixture
def folder(tmp_path, miniatures):
    return miniatures.images(tmp_path / "mine")


def names_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_images_without_scores_are_all_tested(folder, caplog):
    (folder / "scores.csv").unlink()
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "a.png").write_bytes(b"")
    (folder / "day" / "._x.png").write_bytes(b"")
    test = load_dataset("folder", "test", root=folder)
    assert [record.image_id for record in test.records] == [name for name in names_of(folder) if "." not in name[:5]]
    assert (len(test), test.has_opinions, test.mos_kind) == (12, False, "none")
    assert math.isnan(test[0]["mos_normalised"])
    assert [len(load_dataset("folder", split, root=folder, splits="random")) for split in SPLITS] == [10, 1, 1]
    assert not caplog.text


def test_scored_images_are_split(folder):
    parts = [load_dataset("folder", split, root=folder) for split in SPLITS]
    assert [len(part) for part in parts] == [10, 1, 1]
    assert parts[0].mos_range == (1, 5)
    assert len(load_dataset("folder", "test", root=folder, splits="all")) == 12


def test_a_column_called_dmos_needs_its_direction(folder):
    table = next(folder.glob("*.csv"))
    table.write_text(table.read_text().replace("mos", "DMOS", 1))
    with pytest.raises(UserError, match=r"in the column 'DMOS'.*say data.lower_better=true or false"):
        load_dataset("folder", "test", root=folder, splits="all")
    for direction in (False, True):
        images = load_dataset("folder", "test", root=folder, splits="all", lower_better=direction)
        assert images.mos_lower_better is direction


def test_lower_better_scores_stay_native_and_are_turned_round_normalised(folder):
    plain = load_dataset("folder", "test", root=folder, splits="all")
    turned = load_dataset("folder", "test", root=folder, splits="all", lower_better=True)
    assert turned[3]["mos"] == plain[3]["mos"]
    assert turned[3]["mos_normalised"] == pytest.approx(1 - plain[3]["mos_normalised"])
    assert turned.mos_lower_better
    assert turned.subset([turned.records[0].image_id]).mos_lower_better


def table(folder, miniatures, header, make_row, **options):
    rows = [make_row(place, name) for place, name in enumerate(names_of(folder))]
    miniatures.write_csv(folder / "scores.csv", header, rows, **options)


def test_columns_are_chosen_and_references_kept_together(folder, miniatures):
    header = ["no", "which", "dull", "pristine", "set"]
    words = ["train", "train", "val", "test"]
    table(folder, miniatures, header, lambda i, name: [i, name, i * 8, f"r{i // 3}", words[i // 3]], separator=";")
    with pytest.raises(UserError, match=r"no images|has no columns|no table in .* has the columns asked for"):
        load_dataset("folder", root=folder, mos_column="dul")
    chosen = {"image_column": "which", "mos_column": "dull", "reference_column": "pristine"}
    parts = {split: load_dataset("folder", split, root=folder, **chosen) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [6, 3, 3], "the column called set"
    assert parts["test"].mos_range == (0, 100)
    for splits in ("reference", "auto"):
        part = load_dataset("folder", "test", root=folder, splits=splits, **chosen)
        assert {record.reference_id for record in part.records} <= {"r0", "r1", "r2", "r3"}
        assert len(part) == 3
    with pytest.raises(UserError, match="has no column 'fold'.*data.splits="):
        load_dataset("folder", root=folder, splits="fold", **chosen)
    with pytest.raises(UserError, match="has no column 'dul'.*Did you mean 'dull'.*data.mos_column="):
        load_dataset("folder", root=folder, scores="scores.csv", image_column="which", mos_column="dul")


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([0, 0.7], (0, 1)),
        ([1.2, 4.8], (1, 5)),
        ([0.5, 9.5], (0, 10)),
        ([6, 8], (0, 10)),
        ([3.91, 88.39], (0, 100)),
    ],
)
def test_scales_without_doubt(scores, scale, tmp_path):
    assert scale_of(scores, None, tmp_path) == scale


@pytest.mark.parametrize("scores", [[-0.2, 0.7], [0.5, 4.5], [2, 101]])
def test_ambiguous_scales_are_asked_for(scores, tmp_path):
    with pytest.raises(UserError, match=r"their scale may be several; say it with data.mos_range=\[low,high\]"):
        scale_of(scores, None, tmp_path)
    assert scale_of(scores, [-200, 200], tmp_path) == (-200, 200)
    with pytest.raises(UserError, match="outside data.mos_range"):
        scale_of(scores, [1, 4], tmp_path)
    with pytest.raises(UserError, match=r"must be \[low,high\] with low < high, got \[5, 1\]"):
        scale_of(scores, [5, 1], tmp_path)


def test_rows_and_images_that_do_not_meet(folder, miniatures):
    names = names_of(folder)
    rows = [[name, 1 + place / 4] for place, name in enumerate(names[2:])]
    miniatures.write_csv(folder / "scores.csv", ["image", "mos"], [*rows, ["gone.png", 2.0]])
    with pytest.raises(UserError, match=r"1 rows .*gone.png; 2 images in .*data.unmatched=ignore"):
        load_dataset("folder", root=folder)
    kept = load_dataset("folder", "test", root=folder, unmatched="ignore", splits="all")
    assert [record.image_id for record in kept.records] == names[2:]


@pytest.mark.parametrize("column", ["score", "quality", "rating"])
def test_scores_of_another_tool_are_no_opinion_scores_until_they_are_said_to_be(folder, miniatures, column):
    (folder / "scores.csv").unlink()
    rows = [[name, 3.2 + place] for place, name in enumerate(names_of(folder))]
    miniatures.write_csv(folder / "niqe_results.csv", ["filename", column], rows)
    found = load_dataset("folder", "test", root=folder)
    assert not any(record.mos for record in found.records)
    (note,) = found.notes
    assert f"niqe_results.csv has image names and a column '{column}'" in note
    assert note.endswith("data.scores=niqe_results.csv")
    for said in ({"scores": "niqe_results.csv"}, {"mos_column": column}):
        assert load_dataset("folder", "test", root=folder, splits="all", **said).has_opinions
    miniatures.write_csv(folder / "human.csv", ["filename", "Mean opinion score"], rows)
    found = load_dataset("folder", "test", root=folder, splits="all")
    assert found.has_opinions, "a table with opinion scores is taken, whatever lies beside it"
    assert "niqe_results.csv" in found.notes[0]


def test_several_tables_are_asked_about(folder, miniatures):
    miniatures.write_csv(folder / "more.csv", ["image", "mos"], [["a", 1]])
    with pytest.raises(UserError, match="has 2 tables of scores: more.csv, scores.csv; choose one with data.scores"):
        load_dataset("folder", root=folder)
    assert len(load_dataset("folder", "test", root=folder, scores="scores.csv", splits="all")) == 12


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="needs the folder of the images: data.root=FOLDER"):
        load_dataset("folder")
    with pytest.raises(UserError, match="is not a folder"):
        load_dataset("folder", root=tmp_path / "gone")
    with pytest.raises(UserError, match=r"no images in .* or below \(.apng"):
        load_dataset("folder", root=tmp_path)
    with pytest.raises(UserError, match="data.unmatched must be raise or ignore, got 'drop'"):
        load_dataset("folder", root=tmp_path, unmatched="drop")
