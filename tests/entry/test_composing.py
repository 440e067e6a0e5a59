"""Sweeps over groups and their keys, Hydra's own variables in jobs, configs of one's own, and ``~`` in paths."""

import json
import os
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from certiqa.entry import app, identity
from certiqa.entry.build import build
from certiqa.entry.composing import config_flags, own_loader
from certiqa.entry.given import given_files

CONF = Path(__file__).parents[2] / "conf"


def states(rows):
    return [row["state"] for row in rows]


def summaries(tmp_path):
    return {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("o/evaluate/*/summary.json")}


def test_a_group_and_a_key_of_its_options_are_swept_together(sweep, tmp_path):
    code, _, errors, rows = sweep("defense=none", "attack=ifgsm,apgd", "attack.eps=4/255", "attack.steps=2")
    assert code == 0, errors
    assert states(rows) == ["finished"] * 2
    assert rows[0]["cell"] == "attack=ifgsm", "what all cells share tells none of them apart"
    assert [summary["eps"] for summary in summaries(tmp_path).values()] == ["4/255"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attack=ifgsm,apgd", "attack.epss=1"], "unknown key 'attack.epss'. Did you mean 'attack.eps'"),
        (["attack=none,apgd", "attack.eps=1"], "'attack.eps' is a key of other options of 'attack' than the one"),
        (["attack=ifgsm,apgd", "~attack.epss"], "attack.epss"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_keys_that_a_job_does_not_have_are_still_refused(sweep, tmp_path, arguments, message):
    code, _, errors, _ = sweep("defense=none", *arguments)
    assert code == 1
    assert message in errors
    assert not list(tmp_path.glob("o/*/*/runs"))


def test_a_single_run_refuses_an_unknown_key(sweep):
    code, _, errors, _ = sweep("defense=none", "attack.eps=1", several=False)
    assert code == 1
    assert "'attack.eps' is a key of other options of 'attack'" in errors


def test_the_number_of_a_job_may_name_its_folder(sweep, tmp_path):
    numbered = [
        "defense=none",
        "seed=0,1",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.job.name=job_${hydra.job.num}",
    ]
    code, _, errors, rows = sweep(*numbered)
    assert code == 0, errors
    assert states(rows) == ["finished"] * 2
    assert sorted(summaries(tmp_path)) == ["0", "1"]
    for number in "01":
        noted, folder = summaries(tmp_path)[number], f"{tmp_path}/o/evaluate/{number}"
        assert noted["job"] == f"job_{number}"
        assert noted["place"] == folder, "the processes of DDP lie in it too"
        assert f'hydra.run.dir="{folder}"' in noted["command"], "the noted command goes on here"

    _, out, _, _ = sweep(*numbered)
    assert "2 done already, 0 to run" in out
    before = {path: path.read_bytes() for path in tmp_path.glob("o/evaluate/*/*.json")}
    numbered[1] = "seed=5,6"
    code, _, errors, _ = sweep(*numbered)
    assert code == 1
    assert "evaluate/0' holds the results of another run" in errors
    assert {path: path.read_bytes() for path in before} == before
    code, _, errors, rows = sweep(*numbered, "fresh=true")
    assert states(rows) == ["finished"] * 2, errors


def test_a_folder_of_the_run_may_stand_in_a_value(sweep, tmp_path):
    inside = ["defense=none", "callbacks.gallery.folder=${hydra:runtime.output_dir}/g", "seed=0,1"]
    code, _, errors, rows = sweep(*inside)
    assert code == 0, errors
    assert states(rows) == ["finished"] * 2
    for name, summary in summaries(tmp_path).items():
        assert name.endswith(summary["config_hash"]), "where a run lies is no part of its name"
    sweep(*inside[:2], "seed=1", several=False)
    assert len(summaries(tmp_path)) == 2, "the single run is the same as the sweep's"


def test_a_name_too_long_for_a_folder_is_refused_before_anything_starts(sweep, tmp_path):
    code, _, errors, _ = sweep("defense=none", "seed=0,1", f"hydra.sweep.subdir={'x' * 300}")
    assert code == 1
    assert "no folder's name may take more than 255 bytes" in errors
    code, _, errors, _ = sweep("defense=none", f"name={'x' * 300}", several=False)
    assert code == 1
    assert "name is too long for a folder: 300 bytes of at most" in errors
    assert not list(tmp_path.glob("o/*/*/runs"))


@pytest.fixture
def own_configs(tmp_path):
    """A folder of the user's own configs, with experiment=mine and experiment=home."""
    folder = tmp_path / "my configs"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nnum_samples: 40\n")
    (folder / "experiment" / "home.yaml").write_text("# @package _global_\npaths:\n  outputs: ~/mine\n")
    return folder


def test_where_configs_are_stays_in_the_command_of_each_job(sweep, tmp_path, own_configs):
    flags = ["--config-dir", str(own_configs)]
    code, _, errors, _ = sweep(*flags, "experiment=mine", "defense=none", "seed=0,1")
    assert code == 0, errors
    for summary in summaries(tmp_path).values():
        arguments = summary["command"][1:]
        assert arguments[0] == f"--config-dir={own_configs}"
        sweep(*arguments, several=False)
    assert len(summaries(tmp_path)) == 2, "a noted command repeats its run"
    assert len(list(tmp_path.glob("o/evaluate/*/runs"))) == 2
    code, _, errors, _ = sweep(*flags, "experiment=mien")
    assert code == 1
    assert "Did you mean 'mine'" in errors
    assert config_flags(["-cp", "a b", "-m", "-cn=c", "seed=1"]) == ["--config-path=a b", "--config-name=c"]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch, own_configs):
    monkeypatch.setenv("HOME", str(tmp_path))
    identity.register_resolvers()
    with own_loader(), initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().hydra.config_loader
        assert type(loader).__module__ != "hydra._internal.config_loader_impl", "the commands' own loader"
        options = ["defense=dms", "denoiser.weights='~/w.safetensors'", "hydra.sweep.dir='~/sweeps'"]
        config = compose(
            "evaluate", ["paths.outputs='~/runs'", "hydra.job.chdir=true", *options], return_hydra_config=True
        )
    HydraConfig.instance().set_config(config)
    try:
        assert config.hydra.run.dir.startswith(f"{tmp_path}/runs/evaluate/mini-")
        assert config.hydra.sweep.dir == f"{tmp_path}/sweeps"
    finally:
        HydraConfig.instance().cfg = None
    assert config.hydra.job.chdir is False, "relative paths stay those of the command's folder"
    (tmp_path / "w.safetensors").write_bytes(b"x")
    assert "denoiser.weights" in given_files(config)
    assert config.denoiser.weights == "~/w.safetensors", "a run has one name on every machine"
    built = build(OmegaConf.create({"_target_": "builtins.dict", "folder": "~/pictures", "inner": {"more": ["~/a"]}}))
    assert built == {"folder": f"{tmp_path}/pictures", "inner": {"more": [f"{tmp_path}/a"]}}


def test_a_tilde_in_a_config_of_ones_own_is_the_home_folder(tmp_path, monkeypatch, own_configs, sweep):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen = []
    command = ["evaluate.py", "--config-dir=~/my configs", "experiment=home", "defense=none", "hydra.job.chdir=true"]
    monkeypatch.setattr(sys, "argv", command)
    app.run_app(lambda config: seen.append((config.paths.run, os.getcwd())), "evaluate")
    ((folder, here),) = seen
    assert folder.startswith(f"{tmp_path}/mine/evaluate/mini-")
    assert here == str(tmp_path)
    assert not (tmp_path / "~").exists()
