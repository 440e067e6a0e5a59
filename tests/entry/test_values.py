"""Values of configs: what is wrong is refused by its key before any work, and words are what Hydra users mean."""

import copy
import math
import random
import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from certiqa.entry.app import explain
from certiqa.entry.build import build
from certiqa.entry.checks import check_config, check_launcher, typed_keys
from certiqa.entry.identity import config_hash, register_resolvers
from certiqa.errors import UserError
from certiqa.signatures import options_of
from certiqa.validation import allows_none, found

CONF = Path(__file__).parents[2] / "conf"
GROUPS = [
    "attack",
    "callbacks",
    "certification",
    "data",
    "defense",
    "denoiser",
    "logger",
    "metric",
    "objective",
    "trainer",
]
TOP = ("task", "name", "seed", "sigma", "num_samples", "fresh", "training", "paths", "optimise")


@pytest.fixture(scope="module")
def composed():
    """Compose a config with its hydra node, each command once."""
    register_resolvers()
    known = {}

    def compose_config(*overrides, name="train"):
        if (name, overrides) not in known:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                known[name, overrides] = compose(name, list(overrides), return_hydra_config=True)
        return copy.deepcopy(known[name, overrides])

    return compose_config


def refused(config):
    """Return the message by which a config is refused; None where it passes."""
    try:
        check_config(config)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["data=folder", "data.root=.", "data.lower_better=no"], "data.lower_better", False),
        (["certification.randomised=No"], "certification.randomised", False),
        (["certification.randomised=no"], "callbacks.certification.randomised", False),
        (["fresh=off"], "fresh", False),
        (["fresh=YES"], "fresh", True),
        (["denoiser.allow_sigma_mismatch=no"], "denoiser.allow_sigma_mismatch", False),
        (["defense.clip=no"], "defense.clip", False),
        (["trainer.deterministic=off"], "trainer.deterministic", False),
        (["sigma=25/255"], "defense.sigma", 25 / 255),
        (["certification.radii=[8/255]"], "certification.radii", [8 / 255]),
        (["certification.radius=8/255"], "callbacks.certification.radius", 8 / 255),
        (["num_samples=1e3"], "num_samples", 1000),
        (["paths.outputs=2024"], "paths.outputs", "2024"),
    ],
)
def test_a_word_becomes_what_it_stands_for_in_the_config_itself(composed, overrides, key, value):
    config = composed(*overrides)
    words = check_config(config)
    found_there = OmegaConf.select(config, key)
    assert found_there == value
    assert type(found_there) in (type(value), ListConfig)
    again = composed(*overrides, *words)  # as a process of a sweep composes it
    assert config_hash(again) == config_hash(config)


def test_a_run_has_one_name_however_a_boolean_is_written(composed):
    configs = [composed(f"certification.randomised={word}") for word in ("no", "off", "false", "False")]
    for config in configs:
        check_config(config)
    assert len({config_hash(config) for config in configs}) == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sigma=25"], r"^sigma must be .* in \[0, 1\] pixel units.* got 25; .*25/255"),
        (["attack=ifgsm", "attack.eps=8"], r"^attack.eps must be .*; .*8/255"),
        (["attack=ifgsm", "attack.eps=word"], r"^attack.eps must be"),
        (["attack=ifgsm", "attack.eot_samples=null"], r"^attack.eot_samples must be .* got null"),
        (["attack=ifgsm", "attack.direction=foo"], r"^attack.direction must be raise, lower or away"),
        (["attack=ifgsm", "attack.direction=null"], r"^attack.direction must be raise, lower or away"),
        (["attack=ifgsm", "attack.steps=10", "+attack.step=3"], r"^unknown key 'attack.step'.*Did you mean 'steps'"),
        (["certification.confidence=null"], r"^certification.confidence must be .* got null"),
        (["certification.radii=0.1"], r"^certification.radii must be a list"),
        (["certification.radii=[]"], r"^certification.radii must be a list"),
        (["+metric.resize=null"], r"^unknown key 'metric.resize'"),
        (["metric=dbcnn", "metric.resize=null"], r"^metric.resize must be .* got null"),
        (["fresh=maybe"], r"^fresh must be true or false, got maybe"),
        (["task=foo"], r"^task must be train, evaluate"),
        (["task=purification"], r"experiment=purification"),
        (["data=union", "+data.sets.mini.guise=1"], r"^unknown key 'data.sets.mini.guise'.*Did you mean 'guises'"),
        (["data=union", "data.sets.mini.guises=-1"], r"^data.sets.mini.guises must be a whole number"),
        (["data=union", "+data.sets.konik={}"], r"^unknown key 'data.sets.konik'.*Did you mean 'koniq'"),
        (["task=metric"], r"experiment=metric"),
        (["paths.outputs=''"], r"^paths.outputs must be text, not empty"),
        (["paths.outputs=null"], r"^paths.outputs must be text, not empty, got null"),
        (["name=[a]"], r"^name must be text"),
        (["name=" + "n" * 300], r"^name is too long"),
        (["data=folder", "data.root=.", "data.mos_range=[0,.inf]"], r"^data.mos_range must be \[low, high\]"),
        (["data.resize=64.5"], r"^data.resize must be"),
        (["data.resize=100000"], r"^data.resize must be .*16384"),
        (["data.eval_batch_size=2.5"], r"^data.eval_batch_size must be a whole number"),
        (["data.test_crops={size: 224}"], r"^data.test_crops"),
        (["callbacks.gallery.num_images=-1"], r"^callbacks.gallery.num_images must be"),
        (["trainer.max_steps=0"], r"^trainer.max_steps must be"),
        (["trainer.max_steps=-1"], r"^trainer.max_steps must be .*max_epochs"),
        (["trainer.max_steps=null"], r"^trainer.max_steps must be"),
        (["trainer.val_check_interval=0"], r"^trainer.val_check_interval must be"),
        (["trainer.val_check_interval=0.5"], r"^trainer.val_check_interval must be"),
        (["+trainer.limit_test_batches=0"], r"^trainer.limit_test_batches=0 leaves out images"),
        (["+trainer.max_step=3"], r"^unknown key 'trainer.max_step'.*Did you mean 'max_steps'"),
        (["training.optimizer.lr=word"], r"^training.optimizer.lr must be a number above 0, got word"),
        (["training.optimizer.lr=nan"], r"^training.optimizer.lr must be"),
        (["training.optimizer.lr=-1"], r"^training.optimizer.lr must be"),
        (["training.warmup_steps=-1"], r"^training.warmup_steps must be"),
        (["metric._target_=nowhere.Metric"], r"cannot find 'nowhere.Metric'"),
        (["metric._target_=3"], r"^metric._target_=3 must name"),
        (["defense=chain", "+defense.jpg.quality=30"], r"^unknown key 'defense.jpg'.*Did you mean 'jpeg'"),
        (["defense=chain", "defense.jpeg.quality=300"], r"^defense.jpeg.quality must be .* from 1 to 95"),
        (["logger=wandb", "logger.mode=foo"], r"^logger.mode must be online, offline or disabled, or null"),
        (["seed=${nothing}"], r"^seed=\$\{nothing\} refers to what is not there"),
        (["seed=-1"], r"^seed must be a whole number from 0 to 4294967295"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_allowed(composed, overrides, says):
    said = refused(composed(*overrides))
    assert said is not None, "passes in silence"
    assert re.search(says, said), said


@pytest.mark.parametrize("group", ["data", "metric", "defense", "trainer", "attack", "callbacks", "certification"])
def test_a_group_that_is_taken_out_is_named(composed, group):
    without = composed()
    with open_dict(without):
        del without[group]
    assert refused(without).startswith(f"{group} is missing")
    with open_dict(without):
        without[group] = None
    assert refused(without).startswith(f"{group} must be")


def test_a_key_of_an_experiment_file_is_checked_too(composed, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nnum_sample: 1000\n")
    said = refused(composed(f"hydra.searchpath=[{tmp_path}]", "experiment=mine"))
    assert said.startswith("unknown key 'num_sample'")
    assert said.endswith("Did you mean 'num_samples'?")


def test_a_refused_value_of_the_environment_is_named_and_not_shown(composed, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret value")
    message = refused(composed("sigma=${oc.env:TOKEN}"))
    assert message.startswith("sigma must be a number")
    assert "${oc.env:TOKEN}" in message
    assert "s3cret" not in message


def test_a_key_of_the_users_own_stands_where_values_refer_to_it(composed):
    assert refused(composed("+rate=0.01", "training.optimizer.lr=${rate}")) is None
    assert refused(composed("+rate=0.01")).startswith("unknown key 'rate'")


@pytest.mark.parametrize("value", [0, -1, 2.5, "word"])
def test_a_launcher_of_no_processes_is_refused(composed, value):
    config = composed("hydra/launcher=local")
    with open_dict(config):
        config.hydra.launcher.parallel_jobs = value
    with pytest.raises(UserError, match=r"^hydra.launcher.parallel_jobs must be a whole number of at least 1"):
        check_launcher(config)


class Own:
    """A metric of the user's own, which need not know the options of the one it replaces."""

    def __init__(self, depth: int = 3, *, weights="own", layers=None):
        self.depth, self.weights, self.layers = depth, weights, layers


def test_a_class_of_the_users_own_is_checked_by_its_signature(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_package", type(Own)("my_package", (), {}))
    monkeypatch.setattr(sys.modules["my_package"], "Own", Own, raising=False)
    assert refused(composed("metric._target_=my_package.Own")) is None
    said = refused(composed("metric._target_=my_package.Own", "+metric.dept=4"))
    assert said.startswith("unknown key 'metric.dept'")
    assert "Did you mean 'depth'?" in said
    said = refused(composed("metric._target_=my_package.Own", "+metric.depth=deep"))
    assert said.startswith("metric.depth must be a whole number, got deep")
    assert refused(composed("metric._target_=my_package.Own", "+metric.depth=null")).endswith("got null")
    left_out = [
        "denoiser._target_=my_package.Own",
        "denoiser.name=null",
        "denoiser.channels=null",
        "denoiser.sigma=null",
    ]
    assert refused(composed(*left_out, "denoiser.allow_sigma_mismatch=null", "denoiser.weights=null")) is None


def test_what_is_typed_may_refer_to_the_config():
    best = ["+callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint"]
    best.append("+callbacks.best.dirpath=${paths.run}/best")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", best, return_hydra_config=True)
    assert "callbacks.best.dirpath" in typed_keys(config)[1]
    check_config(config)


def test_null_is_handed_over_where_it_means_something():
    node = OmegaConf.create({"_target_": f"{__name__}.Own", "layers": None})
    sys.modules.setdefault(__name__, sys.modules[Own.__module__])
    assert build(node).layers is None
    node = OmegaConf.create({"_target_": "certiqa.defenses.Resize", "size": 32, "scale": None})
    assert build(node).scale is None


# -- the sweep over every option -----------------------------------------------------------------------------


def leaves(node, path=()):
    """Yield the path and raw value of every option that is not an interpolation."""
    for key in node:
        child = node._get_node(key)
        if str(key).startswith("_") or child._is_interpolation() or child._is_missing():
            continue
        if isinstance(child, DictConfig) and not child._is_none():
            yield from leaves(child, (*path, key))
        else:
            yield (*path, key), None if child._is_none() else node[key]


def wrong_for(value):
    """Return values that no option takes whose value in conf/ is like this one."""
    wrong = [[["nested"]], math.nan]
    if isinstance(value, bool):
        return [*wrong, "maybe", 3, -1.5, {"a": 1}]
    if isinstance(value, int | float):
        return [*wrong, "word", math.inf, -12345.5, True, {"a": 1}, ""]
    if isinstance(value, ListConfig):
        return [*wrong, "word", {"a": 1}, True]
    if isinstance(value, str):
        return [*wrong, {"a": 1}, True]
    return wrong


def cases(composed):
    """Yield ``(composed config, dotted key, wrong value)`` for every option of every file of conf/."""
    plain = {path.stem: path for path in CONF.glob("metric/*.yaml")}
    assert plain
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            overrides = [f"{group}={path.stem}"]
            overrides += {"pyiqa": ["metric.metric_name=cnniqa"]}.get(path.stem, [])
            config = composed(*overrides)
            for place, value in leaves(config[group], (group,)):
                for wrong in wrong_for(value):
                    yield config, place, wrong
                yield config, (*place[:-1], f"{place[-1]}x"), 1
    for config in (
        composed(),
        composed("experiment=purification", name="evaluate"),
        composed("experiment=metric"),
    ):
        for key in (*TOP, "study", "metric_fit"):
            section = config.get(key)
            nodes = leaves(section, (key,)) if isinstance(section, DictConfig) else [((key,), section)]
            for place, value in nodes:
                if key in config and not config._get_node(key)._is_interpolation():
                    yield from ((config, place, wrong) for wrong in wrong_for(value))
                    yield config, (*place[:-1], f"{place[-1]}x"), 1


def with_value(config, place, value):
    """Return a copy of a config without its hydra node in which one option is set, as an override would."""
    changed = OmegaConf.create({key: copy.deepcopy(config._get_node(key)) for key in config if key != "hydra"})
    OmegaConf.update(changed, ".".join(map(str, place)), value, merge=False, force_add=True)
    return changed


def outcome(config, place, value):
    """Return what is wrong with how a wrong value is met; None where it is refused by its key."""
    dotted = ".".join(map(str, place))
    try:
        check_config(with_value(config, place, value))
    except UserError as error:
        said = str(error)
        good = dotted in said and f"mean '{place[-1]}'" not in said
        return None if good else f"{dotted}={value}: does not name it: {said}"
    except Exception as error:
        return f"{dotted}={value}: {type(error).__name__}: {error}"
    return f"{dotted}={value}: passes in silence"


@pytest.fixture(scope="module")
def every_case(composed):
    """Every option of conf/ with values that it does not take, each once."""
    every = {}
    for config, place, value in cases(composed):
        target = str(config[place[0]].get("_target_")) if place[0] in GROUPS else ""
        every.setdefault((place, repr(value), target), (config, place, value))
    meant = ("trainer", "deterministic"), "True"  # warn, true or false
    return [case for (place, value, _), case in every.items() if (place, value) != meant]


def test_no_wrong_value_of_some_hundred_passes(every_case):
    assert len(every_case) > 3000
    chosen = random.Random(0).sample(every_case, 300)
    assert not [met for case in chosen if (met := outcome(*case)) is not None]


@pytest.mark.full
def test_no_wrong_value_of_any_option_passes(every_case):
    assert not [met for case in every_case if (met := outcome(*case)) is not None]


def test_null_is_refused_where_it_means_nothing(composed):
    refusing = 0
    for name in ("apgd", "nes", "sma", "uap"):
        config = composed(f"attack={name}")
        target = config.attack.get("_target_")
        if not target:
            continue
        taken = options_of(found(target, "attack")).named
        for key in config.attack:
            if key in taken and not allows_none(taken[key]):
                said = refused(with_value(config, ("attack", key), None))
                assert said is not None
                assert said.startswith(f"attack.{key} must be"), said
                refusing += 1
    assert refusing > 30


@pytest.mark.parametrize("typed", ["data=null", "metric=null", "attack=3"])
def test_a_group_set_to_what_is_no_option_is_named_with_its_options(composed, monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "seed=0", typed])
    with pytest.raises(ValueError, match="Config group override") as caught:
        composed(typed)
    assert explain(caught.value).startswith(f"{typed} is no option of {typed.split('=')[0]}; there are: ")
