"""What the tests of commands share: sweeps in this process, a run tracked offline, and W&B without a key."""

import csv
import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from certiqa.entry import app, identity
from certiqa.entry.given import GIVEN_FILES, given_files
from certiqa.errors import UserError


@pytest.fixture(scope="session")
def wandb_runs():
    """The module that starts runs with W&B and reads the files they leave."""
    spec = importlib.util.spec_from_file_location("wandb_runs", Path(__file__).with_name("wandb_runs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tracked_run(tmp_path_factory, mini_cache, wandb_runs):
    """Train for two steps, certify, attack, with all loggers and no key."""
    outputs = tmp_path_factory.mktemp("tracked")
    options = ["logger=many", "logger.tags=[paper,v2]", "logger.group=table 1", "attack=fgsm", "debug=fast"]
    options += ["trainer.max_steps=2", "trainer.log_every_n_steps=1", "data.validation_images=2"]
    done = wandb_runs.call("train.py", *options, *wandb_runs.TINY, outputs=outputs)
    (folder,) = wandb_runs.folders(outputs, "train")
    (file,) = wandb_runs.wandb_files(folder)
    return done, folder, file


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


@pytest.fixture
def run_here(tmp_path):
    """Run a job in this process: ``run_here("evaluate", "defense=ms", ...)`` returns its summary and folder."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from certiqa.entry import identity, pipeline
    from certiqa.evaluation import read_summary

    identity.register_resolvers()
    count = itertools.count()

    def run(task, *overrides):
        folder = tmp_path / f"run-{next(count)}"
        folder.mkdir()
        with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
            quiet = ["logger=none", "callbacks.gallery.num_images=0"]
            config = compose(task, [f"paths.run={folder}", *quiet, *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
        pipeline.run(config)
        return read_summary(folder), folder

    return run


@pytest.fixture(scope="session")
def six_pictures(tmp_path_factory):
    """A folder of six small pictures, two of them not square."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, size in enumerate([(48, 48)] * 4 + [(64, 40)] * 2):
        generator = np.random.default_rng(place)
        pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{place}.png")
    return folder


def quick_task(config):
    """A job that leaves what a real one leaves: a summary; a sigma of .3 breaks it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.sigma == 0.3:
        raise UserError("sigma 0.3 is broken\nand this is the second line")
    if config.sigma == 0.4:
        raise KeyboardInterrupt
    runs = folder / "runs"
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    summary = {"status": "finished", "config_hash": identity.config_hash(config), GIVEN_FILES: given_files(config)}
    if config.get("optimise"):
        summary[config.optimise] = config.objective.ranking_weight
    hydra = HydraConfig.get()
    summary |= {"command": sys.argv, "eps": config.attack.get("eps"), "job": hydra.job.name, "place": hydra.run.dir}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run ``evaluate -m`` in this process with a quick job; returns (exit code, stdout, stderr, rows of the table).

    ``several=False`` leaves the ``-m`` out; ``full_error`` is what HYDRA_FULL_ERROR is set to.
    """

    def call(*arguments, name="evaluate", task=quick_task, several=True, full_error=""):
        GlobalHydra.instance().clear()
        command = ["evaluate.py", *["-m"] * several, *arguments, f"paths.outputs={tmp_path / 'o'}"]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
        code = 0
        try:
            app.run_app(task, name)
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        tables = sorted(tmp_path.glob("o/sweeps/*/table.csv"), key=lambda path: path.stat().st_mtime_ns)
        rows = list(csv.DictReader(tables[-1].open())) if tables else []
        return code, said.out, said.err, rows

    yield call
    GlobalHydra.instance().clear()
