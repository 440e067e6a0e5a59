"""Every config composes and instantiates; names and keys that do not exist are answered with what does."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from certiqa.entry import app, identity
from certiqa.entry.agreement import check_options
from certiqa.entry.build import (
    build,
    build_callbacks,
    build_defense,
    build_metric,
    build_module,
    build_trainer,
    check_shares,
)
from certiqa.entry.checks import check_job
from certiqa.entry.purification import build_study
from certiqa.entry.tracking import build_loggers
from certiqa.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(
    (str(path.parent.relative_to(CONF)), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and "hydra" not in path.parts
)

LOGGERS = {
    "none": [],
    "csv": ["CSVLogger"],
    "tensorboard": ["CSVLogger", "TensorBoardLogger"],
    "wandb": ["CSVLogger", "WandbTracker"],
    "many": ["CSVLogger", "WandbTracker", "TensorBoardLogger"],
}


@pytest.fixture
def composed(tmp_path):
    identity.register_resolvers()

    def compose_config(*overrides, name="train"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name, [f"paths.outputs={tmp_path}", *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            config.paths.run = str(tmp_path / "run")
            return config

    return compose_config


def test_the_test_sees_every_group():
    assert {group for group, _ in OPTIONS} >= {
        *("data", "metric", "defense", "denoiser", "objective", "certification"),
        *("callbacks", "logger", "trainer", "experiment", "debug"),
    }


SWEEPS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if "MULTIRUN" in path.read_text())


@pytest.mark.parametrize("experiment", SWEEPS)
def test_every_cell_of_a_sweep_composes(composed, experiment):
    task = "evaluate" if experiment.startswith(("purification", "sma", "mini_sma")) else "train"
    params = composed(f"experiment={experiment}", name=task).hydra.sweeper.params
    assert len(params) > 0
    for key, values in params.items():
        assert len(values.split(",")) > 1, "a sweep over one value"
        for value in values.split(","):
            config = composed(f"experiment={experiment}", f"{key}={value}", name=task)
            assert config.hydra.runtime.choices[key] == value


@pytest.mark.parametrize("experiment", ["sma_table", "mini_sma_sweep"])
def test_attacks_that_a_sweep_compares_have_one_budget(composed, experiment):
    attacks = composed(f"experiment={experiment}", name="evaluate").hydra.sweeper.params.attack.split(",")
    budgets = {composed(f"experiment={experiment}", f"attack={name}", name="evaluate").attack.eps for name in attacks}
    assert budgets == {4 / 255}


def test_every_sigma_of_the_search_can_certify_its_radii(composed):
    low, high = (
        float(text) for text in re.findall(r"[\d.]+", composed("hparams_search=sigma").hydra.sweeper.params.sigma)
    )
    for sigma in (low, high):
        check_job(composed("hparams_search=sigma", f"sigma={sigma}"))
    with pytest.raises(UserError, match="radius"):
        check_job(composed("hparams_search=sigma", f"sigma={low}", "certification.radii=[0.06,0.12]"))


def test_the_commands_of_the_help_would_start(composed):
    text = OmegaConf.load(CONF / "hydra" / "help" / "certiqa.yaml").header
    commands = re.findall(r"python (train|evaluate).py(.*?)(?:  |$)", text, re.M)
    assert len(commands) == 4
    for name, options in commands:
        given = [option.partition(",")[0] for option in options.split() if option != "-m"]  # one value of several
        check_job(composed(*given, name=name))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_instantiates(composed, mini_cache, miniatures, networks, tmp_path, group, option):
    overrides = [f"{group}={option}", f"data.cache={mini_cache}"]
    if group == "data" and option != "mini":
        overrides += [f"data.root={miniatures.WRITERS[option](tmp_path / 'data')}", "data.crop=64"]
    if group == "denoiser" and option != "none":
        overrides.append("defense=dms")
    if group == "denoiser" and option == "none":
        overrides.append("defense=ms")
    if group == "hparams_search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra certiqa[search] is not installed")
    if option == "mini_denoisers":
        overrides.append(f"data.root={miniatures.WRITERS['livec'](tmp_path / 'data')}")
    if option == "opinions":
        overrides += ["data=mini", "metric.weights=random"]
    if group == "objective":
        overrides.append({"none": "defense=ms", "mse": "defense=dms", "mse_ranking": "defense=dms_iqa"}[option])
    if group == "metric":
        overrides.append("metric.weights=random")  # the published ones are not here
        overrides += {"pyiqa": ["metric.metric_name=cnniqa"]}.get(option, [])
    if group == "defense" and option in (*networks.NETWORKS, "restoration", "disco"):
        name = {"restoration": "dncnn"}.get(option, option)  # the published weights are not here
        path = networks.write_disco(tmp_path)[0] if name == "disco" else networks.write(name, tmp_path)[1]
        overrides.append(f"defense.weights={path}")
    if group == "defense" and option == "fcn":
        overrides.append("attack=advcf")  # what it is trained on
    if group == "trainer" and option in ("gpu", "ddp"):
        overrides.append("trainer.accelerator=cpu")
    config = composed(*overrides)
    if config.get("task") == "metric":
        assert build(config.metric_fit).backbone == "mobilenet_v2"
        return
    check_options(config)
    metric = build_metric(config)
    if group == "metric":
        assert metric.name == identity.metric_label(config) == {"pyiqa": "cnniqa"}.get(option, option)
        assert metric.weights_source == "random (seed 0)"
    defense = build_defense(config, metric, trained=False)
    data = build(config.data)
    if group == "data":
        assert data.dataset_name == option
        assert len(data.train_set) > 0
        assert len(data.validation_set) > 0
        assert data.train_dataloader().sampler is not None
    callbacks = build_callbacks(config, defense, data)
    module = build_module(config, defense)
    loggers = build_loggers(config)
    if group == "logger":
        assert [type(logger).__name__ for logger in loggers] == LOGGERS[option]
    trainer = build_trainer(config, callbacks, loggers)
    assert isinstance(trainer, pl.Trainer)
    assert (module.objective is not None) == bool(config.objective)
    assert defense.name == (metric.name if config.defense.name == "none" else config.defense.name)


def test_an_unknown_metric_is_answered_with_the_nearest(composed):
    with pytest.raises(UserError, match=r"no NR metric 'cnniq' .*Did you mean 'cnniqa'\?"):
        build_metric(composed("metric=pyiqa", "metric.metric_name=cnniq"))


def test_native_sizes_can_be_chosen(composed):
    metric = build_metric(composed("metric=metaiqa", "metric.weights=random", "metric.resize=native"))
    assert metric.network.preprocess.resize is None


@pytest.mark.parametrize("defense", ["none", "ms", "dms", "dms_iqa"])
def test_evaluate_builds_every_defense_with_shipped_weights(composed, mini_cache, defense):
    config = composed(f"defense={defense}", f"data.cache={mini_cache}", name="evaluate")
    built = build_defense(config, build_metric(config), trained=True)
    assert built.name == ("mini" if defense == "none" else defense)
    assert build_module(config, built).objective is None


def test_evaluate_without_weights_says_what_is_shipped(composed):
    config = composed("defense=dms", "denoiser=dncnn", name="evaluate")
    with pytest.raises(UserError, match="are of a unet"):
        build_defense(config, build_metric(config), trained=True)
    config = composed("defense=dms", "sigma=0.2", name="evaluate")
    with pytest.raises(UserError, match=r"trained for sigma=0.12, but sigma=0.2 .*allow_sigma_mismatch"):
        build_defense(config, build_metric(config), trained=True)


def test_a_purifier_that_is_trained_needs_an_attack_to_train_on(composed, mini_cache):
    config = composed("defense=fcn", f"data.cache={mini_cache}")
    defense = build_defense(config, build_metric(config), trained=False)
    with pytest.raises(UserError, match=r"trained on attacked images.*attack=advcf"):
        build_module(config, defense)
    config = composed("defense=fcn", "metric=metaiqa", "metric.weights=random", name="evaluate")
    with pytest.raises(UserError, match=r"'fcn' needs weights.*experiment=fcn"):
        build_defense(config, build_metric(config), trained=True)


def test_weights_that_a_user_must_give_are_asked_for(composed):
    config = composed("defense=swinir", name="evaluate")
    with pytest.raises(UserError, match=r"'swinir' needs weights.*SwinIR.*defense\.weights=path"):
        build_defense(config, build_metric(config), trained=True)


@pytest.mark.parametrize("defense", ["fcn", "diffpure", "diffpure_unsharp"])
def test_a_purifier_that_learned_nothing_is_not_evaluated(composed, defense):
    metric = build_metric(composed())
    config = composed(f"defense={defense}", "defense.weights=untrained", name="evaluate")
    with pytest.raises(UserError, match=r"^defense.weights=untrained is for train.py alone"):
        build_defense(config, metric, trained=True)
    config = composed("defense=chain", "defense.steps=[fcn,ms]", "+defense.fcn.weights=untrained", name="evaluate")
    with pytest.raises(UserError, match=r"^defense.fcn.weights=untrained"):
        build_defense(config, metric, trained=True)
    study = composed("experiment=purification_quick", f"study.purifiers.{defense}.weights=untrained", name="evaluate")
    with pytest.raises(UserError, match=rf"^study.purifiers.{defense}.weights=untrained"):
        build_study(study)


def test_test_crops_make_the_metric_a_mean_over_crops(composed):
    metric = build_metric(composed("data.test_crops={size:192,number:5}"))
    assert (metric.size, metric.number, metric.min_size, metric.name) == (192, 5, 192, "mini")
    for wrong in ("{size:192}", "7"):
        with pytest.raises(UserError, match=r"data.test_crops must be null or of the form \{size: 224, number: 25\}"):
            build_metric(composed(f"data.test_crops={wrong}"))
    with pytest.raises(UserError, match=r"data.crop=64 is smaller than data.test_crops.size=192.*set data.crop=192"):
        build_metric(composed("data.test_crops={size:192,number:5}", "data.crop=64"))


def test_a_contradicting_objective_is_an_error(composed):
    with pytest.raises(UserError, match=r"defense=dms_iqa trains with objective=mse_ranking, but objective=mse"):
        check_options(composed("defense=dms_iqa", "objective=mse"))


def test_a_metric_of_the_users_own_needs_its_target_alone(composed):
    config = composed("metric._target_=torch.nn.Identity")
    assert config.metric.weights is None
    assert type(build(config.metric)).__name__ == "Identity", "the option's null keys must not reach the user's class"


@pytest.mark.parametrize(
    "change",
    ["seed=1", "sigma=0.1", "num_samples=99", "defense=dms", "trainer.max_steps=7", "data.test=all", "data.crop=64",
     "data.resize=300", "data.resize_filter=bilinear", "data.test_crops={size:192,number:4}", "data.on_error=skip",
     "certification.confidence=0.99", "trainer.precision=bf16-mixed", "objective.ranking_weight=0.1"],
)  # fmt: skip
def test_the_hash_follows_what_decides_the_numbers(composed, change):
    assert identity.config_hash(composed()) != identity.config_hash(composed(change))


@pytest.mark.parametrize(
    "change",
    ["data.num_workers=3", "data.eval_batch_size=1", "defense.batch_size=7", "trainer.devices=2", "logger=none",
     "fresh=true", "data.cache=elsewhere", "data.prepare=true", "name=mine", "paths.outputs=there",
     "trainer.accelerator=cpu"],
)  # fmt: skip
def test_the_hash_ignores_where_and_how_fast(composed, change):
    assert identity.config_hash(composed()) == identity.config_hash(composed(change))


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("train", [], "bfe3a0ed"),
        ("evaluate", [], "cc249333"),
        ("train", ["attack=ifgsm"], "f97fc777"),
        ("evaluate", ["attack=ifgsm"], "a96a9620"),
        ("evaluate", ["attack=ifgsm", "callbacks.attacks.save_images=true"], "a96a9620"),
    ],
)
def test_the_runs_that_there_are_keep_their_names(composed, task, options, expected):
    assert identity.config_hash(composed(*options, name=task)) == expected


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        ("callbacks.attacks.direction=lower", "set attack.direction=lower"),
        ("callbacks.attacks.aim=undefended", "set attack.aim=undefended"),
        ("callbacks.attacks.seed=3", "set seed=3"),
    ],
)
def test_an_attack_is_not_changed_behind_the_runs_name(composed, change, instead):
    with pytest.raises(UserError, match=instead):
        identity.config_hash(composed("attack=ifgsm", change))


@pytest.mark.parametrize("option", ["koniq", "kadid", "spaq", "nips2017", "livec", "agiqa3k"])
def test_where_a_data_set_lies_is_no_part_of_a_run_but_how_it_is_split_is(composed, option):
    plain = identity.config_hash(composed(f"data={option}"))
    assert identity.config_hash(composed(f"data={option}", "data.root=/data", "data.num_workers=7")) == plain
    assert identity.config_hash(composed(f"data={option}", "data.split_seed=1")) != plain
    assert identity.config_hash(composed(f"data={option}", "data.splits=other")) != plain


def test_two_folders_are_two_runs(composed):
    first, second = (identity.config_hash(composed("data=folder", f"data.root=/{name}")) for name in "ab")
    assert first != second


def test_one_sigma_and_one_num_samples_reach_every_place(composed):
    config = composed("sigma=0.07", "num_samples=123")
    assert (config.defense.sigma, config.defense.num_samples, config.training.sigma, config.denoiser.sigma) == (
        *(0.07, 123),
        *(0.07, 0.07),
    )


def test_budgets_may_be_fractions():
    assert identity.fraction("8/255") == pytest.approx(8 / 255)
    assert identity.fraction("-2*3+1") == -5
    for wrong in ("8/0", "__import__('os')", "eight"):
        with pytest.raises(UserError, match="is not a number"):
            identity.fraction(wrong)


def test_conf_is_found_in_the_checkout():
    assert app.config_folder() == CONF


def test_known_keys_are_those_of_the_configs():
    keys = app.known_keys()
    for key in (
        "data.batch_size",
        "defense.sigma",
        "certification.radii",
        "training.optimizer.lr",
        "seed",
        "trainer.max_steps",
    ):
        assert key in keys


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_missing_values_are_marked_and_nothing_else_is_unset(composed, name):
    config = composed(name=name)
    with open_dict(config):
        del config["hydra"]
    assert not OmegaConf.missing_keys(config)


def test_more_processes_than_test_images_are_refused():
    data = SimpleNamespace(test_set=range(3))
    check_shares(SimpleNamespace(world_size=3), data)
    with pytest.raises(UserError, match="4 processes cannot share 3 test images; lower trainer.devices"):
        check_shares(SimpleNamespace(world_size=4), data)
