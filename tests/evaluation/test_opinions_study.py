"""``benchmarks/opinions.py``: which runs it asks for, and the table it makes of their records."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

ROOT = Path(__file__).resolve().parents[2]
SPLITS, SEEDS, IMAGES = 2, 2, 40


@pytest.fixture
def opinions():
    spec = importlib.util.spec_from_file_location("opinions", ROOT / "benchmarks" / "opinions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(opinions, monkeypatch, tmp_path):
    """Runs that train.py was asked for; those of a defense leave records, dms_iqa's with the least error."""
    runs = []

    def train(*overrides):
        runs.append(overrides)
        given = dict(override.split("=", 1) for override in overrides)
        if "defense" not in given:
            return
        split = int(given["data.split_seed"])
        rng = np.random.default_rng(split)
        mos = rng.uniform(0, 100, IMAGES)
        score = mos + {"ms": 60, "dms": 30, "dms_iqa": 10}[given["defense"]] * rng.standard_normal(IMAGES)
        score += int(given["seed"])
        names = [f"{row + 10 * split:02d}.bmp" for row in range(IMAGES)]  # splits share some images
        rows = {"image_id": names, "mos": mos, "score": score}
        rows |= {"score_clean": mos + rng.standard_normal(IMAGES)}
        of_radius = [
            {"radius": radius, "lower": score - 100 * radius, "upper": score + 50 * radius}
            | {"joint_lower": score - 120 * radius, "joint_upper": score + 60 * radius}
            for radius in opinions.RADII
        ]
        folder = Path(given["hydra.run.dir"])
        folder.mkdir(parents=True)
        table = pd.concat([pd.DataFrame(rows | radius) for radius in of_radius])
        table.sample(frac=1, random_state=0).to_parquet(folder / "records.parquet")

    monkeypatch.setattr(opinions, "train", train)
    return runs


def test_each_split_has_one_metric_and_each_seed_its_denoisers(opinions, asked, tmp_path):
    opinions.study_table(opinions.Study("livec", tmp_path, ["data.root=there"]), SPLITS, SEEDS, 2)
    metrics = [run for run in asked if "experiment=metric" in run]
    assert [run for run in metrics if f"hydra.run.dir={tmp_path}/livec-split0-metric" in run] == metrics[:1]
    assert len(metrics) == SPLITS
    cells = [run for run in asked if run not in metrics]
    assert len(cells) == SPLITS * SEEDS * 3
    for run in cells:
        (split,) = (part.split("=")[1] for part in run if part.startswith("data.split_seed="))
        assert f"metric.weights={tmp_path}/livec-split{split}-metric/metric.safetensors" in run
    assert all("data.root=there" in run for run in asked)
    chosen = {run for run in cells if set(opinions.CHOSEN) <= set(run)}
    assert chosen == {run for run in cells if "defense=dms_iqa" in run}


def test_the_table_has_means_over_splits_and_seeds_and_paired_intervals(opinions, asked, tmp_path):
    study = opinions.Study("livec", tmp_path, [])
    header, *lines = opinions.study_table(study, SPLITS, SEEDS, 50)
    table = {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in lines}
    assert list(table) == ["undefended", "ms", "dms", "dms_iqa", "dms_iqa - dms"]
    wanted = {"SROCC": [], "PLCC": [], "delta/sd 0.06": []}
    for split in range(SPLITS):
        records = pd.read_parquet(tmp_path / f"livec-split{split}-seed1-dms" / "records.parquet")
        records = records[records.radius == 0.06]
        wanted["SROCC"].append(spearmanr(records.score, records.mos)[0])
        wanted["PLCC"].append(pearsonr(records.score, records.mos)[0])
        wanted["delta/sd 0.06"].append(6 / records.score.std())  # the longer side
    for key, values in wanted.items():
        assert table["dms"][key].startswith(f"{np.mean(values):.3f} [")  # seeds differ by a constant
    low, high = (float(end) for end in table["dms_iqa - dms"]["SROCC"].split("[")[1].rstrip("]").split(","))
    assert 0 < low < high
    assert table["undefended"]["delta/sd 0.06"] == "-"


def test_equal_defenses_differ_by_nothing_in_every_resampling(opinions, asked, tmp_path, monkeypatch):
    study = opinions.Study("livec", tmp_path, [])
    for split in range(SPLITS):
        study.cell(split, 0, "dms", ["defense=dms"])
    monkeypatch.setattr(study, "cell", lambda split, seed, *_: tmp_path / f"livec-split{split}-seed{seed}-dms")
    _, undefended, *lines = opinions.study_table(study, SPLITS, 1, 20)
    assert set(lines[-1][1:]) == {"0.000 [0.000, 0.000]"}
    low, high = (float(end) for end in undefended[1].split("[")[1].rstrip("]").split(", "))
    assert low < high  # images were resampled


def test_a_run_that_fails_ends_the_study_with_its_exit_code(opinions, monkeypatch):
    monkeypatch.setattr(opinions, "ROOT", Path("/nowhere"))
    monkeypatch.setattr(opinions.subprocess, "run", lambda *given, **more: type("Done", (), {"returncode": 3}))
    with pytest.raises(SystemExit) as ended:
        opinions.train("data=livec")
    assert ended.value.code == 3
