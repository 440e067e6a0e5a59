"""A state file of a run's folder that cannot be read blocks no command: it is made again, or one sentence names it."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from certiqa.entry import report
from certiqa.evaluation import read_summary
from certiqa.reports.comparison.gather import gather

spec = importlib.util.spec_from_file_location("commands", Path(__file__).with_name("commands.py"))
commands = importlib.util.module_from_spec(spec)
spec.loader.exec_module(commands)

GARBAGE = np.random.default_rng(1).bytes(300)
DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "another shape": lambda content: b'[{"a": 5}]' if content[:1] == b"{" else b'{"a": [5]}',
    "empty": lambda content: b"",
    "garbage": lambda content: GARBAGE,
    "another encoding": lambda content: content.decode("utf-8", "replace").encode("utf-16"),
    "a number": lambda content: b"5",
}
FILES = (
    *("summary.json", "records/identity.json", "records/inputs.json", "records/rank-0.jsonl", "records.parquet"),
    *("gallery.json", "running_time.json", "metrics.csv", ".hydra/config.yaml"),
)
NAMED = {"records/identity.json"}
"""What no command can make again: nothing else says how the records were made."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images and a finished run of them."""
    top = tmp_path_factory.mktemp("made")
    commands.pictures(top / "images")
    place = [f"data.root={top / 'images'}", f"hydra.run.dir={top / 'mine'}"]
    with pytest.MonkeyPatch.context() as patch:
        assert commands.call(patch, "evaluate", *commands.TINY, *place) == 0
    (top / "mine" / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.4\n")
    return top


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(made / "mine", tmp_path / "mine")


def damage(path, how):
    before = path.read_bytes()
    path.write_bytes(DAMAGES[how](before))
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "how", [how if how in ("half", "another shape") else pytest.param(how, marks=pytest.mark.full) for how in DAMAGES]
)
def test_an_unfinished_run_goes_on_or_says_why_not(made, run, name, how, monkeypatch, capsys):
    damage(run / name, how)
    if name != "summary.json":
        (run / "summary.json").unlink()
    options = [*commands.TINY, f"data.root={made / 'images'}", f"hydra.run.dir={run}"]
    code = commands.call(monkeypatch, "evaluate", *options)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if name in NAMED and code:
        assert f"{name}' cannot be read" in said.err
        assert "fresh=true" in said.err
        return
    assert code == 0, said.err
    then, now = (read_summary(folder) for folder in (made / "mine", run))
    assert now["status"] == "finished"
    for key in ("num_images", "certified_delta_mean", "score_sd"):
        assert now[key] == then[key]


@pytest.mark.parametrize("name", FILES)
def test_a_report_is_made_or_says_why_not_and_a_comparison_reads_the_rest(run, name, capsys):
    whole = (run / name).read_bytes()
    for how in DAMAGES:
        (run / name).write_bytes(whole)
        damage(run / name, how)
        (found,) = gather([run])
        assert found.images
        if how not in ("half", "another shape"):
            continue
        if name != "summary.json":
            report.main([str(run)])
            continue
        with pytest.raises(SystemExit, match="1"):
            report.main([str(run)])
        assert "summary.json' cannot be read" in capsys.readouterr().err
