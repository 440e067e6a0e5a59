"""The comparison of synthetic runs: which are gathered from folders, whatever state they are in."""

import json
import shutil

import pytest

from certiqa.errors import UserError
from certiqa.reports import write_comparison
from certiqa.reports.comparison.columns import build_table
from certiqa.reports.comparison.gather import find_runs, gather, notes_on
from certiqa.reports.comparison.significance import marks_of
from certiqa.storage.files import read_json, write_json


def test_every_kind_of_run_is_gathered(sweep):
    runs = {run.key: run for run in gather([sweep])}
    assert sorted(runs) == ["bad", "cut", "going_on", "good", "jpeg", "none", "random"]
    assert {key: run.status for key, run in runs.items() if not run.finished} == {
        "cut": "interrupted",
        "going_on": "unfinished",
    }
    assert runs["going_on"].summary["num_images"] == 3
    facts = {"metric": "mini", "defense": "dms_iqa", "data": "mini", "seed": 2}
    assert {key: runs["going_on"].summary[key] for key in facts} == facts
    assert runs["random"].random_weights
    assert runs["none"].bare
    assert len(runs["good"].images) == 20


def test_runs_are_found_at_any_depth_and_once(sweep, tmp_path):
    shutil.copytree(sweep / "evaluate" / "good", sweep / "evaluate" / "good.previous-1")
    (sweep / "evaluate" / "started" / ".hydra").mkdir(parents=True)
    (sweep / "evaluate" / "started" / ".hydra" / "config.yaml").write_text("defense: {name: ms}\n")
    names = [path.name for path in find_runs([tmp_path, sweep / "evaluate", sweep / "evaluate" / "good"])]
    assert sorted(names) == ["bad", "cut", "going_on", "good", "jpeg", "none", "random", "started"]
    assert [path.name for path in find_runs([sweep / "evaluate" / "good.previous-1"])] == ["good.previous-1"]


def test_a_folder_without_a_run_is_refused_with_what_to_do(tmp_path, write_run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run in .*empty.*give e\.g\. outputs/evaluate"):
        write_comparison([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        write_comparison([tmp_path / "nowhere"])
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"no run was certified at radius 0\.5; there are: 0\.03, 0\.06, 0\.12"):
        write_comparison([tmp_path / "run"], radius=0.5)
    with pytest.raises(UserError, match="resamples must be at least 1"):
        write_comparison([tmp_path / "run"], resamples=0)


def test_runs_cut_short_anywhere_still_make_a_site(sweep, read_comparison):
    (sweep / "evaluate" / "good" / "summary.json").write_text('{"status": "fini')
    (sweep / "evaluate" / "bad" / "records.parquet").write_bytes(b"PAR1")
    shutil.rmtree(sweep / "evaluate" / "bad" / "records")  # or the file would be made again of them
    (sweep / "evaluate" / "none" / "summary.json").write_text(json.dumps({"status": "failed", "num_images": 0}))
    (sweep / "train" / "cut" / "records" / "identity.json").write_text("{")
    shutil.rmtree(sweep / "evaluate" / "jpeg" / "records")
    (sweep / "evaluate" / "jpeg" / "records.parquet").unlink()
    site = write_comparison([sweep], resamples=50)
    assert any("good: summary.json cannot be read" in note for note in site.notes)
    assert any("bad: its records cannot be read" in note for note in site.notes)
    assert any("1 failed, 1 interrupted, 2 unfinished" in note for note in site.notes)
    page = read_comparison(site.index.read_text())
    assert page.rows["good"]["status"]["text"] == "unfinished"
    assert page.rows["good"]["defense"]["text"] == "dms"
    assert page.rows["bad"]["srocc"]["sort"] != ""


def test_mixed_versions_are_told_and_other_formats_are_not_read(sweep):
    path = sweep / "evaluate" / "good" / "records" / "identity.json"
    write_json(path, read_json(path, dict) | {"format": 1})
    summary = sweep / "evaluate" / "bad" / "summary.json"
    write_json(summary, read_json(summary, dict) | {"versions": {"certiqa": "0.0.9"}})
    runs = gather([sweep])
    notes = " ".join(notes_on(runs))
    assert "different versions of certiqa: 0.0.9 (1 run), 0.1.0 (5 runs)" in notes
    assert "different formats of records: 1 (1 run), 2 (6 runs)" in notes
    assert "good: its records are of format 1, this version reads 2" in notes
    good = next(run for run in runs if run.key == "good")
    assert good.records.empty
    table = build_table(runs)
    marks = marks_of(table, resamples=300, seed=0)
    number = next(i for i, run in enumerate(runs) if run.key == "good")
    assert marks.get((number, "srocc")) not in ("level", "different")
