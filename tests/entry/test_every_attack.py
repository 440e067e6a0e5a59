"""``evaluate.py attack=NAME defense=D`` for every attack against no defense, a purifier and a smoothed metric."""

import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from certiqa.attacks import ATTACKS, SetAttack, UniversalAttack, load_attack
from certiqa.data import load_dataset
from certiqa.entry import identity
from certiqa.entry.pipeline import run
from certiqa.evaluation import read_summary
from certiqa.metrics import load_metric

CONF = Path(__file__).parents[2] / "conf"
QUICK = {"queries": 12, "steps": 2, "members": 4, "pairs": 2, "score_samples": 2, "eot_samples": 2, "plan_steps": 20}


@pytest.fixture(scope="module")
def patterns(tmp_path_factory, mini_cache):
    """A pattern file of every universal attack, fitted on a few training images."""
    folder = tmp_path_factory.mktemp("patterns")
    dataset = load_dataset("mini", "train", cache=mini_cache)
    batch = {"image": torch.stack([dataset[row]["image"] for row in (0, 400)]), "image_id": ["a", "b"]}
    metric = load_metric("mini")
    warnings.simplefilter("ignore")  # that one step makes no full pattern
    for name, kind in ATTACKS.items():
        if issubclass(kind, UniversalAttack):
            load_attack(name, epochs=1, **({"lr": 0.05} if name == "uap" else {})).fit(
                metric, [batch], progress=False
            ).save(folder / f"{name}.safetensors")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("defense", ["none", "jpeg", "ms"])
@pytest.mark.parametrize("name", [*ATTACKS, "suite_quick"])
def test_evaluate_runs_every_attack_against_every_kind_of_defense(name, defense, tmp_path, mini_cache, patterns):
    images = 3 if issubclass(ATTACKS.get(name, object), SetAttack) else 2  # a ranking has three at least
    identity.register_resolvers()
    options = [
        *(f"attack={name}", f"defense={defense}", f"data.cache={mini_cache}", f"paths.outputs={tmp_path}"),
        *(f"data.limit_test={images}", "num_samples=50", "certification.radii=[0.06]"),
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", options, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config.paths.run = str(tmp_path / "run")
    OmegaConf.set_struct(config, False)
    members = config.attack.attacks.values() if "attacks" in config.attack else [config.attack]
    for member in members:
        for key, value in QUICK.items():
            if key in member:
                member[key] = value
        if "pattern_file" in member:
            member.pattern_file = str(patterns / f"{name}.safetensors")
    with warnings.catch_warnings(action="ignore"):  # that so few steps do not reach the border
        run(config)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished"
    wanted = ["ifgsm", "apgd", "square"] if name == "suite_quick" else [name]
    assert sorted(summary["attacks"]) == sorted(wanted)
    table = pd.read_parquet(tmp_path / "run" / "records.parquet")
    assert table["failure"].isna().all()
    for attack in wanted:
        rows = table[table["attack"] == attack]
        assert len(rows) == images
        assert rows[["score_attacked", "linf", "score_noise", "score_attacked_undefended"]].notna().all().all()
        # an image may stand at its target already, and a small l2 radius be lost on JPEG
        set_attack = issubclass(ATTACKS[attack], SetAttack)
        assert set_attack or (rows["linf"] > 0).all() or not ATTACKS[attack].uses_gradient
        eps = getattr(load_attack(attack), "eps", 0)
        if ATTACKS[attack].norm == "linf":
            assert (rows["linf"] <= eps + 1e-6).all()
