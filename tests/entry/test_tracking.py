"""What runs leave with W&B, read back from the files that real offline runs wrote."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import wandb
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from certiqa.callbacks import WandbTracker
from certiqa.entry import tracking
from certiqa.entry.dashboard import main as dashboard_command
from certiqa.entry.identity import SWEEP, register_resolvers
from certiqa.errors import UserError
from certiqa.evaluation.tracked import attack_rows, flat_summary, radius_curves, record_rows
from certiqa.reports.dashboard import PINNED, dashboard, workspace

ROOT = Path(__file__).parents[2]
TINY = ["data.limit_test=2", "data.eval_batch_size=2", "num_samples=30", "callbacks.gallery.num_images=1"]
RADII = ["certification.radii=[0.03]", "certification.radius=0.03"]
KEY = "0123456789" * 4
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


class WandbFile:
    """A ``.wandb`` file: LevelDB's log format around W&B's own protocol buffers."""

    def __init__(self, path):
        from wandb.proto import wandb_internal_pb2

        data, place, part, self.records = path.read_bytes(), 7, b"", []
        assert data.startswith(b":W&B")
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:  # no room for a header: the block's end is padding
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            part += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                self.records.append(wandb_internal_pb2.Record.FromString(part))
                part = b""
        self.kinds = [record.WhichOneof("record_type") for record in self.records]

    def all(self, kind):
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self):
        return self.all("run")[0]

    @property
    def config(self):
        return {item.key: json.loads(item.value_json) for part in self.all("config") for item in part.update}

    @property
    def history(self):
        return [{key_of(item): json.loads(item.value_json) for item in row.item} for row in self.all("history")]

    @property
    def summary(self):
        return {key_of(item): json.loads(item.value_json) for part in self.all("summary") for item in part.update}

    @property
    def artifacts(self):
        return {a.type: [Path(entry.path).name for entry in a.manifest.contents] for a in self.all("artifact")}

    @property
    def exit_code(self):
        (end,) = self.all("exit")
        return end.exit_code


def key_of(item):
    return item.key or ".".join(item.nested_key)


def wandb_files(folder):
    wandb.teardown()  # of runs of this process, whose files are complete then
    return [WandbFile(path) for path in sorted(folder.glob("wandb/*run-*/run-*.wandb"))]


def environment(home, **more):
    here = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    folders = {f"WANDB_{name}_DIR": str(home / "wandb-home") for name in ("DATA", "CACHE", "CONFIG")}
    return {**here, **folders, "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **more}


def call(script, *arguments, outputs, expect=0, cwd=ROOT, **more):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, f"paths.outputs={outputs}"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(outputs, **more),
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def folders(outputs, task):
    return sorted(path for path in (outputs / task).iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mini_cache):
    """Train for two steps, certify, attack, with all loggers and no key."""
    outputs = tmp_path_factory.mktemp("tracked")
    options = ["logger=many", "logger.tags=[paper,v2]", "logger.group=table 1", "attack=fgsm", "debug=fast"]
    options += ["trainer.max_steps=2", "trainer.log_every_n_steps=1", "data.validation_images=2"]
    done = call("train.py", *options, *TINY, outputs=outputs)
    (folder,) = folders(outputs, "train")
    (file,) = wandb_files(folder)
    return done, folder, file


def test_a_run_without_a_key_is_kept_here_with_the_command_that_sends_it(trained):
    done, folder, file = trained
    assert "W&B: offline, there is no key" in done.stdout
    (command,) = re.findall(r"wandb sync --include-online (\S+)", done.stdout)
    assert list(Path(command).glob("run-*.wandb"))
    assert file.run.run_id == json.loads((folder / "wandb.json").read_text())["id"]
    assert file.exit_code == 0


def test_config_group_and_tags_are_there(trained):
    _, folder, file = trained
    assert (file.run.project, file.run.run_group, list(file.run.tags)) == ("certiqa", "table 1", ["paper", "v2"])
    assert (file.run.display_name, file.run.job_type) == (folder.name, "train")
    assert file.config["defense"]["name"] == "dms_iqa"
    assert file.config["sigma"] == 0.12
    assert file.config["trainer"]["max_steps"] == 2
    assert "hydra" not in file.config


def test_the_curves_are_those_of_metrics_csv(trained):
    _, folder, file = trained
    table = pd.read_csv(folder / "metrics.csv")
    for key in ("train/loss", "train/psnr", "val/psnr"):
        expected = table[["step", key]].dropna()
        found = [(row["trainer/global_step"], row[key]) for row in file.history if key in row]
        assert len(found) > 0
        assert found == list(zip(expected["step"], expected[key].map(pytest.approx), strict=True))
    steps = {(m.glob_name or m.name): m.step_metric for m in file.all("metric")}
    assert steps["train/*"] == "trainer/global_step"
    assert steps["certified/*"] == "certified/radius"


def test_certificates_are_curves_over_the_radius(trained):
    _, folder, file = trained
    summary = json.loads((folder / "summary.json").read_text())
    rows = [row for row in file.history if "certified/radius" in row]
    assert [row["certified/radius"] for row in rows] == [0.03, 0.06]
    for row in rows:
        radius = row["certified/radius"]
        assert row["certified/delta_median"] == pytest.approx(summary[f"certified_delta_median_r{radius:g}"])
        assert row["certified/srocc"] == pytest.approx(summary[f"certified_srocc_r{radius:g}"])


def test_the_summary_is_that_of_the_run(trained):
    _, folder, file = trained
    for key, value in flat_summary(json.loads((folder / "summary.json").read_text())).items():
        assert file.summary[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert file.summary["status"] == "finished"


def test_records_and_attacks_are_tables(trained):
    _, folder, file = trained
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


def test_the_gallery_is_there_with_captions(trained):
    _, folder, file = trained
    panels = [panel for entry in json.loads((folder / "gallery.json").read_text()) for panel in entry["panels"]]
    assert file.summary["gallery.count"] == len(panels) == 5  # clean, noisy, denoised, attacked, x10
    assert ", clean, score " in file.summary["gallery.captions"][0]
    for panel, name in zip(panels, file.summary["gallery.filenames"], strict=True):
        (copy,) = folder.glob(f"wandb/offline-run-*/files/{name}")
        assert copy.read_bytes() == (folder / panel["file"]).read_bytes()


def test_report_and_checkpoint_are_artifacts(trained):
    _, folder, file = trained
    assert set(file.artifacts) == {"report", "model", "run_table"}
    assert set(file.artifacts["report"]) == {"report.html", "summary.json", "records.parquet"}
    assert set(file.artifacts["model"]) == {"denoiser.safetensors", "last.ckpt"}
    for artifact in file.all("artifact"):
        for entry in artifact.manifest.contents:
            there = [path for path in folder.rglob(Path(entry.path).name) if path.stat().st_size == entry.size]
            assert there or artifact.type == "run_table"
            assert Path(entry.local_path).stat().st_size == entry.size, "it must still be there when it is sent later"


def test_tensorboard_has_the_curves_and_the_summary(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, _ = trained
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    table = pd.read_csv(folder / "metrics.csv")["train/loss"].dropna()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(list(table))
    summary = json.loads((folder / "summary.json").read_text())
    assert [event.value for event in events.Scalars("summary/srocc")] == pytest.approx([summary["srocc"]])


def test_the_dashboard_names_only_keys_that_runs_log(trained):
    _, _, file = trained
    logged = {key for row in file.history for key in row} | set(file.summary)
    logged |= {key.removesuffix("._type") for key in file.summary if key.endswith("._type")}
    assert set(PINNED) <= logged
    wanted = {key for section in dashboard(["fgsm"]) for panel in section.panels for key in panel.all_keys}
    options = {key.removeprefix("config:") for key in wanted if key.startswith("config:")}
    assert options <= set(file.config)
    assert not {key for key in wanted if not key.startswith("config:")} - logged


def test_the_dashboard_becomes_a_workspace_with_every_panel():
    sections = dashboard(["ifgsm", "square"])
    model = workspace(sections, entity="me", project="certiqa", name="certiqa")._to_model()
    built = model.spec.section.panel_bank_config.sections
    assert [section.name for section in built] == [section.name for section in sections]
    for section, other in zip(sections, built, strict=True):
        assert len(section.panels) == len(other.panels)
        for panel, made in zip(section.panels, other.panels, strict=True):
            text = made.model_dump_json(by_alias=True)
            for key in panel.all_keys:
                assert key.removeprefix("config:") in text, (panel.title, key)
    names = " ".join(section.name for section in sections)
    for word in ("Correlation", "Certificates against radius", "Attack gains", "Sweeps"):
        assert word in names


def test_proven_and_measured_figures_share_no_panel():
    for section in dashboard(["ifgsm"]):
        for panel in section.panels:
            proven = {key for key in panel.all_keys if key.startswith("certified")}
            assert not proven or not any(key.startswith("attack") for key in panel.all_keys), panel.title


def test_the_dashboard_command_prints_its_definition_and_knows_the_attacks(capsys):
    dashboard_command(["--print", "--attacks", "ifgsm"])
    printed = json.loads(capsys.readouterr().out)
    assert "attack_gain_ifgsm" in str(printed)
    assert "attack_gain_square" not in str(printed)
    with pytest.raises(SystemExit) as stop:
        dashboard_command(["--attacks", "ifgs"])
    assert stop.value.code == 1
    assert "no attack 'ifgs'" in capsys.readouterr().err


# -- the tracker by itself -------------------------------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """Let W&B in this process find no key, and keep its files here."""
    wandb.teardown()
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield monkeypatch
    wandb.teardown()


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 255), ("preempted", 255)])
def test_a_run_ends_as_what_it_was(no_key, tmp_path, status, code):
    tracker = WandbTracker(tmp_path)
    tracker.open({"sigma": 0.1})
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.publish({"status": status, "srocc": 0.5, "radii": [0.03], "certified_srocc_r0.03": 0.1})
    tracker.close(status)
    (file,) = wandb_files(tmp_path)
    assert file.exit_code == code
    assert file.summary["srocc"] == 0.5
    assert ("preempting" in file.kinds) == (status == "preempted")
    assert not any("certified/radius" in row for row in file.history), "a run that goes on will log it at its end"


def test_a_folder_has_one_wandb_run_however_often_it_is_continued(no_key, tmp_path, capsys):
    for status in ("interrupted", "finished"):
        tracker = WandbTracker(tmp_path)
        tracker.open()
        tracker.close(status)
        time.sleep(1.1)  # W&B names its folders by the second
    first, second = wandb_files(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert first.run.resume
    assert len(tracker.unsent()) == 2
    (tracker.unsent()[0] / "run-x.wandb.synced").touch()
    assert len(tracker.unsent()) == 1, "what `wandb sync` has sent is not named again"


def test_offline_is_explained_only_where_it_was_not_asked_for(no_key, tmp_path, capsys):
    assert WandbTracker(tmp_path).choose_mode() == "offline"
    assert "there is no key" in capsys.readouterr().out
    wandb.teardown()
    no_key.setenv("WANDB_MODE", "offline")
    assert WandbTracker(tmp_path).choose_mode() == "offline"
    assert WandbTracker(tmp_path, mode="disabled").choose_mode() == "disabled"
    assert capsys.readouterr().out == ""


def test_a_sweep_names_the_group_of_its_jobs(monkeypatch):
    config = OmegaConf.load(ROOT / "conf" / "logger" / "wandb.yaml")
    register_resolvers()
    monkeypatch.delenv(SWEEP, raising=False)
    assert config.group is None
    monkeypatch.setenv(SWEEP, "train-mini_sweep-0123abcd")
    assert config.group == "train-mini_sweep-0123abcd"


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
def test_a_dead_service_of_wandb_stops_nothing_and_loses_no_result(no_key, tmp_path, capsys):
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
    _, second = wandb_files(tmp_path)  # what the dead service had not written is lost, it is in metrics.csv
    assert second.run.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (second.config["sigma"], second.summary["srocc"], second.exit_code) == (0.1, 0.5, 0)


def test_other_ranks_log_nothing(no_key, tmp_path):
    no_key.setattr(rank_zero_only, "rank", 1)
    tracker = WandbTracker(tmp_path)
    tracker.open()
    tracker.log_metrics({"train/loss": 1.0}, 0)
    assert tracker.experiment.anything is not None  # Lightning's dummy
    tracker.publish({"status": "finished"})
    tracker.close("finished")
    assert not list(tmp_path.iterdir())


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


def test_rows_of_tables_and_curves():
    table = pd.DataFrame({"a": [1.0, float("nan"), 2.0], "b": [float("-inf")] * 3, "c": [None] * 3, "d": list("xyz")})
    assert record_rows(table, 2) == (["a", "b", "d"], [[1.0, None, "x"], [None, None, "y"]])
    assert flat_summary({"a": "inf", "b": None, "c": {"x": "1"}, "d": [1]}) == {"a": float("inf"), "c.x": "1", "d": [1]}
    summary = {"radii": [0.12, 0.03], "certified_srocc_r0.03": 0.5, "certified_delta_median_r0.03": "inf"}
    assert radius_curves(summary) == [{"certified/radius": 0.03, "certified/srocc": 0.5}]
    gains = {"attack_gain_uap": 0.1, "attack_gain_cumulative_uap": 0.2}
    rows = attack_rows({"attacks": ["uap", "cumulative_uap"], **gains})
    assert [(row["attack"], row["gain"]) for row in rows] == [("uap", 0.1), ("cumulative_uap", 0.2), ("worst", None)]


# -- whole commands --------------------------------------------------------------------------------------------


@pytest.mark.full
def test_two_jobs_of_a_multirun_are_two_runs_of_one_group(tmp_path, mini_cache):
    call("evaluate.py", "-m", "defense=none", "seed=0,1", "logger=wandb", *TINY, outputs=tmp_path)
    files = [file for folder in folders(tmp_path, "evaluate") for file in wandb_files(folder)]
    assert len({file.run.run_id for file in files}) == len(files) == 2
    assert sorted(file.config["seed"] for file in files) == [0, 1]
    assert {file.exit_code for file in files} == {0}
    (group,) = {file.run.run_group for file in files}
    assert group.startswith("evaluate-sweep")
    assert {file.run.job_type for file in files} == {"evaluate"}
    assert all(file.summary["status"] == "finished" for file in files)
    assert all("report" in file.artifacts and "model" not in file.artifacts for file in files)


@pytest.mark.full
def test_a_failed_run_is_marked_failed_and_goes_on_as_the_same_run(tmp_path, mini_cache):
    (tmp_path / "flaky.py").write_text(FLAKY)
    options = ["defense=none", "metric._target_=flaky.Flaky", "logger=wandb", "data.limit_test=2"]
    options += ["data.eval_batch_size=1", "callbacks.gallery.num_images=0"]
    done = call("evaluate.py", *options, outputs=tmp_path, cwd=tmp_path, expect=1)
    assert "the metric broke" in done.stderr
    (folder,) = folders(tmp_path, "evaluate")
    (failed,) = wandb_files(folder)
    assert failed.exit_code == 1
    assert failed.summary["status"] == "failed"
    (tmp_path / "mended").touch()
    done = call("evaluate.py", *options, outputs=tmp_path, cwd=tmp_path)
    first, second = wandb_files(folder)
    assert first.run.run_id == second.run.run_id
    assert second.exit_code == 0
    (command,) = re.findall(r"wandb sync --include-online (.*)", done.stdout)
    assert len(command.split()) == 2


class FakeServer:
    """As much of W&B's server as starting a run needs; ``lives`` calls to UpsertBucket, then it is gone."""

    def __init__(self, lives):
        outer = self
        self.operations, self.views = [], []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = outer.answer(body) if self.path == "/graphql" else {}
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                if outer.operations.count("UpsertBucket") >= lives:
                    threading.Thread(target=outer.stop).start()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, body):
        asked = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
        self.operations.append(operation)
        if operation == "UpsertBucket":
            project = {"id": "P", "name": "certiqa", "entity": {"id": "E", "name": "me"}}
            bucket = {"id": "Qg==", "name": asked["variables"]["name"], "config": "{}", "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}}
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        known = {
            "Viewer": {"viewer": viewer},
            "GetDefaultEntity": {"viewer": viewer},
            "RunResumeStatus": {"model": None},
        }
        if operation == "UpsertView2":
            self.views.append(asked["variables"])
            return {"data": {"upsertView": {"view": {"id": "V", "name": asked["variables"]["name"]}, "inserted": True}}}
        if operation in known:
            return {"data": known[operation]}
        return {"data": None, "errors": [{"message": "not here"}]}


@pytest.mark.full
@pytest.mark.parametrize("lives", [0, 1])
def test_a_network_that_is_not_there_or_goes_away_stops_nothing(tmp_path, mini_cache, lives):
    server = FakeServer(lives)
    if not lives:
        server.stop()
    more = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "10"}
    options = ["defense=ms", "logger=wandb", "logger.finish_timeout=5", *TINY, *RADII]
    done = call("evaluate.py", *options, outputs=tmp_path, **more)
    assert server.operations.count("UpsertBucket") >= lives
    assert "W&B cannot be reached, the rest is kept here" in done.stdout
    (folder,) = folders(tmp_path, "evaluate")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    last = wandb_files(folder)[0]  # "offline-run-" sorts before "run-"
    assert last.exit_code == 0
    assert last.summary["status"] == "finished"
    assert "report" in last.artifacts
    assert file_is_offline(folder, last)
    (command,) = re.findall(r"wandb sync --include-online (.*)", done.stdout)
    assert [Path(path).name.split("-")[0] for path in command.split()] == ["run", "offline"][1 - lives :]


@pytest.mark.full
def test_the_dashboard_is_saved_as_a_view_of_the_project(tmp_path):
    server = FakeServer(lives=1)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "certiqa.entry.dashboard", "--attacks", "ifgsm", "--name", "ours"],
            env=environment(tmp_path, WANDB_BASE_URL=server.address, WANDB_API_KEY=KEY),
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "certiqa", "ours")
    assert "attack_gain_ifgsm" in view["spec"]
    assert done.stdout.strip().startswith(f"{server.address}/me/certiqa?nw=")


def file_is_offline(folder, file):
    (path,) = folder.glob("wandb/offline-run-*")
    return path.name.endswith(file.run.run_id)


@pytest.mark.full
def test_a_run_stopped_by_a_scheduler_is_marked_as_preempted(tmp_path, mini_cache):
    slow = "import time; time.sleep(1)\n        if any"
    (tmp_path / "slow.py").write_text(FLAKY.replace("if any", slow).replace("Flaky", "Slow"))
    (tmp_path / "mended").touch()
    arguments = ["defense=none", "metric._target_=slow.Slow", "logger=wandb", "data.eval_batch_size=1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *arguments, f"paths.outputs={tmp_path}"],
        cwd=tmp_path,
        env=environment(tmp_path),
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
    (folder,) = folders(tmp_path, "evaluate")
    (file,) = wandb_files(folder)
    assert "preempting" in file.kinds
    assert file.exit_code == 255
    assert file.summary["status"] == "interrupted"
