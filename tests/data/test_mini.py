"""The embedded data set: splits, labels, the quick list, and a cache that is rebuilt when it is not whole."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from certiqa.data import DISTORTIONS, load_dataset, mini
from certiqa.data.guises import random_guise
from certiqa.data.images import ImageDataset, ImageRecord, read_image
from certiqa.errors import UserError
from certiqa.storage.cache import cache_root


def test_photographs_are_split_14_3_5_and_all_are_used():
    shipped = {path.stem for path in (mini.ASSETS / "photos").glob("*.png")}
    assert {split: len(names) for split, names in mini.SPLITS.items()} == {"train": 14, "validation": 3, "test": 5}
    listed = [name for names in mini.SPLITS.values() for name in names]
    assert len(set(listed)) == 22
    assert set(listed) == shipped


def test_split_follows_the_documented_hash_order():
    names = [name for names in mini.SPLITS.values() for name in names]
    assert names == sorted(names, key=lambda name: hashlib.blake2b(f"{name}.png".encode(), digest_size=8).hexdigest())


def test_every_photograph_has_credits():
    credits = (mini.ASSETS / "photos" / "credits.csv").read_text()
    for names in mini.SPLITS.values():
        assert all(f"{name}.png," in credits for name in names)


def test_splits_share_no_photograph_and_no_image(mini_cache):
    splits = {name: load_dataset("mini", name, cache=mini_cache) for name in mini.SPLITS}
    assert [len(split) for split in splits.values()] == [1750, 375, 625]
    references = [{record.reference_id for record in split.records} for split in splits.values()]
    assert not references[0] & references[1]
    assert not references[0] & references[2]
    assert not references[1] & references[2]


@pytest.mark.parametrize(("split", "photographs"), [("quick", "test"), ("quick_validation", "validation")])
def test_quick_list_has_each_cell_once_and_rotates_the_photograph(mini_cache, split, photographs):
    records = load_dataset("mini", split, cache=mini_cache).records
    cells = Counter(record.image_id.split("/")[1] for record in records)
    assert len(cells) == 125
    assert set(cells.values()) == {1}
    used = Counter(record.reference_id for record in records)
    assert set(used) == set(mini.SPLITS[photographs])
    assert max(used.values()) - min(used.values()) <= 1
    for kind in DISTORTIONS.values():
        of_type = [r.reference_id for r in records if r.image_id.split("/")[1].startswith(f"{kind.type_id:02d}_")]
        assert len(set(of_type)) == min(5, len(mini.SPLITS[photographs]))


def test_items_carry_what_records_need(mini_cache):
    item = load_dataset("mini", "quick", cache=mini_cache)[0]
    assert item["image"].shape == (3, 224, 224)
    assert 0 <= float(item["image"].min()) < float(item["image"].max()) <= 1
    assert item["image_id"].endswith("01_1.png")
    assert item["mos"] == pytest.approx(4.6122)
    assert item["mos_normalised"] == pytest.approx((4.6122 - 1) / 4)
    assert item["reference_id"] in mini.SPLITS["test"]


def test_images_are_the_distorted_photograph_cropped_to_the_centre(mini_cache):
    record = load_dataset("mini", "quick", cache=mini_cache).records[52]
    photograph, cell = record.image_id.split("/")
    type_id, level = (int(part) for part in cell.removesuffix(".png").split("_"))
    pixels = read_image(mini.ASSETS / "photos" / f"{photograph}.png")
    from certiqa.data import distort

    whole = distort(pixels, type_id, level, seed=mini.photograph_seed(photograph), focus=(80, 144, 224, 224))
    assert np.array_equal(read_image(record.path), whole[80:304, 144:368])


def test_unknown_names_are_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"no data set 'minni'.*Did you mean 'mini'"):
        load_dataset("minni")
    with pytest.raises(UserError, match=r"no split 'tset' of mini.*Did you mean 'test'"):
        load_dataset("mini", "tset")


@pytest.fixture
def small_mini(monkeypatch):
    """The data set's machinery on one photograph and one type, so that it is made in a second."""
    monkeypatch.setattr(mini, "SPLITS", {"train": (), "validation": (), "test": ("scikit_chelsea",)})
    monkeypatch.setattr(mini, "LISTS", {"test": "test", "quick": "test"})
    monkeypatch.setattr(mini, "DISTORTIONS", {"darken": DISTORTIONS["darken"]})


def test_guises_add_training_images_and_leave_the_others_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "SPLITS", {"train": ("scikit_chelsea",), "validation": (), "test": ("scikit_coffee",)})
    monkeypatch.setattr(mini, "LISTS", {"train": "train", "test": "test"})
    monkeypatch.setattr(mini, "DISTORTIONS", {"darken": DISTORTIONS["darken"]})
    plain, guised = (load_dataset("mini", "train", cache=tmp_path, guises=number) for number in (0, 2))
    assert guised.records[:5] == plain.records
    assert [record.image_id for record in guised.records[5:]] == [
        f"scikit_chelsea/17_{level}_guise{guise}.png" for guise in (1, 2) for level in mini.LEVELS
    ]
    assert [record.mos for record in guised.records] == 3 * [record.mos for record in plain.records]
    assert {record.reference_id for record in guised.records} == {"scikit_chelsea"}
    shown = {read_image(record.path).tobytes() for record in guised.records}
    assert len(shown) == 15
    assert guised.fingerprint != plain.fingerprint
    assert len(load_dataset("mini", "test", cache=tmp_path, guises=2)) == 5
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    load_dataset("mini", "train", cache=tmp_path, guises=2)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


def test_guises_differ_from_the_photograph_and_are_drawn_from_the_generator_alone():
    photograph = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    first, again, other = (random_guise(photograph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == photograph.shape
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()
    assert (first != photograph).any()


def test_a_cache_that_was_cut_short_is_made_again(small_mini, tmp_path, capsys):
    folder = mini.prepare_mini(tmp_path)
    victim = folder / "scikit_chelsea" / "17_3.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100])
    assert mini.find_damage(folder, "test") == "scikit_chelsea/17_3.png is missing or cut short"
    assert mini.prepare_mini(tmp_path) == folder
    assert victim.read_bytes() == whole
    assert "not whole" in capsys.readouterr().out
    (folder / "index-test.json").unlink()
    mini.prepare_mini(tmp_path)
    assert mini.find_damage(folder, "test") is None
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    images = {f"17_{level}.png" for level in mini.LEVELS}
    assert left == images | {f"index-{split}.json" for split in mini.LISTS}, (
        "a build must leave nothing beside its result"
    )


def test_only_the_images_that_are_asked_for_are_made(small_mini, tmp_path):
    made = [record.image_id for record in mini.load_mini("quick", cache=tmp_path).records]
    assert made == [f"scikit_chelsea/17_{level}.png" for level in mini.LEVELS]
    folder = mini.prepare_mini(tmp_path, splits=["quick"])
    assert mini.find_damage(folder, "test") is not None, "no index of what was not asked for"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    mini.load_mini("test", cache=tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}, "what is there is not made again"


def test_the_quick_list_alone_is_a_fifth_of_the_test_images(monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "DISTORTIONS", {name: DISTORTIONS[name] for name in ("darken", "mean_shift")})
    mini.load_mini("quick", cache=tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 2 * 5


def test_a_whole_cache_is_left_alone(small_mini, tmp_path):
    folder = mini.prepare_mini(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    mini.prepare_mini(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_making_it_twice_gives_the_same_bytes(small_mini, tmp_path):
    first, second = (mini.prepare_mini(tmp_path / name) for name in ("a", "b"))
    for path in first.rglob("*.png"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_the_fingerprint_follows_photographs_and_code(monkeypatch, tmp_path):
    before = mini.mini_fingerprint()
    assert before == mini.mini_fingerprint()
    monkeypatch.setattr(mini.importlib.metadata, "version", lambda package: "0.0")
    assert mini.mini_fingerprint() != before


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match=r"cannot write the cache .*file/cache.*CERTIQA_CACHE"):
        cache_root(blocker / "cache")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    assert (tmp_path / "here").is_dir()


def test_duplicate_ids_and_scores_off_the_scale_are_refused(tmp_path):
    record = ImageRecord("a.png", tmp_path / "a.png", 3.0)
    with pytest.raises(UserError, match=r"'a.png' occurs twice"):
        ImageDataset([record, record], mos_range=(1, 5), name="x", fingerprint="")
    with pytest.raises(UserError, match=r"opinion score 3.0 of 'a.png' is outside the scale"):
        ImageDataset([record], mos_range=(0, 1), name="x", fingerprint="")


def test_unreadable_and_missing_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no image at '.*gone.png'"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cannot read the image '.*cut.png'"):
        read_image(tmp_path / "cut.png")
