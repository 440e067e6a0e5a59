"""Published data sets: miniatures of the official layouts, full lengths, and bad copies."""

import itertools
import math
import shutil
from collections import Counter

import pandas as pd
import pytest

from certiqa.data import load_dataset
from certiqa.data.splits import SPLITS
from certiqa.errors import UserError


@pytest.fixture(scope="module")
def originals(tmp_path_factory, miniatures):
    """One miniature of each, not to be changed."""
    base = tmp_path_factory.mktemp("data")
    miniatures.koniq(base / "koniq10k", sizes=("512x384", "1024x768"))
    miniatures.kadid(base / "kadid10k")
    miniatures.spaq(base / "SPAQ")
    miniatures.nips2017(base / "nips2017")
    miniatures.livec(base / "livec")
    miniatures.agiqa3k(base / "agiqa3k")
    return base


FOLDERS = {
    "koniq": "koniq10k",
    "kadid": "kadid10k",
    "spaq": "SPAQ",
    "nips2017": "nips2017",
    "livec": "livec",
    "agiqa3k": "agiqa3k",
}


@pytest.fixture
def copy(originals, tmp_path):
    """Copy a miniature, to be spoilt: ``copy("koniq")``."""

    def make(name):
        return shutil.copytree(originals / FOLDERS[name], tmp_path / FOLDERS[name])

    return make


def splits_of(name, root, **options):
    return {split: load_dataset(name, split, root=root, **options) for split in SPLITS}


@pytest.mark.parametrize(
    ("name", "counts", "scale"),
    [
        ("koniq", (14, 2, 4), (0, 100)),
        ("kadid", (12, 6, 6), (1, 5)),
        ("spaq", (16, 2, 2), (0, 100)),
        ("nips2017", (10, 1, 12), None),
        ("livec", (14, 2, 4), (0, 100)),
        ("agiqa3k", (14, 2, 4), (0, 5)),
    ],
)
def test_a_miniature_loads_from_anywhere(name, counts, scale, originals, monkeypatch):
    folder = originals / FOLDERS[name]
    given = splits_of(name, folder)
    assert tuple(len(given[split]) for split in SPLITS) == counts
    assert given["test"].mos_range == scale
    item = given["test"][0]
    assert item["image"].shape[0] == 3
    assert min(item["image"].shape[1:]) >= 64
    assert item["path"] == str(given["test"].records[0].path)
    assert item["path"].endswith(item["image_id"])
    assert math.isnan(item["mos"]) == (scale is None)
    if scale:
        assert item["mos_normalised"] == pytest.approx((item["mos"] - scale[0]) / (scale[1] - scale[0]))
    assert load_dataset(name, "test", root=originals).fingerprint == given["test"].fingerprint
    for value in (originals, folder):
        monkeypatch.setenv("CERTIQA_DATA", str(value))
        assert load_dataset(name, "test").fingerprint == given["test"].fingerprint


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_missing_data_set_is_answered_with_tree_and_command(name, tmp_path, monkeypatch):
    monkeypatch.delenv("CERTIQA_DATA", raising=False)
    told = rf"Expected:\n +{name}/ .*certiqa-data (fetch|verify) {name}.*data\.root=FOLDER.*--root FOLDER"
    with pytest.raises(UserError, match=rf"(?s)CERTIQA_DATA is not set\. {told}"):
        load_dataset(name)
    with pytest.raises(UserError, match=rf"(?s)no .* in '.*': it has none of .*{told}"):
        load_dataset(name, root=tmp_path)
    with pytest.raises(UserError, match=r"nowhere' is not a folder, so .* is not found"):
        load_dataset(name, root=tmp_path / "nowhere")


# -- KonIQ ---------------------------------------------------------------------------------------------


def test_koniq_takes_the_table_with_the_split_whatever_its_name(copy, miniatures):
    folder = copy("koniq")
    (folder / "koniq10k_distributions_sets.csv").rename(folder / "z.csv")
    (folder / "koniq10k_scores_and_distributions.csv").rename(folder / "koniq10k_distributions_sets.csv")
    test = load_dataset("koniq", "test", root=folder)
    official = {
        row[0]: float(row[6]) for row in miniatures.koniq_sets_rows(miniatures.koniq_names(20)) if row[8] == "test"
    }
    assert {record.image_id: record.mos for record in test.records} == official


def test_koniq_without_the_split_file_is_split_on_request(copy):
    folder = copy("koniq")
    (folder / "koniq10k_distributions_sets.csv").unlink()
    with pytest.raises(UserError, match=r"official split .* unknown; add koniq10k_distributions_sets.csv .*=random"):
        load_dataset("koniq", root=folder)
    first = splits_of("koniq", folder, splits="random")
    assert first["test"].mos_range == (1.0, 5.0)
    assert [len(part) for part in first.values()] == [16, 2, 2]
    other = load_dataset("koniq", "test", root=folder, splits="random", split_seed=1)
    assert other.fingerprint != first["test"].fingerprint


def test_koniq_sizes(originals):
    small = load_dataset("koniq", root=originals)
    large = load_dataset("koniq", root=originals, size="1024x768")
    assert (small.sizes()[0], large.sizes()[0]) == ((64, 80), (72, 96))
    assert [r.image_id for r in small.records] == [r.image_id for r in large.records]
    assert small.fingerprint != large.fingerprint
    with pytest.raises(UserError, match="data.size must be 512x384 or 1024x768, got '640'"):
        load_dataset("koniq", root=originals, size="640")


def rescale(path, column, change, **options):
    table = pd.read_csv(path)
    table[column] = change(table[column])
    table.to_csv(path, index=False, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mos: mos / 100, r"run from 0.0391 to 0.8839, which fits no scale .*\(1-5 or 0-100\)"),
        (lambda mos: mos / 10, "fits no scale"),
        (lambda mos: mos * 10, "fits no scale"),
        (lambda mos: mos - 50, "fits no scale"),
        (lambda mos: 1 + mos / 25, "runs from 1.1564 to 4.5356, on the scale 1-5, but its other columns are .* 0-100"),
    ],
)
def test_koniq_scores_on_another_scale_are_refused(copy, change, message):
    folder = copy("koniq")
    rescale(folder / "koniq10k_distributions_sets.csv", "MOS", change)
    with pytest.raises(UserError, match=message):
        load_dataset("koniq", root=folder)


def test_koniq_hundred_in_the_table_of_one_to_five_is_refused(copy):
    folder = copy("koniq")
    (folder / "koniq10k_distributions_sets.csv").unlink()
    rescale(folder / "koniq10k_scores_and_distributions.csv", "MOS", lambda mos: (mos - 1) * 25)
    with pytest.raises(UserError, match="on the scale 0-100, but its other columns are those of the file with 1-5"):
        load_dataset("koniq", root=folder, splits="random")


def test_pyiqa_meta_files_are_read(originals, tmp_path, miniatures):
    rows = miniatures.koniq_sets_rows(miniatures.koniq_names(20))
    words = {"training": "train", "validation": "val", "test": "test"}
    random = ["train", "train", "train", "train", "val"] * 4
    header = ["img_name", "mos", "std", "official_split", "ratio802_seed123_split_01"]
    body = [[row[0], row[6], row[7], words[row[8]], other] for row, other in zip(rows, random, strict=True)]
    meta = tmp_path / "meta_info_KonIQ10kDataset.csv"
    miniatures.write_csv(meta, header, body)
    official = load_dataset("koniq", "test", root=originals)
    assert load_dataset("koniq", "test", root=originals, meta=meta).fingerprint == official.fingerprint
    other = splits_of("koniq", originals, meta=meta, splits="ratio802_seed123_split_01")
    assert [len(part) for part in other.values()] == [14, 2, 4]
    with pytest.raises(UserError, match="data.splits=ratio9: .* has no such column"):
        load_dataset("koniq", root=originals, meta=meta, splits="ratio9")
    pairs = miniatures.kadid_rows(4, 2, 3)
    meta = tmp_path / "kadid.csv"
    miniatures.write_csv(meta, ["ref_name", "dist_name", "dmos", "std"], [[r[1], r[0], r[2], r[3]] for r in pairs])
    assert (
        load_dataset("kadid", "test", root=originals, meta=meta).fingerprint
        == load_dataset("kadid", "test", root=originals).fingerprint
    )


# -- KADID, SPAQ, NIPS ---------------------------------------------------------------------------------


def test_kadid_is_split_by_reference_and_higher_is_better(originals):
    parts = splits_of("kadid", originals)
    references = {split: {record.reference_id for record in part.records} for split, part in parts.items()}
    assert sum(map(len, references.values())) == 4
    record = parts["test"].records[0]
    assert record.image_id == f"{record.reference_id}_01_01.png"
    assert parts["test"].normalised(record.mos) > parts["test"].normalised(parts["test"].records[2].mos)
    other = load_dataset("kadid", "test", root=originals, split_seed=5)
    assert {record.reference_id for record in other.records} != references["test"]


def test_kadid_refuses_what_would_mix_references(copy):
    folder = copy("kadid")
    with pytest.raises(UserError, match="would put one reference into two splits"):
        load_dataset("kadid", root=folder, splits="random")
    table = pd.read_csv(folder / "dmos.csv")
    table["split"] = ["train", "test"] * 12
    table.to_csv(folder / "dmos.csv", index=False)
    with pytest.raises(UserError, match="column 'split' .* puts images of the reference 'I01' into train and test"):
        load_dataset("kadid", root=folder, splits="split")
    table.loc[3, "ref_img"] = "I02.png"
    table.to_csv(folder / "dmos.csv", index=False)
    with pytest.raises(UserError, match=r"gives 'I01_02_01.png' the reference 'I02.png', its name says I01"):
        load_dataset("kadid", root=folder)


def test_kadid_on_another_scale_is_refused(copy):
    folder = copy("kadid")
    rescale(folder / "dmos.csv", "dmos", lambda mos: mos * 20)
    with pytest.raises(UserError, match="fits no scale of this data set"):
        load_dataset("kadid", root=folder)


def test_spaq_reads_a_csv_as_well(tmp_path, miniatures, originals):
    miniatures.spaq(tmp_path / "SPAQ", table="csv")
    (tmp_path / "SPAQ" / "Annotations" / "EXIF_tags.xlsx").unlink()
    other = load_dataset("spaq", "train", root=tmp_path)
    assert other.fingerprint == load_dataset("spaq", "train", root=originals).fingerprint
    assert len(set(other.sizes())) == 3
    rescale(next((tmp_path / "SPAQ" / "Annotations").glob("*.csv")), "MOS", lambda mos: 1 + mos / 25)
    with pytest.raises(UserError, match="fits no scale"):
        load_dataset("spaq", root=tmp_path)


def test_nips_has_no_opinions_and_tests_every_image(originals, caplog):
    test = load_dataset("nips2017", "test", root=originals)
    assert (len(test), test.has_opinions, test.mos_kind, test.mos_range) == (12, False, "none", None)
    assert "not comparable" in caplog.text, "the miniature is not the whole set"
    load_dataset("nips2017", "train", root=originals)
    assert "every image of nips2017 is tested, also the 10 trained on" in caplog.text
    apart = splits_of("nips2017", originals, splits="random")
    assert sum(map(len, apart.values())) == 12


# -- LIVE In the Wild, AGIQA-3K ---------------------------------------------------------------------------


def test_livec_leaves_the_training_images_of_its_raters_out(originals, miniatures):
    parts = splits_of("livec", originals)
    told = {name: mos for name, mos, _ in miniatures.livec_rows(20)}
    scores = {record.image_id: record.mos for part in parts.values() for record in part.records}
    assert scores == {name: mos for name, mos in told.items() if not name.startswith("t")}
    other = load_dataset("livec", "test", root=originals, split_seed=1)
    assert other.fingerprint != parts["test"].fingerprint


def test_livec_reads_a_table_of_another_project(originals, tmp_path, miniatures):
    rows = [[name, mos, std] for name, mos, std in miniatures.livec_rows(20) if not name.startswith("t")]
    miniatures.write_csv(tmp_path / "meta_info_LIVEChallengeDataset.csv", ["img_name", "mos", "std"], rows)
    other = load_dataset("livec", "test", root=originals, meta=tmp_path / "meta_info_LIVEChallengeDataset.csv")
    assert other.fingerprint == load_dataset("livec", "test", root=originals).fingerprint


def test_bad_copies_of_livec_are_named(copy, miniatures):
    folder = copy("livec")
    rows = miniatures.livec_rows(20)
    miniatures.write_livec_tables(folder / "Data", [(name, mos / 10, std) for name, mos, std in rows])
    assert len(load_dataset("livec", root=folder)) == 4, "0 to 9.2 may be the low end of 0-100"
    miniatures.write_livec_tables(folder / "Data", [(name, mos / 100, std) for name, mos, std in rows])
    with pytest.raises(UserError, match="fits no scale of this data set"):
        load_dataset("livec", root=folder)
    miniatures.write_livec_tables(folder / "Data", rows)
    miniatures.write_livec_tables(folder / "other", rows[:-1])
    (folder / "other" / "AllImages_release.mat").rename(folder / "Data" / "AllImages_release.mat")
    with pytest.raises(UserError, match="hold 26 names, 27 scores and 27 standard deviations"):
        load_dataset("livec", root=folder)
    (folder / "Data" / "AllMOS_release.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match=r"cannot read '.*AllMOS_release.mat': .*; fetch the data set again"):
        load_dataset("livec", root=folder)
    (folder / "Data" / "AllMOS_release.mat").unlink()
    with pytest.raises(UserError, match=r"(?s)has no '.*AllMOS_release.mat'. Expected"):
        load_dataset("livec", root=folder)


def test_agiqa3k_is_split_by_prompt_and_takes_the_scores_of_quality(originals, miniatures):
    parts = splits_of("agiqa3k", originals)
    prompts = {split: {record.reference_id for record in part.records} for split, part in parts.items()}
    assert {split: len(there) for split, there in prompts.items()} == {"train": 7, "validation": 1, "test": 2}
    assert disjoint(parts)
    told = {row[0]: float(row[5]) for row in miniatures.agiqa3k_rows(10, miniatures.GENERATORS[:2])}
    assert {record.image_id: record.mos for part in parts.values() for record in part.records} == told
    with pytest.raises(UserError, match="would put one prompt into two splits"):
        load_dataset("agiqa3k", root=originals, splits="random")


@pytest.mark.parametrize("place", ["ACGIQA-3K", "."])
def test_agiqa3k_finds_images_by_any_of_their_folders(copy, place):
    folder = copy("agiqa3k")
    before = load_dataset("agiqa3k", root=folder).fingerprint
    for path in sorted((folder / "AGIQA-3K").iterdir()):
        (folder / place).mkdir(exist_ok=True)
        path.rename(folder / place / path.name)
    (folder / "AGIQA-3K").rmdir()
    assert load_dataset("agiqa3k", root=folder).fingerprint == before


def test_agiqa3k_on_another_scale_or_without_prompts_is_refused(copy):
    folder = copy("agiqa3k")
    rescale(folder / "data.csv", "mos_quality", lambda mos: mos * 20)
    with pytest.raises(UserError, match="fits no scale of this data set"):
        load_dataset("agiqa3k", root=folder)
    table = pd.read_csv(folder / "data.csv").drop(columns="prompt")
    table.to_csv(folder / "data.csv", index=False)
    with pytest.raises(UserError, match="no column with prompts"):
        load_dataset("agiqa3k", root=folder)


# -- bad copies ----------------------------------------------------------------------------------------


TABLES = {
    "koniq": "koniq10k_distributions_sets.csv",
    "kadid": "dmos.csv",
    "nips2017": "images.csv",
    "agiqa3k": "data.csv",
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_bad_copies_are_named(name, copy):
    folder = copy(name)
    table = folder / TABLES[name]
    before = load_dataset(name, "test", root=folder).fingerprint
    text = table.read_text()

    table.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_dataset(name, "test", root=folder).fingerprint == before
    lines = text.splitlines()
    table.write_text("\n".join([*lines, lines[3]]))
    assert load_dataset(name, "test", root=folder).fingerprint == before, "a row twice counts once"
    cells = [line.partition(",") for line in lines[1:]]
    table.write_text("\n".join([lines[0], *(name.upper() + comma + rest for name, comma, rest in cells)]))
    assert load_dataset(name, "test", root=folder).fingerprint == before, "names differ in case"

    table.write_text("\n".join(lines[:-3]))
    with pytest.raises(UserError, match="3 images in .* have no row in"):
        load_dataset(name, root=folder)
    table.write_text(text)
    images = {"koniq": "512x384/*.jpg", "kadid": "images/*_0*.png", "nips2017": "images/*.png", "agiqa3k": "*/*.jpg"}
    image = sorted(folder.glob(images[name]))[0]
    image.unlink()
    with pytest.raises(UserError, match=f"1 rows of .* have no image in .*: {image.stem}"):
        load_dataset(name, root=folder)
    table.write_text("")
    with pytest.raises(UserError, match="is empty"):
        load_dataset(name, root=folder)


def test_contradicting_rows_and_empty_folders_are_named(copy):
    folder = copy("koniq")
    table = folder / TABLES["koniq"]
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    cells[6] = "50.5"
    table.write_text("\n".join([*lines, ",".join(cells)]))
    with pytest.raises(UserError, match=f"contradict each other about '{cells[0]}'"):
        load_dataset("koniq", root=folder)
    table.write_text("\n".join(lines))
    for size in ("512x384", "1024x768"):
        shutil.rmtree(folder / size)
    with pytest.raises(UserError, match=r"(?s)has no folder 512x384 or 1024x768. Expected"):
        load_dataset("koniq", root=folder)
    (folder / "512x384").mkdir()
    with pytest.raises(UserError, match="no images in"):
        load_dataset("koniq", root=folder)


def test_unknown_options_are_named(originals):
    with pytest.raises(UserError, match="data set 'koniq' has no option 'sise'; it has: .*Did you mean 'size'"):
        load_dataset("koniq", root=originals, sise="x")
    with pytest.raises(UserError, match="data set 'mini' has no option 'size'"):
        load_dataset("mini", size="x")


# -- full length ---------------------------------------------------------------------------------------


def disjoint(parts):
    ids = [{record.image_id for record in part.records} for part in parts.values()]
    return all(not first & second for first, second in itertools.combinations(ids, 2))


def test_koniq_at_full_length(tmp_path, miniatures, caplog):
    names = miniatures.koniq_names()
    (tmp_path / "512x384").mkdir()
    for tables, scale, counts in (
        ("koniq10k_distributions_sets.csv", (0, 100), miniatures.OFFICIAL_SET),
        ("koniq10k_scores_and_distributions.csv", (1, 5), {"train": 8059, "validation": 1007, "test": 1007}),
    ):
        is_sets = "sets" in tables
        header = miniatures.KONIQ_SETS if is_sets else miniatures.KONIQ_SCORES
        rows = (miniatures.koniq_sets_rows if is_sets else miniatures.koniq_scores_rows)(names)
        miniatures.write_csv(tmp_path / tables, header, rows)
        options = {
            "listing": lambda folder: dict.fromkeys(sorted(names), 1),
            "splits": "official" if is_sets else "random",
        }
        parts = splits_of("koniq", tmp_path, **options)
        assert [len(part) for part in parts.values()] == list(counts.values())
        assert disjoint(parts)
        assert parts["test"].mos_range == scale
        if is_sets:
            words = {row[0]: row[8] for row in rows}
            assert Counter(words[record.image_id] for record in parts["train"].records) == {"training": 7058}
            assert min(record.mos for part in parts.values() for record in part.records) == 3.91
            assert max(record.mos for part in parts.values() for record in part.records) == 88.39
        (tmp_path / tables).unlink()
    assert "not comparable" not in caplog.text


def test_kadid_at_full_length_has_no_reference_in_two_splits(tmp_path, miniatures, caplog):
    rows = miniatures.kadid_rows()
    assert len(rows) == 10_125
    miniatures.write_csv(tmp_path / "dmos.csv", miniatures.KADID, rows)
    (tmp_path / "images").mkdir()
    files = sorted({row[0] for row in rows} | {row[1] for row in rows})
    for seed in (0, 1):
        parts = splits_of("kadid", tmp_path, split_seed=seed, listing=lambda folder: dict.fromkeys(files, 1))
        assert [len(part) for part in parts.values()] == [65 * 125, 8 * 125, 8 * 125]
        references = [{record.reference_id for record in part.records} for part in parts.values()]
        assert [len(part) for part in references] == [65, 8, 8]
        assert len(set.union(*references)) == 81
        assert len(load_dataset("kadid", "quick", root=tmp_path, listing=lambda folder: dict.fromkeys(files, 1))) == 125
    assert "not comparable" not in caplog.text


def test_spaq_at_full_length(tmp_path, miniatures, caplog):
    rows = miniatures.spaq_rows()
    miniatures.write_csv(tmp_path / "Annotations" / "scores.csv", miniatures.SPAQ, rows)
    (tmp_path / "TestImage").mkdir()
    parts = splits_of("spaq", tmp_path, listing=lambda folder: dict.fromkeys([row[0] for row in rows], 1))
    assert [len(part) for part in parts.values()] == [8901, 1112, 1112]
    assert disjoint(parts)
    assert parts["train"].mos_range == (0, 100)
    assert "not comparable" not in caplog.text


def test_livec_and_agiqa3k_at_full_length(tmp_path, miniatures):
    rows = miniatures.livec_rows()
    miniatures.write_livec_tables(tmp_path / "livec" / "Data", rows)
    (tmp_path / "livec" / "Images").mkdir()
    names = [f"trainingImages/{name}" if name.startswith("t") else name for name, _, _ in rows]
    parts = splits_of("livec", tmp_path, listing=lambda folder: dict.fromkeys(sorted(names), 1))
    assert [len(part) for part in parts.values()] == [814, 116, 232]
    assert disjoint(parts)
    assert not any(part.notes for part in parts.values())
    rows = miniatures.agiqa3k_rows()
    miniatures.write_csv(tmp_path / "agiqa3k" / "data.csv", miniatures.AGIQA, rows)
    parts = splits_of("agiqa3k", tmp_path, listing=lambda folder: dict.fromkeys(sorted(row[0] for row in rows), 1))
    assert [len({record.reference_id for record in part.records}) for part in parts.values()] == [210, 30, 60]
    assert disjoint(parts)
