"""Training and certifying in two gloo processes is training and certifying in one."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from certiqa.evaluation import read_summary

ROOT = Path(__file__).parents[2]
OPTIONS = ["data.resize=96", "data.batch_size=8", "trainer.max_steps=6", "objective.mse_share=0.5", "num_samples=40"]
OPTIONS += ["data.limit_test=7", "data.validation_images=6", "trainer.val_check_interval=6", "data.eval_batch_size=2"]
OPTIONS += ["certification.radii=[0.03]", "certification.radius=0.03", "certification.joint_confidence=0.9"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, mini_cache):
    """The run folders of one process and of two."""
    found = []
    for name, more in (("one", ["trainer=cpu"]), ("two", ["trainer=ddp", "trainer.accelerator=cpu"])):
        outputs = tmp_path_factory.mktemp(name)
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *OPTIONS, *more, f"paths.outputs={outputs}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found += (outputs / "train").iterdir()
    return found


@pytest.mark.full
def test_the_trained_denoisers_are_the_same(folders):
    one, two = (load_file(folder / "checkpoints" / "denoiser.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name, weights in one.items():
        # Adam's first steps have the size of the learning rate whatever the gradient's, so rounding can show
        assert (weights - two[name]).abs().max() < 1e-3, name
        assert (weights - two[name]).abs().mean() < 2e-5, name


@pytest.mark.full
def test_records_and_curves_are_the_same_and_nothing_counts_twice(folders):
    assert folders[0].name == folders[1].name, "how many processes there are is no part of a run"
    one, two = (pd.read_parquet(folder / "records.parquet").drop(columns="path") for folder in folders)
    shares = [len(path.read_text().splitlines()) for path in sorted(folders[1].glob("records/rank-*.jsonl"))]
    assert shares == [4, 3]
    assert list(two.image_id) == list(one.image_id)
    assert two.image_id.is_unique
    pd.testing.assert_frame_equal(two, one, rtol=0, atol=5e-3)
    summaries = [read_summary(folder) for folder in folders]
    assert [summary["num_images"] for summary in summaries] == [7, 7]
    assert summaries[0]["num_forward"] == summaries[1]["num_forward"]
    # decibels are averaged over batches, which two processes cut otherwise
    for column, tolerance in (("val/srocc", 5e-3), ("val/certified_delta", 5e-3), ("val/psnr", 0.05)):
        last = [pd.read_csv(folder / "metrics.csv")[column].dropna().iloc[-1] for folder in folders]
        assert last[0] == pytest.approx(last[1], abs=tolerance), column
