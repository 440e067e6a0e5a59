"""What a config may not run, and what of the environment is never written or sent."""

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from certiqa.callbacks import WandbTracker
from certiqa.entry import identity, tracking
from certiqa.entry.build import build
from certiqa.entry.given import given_files
from certiqa.entry.sweep import Cell, Sweep
from certiqa.entry.trust import refuse_loaders
from certiqa.errors import UserError

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("torch.load", {}),
        ("torch.load", {"weights_only": False}),
        ("torch.load", {"weights_only": "yes"}),
        ("torch.serialization.load", {}),
        ("torch.hub.load", {}),
        ("pickle.load", {}),
        ("pickle.Unpickler", {}),
        ("dill.loads", {}),
        ("cloudpickle.load", {}),
        ("joblib.load", {}),
        ("numpy.load", {"allow_pickle": True}),
        ("pandas.read_pickle", {}),
        ("os.system", {}),
        ("os.popen", {}),
        ("os.execv", {}),
        ("subprocess.run", {}),
        ("builtins.eval", {}),
        ("builtins.exec", {}),
        ("runpy.run_path", {}),
        ("importlib.import_module", {}),
        ("hydra.utils.get_method", {}),
        ("certiqa.training.module.torch.load", {}),  # by another way
        ("certiqa.entry.app.os.system", {}),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_loaders_of_code_are_no_targets(target, options, nested):
    node = {"_target_": target, **options}
    content = {"_target_": "torch.nn.Sequential", "parts": [{"one": node}]} if nested else node
    with pytest.raises(UserError, match=rf"_target_={target} is refused, as it .*; name a class or"):
        refuse_loaders(content)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.load", "weights_only": True},
        {"_target_": "numpy.load"},
        {"_target_": "torch.optim.Adam", "lr": 1},
        {"_target_": "certiqa.metrics.MiniMetric"},
        {"_target_": "nowhere.at_all"},
        {"target": "os.system"},
    ],
)
def test_other_targets_are(node):
    refuse_loaders(node)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_payload_is_not_run(tmp_path):
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
    node = {"_target_": "torch.load", "f": str(tmp_path / "weights.pt"), "weights_only": False}
    with pytest.raises(UserError, match="is refused"):
        build(OmegaConf.create(node))
    assert not (tmp_path / "ran").exists()
    torch.save(torch.ones(2), tmp_path / "weights.pt")
    assert torch.equal(build(OmegaConf.create({**node, "weights_only": True})), torch.ones(2))


@pytest.fixture
def composed(tmp_path, monkeypatch):
    identity.register_resolvers()
    monkeypatch.setenv("CERTIQA_TEST_TOKEN", SECRET)

    def compose_config(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("evaluate", [f"paths.outputs={tmp_path}", f"paths.run={tmp_path}", *overrides])

    return compose_config


TOKEN = "'${oc.env:CERTIQA_TEST_TOKEN}'"


def test_what_the_environment_holds_stays_a_text_in_all_that_is_kept(composed, monkeypatch):
    config = composed(f"+metric.key={TOKEN}", f"+logger.key={TOKEN}", "+metric.url='https://u:${metric.key}@host'")
    for kept in (identity.flat_identity(config), identity.semantic_config(config), identity.public_config(config)):
        assert SECRET not in str(kept)
    assert identity.flat_identity(config)["metric.key"] == "${oc.env:CERTIQA_TEST_TOKEN}"
    assert identity.flat_identity(config)["metric.url"] == "https://u:${oc.env:CERTIQA_TEST_TOKEN}@host"
    assert config.metric.key == SECRET, "what is built has it"
    assert identity.semantic_config(config, environment=True)["metric"]["key"] == SECRET
    name = identity.config_hash(config)
    monkeypatch.setenv("CERTIQA_TEST_TOKEN", "another-token")
    assert identity.config_hash(config) == name, "a new token is no new run"


def test_numbers_and_defaults_from_the_environment_are_told_apart(composed, monkeypatch):
    sigma = "defense=ms", "sigma='${oc.decode:${oc.env:CERTIQA_TEST_SIGMA}}'"
    names = set()
    for value in ("0.12", "0.25"):
        monkeypatch.setenv("CERTIQA_TEST_SIGMA", value)
        config = composed(*sigma)
        assert identity.flat_identity(config)["sigma"] == float(value)
        names.add(identity.config_hash(config))
    assert len(names) == 2
    config = composed("+metric.key='${oc.env:CERTIQA_TEST_UNSET,plain}'")
    assert identity.flat_identity(config)["metric.key"] == "plain"


def test_files_that_the_environment_names_are_compared_all_the_same(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("CERTIQA_TEST_TOKEN", str(tmp_path / "weights.pt"))
    (tmp_path / "weights.pt").write_text("one")
    config = composed(f"+metric.weights={TOKEN}")
    first = given_files(config)
    assert "metric.weights" in first
    (tmp_path / "weights.pt").write_text("two")
    assert given_files(config) != first


def test_nothing_of_it_is_sent_to_wandb(composed, tmp_path):
    logger = WandbTracker.__new__(WandbTracker)
    sent = []
    logger.open = sent.append
    tracking.start_tracking(SimpleNamespace(loggers=[logger]), composed(f"+logger.key={TOKEN}", f"+metric.key={TOKEN}"))
    tracking._running.clear()
    assert sent[0]["metric"]["key"] == sent[0]["logger"]["key"] == "${oc.env:CERTIQA_TEST_TOKEN}"
    assert SECRET not in str(sent)


def test_the_table_of_a_sweep_holds_no_formulas(tmp_path):
    sweep = Sweep.__new__(Sweep)
    sweep.folder, sweep.task = tmp_path, "evaluate"
    sweep.cells = [Cell("=1+1", "folder", "0", note="-2+3 failed")]
    sweep.write()
    with open(tmp_path / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["cell"] == "'=1+1"
    assert row["note"] == "'-2+3 failed"


@pytest.mark.full
def test_no_file_of_a_run_holds_a_secret(tmp_path, mini_cache):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\nclass Metric(nn.Module):\n    score_range = (0, 1)\n\n"
        "    def __init__(self, key):\n        super().__init__()\n        assert key == 'hunter2-hunter2'\n\n"
        "    def forward(self, images):\n        return images.mean((1, 2, 3))\n"
    )
    options = ["defense=none", "metric._target_=own.Metric", "+metric.key=${oc.env:TOKEN}", "data.limit_test=2"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *options, f"paths.outputs={tmp_path / 'o'}", "logger=csv"]
    environment = os.environ | {"TOKEN": SECRET, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert any(path.name == "identity.json" for path in files)
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
