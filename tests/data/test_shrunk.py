"""Resized copies: the pixels that reading the originals gives, made once, whole, and never another image's."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from certiqa.data import ImageDataset, ImageRecord, registry, shrunk
from certiqa.data.datamodule import QualityDataModule
from certiqa.data.reading import read_image
from certiqa.data.shrunk import copies_folder, copy_of, prepare_shrunk, shrunken
from certiqa.errors import UserError

SIDE = 20


@pytest.fixture
def photos(tmp_path):
    """Twelve photographs, one of them turned by its EXIF, one already small."""
    folder = tmp_path / "TestImage"
    folder.mkdir()
    generator, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    paths = []
    for row in range(12):
        size = (16, 24, 3) if row == 3 else (60, 81, 3)
        paths.append(folder / f"{row:05d}.jpg")
        image = Image.fromarray(generator.integers(0, 256, size, np.uint8))
        image.save(paths[-1], exif=exif if row == 5 else b"")
    return paths


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_one_and_two_workers_make_the_same_copies_which_are_the_pixels_read(photos, tmp_path):
    assert prepare_shrunk(photos, tmp_path / "one", SIDE, workers=1) == {}
    assert prepare_shrunk(photos, tmp_path / "two", SIDE, workers=2) == {}
    found = content(tmp_path / "one")
    assert found == content(tmp_path / "two")
    assert len(found) == len(photos) - 1, "what the resize would not make smaller gets none"
    for photo in photos:
        copy = copy_of(photo, tmp_path / "one", SIDE, "bilinear")
        pixels = read_image(photo, SIDE, "bilinear")
        assert copy.is_file() == (photo.name != "00003.jpg")
        if copy.is_file():
            assert np.array_equal(read_image(copy), pixels)
            assert np.array_equal(read_image(copy, SIDE, "bilinear"), pixels), "resizing a copy does nothing"
    assert pixels.shape == (20, 27, 3)


def test_what_is_there_is_not_made_again_and_the_rest_is(photos, tmp_path, monkeypatch):
    prepare_shrunk(photos[:5], tmp_path / "cache", SIDE)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    asked = []
    real = shrunk._make_all
    monkeypatch.setattr(shrunk, "_make_all", lambda jobs, *rest: asked.extend(jobs) or real(jobs, *rest))
    prepare_shrunk(photos, tmp_path / "cache", SIDE, workers=1)
    assert asked == [photos[3], *photos[5:]]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.suffix != ".png" and path.is_file()]
    assert left == [".lock"]


def test_an_interrupt_leaves_whole_copies_that_are_gone_on_from(photos, tmp_path, monkeypatch):
    real = Image.Image.save

    def stop(self, goal, *rest, **options):
        real(self, goal, *rest, **options)
        if "00004" in str(goal):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            shrunk._make_some(photos, tmp_path / "cache", SIDE, "bilinear")
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(name[:5] for name in names) == ["00000", "00001", "00002"]
    prepare_shrunk(photos, tmp_path / "cache", SIDE)
    assert len(content(tmp_path / "cache")) == len(photos) - 1


def test_a_copy_is_never_that_of_another_image(photos, tmp_path):
    prepare_shrunk(photos, tmp_path / "cache", SIDE)
    copy = copy_of(photos[0], tmp_path / "cache", SIDE, "bilinear")
    assert copy.is_file()
    assert not copy_of(photos[0], tmp_path / "cache", SIDE, "bicubic").is_file()
    assert not copy_of(photos[0], tmp_path / "cache", SIDE + 1, "bilinear").is_file()
    about = photos[0].stat()
    photos[0].write_bytes(photos[0].read_bytes()[:-1] + b"x")  # as long as before
    os.utime(photos[0], ns=(about.st_atime_ns, about.st_mtime_ns))  # and as old
    assert not copy_of(photos[0], tmp_path / "cache", SIDE, "bilinear").is_file()


def test_unreadable_images_are_told_and_get_no_copy(photos, tmp_path):
    photos[1].write_bytes(photos[1].read_bytes()[:200])
    photos[2].unlink()
    failures = prepare_shrunk(photos, tmp_path / "cache", SIDE)
    assert list(failures) == photos[1:3]
    assert "cannot read" in failures[photos[1]]
    assert "no image at" in failures[photos[2]]
    records = [ImageRecord(path.name, path, None) for path in photos]
    with_copies = [record.prepared is not None for record in shrunken(records, tmp_path / "c", SIDE, make=True)]
    assert with_copies == [row not in (1, 2, 3) for row in range(12)]


def test_no_room_is_said_before_any_work(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("certiqa.storage.files.free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"preparing 12 images needs .* missing; free them or choose another folder"):
        prepare_shrunk(photos, tmp_path / "cache", SIDE)


def test_the_data_module_uses_copies_where_there_are_some_and_makes_them_when_asked(photos, tmp_path, monkeypatch):
    records = [ImageRecord(path.name, path, 3.0) for path in photos]
    images = ImageDataset(records, mos_range=(1, 5), name="some", fingerprint="0")
    monkeypatch.setitem(registry.DATASETS, "some", lambda *_, **__: images)
    options = {"test": "all", "resize": SIDE, "resize_filter": "bilinear", "cache": tmp_path / "cache"}
    plain = QualityDataModule("some", **options).test_set
    assert not any(record.prepared for record in plain.records)
    prepared = QualityDataModule("some", **options, prepare=True, limit_test=5).test_set  # the small one among them
    assert sum(record.prepared is not None for record in prepared.records) == 4
    assert len(content(copies_folder(tmp_path / "cache"))) == 4, "no more than what is tested"
    found = QualityDataModule("some", **options).test_set
    assert sum(record.prepared is not None for record in found.records) == 4
    assert found.sizes() == plain.sizes()
    for one, two in zip(plain, found, strict=False):
        assert one["image"].equal(two["image"])
        assert one["path"] == two["path"]
    other = QualityDataModule("some", **{**options, "resize_filter": "lanczos"}).test_set
    assert not any(record.prepared for record in other.records)
    assert dataclasses.replace(found.records[0], prepared=None) == records[0]
