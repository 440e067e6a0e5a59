"""Damage to the records of a run: it is noticed, said once, and only what it hit is made again."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from certiqa.errors import UserError
from certiqa.evaluation import RecordStore, read_records
from certiqa.evaluation.record_lines import read_lines
from certiqa.evaluation.records import compile_records, lacking, to_table

RADII = (0.03, 0.06)
IMAGES = {name: f"digest of {name}" for name in ("a.png", "b/ü.png", "c.png")}


def rows_of(name, **facts):
    place = 1 + sorted(IMAGES).index(name) if name in IMAGES else 0
    row = {"image_id": name, "attack": "none", "digest": IMAGES.get(name), "score": place + 0.5, "mos": 2.15}
    return [row | {"radius": radius, "lower": place, "upper": place + 9.84} | facts for radius in RADII]


def attacked(name):
    return [{"image_id": name, "attack": "ifgsm", "digest": IMAGES[name], "score_attacked": 4.0}]


def opened(folder, rank=0):
    return RecordStore(folder, rank, images=IMAGES, radii=RADII)


def finish(folder):
    """Record what is not recorded, as a run does; returns how many images that was, and the table."""
    store, made = opened(folder), 0
    for name in IMAGES:
        if name not in store:
            store.append(rows_of(name))
            made += 1
        if not store.has(name, "ifgsm"):
            store.append(attacked(name))
    return made, to_table(read_lines(folder))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # nothing here loses its power
    finish(tmp_path)
    compile_records(tmp_path)
    return tmp_path


def lines_of(folder):
    return folder / "records" / "rank-0.jsonl"


def test_any_byte_may_flip_and_the_figures_are_those_of_the_unbroken_run(run):
    whole, path = lines_of(run).read_bytes(), lines_of(run)
    _, expected = finish(run)
    generator = np.random.default_rng(0)
    newlines = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for place in {*range(40), *newlines, *range(40, len(whole), 53)}:
        for byte in {whole[place] ^ 1, ord("\n"), int(generator.integers(0, 256))} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            made, table = finish(run)
            assert table.equals(expected), (place, byte)
            assert made <= 2, "a newline that is gone makes two lines one"


def test_damage_is_said_once_and_a_cut_line_is_none(run, caplog):
    content = lines_of(run).read_bytes().replace(b"2.15", b"9.84")
    assert content != lines_of(run).read_bytes()
    lines_of(run).write_bytes(content + b'{"crc32": "00')
    finish(run)
    finish(run)
    assert [record.message for record in caplog.records] == [f"3 damaged records in {lines_of(run)} are made again"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.decode().encode("utf-16"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: b"[" * 100_000 + b"\n" + content,
        lambda content: b"\x00" * len(content),
        lambda content: b"",
        lambda content: content + content,
        lambda content: b"null\n[]\n{}\n[[]]\n[{}]\n3\n" + content,
    ],
    ids=["CRLF", "UTF-16", "byte order mark", "deep", "zeros", "empty", "twice", "other JSON"],
)
def test_whatever_a_file_holds_the_run_goes_on(run, damage):
    _, expected = finish(run)
    lines_of(run).write_bytes(damage(lines_of(run).read_bytes()))
    assert len(read_records(run)) <= len(expected)
    pd.testing.assert_frame_equal(finish(run)[1], expected)


def test_files_of_all_ranks_are_looked_after_by_the_first(tmp_path, caplog):
    first, second = opened(tmp_path), opened(tmp_path, rank=1)
    first.append(rows_of("a.png"))
    second.append(rows_of("c.png"))
    second.path.write_bytes(second.path.read_bytes().replace(b"2.15", b"2.16"))
    assert "c.png" not in opened(tmp_path, rank=1)
    assert not caplog.records
    assert "c.png" not in opened(tmp_path)
    assert "1 damaged record in" in caplog.text
    assert second.path.read_bytes() == b""


def unsealed(folder, *lines):
    """Write lines as they were before there were checksums."""
    path = lines_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(rows) + "\n" for rows in lines))


def old(name, **facts):
    return [{key: value for key, value in (row | facts).items() if key != "digest"} for row in rows_of(name)]


@pytest.mark.parametrize(
    "damaged",
    [
        old("a.png", lower=9.84, upper=2.15),
        old("a.png", upper=1.2),
        old("a.png", joint_lower=5.0),
        old("a.png", score="1.5"),
        old("a.pnh"),
        old("a.png")[:1],
        [*old("a.png"), *old("a.png")],
        [old("a.png")[0], old("c.png")[1]],
        old("a.png", radius=None),
    ],
    ids=["above", "outside", "joint", "text", "id", "one radius", "four rows", "two images", "no radius"],
)
def test_records_from_before_checksums_are_read_where_they_make_sense(tmp_path, damaged):
    unsealed(tmp_path, damaged, old("c.png"), old("b/ü.png", score=None, lower=math.nan, upper=math.nan))
    store = opened(tmp_path)
    assert "a.png" not in store
    assert "c.png" in store
    assert "b/ü.png" in store
    assert not lines_of(tmp_path).read_text().count("a.pn")


def test_an_image_that_changed_since_its_record_is_named(run):
    before = lines_of(run).read_bytes()
    with pytest.raises(UserError, match=r"other images: 'b/ü\.png' and 1 more changed since\. Undo.*fresh=true"):
        RecordStore(run, images=IMAGES | {"c.png": "another", "b/ü.png": "another"}, radii=RADII)
    assert lines_of(run).read_bytes() == before
    store = RecordStore(run / "new", images=IMAGES, radii=RADII)
    with pytest.raises(UserError, match=r"'a\.png' changed since"):
        store.append(rows_of("a.png", digest="read after it was edited"))
    assert read_lines(run / "new") == []


def test_what_a_finished_run_lacks(run):
    table = to_table(read_lines(run))
    assert lacking(table, IMAGES, RADII, ["ifgsm"]) == []
    assert lacking(table, IMAGES, RADII, ["square"]) == sorted(IMAGES)
    assert lacking(table, IMAGES, (0.03,)) == sorted(IMAGES)
    assert lacking(table, [*IMAGES, "d.png"], RADII) == ["d.png"]
    assert lacking(table, ["a.png", "c.png"], RADII) == ["b/ü.png"]
    assert lacking(table.drop(0), IMAGES, RADII, ["ifgsm"]) == ["a.png"]
    skipped = [{"image_id": "d.png", "attack": "none", "skipped": True, "failure": "cut short"}]
    table = to_table(read_lines(run) + skipped)
    assert lacking(table, [*IMAGES, "d.png"], RADII, ["ifgsm"]) == []
    assert lacking(to_table([]), IMAGES) == sorted(IMAGES)


def test_the_compiled_file_is_made_again_where_it_is_missing_or_damaged(run):
    path = run / "records.parquet"
    whole, expected = path.read_bytes(), read_records(run)
    path.unlink()
    compile_records(run)
    assert path.read_bytes() == whole
    before = path.stat()
    compile_records(run)
    assert path.stat() == before, "what is right is not written again"
    for place in range(0, len(whole), 501):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        compile_records(run)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:100])
    pd.testing.assert_frame_equal(read_records(run), expected)
    lines_of(run).unlink()
    with pytest.raises(UserError, match=r"records\.parquet' is damaged"):
        read_records(run)
