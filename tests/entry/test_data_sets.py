"""Training, evaluation and continued runs on miniatures of the published data sets, as a user types them."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from certiqa.evaluation import read_summary
from certiqa.storage.sealed import unseal

spec = importlib.util.spec_from_file_location("forked", Path(__file__).parents[1] / "forked.py")
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)

ROOT = Path(__file__).parents[2]
FAST = [
    *("debug=fast", "trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=2", "data.crop=64"),
    *("data.num_workers=0", "denoiser.channels=[4,8,8]", "trainer=cpu"),
]


@pytest.fixture(scope="module")
def roots(tmp_path_factory, miniatures):
    """A folder with a miniature of each data set, as CERTIQA_DATA names it."""
    base = tmp_path_factory.mktemp("data")
    for name, write in miniatures.WRITERS.items():
        write(base / name)
    return base


def command(script, *arguments, outputs):
    return [sys.executable, str(ROOT / script), *arguments, f"paths.outputs={outputs}"]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **more}


def call(script, *arguments, outputs, expect=0, **more):
    done = forked.run(command(script, *arguments, outputs=outputs), cwd=ROOT, env=environment(**more))
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_of(outputs, task):
    (folder,) = (path for path in (outputs / task).iterdir() if path.is_dir())
    return folder, read_summary(folder)


def records(folder):
    return pd.read_parquet(folder / "records.parquet").drop(columns="path")


def stopped_after(lines, *arguments, outputs):
    """Start a run and kill it once so many images are recorded."""
    running = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
        if sum(len(path.read_text().splitlines()) for path in outputs.rglob("rank-0.jsonl")) >= lines:
            break
    running.send_signal(signal.SIGKILL)
    running.wait()


def trained(name, roots, outputs, *more):
    """Train on a miniature; returns the run's folder, its summary and what was printed."""
    data = [f"data={name}", f"data.root={roots / name}"]
    done = call("train.py", *data, *FAST, *more, outputs=outputs)
    folder, summary = run_of(outputs, "train")
    assert summary["status"] == "finished"
    assert summary["data"] == name
    assert (folder / "checkpoints" / "denoiser.safetensors").is_file()
    assert (folder / "report.html").is_file()
    return folder, summary, done


def evaluated(name, roots, outputs, weights):
    """Evaluate with the trained denoiser, killed on the way and continued by the same command."""
    outputs = outputs / "again"
    arguments = ["evaluate.py", f"data={name}", f"data.root={roots / name}", *FAST, f"denoiser.weights={weights}"]
    arguments = [argument for argument in arguments if "val_check" not in argument]
    arguments += ["data.eval_batch_size=1", "data.limit_test=null"]
    stopped_after(1, *command(*arguments, outputs=outputs), outputs=outputs)
    assert not list(outputs.rglob("summary.json")), "killed before its end"
    call(*arguments, outputs=outputs)
    return run_of(outputs, "evaluate")


SCALES = {"kadid": [1, 5], "spaq": [0, 100], "folder": [1, 5], "livec": [0, 100], "agiqa3k": [0, 5]}


@pytest.mark.full
def test_koniq_is_trained_on_evaluated_and_continued(roots, tmp_path):
    folder, summary, done = trained("koniq", roots, tmp_path)
    assert summary["num_images"] == 4
    assert (summary["mos_kind"], summary["mos_range"]) == ("MOS", [0, 100])
    assert "pseudo" not in done.stdout
    assert "KonIQ-10k has 10,073 images, this copy 20" in done.stdout, "a miniature is said to be one"
    assert "not comparable" in summary["data_notes"][0]
    table = records(folder)
    assert ((table.mos / 100 - table.mos_normalised).abs() < 1e-9).all()
    resumed, again = evaluated("koniq", roots, tmp_path, folder / "checkpoints" / "denoiser.safetensors")
    assert again["data_fingerprint"] == summary["data_fingerprint"]
    lines = (resumed / "records" / "rank-0.jsonl").read_text().splitlines()
    assert len(lines) == 4, "nothing twice, nothing lost"
    merged = table.merge(records(resumed), on=["image_id", "radius"])
    assert len(merged) == len(table)
    assert (merged.score_x - merged.score_y).abs().max() < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(SCALES))
def test_the_others_are_trained_on_evaluated_and_continued(name, roots, tmp_path):
    more = ["data.splits=all"] if name == "folder" else []
    folder, summary, _ = trained(name, roots, tmp_path, *more)
    assert summary["mos_range"] == SCALES[name]
    assert summary["srocc"] is not None
    resumed, again = evaluated(name, roots, tmp_path, folder / "checkpoints" / "denoiser.safetensors")
    assert again["status"] == "finished"
    lines = (resumed / "records" / "rank-0.jsonl").read_bytes().splitlines()
    ids = [unseal(line)[0]["image_id"] for line in lines]
    assert len(ids) == len(set(ids)) == again["num_images"]
    if name == "kadid":
        assert records(resumed).reference_id.str.fullmatch(r"I\d\d").all()


def test_images_without_opinions_go_through_and_the_ranking_loss_refuses(roots, tmp_path):
    data = ["data=nips2017", f"data.root={roots / 'nips2017'}", *FAST]
    refused = call("train.py", *data, "objective.ranking_weight=0.05", outputs=tmp_path / "refused", expect=1)
    assert (
        "ranks images by opinion scores, but some training images have none; train with defense=dms" in refused.stderr
    )
    done = call("train.py", *data, outputs=tmp_path)  # the default objective needs none
    assert "every image of nips2017 is tested, also the 10 trained on" in " ".join(done.stdout.split())
    folder, summary = run_of(tmp_path, "train")
    assert summary["status"] == "finished"
    assert summary["srocc"] is None
    assert summary["mos_range"] is None
    assert "certified_srocc" not in summary
    assert summary["certified_delta_median"] > 0
    page = (folder / "report.html").read_text()
    assert "Score against" not in page
    assert "no opinion scores" in " ".join(done.stdout.split())


@pytest.mark.full
def test_lower_better_scores_count_as_quality(roots, tmp_path):
    data = ["data=folder", f"data.root={roots / 'folder'}", "data.splits=all", "data.eval_batch_size=1", "defense=none"]
    call("evaluate.py", *data, outputs=tmp_path / "plain")
    call("evaluate.py", *data, "data.lower_better=true", outputs=tmp_path / "turned")
    plain, turned = (run_of(tmp_path / name, "evaluate")[1] for name in ("plain", "turned"))
    for key in ("srocc", "plcc", "krocc", "srocc_undefended"):
        assert turned[key] == pytest.approx(-plain[key]), key
    assert turned["mos_lower_better"]


@pytest.mark.full
def test_two_processes_share_a_miniature_and_train_on_it(roots, tmp_path):
    options = ["data=spaq", *FAST, "data.eval_batch_size=1", "data.num_workers=1", "data.splits=random"]
    more = {"CERTIQA_DATA": str(roots)}
    call("train.py", *options, "trainer.devices=2", "trainer.strategy=ddp", outputs=tmp_path, **more)
    folder, summary = run_of(tmp_path, "train")
    shares = [len(path.read_text().splitlines()) for path in sorted(folder.glob("records/rank-*.jsonl"))]
    assert shares == [1, 1]
    assert summary["num_images"] == 2


@pytest.mark.full
def test_dbcnn_trains_on_koniq_as_the_readme_says_it(roots, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "tests" / "metrics" / "upstream.py")
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)
    weights = tmp_path / "cache" / "weights" / "DBCNN_KonIQ10k-2de81c0a.pth"
    weights.parent.mkdir(parents=True)
    upstream.dbcnn(weights)
    more = {"CERTIQA_CACHE": str(tmp_path / "cache"), "CERTIQA_DATA": str(roots)}
    small = ["data.crop=64", "num_samples=30", "certification.radii=[0.03]", "certification.radius=0.03"]
    small += ["certification.joint_confidence=null", "trainer=cpu", "trainer.max_steps=2"]
    call("train.py", "defense=dms_iqa", "metric=dbcnn", "data=koniq", *small, outputs=tmp_path, **more)
    _, summary = run_of(tmp_path, "train")
    assert (summary["status"], summary["metric"], summary["num_images"]) == ("finished", "dbcnn", 4)


@pytest.mark.full
def test_your_own_images_as_the_docs_say(tmp_path, miniatures):
    text = (ROOT / "docs" / "data.md").read_text()
    lines = re.findall(
        r"^python (evaluate\.py) (data=folder \S+(?: data\.scores=\S+)?(?: data\.splits=all)?)", text, re.MULTILINE
    )
    assert len(lines) == 3
    assert lines[2][1] == f"{lines[1][1]} data.splits=all"
    photos = tmp_path / "photos"
    for seed in range(6):
        miniatures.write_image(photos / f"{seed}.png", seed=seed)
    scores = "".join(f"{seed}.png,{1 + 0.6 * seed}\n" for seed in range(6))
    (tmp_path / "scores.csv").write_text(f"image,mos\n{scores}")
    for number, tested in ((0, 6), (1, 1), (2, 6)):
        script, options = lines[number]
        chosen = options.replace("data.root=photos", f"data.root={photos}")
        chosen = chosen.replace("data.scores=scores.csv", f"data.scores={tmp_path / 'scores.csv'}").split()
        fast = ["defense=ms", "num_samples=30", "certification.radii=[0.06]", "certification.joint_confidence=null"]
        call(script, *chosen, *fast, "data.num_workers=0", outputs=tmp_path / str(number))
        _, summary = run_of(tmp_path / str(number), "evaluate")
        assert summary["num_images"] == tested
        assert (summary.get("srocc") is not None) == (number == 2)
