"""From a composed config to objects: each option builds exactly what the same Python call builds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch import nn

from certiqa.attacks import Attack
from certiqa.attacks.suite import members
from certiqa.callbacks import Certification, DurableCheckpointIO
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import undefended
from certiqa.defenses.purifiers.diffusion import Diffpure
from certiqa.defenses.purifiers.fcn import UNTRAINED
from certiqa.denoisers import shipped_denoisers
from certiqa.entry.checks import missing_in, must_be_given
from certiqa.entry.composing import with_home
from certiqa.entry.trust import refuse_loaders
from certiqa.errors import UserError
from certiqa.metrics import CropAveraged, QualityMetric, as_metric, require_metric
from certiqa.options import Node
from certiqa.signatures import options_of
from certiqa.training import DefenseModule, DenoisingObjective
from certiqa.training.corruption import ATTACKED, Attacked, Corruption, DiffusionSteps
from certiqa.validation import Check, allows_none, found

RUN_OF_ATTACK = ("direction", "aim", "save_images")


def build(node: DictConfig | None, **more: Any) -> Any:
    """Instantiate a config node; None for an empty one.

    ``~`` at the start of a value is the home folder. A null is handed over as None where the callee knows the key and
    what null means; another is left at the callee's own default, so that a class of the user's need not know the keys
    of the option it replaces.
    """
    if not node:
        return None
    content = with_home(OmegaConf.to_container(node, resolve=True))
    assert isinstance(content, dict)
    name = node._get_full_key(None).lstrip(".")
    read = Check().node(Node(), content, name)
    takes = options_of(found(read["_target_"], name), read).named
    chosen = {
        key: value for key, value in read.items() if value is not None or (key in takes and allows_none(takes[key]))
    }
    lacking = {key: value for key, value in chosen.items() if key not in more}
    for key in missing_in(lacking, node._get_full_key(None)):
        raise UserError(must_be_given(key.lstrip(".")))
    refuse_loaders(content)
    try:
        return instantiate(chosen, _convert_="all", **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        cause = error.__cause__ or error
        raise UserError(f"cannot build {content.get('_target_')}: {cause}") from error


def build_metric(config: DictConfig) -> QualityMetric:
    """Build the frozen metric; see ``check_contract`` for whether it is one.

    ``data.test_crops`` makes it the mean over crops: what is certified and attacked then is that mean.
    """
    metric = as_metric(build(config.metric))
    crops = config.data.get("test_crops")
    if not crops:
        return metric
    if not OmegaConf.is_dict(crops) or set(crops) != {"size", "number"}:
        raise UserError(f"data.test_crops must be null or of the form {{size: 224, number: 25}}, got {crops}")
    if config.task == "train" and config.objective and (config.data.get("crop") or crops.size) < crops.size:
        raise UserError(
            f"data.crop={config.data.crop} is smaller than data.test_crops.size={crops.size}, but the same metric "
            f"scores the images of the training; set data.crop={crops.size} or more, or smaller test crops"
        )
    return CropAveraged(metric, crops.size, crops.number)


def check_contract(
    metric: QualityMetric,
    sizes: Sequence[tuple[int, int]],
    attacks: Iterable[Attack] = (),
    objective: DenoisingObjective | None = None,
) -> None:
    """Raise UserError where a metric breaks the contract on images of the tested sizes.

    Args:
        metric: the frozen metric.
        sizes: (height, width) of the images to be scored.
        attacks: what is to attack it: without one that uses gradients it need not have any.
        objective: what a denoiser is trained for: one through the metric needs its gradient.
    """
    gradient = any(one.uses_gradient for attack in attacks for one in members(attack).values())
    gradient |= objective is not None and objective.needs_metric
    if isinstance(metric, CropAveraged):
        sizes = [metric.min_sides]  # its crops
        metric = metric.base
    require_metric(metric, sizes=sizes, gradient=gradient)


def build_defense(config: DictConfig, metric: QualityMetric, *, trained: bool) -> QualityMetric:
    """Build the defense around a metric.

    Args:
        config: the whole config.
        metric: the frozen metric.
        trained: whether denoiser or purifier must come with weights; without a path the shipped ones are taken.
    """
    if trained:
        refuse_untrained(OmegaConf.to_container(config.defense), "defense")
    if not config.denoiser:
        weights = purifier_weights(config, trained=trained)
        return as_metric(build(config.defense, metric=metric, **weights))
    node = config.denoiser
    if trained and node.get("weights", "") is None:
        name = f"{metric.name}_{config.defense.name}"
        if name not in shipped_denoisers():
            raise UserError(
                f"no denoiser is shipped for metric '{metric.name}' and defense={config.defense.name}; give one with "
                f"denoiser.weights=path, e.g. the checkpoints/denoiser.safetensors of a train.py run. "
                f"Shipped: {', '.join(shipped_denoisers()) or 'none'}"
            )
        node = OmegaConf.merge(node, {"weights": name})
    denoiser = build(node)
    if not isinstance(denoiser, nn.Module):
        raise UserError(f"denoiser must be a torch.nn.Module, got {type(denoiser).__name__}")
    return as_metric(build(config.defense, metric=metric, denoiser=denoiser))


def refuse_untrained(node: Any, name: str) -> None:
    """Raise UserError where a purifier of a nested config asks for random weights, from which only training starts."""
    if not isinstance(node, dict):
        return
    if node.get("weights") == UNTRAINED:
        raise UserError(
            f"{name}.weights={UNTRAINED} is for train.py alone, where the purifier learns; give the weights that were "
            "trained, or null for the shipped ones of metric=mini"
        )
    for key, value in node.items():
        refuse_untrained(value, f"{name}.{key}")


def purifier_weights(config: DictConfig, *, trained: bool) -> dict[str, str | None]:
    """Return what a purifier is to be built with where no weights are given: none, to be trained; empty for the rest.

    Without them the purifier takes those shipped for the metric, or says what it needs.
    """
    if OmegaConf.is_missing(config.defense, "weights"):
        return {"weights": None}  # the purifier says better than OmegaConf what is missing
    if not trained and config.objective and config.defense.get("weights", "") is None:
        return {"weights": UNTRAINED}
    return {}


def build_corruption(config: DictConfig, defense: QualityMetric) -> Corruption | None:
    """Build what a purifier is trained on: attacks, or diffusion; None where the defense is a smoothing."""
    purifier = defense.purified_by
    if purifier is None:
        return None
    if isinstance(purifier, Diffpure):
        return DiffusionSteps(purifier, int(config.training.last_step), config.seed)
    attack = build_attack(config)
    if attack is None:
        raise UserError(
            f"defense={config.defense.name} is trained on attacked images: say which attack, e.g. attack=advcf "
            "(train.py experiment=fcn says it and the rest)"
        )
    return Attacked(
        attack, undefended(defense), config.training.direction, config.seed, keep_in=run_folder(config) / ATTACKED
    )


def build_module(config: DictConfig, defense: QualityMetric) -> DefenseModule:
    """Build the LightningModule: with an objective where there is a denoiser to train."""
    if config.task != "train" or not config.objective:
        return DefenseModule(defense, seed=config.seed)
    training = config.training
    sigma = training.sigma
    return DefenseModule(
        defense,
        build(config.objective),
        build(training.optimizer),
        sigma=list(sigma) if isinstance(sigma, ListConfig) else sigma,
        corruption=build_corruption(config, defense),
        warmup_steps=training.warmup_steps,
        restart=training.restart,
        seed=config.seed,
    )


def build_attack(config: DictConfig) -> Attack | None:
    """Build the attack, None for ``attack=none``; how it is run (direction, aim) belongs to its callback."""
    if not config.attack.get("_target_"):
        return None
    content = OmegaConf.to_container(config.attack, resolve=True)
    assert isinstance(content, dict)
    options = {key: value for key, value in content.items() if key not in RUN_OF_ATTACK}
    attack = build(OmegaConf.create(options))
    if not isinstance(attack, Attack):
        raise UserError(f"attack must be a certiqa.attacks.Attack, got {type(attack).__name__}")
    return attack


def build_callbacks(config: DictConfig, defense: QualityMetric, data: QualityDataModule) -> list[pl.Callback]:
    """Build the callbacks; certification where the defense has a certificate, else plain records.

    A certificate that n draws cannot give is refused here, before any work.
    """
    unused = {"records" if defense.certifiable else "certification"}
    attack = build_attack(config)
    if attack is None:
        unused.add("attacks")
    callbacks = [
        build(node, **({"attack": attack} if name == "attacks" else {}))
        for name, node in config.callbacks.items()
        if name not in unused and node
    ]
    for callback in callbacks:
        if isinstance(callback, Certification):
            callback.check(defense, data.test_set.sizes())
    return callbacks


class NoSignalConnector(_SignalConnector):
    """Leaves signals to ``certiqa.entry.preemption``.

    Lightning's own handler of SIGTERM ends a pass without the checkpoint between two batches, and talks to the other
    processes from within the handler, whatever they are about to exchange.
    """

    def register_signal_handlers(self) -> None:
        """Register none."""


def build_trainer(config: DictConfig, callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """Build the Lightning trainer with its loggers."""
    # a checkpoint callback is ours, and nothing may be written outside the run's folder
    options: dict[str, Any] = {"callbacks": callbacks, "logger": loggers or False, "default_root_dir": config.paths.run}
    options["plugins"] = [DurableCheckpointIO()]
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        options["enable_checkpointing"] = False  # Lightning would add one that it resumes wrongly from
    if SLURMEnvironment.detect():
        # Lightning would requeue the job too, and pass SIGTERM over: that is for submitit and this project to do
        options["plugins"].append(SLURMEnvironment(auto_requeue=False))
    if config.trainer.accelerator == "auto":  # would take Apple's GPU, too, which has no float64 for the scores
        options["accelerator"] = chosen_device(config)
    trainer = build(config.trainer, **options)
    assert isinstance(trainer, pl.Trainer)
    trainer._signal_connector = NoSignalConnector(trainer)
    return trainer


def let_go_of_ranks(trainer: pl.Trainer) -> None:
    """Forget the other ranks of an interrupted run, which have been ended.

    Lightning's observer would kill this process as soon as it sees that, in the middle of writing the summary.
    """
    if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
        launcher.procs.clear()


def chosen_device(config: DictConfig) -> str:
    """Return where to compute without a trainer: "cuda" or "cpu", as ``trainer.accelerator`` says.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    asked = config.trainer.accelerator
    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={asked}, but torch finds no GPU; leave it at auto or choose cpu")
    return "cuda" if asked in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def sides_to_score(defense: QualityMetric) -> tuple[int, int]:
    """Return the smallest (height, width) that both the defense and the metric behind it score."""
    (height, width), (plain_height, plain_width) = defense.min_sides, undefended(defense).min_sides
    return max(height, plain_height), max(width, plain_width)


def check_shares(trainer: pl.Trainer, data: QualityDataModule) -> None:
    """Raise UserError where a process would have no image to test, which Lightning stops at in the middle of a run."""
    if trainer.world_size > len(data.test_set):
        raise UserError(
            f"{trainer.world_size} processes cannot share {len(data.test_set)} test images; lower trainer.devices, or "
            "raise data.limit_test"
        )


def run_folder(config: DictConfig) -> Path:
    """Return the run's folder, made by Hydra."""
    return Path(config.paths.run)
