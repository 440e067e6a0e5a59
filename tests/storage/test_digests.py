"""Digests of files and of sources: what has changed is noticed, what has not is not read again."""

import os
import sys

import pytest

from certiqa.storage import digests
from certiqa.storage.digests import UNREADABLE, content_digest, content_digests
from certiqa.storage.sources import sources_of


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files that were written long ago, and a cache."""
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    monkeypatch.setattr(digests, "_known", {})
    paths = [tmp_path / f"{name}.bmp" for name in "abc"]
    for path in paths:
        path.write_text(f"pixels of {path.name}")
    return paths


def test_a_change_that_keeps_size_and_time_is_noticed(files):
    about, before = files[0].stat(), content_digests(files)
    files[0].write_text("pixels of A.bmp")
    os.utime(files[0], ns=(about.st_atime_ns, about.st_mtime_ns))
    assert files[0].stat().st_mtime_ns == about.st_mtime_ns
    after = content_digests(files)
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]
    assert len({*before, *after}) == 4


def test_unchanged_files_are_not_read_again_by_another_process(files, monkeypatch):
    before = content_digests(files)
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert content_digests(files) == before


def test_a_damaged_or_unwritable_cache_costs_time_alone(files, tmp_path, monkeypatch):
    before = content_digests(files)
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_bytes(kept.read_bytes().replace(before[0].encode(), before[1].encode()))
    monkeypatch.setattr(digests, "_known", {})
    assert content_digests(files) == before
    monkeypatch.setenv("CERTIQA_CACHE", str(files[0]))  # no folder
    monkeypatch.setattr(digests, "_known", {})
    assert content_digests(files) == before


def test_a_file_that_was_just_written_is_read_each_time(files, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 1000.0)
    content_digests(files)
    assert digests._known == {}
    assert content_digest(files[0].with_name("nothing")) == UNREADABLE


def test_sources_are_those_of_ones_own_modules_and_what_they_import(tmp_path, monkeypatch):
    (tmp_path / "lab_" / "deep").mkdir(parents=True)
    (tmp_path / "lab_" / "metric.py").write_text(
        "import torch\nfrom . import tools\nfrom pack_ import helper\ndef f():\n    import lab_.deep.late\n"
    )
    (tmp_path / "pack_").mkdir()
    for name in ("lab_/tools.py", "lab_/deep/late.py", "lab_/deep/unused.py", "pack_/__init__.py", "pack_/helper.py"):
        (tmp_path / name).write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    targets = ["lab_.metric.Mine", "torch.optim.AdamW", "certiqa.metrics.MiniMetric", "nowhere.Class"]
    found = sources_of(targets)
    assert list(found) == ["lab_.deep.late", "lab_.metric", "lab_.tools", "pack_", "pack_.helper"]
    (tmp_path / "lab_" / "deep" / "late.py").write_text("X = 2\n")
    assert [name for name, digest in sources_of(targets).items() if digest != found[name]] == ["lab_.deep.late"]
    for name in [name for name in sys.modules if name.split(".")[0] in ("lab_", "pack_")]:
        del sys.modules[name]
