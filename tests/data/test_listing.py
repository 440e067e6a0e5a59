"""What lies below a folder: links, folders that cannot be read, names of other encodings, files of other kinds."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certiqa.data import load_dataset
from certiqa.data.listing import child, left_out, list_images, tables_in
from certiqa.errors import UserError


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images, ``p0.png`` to ``p4.png``."""
    for row in range(5):
        picture(tmp_path / "photos" / f"p{row}.png", row)
    return tmp_path / "photos"


@pytest.mark.parametrize("target", ["/nowhere/p9.png", "p9.png"])
def test_a_link_that_leads_nowhere_or_round_is_an_image_that_cannot_be_read(folder, target):
    (folder / "p9.png").symlink_to(target)
    assert list_images(folder)["p9.png"] == 0
    reason = "is a link to '/nowhere/p9.png'" if target.startswith("/") else "Too many levels of symbolic links"
    images = load_dataset("folder", "test", root=folder)
    with pytest.raises(UserError, match=rf"p9.png'.*{reason}.*data.on_error=skip"):
        images.sizes_or_none()
    assert images.reading(on_error="skip").sizes_or_none() == [(8, 8)] * 5 + [None]


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "p9.png")
    with pytest.raises(UserError, match=r"p9.png': it is no file but a device or a pipe"):
        load_dataset("folder", "test", root=folder).sizes_or_none()


@pytest.mark.parametrize("act", [list_images, tables_in, lambda folder: child(folder, "LOCKED"), left_out])
def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch, act):
    locked = folder / "locked"
    picture(locked / "p5.png")
    scan = os.scandir

    def refuse(path):  # root, which may run the tests, is never refused
        if Path(path).name == "locked" or (act is not list_images and act is not left_out):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read the folder '.*': Permission denied; change its permissions"):
        act(folder)


def test_a_folder_goes_before_the_links_to_it(tmp_path):
    picture(tmp_path / "d" / "val" / "sub" / "p0.png")
    (tmp_path / "d" / "a_link").symlink_to("val")
    (tmp_path / "d" / "b_link").symlink_to("val/sub")
    (tmp_path / "d" / "val" / "up").symlink_to("..")
    assert list(list_images(tmp_path / "d")) == ["val/sub/p0.png"]


def test_of_links_to_folders_elsewhere_the_outer_one_counts(tmp_path):
    picture(tmp_path / "else" / "sub" / "p0.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").symlink_to(tmp_path / "else" / "sub")
    (tmp_path / "d" / "b").symlink_to(tmp_path / "else")
    assert list(list_images(tmp_path / "d")) == ["b/sub/p0.png"]


def test_names_that_are_not_utf8_are_refused_by_a_text_that_can_be_printed(folder):
    os.rename(folder / "p4.png", os.fsencode(folder) + "/照片.png".encode("gbk"))
    with pytest.raises(UserError, match=r"names of 1 images .* are not UTF-8.*: \\xd5\\xd5.+png; rename") as caught:
        load_dataset("folder", root=folder)
    str(caught.value).encode()
    other = folder.parent / os.fsdecode(b"\xd5")
    folder.rename(other)
    with pytest.raises(UserError, match=r"names of 5 images below '.*\\xd5' are not UTF-8") as caught:
        list_images(other)
    str(caught.value).encode()


def test_names_of_other_files_may_be_anything(folder):
    (folder / os.fsdecode(b"\xd5.doc")).touch()
    (folder / os.fsdecode(b"\xd5.csv")).write_text("a,b\n1,2\n")
    notes = load_dataset("folder", "test", root=folder).notes
    assert len(notes) == 2
    for note in notes:
        assert r"\xd5" in note
        note.encode()


def test_what_is_left_out_is_said_with_its_number_and_names(folder):
    assert load_dataset("folder", "test", root=folder).notes == ()
    for name in ("a.heic", "deeper/scores.csv", "readme.md", "tool.json", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "gone").symlink_to("/nowhere")
    assert left_out(folder) == ["a.heic", "deeper/scores.csv", "gone", "readme.md", "tool.json"]
    (note,) = load_dataset("folder", "test", root=folder).notes
    assert note == "5 files that are no images are left out: a.heic, deeper/scores.csv, gone, ..."


@pytest.mark.parametrize("suffix", ["jfif", "gif", "avif", "JPE"])
def test_images_of_every_ending_that_is_read_are_listed(folder, suffix):
    picture(folder / f"p5.{suffix}")
    (folder / "scores.csv").write_text("image,mos\n" + "".join(f"{name},2\n" for name in list_images(folder)))
    assert f"p5.{suffix}" in [record.image_id for record in load_dataset("folder", root=folder, splits="all").records]
