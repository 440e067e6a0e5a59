"""What runs leave with W&B, read back from the files that real offline runs wrote."""

import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from certiqa.callbacks import WandbTracker
from certiqa.entry.identity import SWEEP, register_resolvers
from certiqa.evaluation import read_summary
from certiqa.evaluation.gallery import read_gallery
from certiqa.evaluation.tracked import attack_rows, flat_summary, radius_curves, record_rows

CONF = Path(__file__).parents[2] / "conf"


def test_a_run_without_a_key_is_kept_here_with_the_command_that_sends_it(tracked_run):
    done, folder, file = tracked_run
    assert "W&B: offline, there is no key" in done.stdout
    (command,) = re.findall(r"wandb sync --include-online (\S+)", done.stdout)
    assert list(Path(command).glob("run-*.wandb"))
    assert file.run.run_id == json.loads((folder / "wandb.json").read_text())["id"]
    assert file.exit_code == 0


def test_config_group_and_tags_are_there(tracked_run):
    _, folder, file = tracked_run
    assert (file.run.project, file.run.run_group, list(file.run.tags)) == ("certiqa", "table 1", ["paper", "v2"])
    assert (file.run.display_name, file.run.job_type) == (folder.name, "train")
    assert file.config["defense"]["name"] == "dms_iqa"
    assert file.config["sigma"] == 0.12
    assert file.config["trainer"]["max_steps"] == 2
    assert "hydra" not in file.config


def test_the_curves_are_those_of_metrics_csv(tracked_run):
    _, folder, file = tracked_run
    table = pd.read_csv(folder / "metrics.csv")
    for key in ("train/loss", "train/psnr", "val/psnr"):
        expected = table[["step", key]].dropna()
        found = [(row["trainer/global_step"], row[key]) for row in file.history if key in row]
        assert len(found) > 0
        assert found == list(zip(expected["step"], expected[key].map(pytest.approx), strict=True))
    steps = {(m.glob_name or m.name): m.step_metric for m in file.all("metric")}
    assert steps["train/*"] == "trainer/global_step"
    assert steps["certified/*"] == "certified/radius"


def test_certificates_are_curves_over_the_radius(tracked_run):
    _, folder, file = tracked_run
    summary = read_summary(folder)
    rows = [row for row in file.history if "certified/radius" in row]
    assert [row["certified/radius"] for row in rows] == [0.03, 0.06]
    for row in rows:
        radius = row["certified/radius"]
        assert row["certified/delta_median"] == pytest.approx(summary[f"certified_delta_median_r{radius:g}"])
        assert row["certified/srocc"] == pytest.approx(summary[f"certified_srocc_r{radius:g}"])


def test_the_summary_is_that_of_the_run(tracked_run):
    _, folder, file = tracked_run
    for key, value in flat_summary(read_summary(folder)).items():
        assert file.summary[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert file.summary["status"] == "finished"


def test_records_and_attacks_are_tables(tracked_run):
    _, folder, file = tracked_run
    records = pd.read_parquet(folder / "records.parquet")
    (path,) = folder.glob("wandb/offline-run-*/files/media/table/records_*.table.json")
    table = json.loads(path.read_text())
    scores = [row[table["columns"].index("score")] for row in table["data"]]
    assert scores == pytest.approx(list(records["score"]))
    assert set(table["columns"]) >= {"image_id", "radius", "lower", "upper", "attack", "score_attacked", "mos"}
    (path,) = folder.glob("wandb/offline-run-*/files/media/table/attacks_*.table.json")
    table = json.loads(path.read_text())
    assert [row[0] for row in table["data"]] == ["fgsm"]
    assert file.summary["records._type"] == file.summary["attacks._type"] == "table-file"


def test_the_gallery_is_there_with_captions(tracked_run):
    _, folder, file = tracked_run
    panels = [panel for entry in read_gallery(folder) for panel in entry["panels"]]
    assert file.summary["gallery.count"] == len(panels) == 5  # clean, noisy, denoised, attacked, x10
    assert ", clean, score " in file.summary["gallery.captions"][0]
    for panel, name in zip(panels, file.summary["gallery.filenames"], strict=True):
        (copy,) = folder.glob(f"wandb/offline-run-*/files/{name}")
        assert copy.read_bytes() == (folder / panel["file"]).read_bytes()


def test_report_and_checkpoint_are_artifacts(tracked_run):
    _, folder, file = tracked_run
    assert set(file.artifacts) == {"report", "model", "run_table"}
    assert set(file.artifacts["report"]) == {"report.html", "summary.json", "records.parquet"}
    assert set(file.artifacts["model"]) == {"denoiser.safetensors", "last.ckpt"}
    for artifact in file.all("artifact"):
        for entry in artifact.manifest.contents:
            there = [path for path in folder.rglob(Path(entry.path).name) if path.stat().st_size == entry.size]
            assert there or artifact.type == "run_table"
            assert Path(entry.local_path).stat().st_size == entry.size, "it must still be there when it is sent later"


def test_tensorboard_has_the_curves_and_the_summary(tracked_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, _ = tracked_run
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    table = pd.read_csv(folder / "metrics.csv")["train/loss"].dropna()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(list(table))
    summary = read_summary(folder)
    assert [event.value for event in events.Scalars("summary/srocc")] == pytest.approx([summary["srocc"]])


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 255), ("preempted", 255)])
def test_a_run_ends_as_what_it_was(no_key, tmp_path, status, code, wandb_runs):
    tracker = WandbTracker(tmp_path)
    tracker.open({"sigma": 0.1})
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.publish({"status": status, "srocc": 0.5, "radii": [0.03], "certified_srocc_r0.03": 0.1})
    tracker.close(status)
    (file,) = wandb_runs.wandb_files(tmp_path)
    assert file.exit_code == code
    assert file.summary["srocc"] == 0.5
    assert ("preempting" in file.kinds) == (status == "preempted")
    assert not any("certified/radius" in row for row in file.history), "a run that goes on will log it at its end"


def test_a_folder_has_one_wandb_run_however_often_it_is_continued(no_key, tmp_path, capsys, wandb_runs):
    for status in ("interrupted", "finished"):
        tracker = WandbTracker(tmp_path)
        tracker.open()
        tracker.close(status)
        time.sleep(1.1)  # W&B names its folders by the second
    first, second = wandb_runs.wandb_files(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert first.run.resume
    assert len(tracker.unsent()) == 2
    (tracker.unsent()[0] / "run-x.wandb.synced").touch()
    assert len(tracker.unsent()) == 1, "what `wandb sync` has sent is not named again"


def test_a_sweep_names_the_group_of_its_jobs(monkeypatch):
    config = OmegaConf.load(CONF / "logger" / "wandb.yaml")
    register_resolvers()
    monkeypatch.delenv(SWEEP, raising=False)
    assert config.group is None
    monkeypatch.setenv(SWEEP, "train-mini_sweep-0123abcd")
    assert config.group == "train-mini_sweep-0123abcd"


def test_other_ranks_log_nothing(no_key, tmp_path):
    no_key.setattr(rank_zero_only, "rank", 1)
    tracker = WandbTracker(tmp_path)
    tracker.open()
    tracker.log_metrics({"train/loss": 1.0}, 0)
    assert tracker.experiment.anything is not None  # Lightning's dummy
    tracker.publish({"status": "finished"})
    tracker.close("finished")
    assert not list(tmp_path.iterdir())


def test_rows_of_tables_and_curves():
    table = pd.DataFrame({"a": [1.0, float("nan"), 2.0], "b": [float("-inf")] * 3, "c": [None] * 3, "d": list("xyz")})
    assert record_rows(table, 2) == (["a", "b", "d"], [[1.0, None, "x"], [None, None, "y"]])
    assert flat_summary({"a": "inf", "b": None, "c": {"x": "1"}, "d": [1]}) == {"a": float("inf"), "c.x": "1", "d": [1]}
    summary = {"radii": [0.12, 0.03], "certified_srocc_r0.03": 0.5, "certified_delta_median_r0.03": "inf"}
    assert radius_curves(summary) == [{"certified/radius": 0.03, "certified/srocc": 0.5}]
    gains = {"attack_gain_uap": 0.1, "attack_gain_cumulative_uap": 0.2}
    rows = attack_rows({"attacks": ["uap", "cumulative_uap"], **gains})
    assert [(row["attack"], row["gain"]) for row in rows] == [("uap", 0.1), ("cumulative_uap", 0.2), ("worst", None)]


@pytest.mark.full
def test_two_jobs_of_a_multirun_are_two_runs_of_one_group(tmp_path, mini_cache, wandb_runs):
    wandb_runs.call("evaluate.py", "-m", "defense=none", "seed=0,1", "logger=wandb", *wandb_runs.TINY, outputs=tmp_path)
    files = [file for folder in wandb_runs.folders(tmp_path, "evaluate") for file in wandb_runs.wandb_files(folder)]
    assert len({file.run.run_id for file in files}) == len(files) == 2
    assert sorted(file.config["seed"] for file in files) == [0, 1]
    assert {file.exit_code for file in files} == {0}
    (group,) = {file.run.run_group for file in files}
    assert group.startswith("evaluate-sweep")
    assert {file.run.job_type for file in files} == {"evaluate"}
    assert all(file.summary["status"] == "finished" for file in files)
    assert all("report" in file.artifacts and "model" not in file.artifacts for file in files)
