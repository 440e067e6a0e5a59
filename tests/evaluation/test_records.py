"""Records: what is written once stays, whatever ends the run."""

import math
import os

import numpy as np
import pandas as pd
import pytest

from certiqa.errors import UserError
from certiqa.evaluation import RecordStore, read_records
from certiqa.evaluation.records import COLUMNS, plain, read_lines


def rows(image_id, radii=(0.03, 0.06), **facts):
    return [
        {"image_id": image_id, "radius": radius, "score": 2.5, "lower": 2.0, "upper": 3.0} | facts for radius in radii
    ]


def keys(table):
    return list(zip(table["image_id"], table["attack"], table["radius"], strict=True))


def test_records_of_another_making_are_refused_by_name(tmp_path):
    identity = {"sigma": 0.12, "weights": "abc", "certification.radii": (0.03, 0.06)}
    RecordStore(tmp_path, identity=identity).append([{"image_id": "a", "radius": 0.1}])
    assert "a" in RecordStore(tmp_path, identity={**identity, "certification.radii": [0.03, 0.06]})
    with pytest.raises(UserError, match=r"made otherwise: sigma was 0\.12, is 0\.2; weights was abc, is None"):
        RecordStore(tmp_path, identity={"sigma": 0.2, "certification.radii": [0.03, 0.06]})
    with pytest.raises(UserError, match="data was None, is x"):
        RecordStore(tmp_path, rank=1, identity={**identity, "data": "x"})
    (tmp_path / "records" / "identity.json").unlink()
    with pytest.raises(UserError, match="another version of certiqa"):
        RecordStore(tmp_path, identity=identity)


def test_append_and_compile(tmp_path):
    store = RecordStore(tmp_path)
    assert "b" not in store
    store.append(rows("b", mos=3.5, extra="x"))
    store.append(rows("a"))
    assert "b" in store
    assert "c" not in store
    table = store.compile()
    assert keys(table) == [("a", "none", 0.03), ("a", "none", 0.06), ("b", "none", 0.03), ("b", "none", 0.06)]
    assert list(table.columns) == [*COLUMNS, "extra"]
    assert table["mos"].tolist()[2:] == [3.5, 3.5]
    assert table["mos"].isna().tolist() == [True, True, False, False]
    pd.testing.assert_frame_equal(read_records(tmp_path), table)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["records.parquet"]


def test_an_unfinished_run_can_be_read_and_resumed(tmp_path):
    RecordStore(tmp_path).append(rows("a"))
    assert keys(read_records(tmp_path)) == [("a", "none", 0.03), ("a", "none", 0.06)]
    resumed = RecordStore(tmp_path)
    assert "a" in resumed
    resumed.append(rows("b"))
    assert set(resumed.compile()["image_id"]) == {"a", "b"}


def test_a_kill_at_any_byte_loses_the_image_under_way_and_nothing_else(tmp_path):
    store = RecordStore(tmp_path)
    store.append(rows("a"))
    whole = store.path.read_bytes()
    store.append(rows("ü"))
    written = store.path.read_bytes()
    for length in [len(whole), len(whole) + 1, *range(len(whole) + 7, len(written) - 1, 23), len(written) - 1]:
        store.path.write_bytes(written[:length])
        assert {row["image_id"] for row in read_lines(tmp_path)} <= {"a", "ü"}
        resumed = RecordStore(tmp_path)
        assert "a" in resumed
        assert "ü" not in resumed
        assert store.path.read_bytes() == whole
        resumed.append(rows("ü"))
        table = resumed.compile()
        assert table["image_id"].tolist() == ["a", "a", "ü", "ü"]
        assert table["radius"].tolist() == [0.03, 0.06, 0.03, 0.06]


def test_a_line_cut_in_the_first_image(tmp_path):
    store = RecordStore(tmp_path)
    store.append(rows("a"))
    store.path.write_bytes(store.path.read_bytes()[:-1])
    assert "a" not in RecordStore(tmp_path)
    assert store.path.read_bytes() == b""


def test_ranks_are_merged_and_a_padded_duplicate_counts_once(tmp_path):
    first, second = RecordStore(tmp_path, rank=0), RecordStore(tmp_path, rank=1)
    first.append(rows("a", score=1.0))
    second.append(rows("b"))
    second.append(rows("a", score=1.0))  # a distributed test set is padded with images of its beginning
    assert keys(first.compile()) == [(name, "none", radius) for name in "ab" for radius in (0.03, 0.06)]
    assert "b" in RecordStore(tmp_path, rank=0)


def test_the_key_is_image_attack_and_radius(tmp_path):
    store = RecordStore(tmp_path)
    store.append([{"image_id": "a", "score": 1.0}])  # no certificate: no radius
    store.append([{"image_id": "a", "attack": "ifgsm", "score_attacked": 2.0}])
    store.append([{"image_id": "a", "score": 9.0}])
    table = store.compile()
    assert list(zip(table["image_id"], table["attack"], strict=True)) == [("a", "ifgsm"), ("a", "none")]
    assert table["score"].tolist()[1] == 1.0  # the first one counts
    only_attacked = RecordStore(tmp_path / "other")
    only_attacked.append([{"image_id": "a", "attack": "ifgsm"}])
    assert "a" not in only_attacked


def test_infinite_bounds_and_missing_values_survive(tmp_path):
    store = RecordStore(tmp_path)
    store.append(rows("a", radii=(0.5,), lower=-math.inf, upper=math.inf, mos=None, abstained=True))
    store.append(rows("b", radii=(0.5,), mos=1.0, abstained=False))
    store.compile()
    table = read_records(tmp_path)
    assert table["lower"].tolist() == [-math.inf, 2.0]
    assert table["upper"].tolist() == [math.inf, 3.0]
    assert table["abstained"].tolist() == [True, False]
    assert np.isnan(table["mos"][0])
    assert table["mos"][1] == 1.0


def test_an_empty_store_compiles_to_an_empty_table(tmp_path):
    table = RecordStore(tmp_path).compile()
    assert len(table) == 0
    assert list(read_records(tmp_path).columns) == list(COLUMNS)


def test_a_folder_without_records_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no records in"):
        read_records(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write records"):
        RecordStore(tmp_path / "file")
    store = RecordStore(tmp_path / "run")
    store.path.parent.rmdir()
    with pytest.raises(UserError, match="cannot append"):
        store.append(rows("a"))
    assert "a" not in store


def test_plain_floats():
    assert plain(None) is None
    assert plain(math.nan) is None
    assert plain(-math.inf) == -math.inf
    assert plain(np.float32(0.5)) == 0.5


def test_lines_that_are_newer_than_the_compiled_table_are_read(tmp_path):
    """A run that goes on has a table of its earlier sessions."""
    store = RecordStore(tmp_path)
    store.append(rows("a"))
    store.compile()
    before = (tmp_path / "records.parquet").stat().st_mtime_ns
    store.append(rows("b"))
    lines = next((tmp_path / "records").glob("rank-*.jsonl"))
    os.utime(lines, ns=(before + 10**9, before + 10**9))
    assert set(read_records(tmp_path)["image_id"]) == {"a", "b"}
    assert set(store.compile()["image_id"]) == {"a", "b"}
