"""The commands as a user types them."""

import importlib.util
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from certiqa.evaluation import read_records, read_summary
from certiqa.storage.sealed import unseal

spec = importlib.util.spec_from_file_location("forked", Path(__file__).parents[1] / "forked.py")
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)

ROOT = Path(__file__).parents[2]
CHECK = ["num_samples=30", "data.limit_test=4"]


def command(script, *arguments, outputs):
    return [sys.executable, str(ROOT / script), *arguments, f"paths.outputs={outputs}"]


def call(script, *arguments, outputs, expect=0, cwd=ROOT, started=False):
    """Run a command; ``started`` starts an interpreter of its own, as a shell does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    words = command(script, *arguments, outputs=outputs)
    if started:
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)
    else:
        done = forked.run(words, cwd=cwd, env=environment)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def only_folder(outputs, task="train"):
    (folder,) = (path for path in (outputs / task).iterdir() if path.is_dir() and ".previous" not in path.name)
    return folder


def records(folder):
    return pd.read_parquet(folder / "records.parquet").drop(columns="path")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mini_cache):
    outputs = tmp_path_factory.mktemp("trained")
    return call("train.py", "debug=fast", outputs=outputs, started=True), outputs


def test_a_run_leaves_what_is_promised(trained):
    done, outputs = trained
    folder = only_folder(outputs)
    names = {path.name for path in folder.iterdir()}
    assert names >= {".hydra", "checkpoints", "records", "records.parquet", "summary.json", "report.html", "run.log"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"denoiser.safetensors"}
    summary = read_summary(folder)
    assert summary["status"] == "finished"
    assert summary["defense"] == "dms_iqa"
    assert summary["num_images"] == 6
    assert summary["mos_kind"] == "pseudo-MOS"
    assert folder.name.endswith(summary["config_hash"])
    table = records(folder)
    assert len(table) == 6 * 2
    assert (table["lower"] <= table["score"]).all()
    assert (table["score"] <= table["upper"]).all()
    assert (table["joint_lower"] <= table["score"]).all()
    assert "undefended" in done.stdout
    assert "certified SROCC" in done.stdout
    assert "report.html" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_reported_and_not_run_again(trained):
    _, outputs = trained
    folder = only_folder(outputs)
    before = (folder / "records.parquet").stat().st_mtime_ns
    again = call("train.py", "debug=fast", outputs=outputs)
    assert "finished already" in again.stdout
    assert "undefended" in again.stdout
    assert (folder / "records.parquet").stat().st_mtime_ns == before


def test_same_seed_same_records_and_fresh_keeps_the_old_folder(trained):
    _, outputs = trained
    folder = only_folder(outputs)
    first = records(folder)
    call("train.py", "debug=fast", "fresh=true", outputs=outputs)
    pd.testing.assert_frame_equal(first, records(folder))
    kept = folder.with_name(f"{folder.name}.previous-1")
    pd.testing.assert_frame_equal(first, records(kept))


@pytest.mark.full
def test_batch_sizes_change_scores_by_rounding_only(trained, tmp_path):
    weights = only_folder(trained[1]) / "checkpoints" / "denoiser.safetensors"
    tables = []
    for size in (1, 16):
        outputs = tmp_path / str(size)
        options = [f"denoiser.weights={weights}", f"defense.batch_size={size}", f"data.eval_batch_size={min(size, 4)}"]
        call("evaluate.py", "debug=fast", *options, *CHECK, outputs=outputs)
        tables.append(records(only_folder(outputs, "evaluate")))
    for column in ("score", "lower", "upper", "joint_lower", "joint_upper", "score_clean"):
        assert np.allclose(tables[0][column], tables[1][column], atol=1e-4 * 4, rtol=0), column


@pytest.mark.full
def test_a_multirun_makes_one_folder_a_job(tmp_path, mini_cache):
    call("train.py", "-m", "defense=ms,dms,none", "debug=fast", "trainer.max_steps=1", *CHECK, outputs=tmp_path)
    folders = [path for path in (tmp_path / "train").iterdir() if path.is_dir()]
    assert sorted(folder.name.split("-")[2] for folder in folders) == ["dms", "ms", "none"]
    for folder in folders:
        summary = read_summary(folder)
        assert summary["status"] == "finished"
        assert summary["num_images"] == 4
        assert ("certified_srocc" in summary) == (summary["defense"] != "none")
        assert (summary["tau_srocc"] == 0) == (summary["defense"] == "none")


STOPPED = ["defense=ms", "num_samples=60", "data.limit_test=12", "data.eval_batch_size=4", "certification.radii=[0.06]"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, mini_cache):
    """The folder of a run that nothing stopped."""
    outputs = tmp_path_factory.mktemp("unbroken")
    call("evaluate.py", *STOPPED, outputs=outputs)
    return only_folder(outputs, "evaluate")


def listen_to_ctrl_c():
    """Undo what a shell does to jobs in its background: they ignore SIGINT, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_after(lines, number, outputs):
    """Start the run, send it a signal once so many images are recorded; returns (exit code, stderr)."""
    running = subprocess.Popen(
        command("evaluate.py", *STOPPED, outputs=outputs),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
        if sum(len(path.read_text().splitlines()) for path in outputs.rglob("rank-0.jsonl")) >= lines:
            break
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped by SIGTERM")]
)
def test_a_stopped_run_keeps_its_records_and_the_same_command_goes_on(number, code, message, tmp_path, unbroken):
    returned, errors = stop_after(2, number, tmp_path)
    assert returned == code, errors
    assert message in errors
    assert "Traceback" not in errors
    folder = only_folder(tmp_path, "evaluate")
    summary = read_summary(folder)
    assert summary["status"] == "interrupted"
    assert 2 <= summary["num_images"] < 12
    assert (folder / "report.html").is_file()
    first = (folder / "records" / "rank-0.jsonl").read_text()

    call("evaluate.py", *STOPPED, outputs=tmp_path)
    assert (folder / "records" / "rank-0.jsonl").read_text().startswith(first), "finished images were done again"
    assert_same_records(folder, unbroken)


def assert_same_records(folder, expected):
    """Equal, every image once; scores to rounding, as the draws may have shared other batches."""
    found, expected = records(folder), records(expected)
    assert list(found.image_id) == list(expected.image_id)
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_stopped_while_it_makes_images_leaves_no_worker(number, code, tmp_path):
    cache = tmp_path / "cache"
    running = subprocess.Popen(
        command("evaluate.py", "defense=none", "data.test=all", outputs=tmp_path / "outputs"),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CERTIQA_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while running.poll() is None and not list(cache.glob("mini-*/*/*.png")):
        time.sleep(0.05)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == code, errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):  # noqa: PT012
        while time.monotonic() < deadline:
            os.killpg(running.pid, 0)
            time.sleep(0.1)


@pytest.mark.full
def test_kill_at_any_moment_loses_nothing(tmp_path, unbroken):
    for lines in (1, 4, 9):
        code, _ = stop_after(lines, signal.SIGKILL, tmp_path)
        assert code == -signal.SIGKILL
    call("evaluate.py", *STOPPED, outputs=tmp_path)
    folder = only_folder(tmp_path, "evaluate")
    lines = (folder / "records" / "rank-0.jsonl").read_text().splitlines()
    assert len(lines) == 12, "nothing twice, nothing lost"
    assert_same_records(folder, unbroken)


def recorded_lines(outputs):
    return sum(len(path.read_text().splitlines()) for path in outputs.rglob("rank-0.jsonl"))


@pytest.mark.full
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path, mini_cache):
    """Moments follow the run's own progress, so that they mean the same on a slow machine and a fast one."""
    options = ["defense=ms", "num_samples=60", "data.limit_test=60", "certification.radii=[0.06]"]
    moments = random.Random(5)
    killed = tmp_path / "killed"
    recorded = [0]
    for round_number in range(20):
        running = subprocess.Popen(
            command("evaluate.py", *options, outputs=killed),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if round_number % 4 == 3:  # while it starts; else after up to four more images, in the middle of one
            time.sleep(moments.uniform(1, 5))
        else:
            target = recorded[-1] + moments.randrange(4)
            while running.poll() is None and recorded_lines(killed) < max(target, 1):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.4))
        running.kill()
        running.wait()
        recorded.append(recorded_lines(killed))
        assert recorded[-1] >= recorded[-2], "a killed run took records of an earlier one with it"
    assert 1 <= recorded[-1] < 60, "twenty kills, and the run was never under way or never stopped"
    call("evaluate.py", *options, outputs=killed)
    call("evaluate.py", *options, outputs=tmp_path / "unbroken")
    folder = only_folder(killed, "evaluate")
    lines = [unseal(line) for line in (folder / "records" / "rank-0.jsonl").read_bytes().splitlines()]
    assert len({rows[0]["image_id"] for rows in lines}) == len(lines) == 60, "nothing twice, nothing lost"
    assert_same_records(folder, only_folder(tmp_path / "unbroken", "evaluate"))


def test_two_processes_share_the_images(tmp_path, unbroken):
    call("evaluate.py", *STOPPED, "trainer.devices=2", "trainer.strategy=ddp", outputs=tmp_path)
    folder = only_folder(tmp_path, "evaluate")
    assert folder.name == unbroken.name, "devices are not part of a run's hash"
    shares = [len(path.read_text().splitlines()) for path in sorted(folder.glob("records/rank-*.jsonl"))]
    assert shares == [6, 6]
    assert_same_records(folder, unbroken)
    found, expected = (read_summary(path) for path in (folder, unbroken))
    for key in ("num_images", "num_forward", "srocc", "certified_delta_median", "certified_srocc"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key


def test_records_made_otherwise_are_refused(tmp_path, unbroken):
    folder = tmp_path / "mine"
    shutil.copytree(unbroken, folder)
    elsewhere = [f"hydra.run.dir={folder}", *STOPPED]
    done = call("evaluate.py", *elsewhere, "sigma=0.13", outputs=tmp_path, expect=1)
    assert "holds the results of another run" in done.stderr
    assert "sigma was 0.12, is 0.13" in done.stderr
    assert "fresh=true" in done.stderr
    assert_same_records(folder, unbroken)


def test_a_tolerance_stops_early_and_says_why(tmp_path, mini_cache):
    options = ["defense=ms", "data.limit_test=4", "num_samples=1000", "certification.tolerance=0.04"]
    done = call("evaluate.py", *options, "certification.first_look=60", outputs=tmp_path)
    table = records(only_folder(tmp_path, "evaluate"))
    assert set(table.stop) <= {"tolerance", "saturated", "out of reach"}
    assert (table.stop == "tolerance").any()
    assert table.num_samples.max() < 1000
    reached = table[(table.stop == "tolerance") & (table.radius == 0.06)]
    assert ((reached.upper - reached.lower) / 2 <= 0.04 * 4).all()
    assert (table.median_lower <= table.score).all()
    assert (table.score <= table.median_upper).all()
    assert "draws" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defence=ms"], "unknown key 'defence'. Did you mean 'defense'"),
        (
            ["defense=dmsiqa"],
            "no option 'dmsiqa' for defense; there are: .*chain, .*dms, dms_iqa, .*ms, .*none.*Did you mean 'dms_iqa'",
        ),
        (["certification.radiuss=1"], "unknown key 'certification.radiuss'. Did you mean 'certification.radius'"),
        (["sigmma=0.1"], "unknown key 'sigmma'. Did you mean 'sigma'"),
        (["sigma=0"], "sigma must be a number above 0 and at most 1"),
        (["seed=-1"], r"seed must be a whole number from 0 to 4294967295, got -1"),
        (["seed=4294967296"], r"seed must be a whole number from 0 to 4294967295, got 4294967296"),
        (["metric=pyiqa"], r"metric\.metric_name must be given: metric\.metric_name=\.\.\."),
        (["defense=none", "data.resize=20"], r"is 20x20 pixels, smaller than the 32x32 that it takes to score it"),
        (
            ["certification.radii=[0.06,0.5]"],
            r"radius 0\.5 cannot be certified with num_samples=100 .* num_samples>=446977",
        ),
        (["metric._target_=nowhere.Metric"], "nowhere"),
        (["metric._target_=torch.nn.Identity", "defense=dms"], "returned shape"),
        (["data.crop=500", "defense=dms"], "is 224x224, smaller than the training crop of 500"),
        (["metric.weights=/no/such/file.safetensors"], "no weights at '/no/such/file.safetensors'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_message_and_no_traceback(arguments, message, tmp_path, mini_cache):
    done = call("train.py", *arguments, outputs=tmp_path, expect=1)
    told = [line for line in done.stderr.splitlines() if line.startswith("certiqa: ")]
    assert len(told) == 1, done.stderr
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert all(pd.read_parquet(path).empty for path in tmp_path.rglob("records.parquet"))


def test_an_outputs_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    errors = call("evaluate.py", "defense=none", outputs=tmp_path / "file" / "outputs", expect=1).stderr
    assert re.search(r"^certiqa: cannot write '.*/file/outputs.*': Not a directory; .*set paths\.outputs", errors)
    assert "Traceback" not in errors


def test_a_disk_that_is_full_at_a_checkpoint_is_said(tmp_path, mini_cache):
    done = subprocess.run(
        command("train.py", "debug=fast", "defense=dms", "trainer.max_steps=1", outputs=tmp_path),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 1024, 300 * 1024)),
    )
    assert done.returncode == 1
    assert "certiqa: cannot write the run's files: File too large; free space there, or set paths.outp" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_is_shown_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTIQA_TRACEBACK", "1")
    assert "Traceback" in call("train.py", "sigma=0", outputs=tmp_path, expect=1).stderr


def test_nan_scores_fail_their_image_and_the_others_go_on(tmp_path, mini_cache):
    module = tmp_path / "nan_metric.py"
    module.write_text(
        "import torch\n"
        "class NanAtTheFifth(torch.nn.Module):\n"
        "    score_range = (0.0, 1.0)\n"
        "    calls = 0\n"
        "    def forward(self, images):\n"
        "        scores = images.mean(dim=(1, 2, 3))\n"
        "        bright = (scores > 0.55) & (images.shape[-1] == 224)\n"
        "        return torch.where(bright, torch.nan, scores)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    options = ["defense=ms", "metric._target_=nan_metric.NanAtTheFifth", "num_samples=30", "data.eval_batch_size=1"]
    options += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=null"]
    done = subprocess.run(
        command("evaluate.py", *options, outputs=tmp_path), capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 1, done.stderr
    assert "scored" in done.stderr
    assert "nan" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    summary = read_summary(only_folder(tmp_path, "evaluate"))
    assert summary["status"] == "finished"
    assert summary["num_images"] > 0
    assert summary["num_failed"] > 0
    assert summary["num_images"] + summary["num_failed"] == 125, "the others go on"
    assert f"{summary['num_failed']} of 125 images could not be scored" in done.stderr
    table = read_records(only_folder(tmp_path, "evaluate"))
    failed = table[table.failure.notna()]
    assert len(failed) == summary["num_failed"]
    assert failed.score.isna().all()
    assert np.isinf(failed.upper).all()


def test_a_plan_is_printed_and_nothing_runs(tmp_path, mini_cache):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from certiqa.entry.plan import main; main()"
    options = ["defense=ms", "certification.radii=[0.06,0.4]", f"paths.outputs={tmp_path / 'outputs'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"to certify: 125 images, up to 100 draws each, 12.500 forward passes", done.stdout)
    assert re.search(r"about .* draws per second", done.stdout)
    assert "radii up to 0.1801 can be certified" in done.stdout
    assert re.search(r"0\.4 +0\.4 +16.097 +21.462", done.stdout), "draws that the asked radius needs"
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"


def test_a_reader_that_leaves_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)  # as ``| head`` does once it has seen enough
    try:
        command = [sys.executable, "train.py", "--help"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\ntry:\n runpy.run_path('train.py', run_name='__main__')\n"
    )
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules, 'help imported torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "defense" in done.stdout
    assert "dms_iqa" in done.stdout
