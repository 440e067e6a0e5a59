"""Presets of equal l_inf, their calibration, and the configs of the attacks."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from certiqa.attacks import ATTACKS, SetAttack, calibrate, load_attack, preset_options
from certiqa.attacks.presets import LEFT_OUT, LEVELS, mean_linf, presets
from certiqa.attacks.registry import options_of
from certiqa.entry.identity import register_resolvers
from certiqa.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "attack").glob("*.yaml"))


def test_presets_are_of_known_attacks_and_grow():
    for name, values in presets().items():
        assert ATTACKS[name].strength in options_of(ATTACKS[name])
        assert sorted(values) == list(LEVELS)
        assert list(values.values()) == sorted(values.values())
        load_attack(name, **preset_options(name, 8 / 255))
    assert set(presets()) == {"madc", "korhonen", "zhang", "ssah", "advcf", "ab_offset", "stadv"}


def test_preset_options():
    assert preset_options("ifgsm", 3 / 255) == {"eps": 3 / 255}
    assert preset_options("ab_offset", 4 / 255) == {"limit": presets()["ab_offset"][4]}
    for name, linf, message in (
        ("pgd_l2", 4 / 255, LEFT_OUT["pgd_l2"]),
        ("zhang", 3 / 255, "2/255, 4/255"),
        ("zang", 4 / 255, "Did you mean 'zhang'"),
    ):
        with pytest.raises(UserError, match=message):
            preset_options(name, linf)


@pytest.mark.parametrize("name", ["madc", "korhonen", "ssah", "ab_offset", "stadv"])
def test_calibrate_reaches_the_level(name, curved_metric, images):
    options = {"weight": 0.0} if name in ("ssah", "stadv") else {}
    value = calibrate(name, 6 / 255, curved_metric, images, tolerance=0.03, **options)
    attack = load_attack(name, **{ATTACKS[name].strength: value}, **options)
    assert mean_linf(attack.craft(curved_metric, images), images) == pytest.approx(6 / 255, rel=0.04)


def test_calibrate_without_search_and_without_success(curved_metric, images):
    assert calibrate("pgd_linf", 6 / 255, curved_metric, images) == 6 / 255
    with pytest.raises(
        UserError, match=r"no learning_rate gives attack 'advcf' a mean l_inf of 0\.4.*the nearest of 2"
    ):
        calibrate("advcf", 0.4, curved_metric, images, start=1e-9, evaluations=2)
    with pytest.raises(UserError, match="linf must be in"):
        calibrate("advcf", 8, curved_metric, images)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_the_defaults(path):
    if path.stem not in ATTACKS:
        pytest.skip("not one attack")
    register_resolvers()
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    attack = ATTACKS[path.stem]
    assert config.pop("_target_") == f"certiqa.attacks.{attack.__name__}"
    if issubclass(attack, SetAttack):
        assert config.pop("direction") is None, "some scores rise, others fall"
        config = {key: value for key, value in config.items() if value is not None}
    assert set(config) <= set(options_of(attack))
    configured, default = (
        {key: value for key, value in vars(made).items() if isinstance(value, bool | int | float | str)}
        for made in (load_attack(path.stem, **config), load_attack(path.stem))
    )
    assert configured == default
