"""A refused command leaves every file of a run's folder as it is, and moves nothing."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from certiqa.storage.files import read_json, write_json

spec = importlib.util.spec_from_file_location("commands", Path(__file__).with_name("commands.py"))
commands = importlib.util.module_from_spec(spec)
spec.loader.exec_module(commands)
call, contents, TINY = commands.call, commands.contents, commands.TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images and a finished run of them."""
    top = tmp_path_factory.mktemp("made")
    commands.pictures(top / "images")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "evaluate", *TINY, f"data.root={top / 'images'}", f"hydra.run.dir={top / 'mine'}") == 0
    return top


@pytest.fixture
def finished(made, tmp_path):
    """A copy of the finished run, and the options that ran it."""
    shutil.copytree(made / "mine", tmp_path / "mine")
    return tmp_path / "mine", [*TINY, f"data.root={made / 'images'}"]


def test_a_finished_run_has_its_configuration_and_log(finished, monkeypatch, capsys):
    folder, options = finished
    assert {"config.yaml", "hydra.yaml", "overrides.yaml"} == {path.name for path in (folder / ".hydra").iterdir()}
    assert "seed: 0" in (folder / ".hydra" / "config.yaml").read_text()
    assert "defense=ms" in (folder / ".hydra" / "overrides.yaml").read_text()
    before = contents(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}") == 0
    assert "this run is finished already" in capsys.readouterr().out
    assert contents(folder) == before


def cut_short(folder):
    """Make a finished run one that was killed before its last image."""
    for name in ("summary.json", "records.parquet", "report.html"):
        (folder / name).unlink()
    (records,) = folder.glob("records/rank-*.jsonl")
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:-1]))


def killed_in_training(folder):
    """Make a run one that has no more than a checkpoint."""
    cut_short(folder)
    shutil.rmtree(folder / "records")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"hours of work")


def made_on_a_gpu(folder):
    """Make a run one that was begun with the noise of another type of device."""
    cut_short(folder)
    identity = folder / "records" / "identity.json"
    write_json(identity, read_json(identity, dict) | {"device": "cuda"})


@pytest.mark.parametrize(
    ("state", "change", "message"),
    [
        (None, ["seed=1"], "holds the results of another run: seed was 0, is 1"),
        (None, ["seed=1", "hydra/job_logging=disabled"], "another run: seed was 0, is 1"),
        (cut_short, ["seed=1"], "another run: seed was 0, is 1"),
        (killed_in_training, ["seed=1"], "another run: seed was 0, is 1"),
        (made_on_a_gpu, [], "made otherwise: device was cuda, is cpu"),
        (None, ["seed=-1"], "seed must be a whole number"),
        (cut_short, ["data.root=nothing"], "nothing"),
        (cut_short, ["metric._target_=nowhere.Metric"], "nowhere"),
    ],
)
def test_a_refusal_leaves_every_file_as_it_is(finished, state, change, message, monkeypatch, capsys):
    folder, options = finished
    if state:
        state(folder)
    before = contents(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}", *change) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert contents(folder) == before


def test_a_sweep_with_a_folder_of_its_own_is_refused_where_another_run_is(finished, monkeypatch, capsys):
    folder, options = finished
    before = contents(folder)
    places = [f"hydra.sweep.dir={folder.parent}", "hydra.sweep.subdir=mine", f"paths.outputs={folder.parent / 'out'}"]
    assert call(monkeypatch, "evaluate", "-m", *options, *places, "seed=1") == 1
    said = capsys.readouterr().err
    assert "another run: seed was 0, is 1" in said
    assert "Nothing was started" in said
    assert contents(folder) == before


def test_records_that_refuse_when_they_are_opened_leave_the_results(finished, monkeypatch, capsys):
    folder, options = finished
    made_on_a_gpu(folder)
    (folder / "summary.json").write_text('{"status": "interrupted"}')
    (folder / "report.html").write_text("of the earlier session")
    monkeypatch.setattr("certiqa.entry.pipeline.check_records", lambda *arguments, **options: True)
    before = contents(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}") == 1
    assert "device was cuda, is cpu" in capsys.readouterr().err
    after = contents(folder)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {
        "run.log",
        "running_time.json",
        *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
    }


def test_a_run_that_was_cut_short_goes_on(finished, made, monkeypatch):
    folder, options = finished
    cut_short(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}") == 0
    there = {name.replace("records.parquet", "").rpartition("/")[2] for name in contents(folder)}
    assert {"summary.json", "report.html"} <= there
    for name in ("records/rank-0.jsonl", "records/identity.json"):
        assert (folder / name).read_bytes() == (made / "mine" / name).read_bytes()


@pytest.mark.parametrize("more", [[], ["hydra.output_subdir=null"], ["hydra/job_logging=disabled"]])
def test_fresh_moves_what_the_run_wrote_and_nothing_else(finished, more, monkeypatch, capsys):
    folder, options = finished
    (folder / "notes.txt").write_text("mine")
    (folder / "gallery" / "sketch.svg").write_text("mine")
    before = contents(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}", "fresh=true", *more) == 0
    assert "starting over; the earlier run is kept in" in capsys.readouterr().out
    own = {"notes.txt", "gallery/sketch.svg", "run.lock"}
    assert contents(folder.with_name("mine.previous-1")) == {name: before[name] for name in {*before} - own}
    after = contents(folder)
    assert own | {"summary.json", "records/identity.json", ".hydra/config.yaml"} <= {*after}
    assert after["notes.txt"] == b"mine"
    assert ("run.log" in after) == (more != ["hydra/job_logging=disabled"])


@pytest.mark.parametrize("change", ["data.root=nothing", "metric._target_=nowhere.Metric", "seed=-1"])
def test_fresh_moves_nothing_before_all_is_checked(finished, change, monkeypatch):
    folder, options = finished
    before = contents(folder)
    assert call(monkeypatch, "evaluate", *options, f"hydra.run.dir={folder}", "fresh=true", change) == 1
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize("sweep", [False, True])
def test_fresh_is_refused_where_there_is_no_run(made, sweep, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (project / "notes.txt").write_text("mine")
    before = contents(project)
    monkeypatch.chdir(project)
    options = [*TINY, f"data.root={made / 'images'}", "fresh=true"]
    place = ["hydra.run.dir=."]
    if sweep:
        place = ["-m", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=project", f"paths.outputs={tmp_path / 'out'}"]
    assert call(monkeypatch, "evaluate", *place, *options) == 1
    said = capsys.readouterr().err
    assert "holds no run (it has .git, notes.txt); nothing there was touched" in said
    assert contents(project) == before
    assert not list(tmp_path.glob("project.previous-*"))


def test_a_sweep_that_starts_over_keeps_what_is_not_its_own(finished, monkeypatch):
    folder, options = finished
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    places = [f"hydra.sweep.dir={folder.parent}", "hydra.sweep.subdir=mine", f"paths.outputs={folder.parent / 'out'}"]
    assert call(monkeypatch, "evaluate", "-m", *options, *places, "seed=0", "fresh=true") == 0
    kept = {*before} - {"notes.txt", "run.lock"}
    assert contents(folder.with_name("mine.previous-1")) == {name: before[name] for name in kept}
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "summary.json").is_file()


def test_a_run_may_start_over_where_it_has_not_been_yet(made, tmp_path, monkeypatch):
    options = [*TINY, f"data.root={made / 'images'}", f"hydra.run.dir={tmp_path / 'new'}", "fresh=true"]
    assert call(monkeypatch, "evaluate", *options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
