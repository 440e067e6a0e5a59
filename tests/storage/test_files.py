"""Files appear whole or not at all."""

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from certiqa.errors import UserError
from certiqa.storage import files
from certiqa.storage.files import DamagedFileError, read_json, write_json


def test_the_file_appears_whole_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with files.write_aside(path) as partial:
        assert partial.parent == tmp_path
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_part(tmp_path, failure):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def write():
        with files.write_aside(path) as partial:
            partial.write_text("half of the n")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    real = os.fsync

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_size, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.write_aside(path) as partial:
        partial.write_bytes(b"12345")
    assert synced[0] == (5, False)
    assert [named for _, named in synced[1:]] == [True]  # the folder, with the name in it
    synced.clear()
    with files.write_aside(path, durable=False) as partial:
        partial.write_bytes(b"67")
    assert path.read_bytes() == b"67"
    assert not synced


def test_writers_at_once_do_not_mix(tmp_path):
    path, contents = tmp_path / ("long" * 60), [bytes([value]) * 100_000 for value in range(8)]

    def write(content):
        with files.write_aside(path) as partial:
            partial.write_bytes(content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_too_little_space_says_how_much_is_missing(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "made"
    assert files.free_bytes(folder) > 0
    files.check_space(folder, 1, "this")
    monkeypatch.setattr(files, "free_bytes", lambda folder: 300_000_000)
    files.check_space(folder, 300_000_000, "this")
    with pytest.raises(UserError, match=r"kadid needs 2\.3 GB .*made' has 300 MB free: 2\.0 GB missing; free them"):
        files.check_space(folder, 2_300_000_000, "kadid")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_400_000, "123 MB"),
        (999_900_000, "1.0 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_bytes_as_a_person_reads_them(count, text):
    assert files.in_bytes(count) == text


def test_no_bar_where_nobody_watches(capfd):
    with files.byte_progress() as bar:
        bar.update(bar.add_task("x", total=10), completed=10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [{"srocc": 0.75, "radii": [0.03, 0.06], "name": "ü"}, [{"score": 1.5}, []]])
def test_a_changed_digit_of_kept_state_is_noticed(tmp_path, content):
    path = tmp_path / "state.json"
    write_json(path, content)
    assert read_json(path, type(content)) == content
    text = path.read_text()
    path.write_text(text.replace("5", "6", 1))
    with pytest.raises(DamagedFileError, match="it is not as it was written"):
        read_json(path, type(content))
    path.write_text(json.dumps(content))
    assert read_json(path, type(content)) == content, "older versions wrote no checksum"
