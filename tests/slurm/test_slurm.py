"""Sweeps on a real SLURM: one array, a warning, a kill, failures, and a terminal that is closed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from certiqa.evaluation import read_summary

ROOT = Path(__file__).parents[2]
SLURM = ["-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "hydra.launcher.cpus_per_task=1"]
TRAINED = ["num_samples=30", "data.limit_test=10", "data.eval_batch_size=1", "data.batch_size=4", "logger=none"]
TRAINED += ["data.resize=96"]
TRAINED += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=null"]
TRAINED += ["trainer.max_steps=24", "+trainer.limit_train_batches=4", "trainer=cpu", "callbacks.gallery.num_images=1"]
TRAINED += ["callbacks.checkpoint.minutes=0"]
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def environment(slurm, mini_cache):
    return {**slurm, "OMP_NUM_THREADS": "1", "COLUMNS": "150", "CERTIQA_CACHE": str(mini_cache)}


def start(script, *arguments, outputs, environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments, f"paths.outputs={outputs}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process, expect=0, seconds=400):
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == expect, out + errors
    return out, errors


def cells(outputs):
    found = list(outputs.glob("sweeps/*/sweep.json"))
    return {cell["label"]: cell for cell in json.loads(found[0].read_text())["cells"]} if found else {}


def wait_until(holds, process=None, seconds=200):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


def queue(environment):
    asked = ["squeue", "--array", "--noheader", "--format=%i"]
    return subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.split()


def records(folder):
    return pd.read_parquet(Path(folder) / "records.parquet").drop(columns="path")


def recorded(folder):
    return sum(len(path.read_text().splitlines()) for path in Path(folder).glob("records/rank-*.jsonl"))


def test_an_array_survives_a_warning_and_a_kill_and_equals_runs_in_turn(environment, tmp_path):
    sweep = ["defense=dms_iqa,dms,ms", *TRAINED]
    launching = start("train.py", *SLURM, *sweep, outputs=tmp_path / "slurm", environment=environment)
    wait_until(lambda: any(cell["job"] for cell in cells(tmp_path / "slurm").values()), launching)
    found = cells(tmp_path / "slurm")
    assert list(found) == ["defense=dms_iqa", "defense=dms", "defense=ms"]
    jobs = [cell["job"] for cell in found.values()]
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    assert len({job.split("_")[0] for job in jobs}) == 1, "one array"

    # the terminal is closed: the jobs go on, and the same command waits for them again
    launching.send_signal(signal.SIGINT)
    _, errors = ended(launching, expect=130)
    assert f"scancel {jobs[0].split('_')[0]}" in errors
    again = start("train.py", *SLURM, *sweep, outputs=tmp_path / "slurm", environment=environment)

    # a warning in the middle of the training, as SLURM sends it before the time is up
    first = Path(found["defense=dms_iqa"]["folder"])
    wait_until((first / "checkpoints" / "last.ckpt").is_file)
    assert not recorded(first)
    subprocess.run(["scancel", "--signal=USR2", jobs[0]], env=environment, check=True)
    log = Path(found["defense=dms_iqa"]["log"].replace("log.err", "log.out"))
    wait_until(lambda: "Requeued job" in log.read_text())
    assert read_summary(first)["status"] == "interrupted"
    # and a kill in the middle of the test: SLURM takes the machine and queues the job again by itself
    wait_until(lambda: recorded(first) >= 2)
    before = (first / "records" / "rank-0.jsonl").read_text()
    subprocess.run(["scontrol", "requeue", jobs[0]], env=environment, check=True)

    out, _ = ended(again)
    assert "in the queue already" in out
    assert "submitted" not in out
    assert re.search(r"3 finished, 0 failed", out)
    assert len(re.findall(r"continuing from .*last.ckpt", log.read_text())) == 2
    assert (first / "records" / "rank-0.jsonl").read_text().startswith(before), "finished images were done again"

    ended(start("train.py", "-m", *sweep, outputs=tmp_path / "turns", environment=environment))
    for cell in found.values():
        folder = Path(cell["folder"])
        expected = tmp_path / "turns" / "train" / folder.name
        if "dms" in folder.name:
            one, other = (load_file(path / "checkpoints" / "denoiser.safetensors") for path in (folder, expected))
            assert all(torch.equal(weights, other[name]) for name, weights in one.items()), "trained otherwise"
        assert list(records(folder).image_id) == list(records(expected).image_id)
        pd.testing.assert_frame_equal(records(folder), records(expected), rtol=0, atol=1e-5)
        summaries = [read_summary(path) for path in (folder, expected)]
        assert summaries[0]["status"] == summaries[1]["status"] == "finished"
        assert summaries[0]["srocc"] == pytest.approx(summaries[1]["srocc"], abs=1e-6)


def test_failures_lose_nothing_else_and_the_table_says_why(environment, tmp_path):
    (tmp_path / "odd_metrics.py").write_text(
        "import os, signal, torch\n"
        "class Fine(torch.nn.Module):\n"
        "    score_range = (0.0, 1.0)\n"
        "    def forward(self, images):\n"
        "        return images.mean(dim=(1, 2, 3))\n"
        "class Hungry(Fine):\n"
        "    def forward(self, images):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short\n"
        "class Broken(Fine):\n"
        "    def forward(self, images):\n"
        "        raise RuntimeError('this metric is broken')\n"
    )
    mine = {**environment, "PYTHONPATH": f"{tmp_path}:{environment.get('PYTHONPATH', '')}"}
    names = ",".join(f"odd_metrics.{name}" for name in ("Hungry", "Broken", "Fine"))
    sweep = [f"metric._target_={names}", "defense=none", "data.limit_test=4"]
    out, _ = ended(start("evaluate.py", *SLURM, *sweep, outputs=tmp_path / "o", environment=mine), expect=1)
    assert re.search(r"1 finished, 2 failed, 0 others", out)
    found = cells(tmp_path / "o")
    states = {label.rpartition(".")[2]: (cell["state"], cell["note"]) for label, cell in found.items()}
    assert states["Fine"][0] == "finished"
    assert states["Broken"][0] == "failed"
    assert "this metric is broken" in states["Broken"][1]
    assert states["Hungry"][0] == "failed"
    assert "Killed" in states["Hungry"][1]
    table = pd.read_csv(next((tmp_path / "o" / "sweeps").glob("*/table.csv")))
    assert list(table.state) == ["failed", "failed", "finished"]
    assert "this metric is broken" in Path(table.log[1]).read_text(), "the table says where the log is"
    assert not queue(environment)


def test_two_tasks_of_a_job_share_the_images(environment, tmp_path):
    options = ["defense=ms", "num_samples=30", "data.limit_test=6", "data.eval_batch_size=1"]
    options += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=null"]
    more = ["trainer=ddp", "trainer.accelerator=cpu"]
    out, _ = ended(start("evaluate.py", *SLURM, *options, *more, outputs=tmp_path / "two", environment=environment))
    assert "1 finished" in out
    ended(start("evaluate.py", "-m", *options, outputs=tmp_path / "one", environment=environment))
    (two,), (one,) = ([path.parent for path in tmp_path.glob(f"{name}/evaluate/*/records")] for name in ("two", "one"))
    shares = [len(path.read_text().splitlines()) for path in sorted(two.glob("records/rank-*.jsonl"))]
    assert shares == [3, 3]
    assert two.name == one.name
    pd.testing.assert_frame_equal(records(two), records(one), rtol=0, atol=1e-5)


def test_jobs_that_wait_for_ever_say_why(environment, tmp_path):
    options = ["defense=none", "data.limit_test=3", "hydra.launcher.additional_parameters={hold: true}"]
    held = start("evaluate.py", *SLURM, *options, outputs=tmp_path, environment=environment)
    wait_until(lambda: any(cell["job"] for cell in cells(tmp_path).values()), held)
    lines = iter(held.stdout.readline, "")
    told = next(line for line in lines if "waiting" in line)
    assert told.startswith("waiting in the queue: JobHeldUser; JobHeldUser does not pass by itself")
    (cell,) = cells(tmp_path).values()
    subprocess.run(["scontrol", "release", cell["job"]], env=environment, check=True)
    out, _ = ended(held)
    assert "1 finished" in out


def test_a_partition_that_is_not_there(environment, tmp_path):
    sweep = [*SLURM, "hydra.launcher.partition=shrot", "defense=ms,none"]
    _, errors = ended(start("evaluate.py", *sweep, outputs=tmp_path, environment=environment), expect=1)
    assert "SLURM has no partition 'shrot'; there are: long, short. Did you mean 'short'?" in errors
    assert "Traceback" not in errors
    assert not queue(environment)


def test_what_sbatch_refuses_is_said(environment, tmp_path):
    sweep = [*SLURM, "hydra.launcher.cpus_per_task=64", "defense=ms,none"]
    _, errors = ended(start("evaluate.py", *sweep, outputs=tmp_path, environment=environment), expect=1)
    assert "certiqa: SLURM refused the sweep" in errors
    assert "Traceback" not in errors
    assert os.environ.get("SLURM_CONF") is None, "the tests' SLURM is theirs alone"
