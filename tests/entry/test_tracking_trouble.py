"""Tracking in trouble: no key or a wrong one, no network, a dead service, failures and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from omegaconf import OmegaConf

from certiqa.callbacks import WandbTracker
from certiqa.entry import tracking
from certiqa.errors import UserError
from certiqa.evaluation import read_summary

RADII = ["certification.radii=[0.03]", "certification.radius=0.03"]
# a metric that fails once there is a record, until a file beside it exists
FLAKY = """
from pathlib import Path
import torch
from certiqa.metrics import FrozenMetric

HERE = Path(__file__).parent

class Mean(torch.nn.Module):
    def forward(self, images):
        if any(HERE.glob("evaluate/*/records/rank-0.jsonl")) and not (HERE / "mended").exists():
            raise RuntimeError("the metric broke")
        return images.mean(dim=(1, 2, 3))

class Flaky(FrozenMetric):
    def __init__(self):
        super().__init__(Mean(), name="flaky", score_range=(0, 1))
"""


def test_offline_is_explained_only_where_it_was_not_asked_for(no_key, tmp_path, capsys):
    assert WandbTracker(tmp_path).choose_mode() == "offline"
    assert "there is no key" in capsys.readouterr().out
    wandb.teardown()
    no_key.setenv("WANDB_MODE", "offline")
    assert WandbTracker(tmp_path).choose_mode() == "offline"
    assert WandbTracker(tmp_path, mode="disabled").choose_mode() == "disabled"
    assert capsys.readouterr().out == ""


def service_of_this_process():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if words[0].endswith("wandb-core") and str(os.getpid()) in words:
            return int(path.parent.name)
    raise AssertionError("W&B's service does not run")


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds W&B's service in /proc")
def test_a_dead_service_of_wandb_stops_nothing_and_loses_no_result(no_key, tmp_path, capsys, wandb_runs):
    tracker = WandbTracker(tmp_path)
    tracker.open({"sigma": 0.1})
    time.sleep(1.1)  # W&B names its folders by the second
    os.kill(service_of_this_process(), signal.SIGKILL)
    time.sleep(0.5)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.publish({"status": "finished", "srocc": 0.5})
    tracker.close("finished")
    assert "the rest is kept here" in capsys.readouterr().out
    assert len(tracker.unsent()) == 2
    _, second = wandb_runs.wandb_files(tmp_path)  # what the dead service had not written is lost, it is in metrics.csv
    assert second.run.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (second.config["sigma"], second.summary["srocc"], second.exit_code) == (0.1, 0.5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ofline"}, r"logger.mode must be null or one of online, offline, disabled, got 'ofline'.*'offline'"),
        ({"tags": ["x" * 65]}, r"logger.tags must be a list of texts of 1 to 64 characters"),
        ({"group": "x" * 129}, r"logger.group may have 128 characters"),
    ],
)
def test_options_that_wandb_would_refuse_are_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        WandbTracker(tmp_path, **options)


def test_online_without_a_key_and_a_wrong_key_say_what_to_do(no_key, tmp_path):
    with pytest.raises(UserError, match=r"there is no key for W&B; give one with `wandb login`"):
        WandbTracker(tmp_path, mode="online").open()
    no_key.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"W&B refuses the key.*logger.mode=offline"):
        WandbTracker(tmp_path).open()
    with pytest.raises(UserError, match=r"W&B does not start"):
        WandbTracker(tmp_path, mode="offline", project="a/b").open()


def test_a_missing_tensorboard_is_named(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    node = {"tensorboard": {"_target_": "pytorch_lightning.loggers.TensorBoardLogger"}, "project": "x"}
    with pytest.raises(UserError, match=r"pip install 'certiqa\[tensorboard\]'"):
        tracking.build_loggers(OmegaConf.create({"logger": node}))


@pytest.mark.full
def test_a_failed_run_is_marked_failed_and_goes_on_as_the_same_run(tmp_path, mini_cache, wandb_runs):
    (tmp_path / "flaky.py").write_text(FLAKY)
    options = ["defense=none", "metric._target_=flaky.Flaky", "logger=wandb", "data.limit_test=2"]
    options += ["data.eval_batch_size=1", "callbacks.gallery.num_images=0"]
    done = wandb_runs.call("evaluate.py", *options, outputs=tmp_path, cwd=tmp_path, expect=1)
    assert "the metric broke" in done.stderr
    (folder,) = wandb_runs.folders(tmp_path, "evaluate")
    (failed,) = wandb_runs.wandb_files(folder)
    assert failed.exit_code == 1
    assert failed.summary["status"] == "failed"
    (tmp_path / "mended").touch()
    done = wandb_runs.call("evaluate.py", *options, outputs=tmp_path, cwd=tmp_path)
    first, second = wandb_runs.wandb_files(folder)
    assert first.run.run_id == second.run.run_id
    assert second.exit_code == 0
    (command,) = re.findall(r"wandb sync --include-online (.*)", done.stdout)
    assert len(command.split()) == 2


@pytest.mark.full
@pytest.mark.parametrize("lives", [0, 1])
def test_a_network_that_is_not_there_or_goes_away_stops_nothing(tmp_path, mini_cache, lives, wandb_runs):
    server = wandb_runs.FakeServer(lives)
    if not lives:
        server.stop()
    more = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": wandb_runs.KEY, "WANDB_INIT_TIMEOUT": "10"}
    options = ["defense=ms", "logger=wandb", "logger.finish_timeout=5", *wandb_runs.TINY, *RADII]
    done = wandb_runs.call("evaluate.py", *options, outputs=tmp_path, **more)
    assert server.operations.count("UpsertBucket") >= lives
    assert "W&B cannot be reached, the rest is kept here" in done.stdout
    (folder,) = wandb_runs.folders(tmp_path, "evaluate")
    assert read_summary(folder)["status"] == "finished"
    last = wandb_runs.wandb_files(folder)[0]  # "offline-run-" sorts before "run-"
    assert last.exit_code == 0
    assert last.summary["status"] == "finished"
    assert "report" in last.artifacts
    assert file_is_offline(folder, last)
    (command,) = re.findall(r"wandb sync --include-online (.*)", done.stdout)
    assert [Path(path).name.split("-")[0] for path in command.split()] == ["run", "offline"][1 - lives :]


def file_is_offline(folder, file):
    (path,) = folder.glob("wandb/offline-run-*")
    return path.name.endswith(file.run.run_id)


@pytest.mark.full
def test_a_run_stopped_by_a_scheduler_is_marked_as_preempted(tmp_path, mini_cache, wandb_runs):
    slow = "import time; time.sleep(1)\n        if any"
    (tmp_path / "slow.py").write_text(FLAKY.replace("if any", slow).replace("Flaky", "Slow"))
    (tmp_path / "mended").touch()
    arguments = ["defense=none", "metric._target_=slow.Slow", "logger=wandb", "data.eval_batch_size=1"]
    process = subprocess.Popen(
        [sys.executable, str(wandb_runs.ROOT / "evaluate.py"), *arguments, f"paths.outputs={tmp_path}"],
        cwd=tmp_path,
        env=wandb_runs.environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if list(tmp_path.glob("evaluate/*/records/rank-0.jsonl")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    (folder,) = wandb_runs.folders(tmp_path, "evaluate")
    (file,) = wandb_runs.wandb_files(folder)
    assert "preempting" in file.kinds
    assert file.exit_code == 255
    assert file.summary["status"] == "interrupted"
