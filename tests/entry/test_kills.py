"""Real kills of the commands: nothing is lost, nobody lives on, and the weights are those of an unbroken run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from certiqa.evaluation import read_summary

ROOT = Path(__file__).parents[2]
OPTIONS = ["data.resize=64", "data.batch_size=8", "trainer.max_steps=14", "objective.mse_share=0.4", "num_samples=40"]
OPTIONS += ["data.limit_test=4", "data.validation_images=4", "trainer.val_check_interval=6", "data.eval_batch_size=2"]
OPTIONS += ["+trainer.limit_train_batches=5", "trainer.log_every_n_steps=1", "callbacks.gallery.num_images=0"]
OPTIONS += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=0.9"]
OPTIONS += ["callbacks.checkpoint.minutes=0"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]
# a metric whose process is killed, or told to stop, in the n-th training step: the denoised image asks for a gradient
METRIC = """
import os, pathlib, signal
from certiqa.metrics import MiniMetric

class Deadly(MiniMetric):
    def forward(self, images, **more):
        counter = pathlib.Path(__file__).with_name(f"steps-{os.environ.get('LOCAL_RANK', 0)}")
        order = pathlib.Path(__file__).with_name("order")
        if images.requires_grad and order.exists():
            done = len(counter.read_text()) if counter.exists() else 0
            counter.write_text((done + 1) * ".")
            number, rank, at = map(int, order.read_text().split())
            if done + 1 == at and rank == int(os.environ.get("LOCAL_RANK", 0)):
                order.unlink()
                counter.unlink()
                os.kill(os.getpid(), number)
        return super().forward(images, **more)
"""
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def train(tmp_path_factory, mini_cache):
    """Run ``train.py`` in its own session of processes; returns its exit code, its text and the run's folder."""
    home = tmp_path_factory.mktemp("home")
    (home / "deadly.py").write_text(METRIC)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "CERTIQA_CACHE": str(mini_cache)}
    environment["PYTHONPATH"] = f"{home}:{environment.get('PYTHONPATH', '')}"

    def call(outputs, *options, kill=None):
        for left in (home / "order", *home.glob("steps-*")):
            left.unlink(missing_ok=True)
        if kill:
            (home / "order").write_text(" ".join(map(str, kill)))
        command = [sys.executable, str(ROOT / "train.py"), *OPTIONS, *options, "metric._target_=deadly.Deadly"]
        with (home / "out").open("w+") as out:
            running = subprocess.Popen(
                [*command, f"paths.outputs={outputs}"],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = running.wait(400)
            assert all_ended(running.pid), "a process lived on"
            out.seek(0)
            text = out.read()
        assert "Traceback" not in text or code < 0 or "trainer=ddp" in options, text
        return code, text, next(iter(outputs.glob("train/*")), None)

    return call


def all_ended(leader, seconds=15):
    """Return whether no process of a session is left after so many seconds at most."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    os.killpg(leader, signal.SIGKILL)
    return False


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    """The folders of runs in one process and in two that nobody stops."""
    found = []
    for options in ([], DDP):
        code, text, folder = train(tmp_path_factory.mktemp("unbroken"), *options)
        assert code == 0, text
        found.append(folder)
    return found


def assert_same_run(folder, expected):
    one, other = (load_file(path / "checkpoints" / "denoiser.safetensors") for path in (folder, expected))
    assert all(torch.equal(one[name], weights) for name, weights in other.items())
    for file in ("metrics.csv", "records.parquet"):
        read = pd.read_csv if file.endswith("csv") else pd.read_parquet
        pd.testing.assert_frame_equal(*(read(path / file) for path in (folder, expected)), check_exact=True)
    summaries = [read_summary(path) for path in (folder, expected)]
    assert summaries[0]["status"] == "finished"
    assert summaries[0]["srocc"] == summaries[1]["srocc"]


def test_one_process_killed_and_told_to_stop_as_it_ranks(train, unbroken, tmp_path):
    # the phase of ranking begins with step 6 of 14; a pass has 5 steps
    code, _, folder = train(tmp_path, kill=(signal.SIGKILL, 0, 3))
    assert code == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    code, text, _ = train(tmp_path, kill=(signal.SIGTERM, 0, 2))
    assert "continuing from" in text
    assert "last.ckpt, step 8" in text
    assert code == os.EX_TEMPFAIL
    assert "stopped by SIGTERM; what is done is kept, the same command continues" in text
    summary = read_summary(folder)
    assert summary["status"] == "interrupted"
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10, "the step under way was ended and kept"
    last.write_bytes(last.read_bytes()[:100_000])
    code, text, _ = train(tmp_path)
    assert code == 0, text
    (told,) = [line for line in text.splitlines() if "is no checkpoint of this run" in line]
    assert told.endswith("it is set aside as last.ckpt.damaged-1; training goes on from step 9")
    assert_same_run(folder, unbroken[0])
    assert read_summary(folder)["seconds"] > summary["seconds"]


def test_a_training_that_has_ended_is_not_begun_again(train, unbroken, tmp_path):
    folder = tmp_path / "train" / unbroken[0].name
    shutil.copytree(unbroken[0], folder)
    (folder / "summary.json").unlink()
    (folder / "records" / "rank-0.jsonl").unlink()
    code, text, _ = train(tmp_path, kill=(signal.SIGKILL, 0, 1))
    assert code == 0, "it trained again"
    assert "last.ckpt, step 14" in text
    assert_same_run(folder, unbroken[0])


def test_two_processes_of_which_first_one_is_killed_then_the_other_told_to_stop(train, unbroken, tmp_path):
    code, _, folder = train(tmp_path, *DDP, kill=(signal.SIGKILL, 0, 3))
    assert code == -signal.SIGKILL
    code, text, _ = train(tmp_path, *DDP, kill=(signal.SIGKILL, 1, 2))
    assert "last.ckpt, step 8" in text
    assert code != 0
    code, text, _ = train(tmp_path, *DDP, kill=(signal.SIGTERM, 1, 2))
    assert "last.ckpt, step 9" in text
    assert code in (os.EX_TEMPFAIL, 130), text
    assert read_summary(folder)["status"] == "interrupted"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 11
    code, text, _ = train(tmp_path, *DDP)
    assert code == 0, text
    assert_same_run(folder, unbroken[1])


def test_the_jobs_of_a_sweep_stop_in_order_when_it_is_killed(tmp_path, mini_cache):
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", "hydra/launcher=local", "defense=ms", "num_samples=400"]
    command += ["certification.joint_confidence=null", "data.eval_batch_size=1", f"paths.outputs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CERTIQA_CACHE": str(mini_cache)}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob("evaluate/*/records/rank-0.jsonl")))
    running.kill()
    running.wait(10)
    (folder,) = (path.parent for path in tmp_path.glob("evaluate/*/records"))
    wait_until((folder / "summary.json").is_file)
    assert read_summary(folder)["status"] == "interrupted"
    with FileLock(folder / "run.lock", timeout=20):
        pass  # the same command can go on


def wait_until(holds, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)
