"""Sweeps: what is wrong is said before anything starts, a failure loses nothing else, nothing is run twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from certiqa.entry import app, identity
from certiqa.entry.checks import check_job
from certiqa.entry.folder import locked
from certiqa.entry.preemption import Requeue, stopping_on_signals
from certiqa.errors import UserError
from hydra_plugins.certiqa_launchers import LocalLauncher, outcome

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
TINY = ["num_samples=30", "data.limit_test=2", "data.resize=96", "callbacks.gallery.num_images=1"]
TINY += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=null"]


def runs(tmp_path):
    return {path.parent.name: path.read_text() for path in tmp_path.glob("o/*/*/runs")}


def test_a_failed_cell_loses_nothing_else_and_only_what_is_missing_is_run_again(sweep, tmp_path):
    code, out, errors, rows = sweep("defense=ms", "sigma=0.1,0.3,0.2")
    assert code == 1
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[1]["cell"] == "sigma=0.3"
    assert rows[1]["note"].startswith("sigma 0.3 is broken")
    assert "sigma 0.3 is broken" in Path(rows[1]["log"]).read_text(), "the table says where the log is"
    assert errors.count("certiqa: sigma 0.3 is broken") == 1
    assert "Traceback" not in errors
    assert "2 finished, 1 failed, 0 others" in out
    assert "the same command runs what is missing" in out

    code, out, _, rows = sweep("defense=ms", "sigma=0.1,0.2,0.15")
    assert code == 0
    assert "sweep of 3 cells: 2 done already, 1 to run" in out
    assert "3 finished, 0 failed, 0 others" in out
    assert list(runs(tmp_path).values()) == ["x"] * 3, "a finished cell was run again"


def test_interrupted_it_says_what_is_left(sweep):
    code, out, errors, rows = sweep("defense=ms", "sigma=0.1,0.4,0.2")
    assert code == 130
    assert "interrupted; what is done is kept" in errors
    assert [row["state"] for row in rows] == ["finished", "interrupted", "not started"]
    assert "1 finished, 0 failed, 2 others" in out


def test_settings_that_changed_make_new_cells_and_are_named(sweep, tmp_path):
    sweep("defense=ms,none")
    _, out, _, _ = sweep("defense=ms,none", "seed=3")
    assert "new, as seed was 0, is 3" in out
    assert "since an earlier sweep; the runs of that one are kept" in out
    assert len(runs(tmp_path)) == 4


def test_fresh_starts_the_cells_over_and_keeps_the_old(sweep, tmp_path):
    sweep("defense=none")
    _, _, _, rows = sweep("defense=none", "fresh=true")
    assert [row["state"] for row in rows] == ["finished"]
    places = [path.parent.name for path in tmp_path.glob("o/*/*/summary.json")]
    assert sorted(name.endswith(".previous-1") for name in places) == [False, True]


def test_a_finished_cell_whose_weights_changed_is_not_passed_off_as_done(sweep, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    cells = ["defense=dms", f"denoiser.weights={weights}", "sigma=0.1,0.2"]
    sweep(*cells)
    weights.write_bytes(b"other")
    code, _, errors, _ = sweep(*cells)
    assert code == 1
    assert re.search(r"sigma=0.1: the results in .* were made otherwise: what denoiser\.weights=.*and 1 more", errors)
    code, _, _, rows = sweep(*cells, "fresh=true")
    assert [row["state"] for row in rows] == ["finished", "finished"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"cells": []}',
        '{"task": "evaluate", "cells": [{"label": "a", "folder": "b", "config_hash": "c", "cost": 1}]}',
    ],
    ids=["empty", "without a task", "a field of another version"],
)
def test_an_earlier_sweep_that_cannot_be_read_stops_no_later_one(sweep, tmp_path, content):
    other = tmp_path / "o" / "sweeps" / "older" / "sweep.json"
    other.parent.mkdir(parents=True)
    other.write_text(content)
    code, out, errors, rows = sweep("defense=none", "seed=0,1")
    assert code == 0, errors
    assert f"the earlier sweep in '{other}' cannot be read and is passed over" in out
    assert [row["state"] for row in rows] == ["finished", "finished"]


def test_what_is_the_same_run_is_run_once(sweep, tmp_path):
    _, _, _, rows = sweep("defense=ms", "data.num_workers=0,1")
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert rows[1]["note"] == "the same run as data.num_workers=0"
    assert list(runs(tmp_path).values()) == ["x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defense=ms,dmsiqa"], "no option 'dmsiqa' for defense; .*Did you mean 'dms_iqa'"),
        (["sigma=0.1,0", "defense=ms"], "sigma=0: sigma must be a number above 0 .* got 0. Nothing was started"),
        (["sigmma=0.1,0.2"], "unknown key 'sigmma'. Did you mean 'sigma'"),
        (["num_samples=100,5", "defense=ms"], r"num_samples=5: .*Nothing was started"),
        (["defense=ms,dms_iqa", "objective=mse"], "trains with objective=none, but objective=mse.*and 1 more of the 2"),
        (["metric._target_=torch.nn.Identity,torch.nn.Idntity", "defense=none"], "cannot find 'torch.nn.Idntity'"),
        (["metric=mini,pyiqa", "defense=none"], "metric=pyiqa: metric.metric_name must be given"),
        (["defense=ms,none", "hydra.sweep.subdir=one"], "would share the folder"),
        (["defense=ms,none", "seed=-1"], "seed must be a whole number from 0 to 4294967295, got -1"),
        (["defense=ms,none", "hydra/launcher=slrm"], "no option 'slrm' for hydra/launcher; .*Did you mean 'slurm'"),
        (["defense=ms,none", "hydra/launcher=slurm", "hydra.launcher.partitoin=a"], "Did you mean .*partition'"),
        (["defense=ms,none", "hydra/launcher=local", "trainer=ddp"], "the launcher starts 1 process a job"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_typo_in_one_option_fails_before_anything_starts(sweep, tmp_path, arguments, message):
    code, _, errors, _ = sweep(*arguments)
    assert code == 1
    told = [line for line in errors.splitlines() if line.startswith("certiqa: ")]
    assert len(told) == 1, errors
    assert re.search(message, errors, re.DOTALL), errors
    assert "Traceback" not in errors
    assert not runs(tmp_path)


def test_without_slurm_another_launcher_is_named(sweep, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors, _ = sweep("defense=ms,none", "hydra/launcher=slurm")
    assert code == 1
    assert "there is no SLURM on this machine (sbatch is not on the PATH)" in errors
    assert "hydra/launcher=local" in errors
    assert not runs(tmp_path)


def test_a_search_maximises_its_figure_and_proposes_the_same_trials_again(sweep, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra certiqa[search] is not installed")
    command = ["hparams_search=dms_iqa", "hydra.sweeper.n_trials=3"]
    code, out, errors, rows = sweep(*command, name="train")
    assert code == 0, out + errors
    weights = [float(re.search(r"ranking_weight=(\S+)", row["cell"])[1]) for row in rows]
    assert len(set(weights)) == 3
    (found,) = tmp_path.glob("o/train/optimization_results.yaml")
    assert OmegaConf.load(found).best_value == pytest.approx(max(weights))
    _, _, _, again = sweep(*command, name="train")
    assert [row["cell"] for row in again] == [row["cell"] for row in rows]
    assert set(runs(tmp_path).values()) == {"x"}, "a finished trial was run again"


def test_without_optuna_the_extra_is_named():
    error = MissingConfigException("In 'x': Could not find 'hydra/sweeper/optuna'", "optuna")
    assert "pip install 'certiqa[search]'" in app.explain(error)


def options_of_the_sweep(options):
    """Return the options that a sweep itself is composed with: those of one value."""
    parsed = OverridesParser.create().parse_overrides(options)
    return [override.input_line for override in parsed if not override.is_sweep_override()]


PAGE = (ROOT / "docs" / "sweeps.md").read_text()
COMMANDS = re.findall(r"^python (train|evaluate)\.py ([^#\n]*?) *(?:#.*)?$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("task", "arguments"), COMMANDS, ids=lambda value: value)
def test_the_commands_of_the_docs_compose_and_pass_the_check(task, arguments):
    assert len(COMMANDS) >= 9
    if "hparams_search" in arguments:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra certiqa[search] is not installed")
    identity.register_resolvers()
    options = [text for text in arguments.split() if text != "-m"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweeper = compose(task, options_of_the_sweep(options), return_hydra_config=True).hydra.sweeper
        inside = [f"{key}={value}" for key, value in (sweeper.params or {}).items() if "optuna" not in sweeper._target_]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*inside, *options]), None)
        for job in (jobs[0], jobs[-1]):
            check_job(compose(task, list(job), return_hydra_config=True))


@pytest.mark.parametrize("launcher", ["sequential", "local", "slurm"])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_every_launcher_composes_and_is_built(launcher, name):
    identity.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, [f"hydra/launcher={launcher}", "trainer.devices=4"], return_hydra_config=True)
    built = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert built["_target_"].startswith("hydra_plugins.certiqa_launchers.")
    if launcher == "slurm":
        assert (built["tasks_per_node"], built["nodes"], built["name"]) == (4, 1, f"certiqa-{name}")


def test_hydra_finds_the_three_launchers_and_not_what_they_share():
    ours = LocalLauncher.__module__
    found = [kind.__name__ for kind in Plugins.instance().discover(Launcher) if kind.__module__ == ours]
    assert sorted(found) == ["LocalLauncher", "OneByOneLauncher", "SlurmLauncher"]


def test_the_jobs_of_a_machine_take_turns_on_its_gpus():
    launcher = LocalLauncher(parallel_jobs=3, gpus=[4, 7], timeout_min=5, setup=None)
    assert [launcher.resources(slot)["visible_gpus"] for slot in range(3)] == [(4,), (7,), (4,)]
    assert "visible_gpus" not in LocalLauncher(parallel_jobs=1, gpus=[], timeout_min=5, setup=None).resources(0)


def test_a_job_that_left_no_result_is_explained(tmp_path):
    log = tmp_path / "log.err"
    log.write_text("one\nsrun: error: task 0: Killed\n")
    assert outcome(tmp_path / "none.pkl", str(log), "OUT_OF_MEMORY") == (
        "out of memory; hydra.launcher.mem_gb gives more (its log ends: one / srun: error: task 0: Killed)"
    )
    assert outcome(tmp_path / "none.pkl", str(tmp_path / "none"), "GONE") == "it left the queue without a result"


def test_a_second_process_in_a_run_folder_is_refused(tmp_path):
    other = FileLock(tmp_path / "run.lock")
    with other, pytest.raises(UserError, match="another process runs the same configuration"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert other.acquire is not None


def test_a_signal_stops_once_and_what_comes_late_is_passed_on():
    with pytest.raises(Requeue) as stop, stopping_on_signals():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        raise AssertionError("nothing was stopped")
    assert stop.value.number == signal.SIGTERM
    with stopping_on_signals() as outer:
        with stopping_on_signals() as inner:
            inner.deferred = True  # results are being written
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        with pytest.raises(Requeue):
            outer.check()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def in_processes(*arguments, outputs, interrupt_after=None):
    """Run ``evaluate.py -m`` as a user does; sends Ctrl-C once so many cells are finished; returns (code, stdout)."""
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", *arguments, f"paths.outputs={outputs}"]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if interrupt_after is not None:
        while running.poll() is None and len(list(outputs.glob("evaluate/*/summary.json"))) < interrupt_after:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=400)
    return running.returncode, out


def finished(outputs):
    found = {path.parent.name: path for path in outputs.glob("evaluate/*/summary.json")}
    return {name: path for name, path in found.items() if json.loads(path.read_text())["status"] == "finished"}


@pytest.mark.full
def test_twelve_runs_interrupted_half_way_run_only_what_is_missing(tmp_path, mini_cache):
    cells = ["defense=ms", "seed=range(0,6)", "sigma=0.1,0.12", *TINY]
    code, out = in_processes(*cells, outputs=tmp_path, interrupt_after=6)
    assert code == 130, out
    done = finished(tmp_path)
    assert 5 <= len(done) < 12
    before = {name: path.stat().st_mtime_ns for name, path in done.items()}
    code, out = in_processes(*cells, outputs=tmp_path)
    assert code == 0, out
    assert f"sweep of 12 cells: {len(done)} done already, {12 - len(done)} to run" in out
    assert len(re.findall(r"^\[\d+/\d+\] ", out, re.MULTILINE)) == 12 - len(done)
    after = finished(tmp_path)
    assert len(after) == 12
    assert {name: after[name].stat().st_mtime_ns for name in before} == before


@pytest.mark.full
def test_two_processes_of_a_job_find_its_configs_and_its_folder(tmp_path, mini_cache):
    """Lightning starts the second one with the command of the job."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nnum_samples: 40\n")
    own = [f"--config-dir={tmp_path / 'mine'}", "experiment=own", "hydra.sweep.subdir=${hydra.job.num}"]
    shared = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    code, out = in_processes(*own, *shared, "defense=ms", *TINY[1:], outputs=tmp_path)
    assert code == 0, out
    shares = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("evaluate/*/records/rank-*.jsonl"))
    assert shares == ["evaluate/0/records/rank-0.jsonl", "evaluate/0/records/rank-1.jsonl"]


@pytest.mark.full
def test_processes_on_this_machine_do_the_same(tmp_path, mini_cache):
    cells = ["defense=ms,none", *TINY]
    code, out = in_processes("hydra/launcher=local", *cells, outputs=tmp_path)
    assert code == 0, out
    assert "2 finished, 0 failed, 0 others" in out
    (table,) = tmp_path.glob("sweeps/*/table.csv")
    rows = list(csv.DictReader(table.open()))
    assert all(Path(row["log"]).is_file() for row in rows)
    code, out = in_processes(*cells, outputs=tmp_path)
    assert "2 done already, 0 to run" in out, "a cell is the same whatever launched it"
