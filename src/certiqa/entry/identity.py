"""A run is named after what it computes: the hash of its semantic config, not of where or how fast it runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.resolvers import oc

from certiqa.errors import UserError
from certiqa.options import fraction

SWEEP = "CERTIQA_SWEEP"  # in the environment of a sweep's jobs: the sweep's name
NOT_SEMANTIC = (
    "fresh",
    "name",
    "logger",
    "paths",
    "callbacks.progress",
    "callbacks.attacks",
    "attack.save_images",
    "data.num_workers",
    "data.cache",
    "data.root",
    "data.prepare",
    "data.eval_batch_size",
    "defense.batch_size",
    "defense.workers",
    "defense.compile",
    "defense.checkpoint",
    "defense.chunk",
    "certification.compile",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
)
"""Keys that change where, how fast or how visibly a run computes, but not what."""
REPEATED = {"direction": "attack.direction", "aim": "attack.aim", "seed": "seed"}
"""What ``callbacks.attacks`` repeats of other keys, which alone count."""
CHECKPOINTS = "certiqa.callbacks.Checkpoints"
ONCE_CHECKPOINTS = {
    "_target_": "pytorch_lightning.callbacks.ModelCheckpoint",
    "dirpath": "/checkpoints",
    "save_last": True,
    "save_top_k": 0,
    "every_n_epochs": 1,
    "save_on_train_epoch_end": True,
}
"""What ``callbacks.checkpoint`` was when runs were first named; they keep their names, as it decides no number."""


@contextmanager
def environment_as_text() -> Iterator[None]:
    """Let ``${oc.env:TOKEN}`` stand for itself where configs are resolved: what it holds may be a secret.

    Numbers, and the default of a variable that is not set, stand for themselves.
    """

    def text(key: str, *default: str | None) -> str | None:
        value = oc.env(key, *default)
        is_number = value is None or re.fullmatch(r"[\d.eE+*/ -]+", value)
        return value if is_number or key not in os.environ else f"${{oc.env:{key}}}"

    OmegaConf.register_new_resolver("oc.env", text, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def public_config(config: DictConfig) -> dict[str, Any]:
    """Return a composed config, resolved, as it may be kept and sent: what the environment holds stays unresolved."""
    with environment_as_text():
        content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


ADDED = {
    "optimise": None,
    "training.restart": False,
    "objective.ranking": "hinge",
    "objective.target": "l1",
    "data.guises": 0,
}
"""Keys that runs once did not have, by the value that says what was done then: with it, runs keep their names."""


def semantic_config(config: DictConfig, *, environment: bool = False) -> dict[str, Any]:
    """Return the part of a composed config that decides the numbers, resolved.

    Args:
        config: the composed config.
        environment: also what comes from environment variables, to be used and not to be kept; else texts from there
            stay ``${oc.env:NAME}``, so that two of their values are told apart only by what they lead to, as the
            fingerprints of weights and data.

    Raises:
        UserError: the attack is changed in its callback, where no name of a run and no report would say so.
    """
    copy = OmegaConf.create({key: config._get_node(key) for key in config if key != "hydra"})
    copy.name = ""
    copy.paths = dict.fromkeys(config.paths, "")
    with nowhere(), nullcontext() if environment else environment_as_text():
        chosen = OmegaConf.to_container(copy, resolve=True)
    assert isinstance(chosen, dict)
    for dotted, value in ADDED.items():
        section, leaf = place_of(chosen, dotted)
        if leaf in section and section[leaf] == value:
            del section[leaf]
    check_attacks(chosen)
    if (chosen["callbacks"].get("checkpoint") or {}).get("_target_") == CHECKPOINTS:
        chosen["callbacks"]["checkpoint"] = dict(ONCE_CHECKPOINTS)
    for dotted in NOT_SEMANTIC:
        if dotted == "data.root" and chosen["data"].get("name") == "folder":
            continue  # elsewhere it says where a data set is, here which one
        section, leaf = place_of(chosen, dotted)
        section.pop(leaf, None)
    return {str(key): value for key, value in chosen.items()}


def place_of(content: dict[Any, Any], dotted: str) -> tuple[dict[Any, Any], str]:
    """Return the section that holds a dotted key, empty where there is none, and the key in it."""
    *parents, leaf = dotted.split(".")
    for parent in parents:
        content = content.get(parent) or {}
    return content, leaf


@contextmanager
def nowhere() -> Iterator[None]:
    """Let ``${hydra:runtime.output_dir}`` be empty: a run's folder is named after the config, not the reverse."""
    if not HydraConfig.initialized():
        yield
        return
    runtime: Any = HydraConfig.get().runtime
    before = runtime._get_node("output_dir")._value()
    with read_write(runtime):
        runtime.output_dir = ""
    try:
        yield
    finally:
        with read_write(runtime):
            runtime.output_dir = before


def check_attacks(chosen: dict[Any, Any]) -> None:
    """Raise UserError where ``callbacks.attacks`` attacks otherwise than the keys say that it repeats."""
    callback = (chosen.get("callbacks") or {}).get("attacks") or {}
    for option, dotted in REPEATED.items():
        said: Any = chosen
        for part in dotted.split("."):
            said = said.get(part) if isinstance(said, dict) else None
        if option in callback and callback[option] != said:
            raise UserError(
                f"callbacks.attacks.{option}={callback[option]} would attack otherwise than {dotted}={said} says, in "
                f"the folder of that run; set {dotted}={callback[option]}"
            )


def flat_identity(config: DictConfig, *, environment: bool = False) -> dict[str, Any]:
    """Return the semantic config with dotted keys, as records are stamped with it."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix.removesuffix(".")] = node

    walk(semantic_config(config, environment=environment), "")
    return flat


def config_hash(config: DictConfig) -> str:
    """Return eight hexadecimal digits of the semantic config."""
    text = json.dumps(semantic_config(config), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def register_resolvers() -> None:
    """Register ``${run_hash:}``, ``${metric_label:}`` and ``${fraction:8/255}`` for OmegaConf."""
    OmegaConf.register_new_resolver("run_hash", lambda *, _root_: config_hash(_root_), replace=True)
    OmegaConf.register_new_resolver("metric_label", lambda *, _root_: metric_label(_root_), replace=True)
    OmegaConf.register_new_resolver("attack_label", lambda *, _root_: attack_label(_root_), replace=True)
    OmegaConf.register_new_resolver("fraction", fraction, replace=True)
    OmegaConf.register_new_resolver("sweep_group", sweep_group, replace=True)


def sweep_group() -> str | None:
    """Return the name of the sweep that the job belongs to, the same when it is run again; None outside sweeps."""
    if named := os.environ.get(SWEEP):
        return named
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return f"{HydraConfig.get().job.config_name}-{experiment or 'sweep'}"


def attack_label(config: DictConfig) -> str:
    """Return what a run's folder says of its attack: ``-ifgsm``, nothing without one."""
    target = config.attack.get("_target_")
    return f"-{snake_case(str(target).rpartition('.')[2])}" if target else ""


def snake_case(name: str) -> str:
    """Return a class's name as options are written: ``ClipiqaPlus`` -> ``clipiqa_plus``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def metric_label(config: DictConfig) -> str:
    """Return a metric's name for folders, from its class: ``certiqa.metrics.ClipiqaPlusMetric`` -> ``clipiqa_plus``."""
    if config.metric.get("metric_name"):
        return str(config.metric.metric_name)
    return snake_case(str(config.metric._target_).rpartition(".")[2].removesuffix("Metric"))
