"""The check of a composed config before anything is built, any folder is made and any job of a sweep is submitted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf import Node as BaseNode
from omegaconf.errors import OmegaConfBaseException

from certiqa.descriptions import described, mark_of, shown
from certiqa.entry.identity import semantic_config
from certiqa.entry.limits import refuse_limits
from certiqa.entry.schema import job
from certiqa.entry.trust import refuse_loaders
from certiqa.errors import UserError, first_line
from certiqa.options import Node
from certiqa.signatures import Required, options_of
from certiqa.validation import MISSING, Check, allows_none, found

LONGEST_NAME = 255 - len("-01234567.previous-999")  # bytes of a file's name, less what a run's folder adds to it
UNKNOWN_YET = object()
"""A value that Hydra gives when the job starts, as ``${hydra:runtime.output_dir}``."""


class CheckBeforeRun(Callback):
    """Hydra's callback that refuses a wrong config before Hydra makes the run's folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the job's config; an error ends the process, as Hydra only warns of those of callbacks."""
        ending(check_config, config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the launcher; the jobs are checked one by one when they are planned."""
        ending(check_launcher, config)


def ending(check: Any, config: DictConfig) -> None:
    """Call a check; what it raises is told in one message and ends the process."""
    from certiqa.entry.app import TRACEBACK, fail

    try:
        check(config)
    except Exception as error:
        fail(error, os.environ.get(TRACEBACK) == "1")


def check_config(config: DictConfig) -> list[str]:
    """Check every value of a composed config, and put what words stand for in their place.

    The config then holds ``false`` where ``no`` was typed, and a number for ``sigma=25/255``, as runs are named by it.
    Returns these as overrides, for a process that composes the config again.

    Raises:
        UserError: an unknown key, a value that is not allowed, or a class that is not there.
    """
    sections = {str(key) for key in config if key != "hydra"}
    for key, option in options_of(job).named.items():
        if option.default is not Required or (key in sections and allows_none(option)):
            continue
        if key not in sections:
            raise UserError(f"{key} is missing; leave it as the configs have it, or give it: {key}=...")
        if mark_of(option.annotation) and not isinstance(config[key], DictConfig):  # others refer to what is in it
            raise UserError(f"{key} must be {described(option.annotation)}, got {shown(config[key])}")
    # in the order of the signature: what others refer to comes first
    order = sorted(sections, key=[*options_of(job).named, *sorted(sections)].index)
    copy = OmegaConf.create({key: config._get_node(key) for key in order})
    if OmegaConf.is_dict(copy.paths) and "run" in copy.paths:
        copy.paths.run = "run"  # Hydra says where, when the job starts
    given = plain(copy, "")
    if lacking := [key for key in missing_in(given) if not key.startswith("defense.")]:
        raise UserError(must_be_given(lacking[0]))
    refuse_loaders(given)
    try:
        typed, added = typed_keys(config)
        checked = Check(typed=typed, added=added, used=references(config)).options(job, given, "")
        check_together(checked)
    except UserError as error:
        raise UserError(without_secrets(str(error), config)) from None
    words = []
    for path, value in changes(given, checked):
        if path[0] in ("attack", "study") and isinstance(value, float):
            continue  # read when they are built: runs are named after budgets as they are typed
        OmegaConf.update(config, ".".join(path), value, force_add=True)
        words.append(f"++{'.'.join(path)}={shown(value)}")
    return words


def check_together(checked: Mapping[str, Any]) -> None:
    """Raise UserError for values that are allowed each, but not together."""
    sections = {"purification": "study", "metric": "metric_fit"}
    if (section := sections.get(checked["task"])) and not checked.get(section):
        raise UserError(f"task={checked['task']} needs {section}; ask for it with experiment={checked['task']}")
    if checked["task"] == "train" and not checked.get("training"):
        raise UserError("task=train is for train.py, whose config has the key training; got it in evaluate.py")
    name = checked["name"]
    for part in Path(name).parts:
        if len(part.encode(errors="surrogateescape")) > LONGEST_NAME:
            raise UserError(
                f"name is too long for a folder: {len(part.encode(errors='surrogateescape'))} bytes of at most "
                f"{LONGEST_NAME}: {part[:40]}...; give a shorter one"
            )
    attack = checked["attack"]
    if attack.get("_target_") and attack["direction"] is None:
        from certiqa.attacks import SetAttack

        if not (isinstance(kind := found(attack["_target_"], "attack"), type) and issubclass(kind, SetAttack)):
            raise UserError("attack.direction must be raise, lower or away, got null")
    trainer = checked["trainer"]
    refuse_limits(trainer)
    if trainer.get("max_steps", 1) in (0, -1) and not (trainer.get("max_epochs") or trainer.get("max_time")):
        raise UserError(
            f"trainer.max_steps must be a whole number of at least 1, got {trainer['max_steps']}; -1 (no limit) needs "
            "+trainer.max_epochs=... or +trainer.max_time=..."
        )
    if isinstance(trainer.get("val_check_interval"), float) and trainer.get("check_val_every_n_epoch", 1) is None:
        raise UserError(
            f"trainer.val_check_interval must be a whole number of steps, got {trainer['val_check_interval']}; a share "
            "of a pass needs trainer.check_val_every_n_epoch=1"
        )


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for an option of ``hydra.launcher`` that is not allowed."""
    launcher = plain(config.hydra.launcher, "hydra.launcher")
    assert isinstance(launcher, dict)
    for path, value in changes(launcher, Check().node(Node(), launcher, "hydra.launcher")):
        OmegaConf.update(config.hydra.launcher, ".".join(path), value)


def plain(node: DictConfig | ListConfig, name: str) -> Any:
    """Return a config's content, resolved, without what only a started job knows; ``???`` stays.

    Raises:
        UserError: a value refers to a key that there is not.
    """
    if isinstance(node, ListConfig):
        values = [_value(node, place, f"{name}[{place}]") for place in range(len(node))]
        return [value for value in values if value is not UNKNOWN_YET]
    keys: list[Any] = list(node)
    content = {str(key): _value(node, key, f"{name}.{key}" if name else str(key)) for key in keys}
    return {key: value for key, value in content.items() if value is not UNKNOWN_YET}


def _value(parent: DictConfig | ListConfig, key: Any, name: str) -> Any:
    node = parent._get_node(key)
    assert isinstance(node, BaseNode)
    if node._is_missing():
        return MISSING
    try:
        value = parent[key]
    except Exception as error:
        text = shown(node._value())
        if "${hydra:" in text:
            return UNKNOWN_YET
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{name}: {error.__cause__}") from error
        if not isinstance(error, OmegaConfBaseException):
            raise
        raise UserError(f"{name}={text} refers to what is not there: {first_line(error)}") from error
    if isinstance(value, DictConfig | ListConfig):
        return None if value._is_none() else plain(value, name)
    return value


def typed_keys(config: DictConfig) -> tuple[set[str], set[str]]:
    """Return the keys that were typed on the command line, and those of them that were added, with ``+``."""
    typed = OmegaConf.select(config, "hydra.overrides.task")
    words = [] if typed is None else OmegaConf.to_container(typed, resolve=False)  # they may hold ${...} of the config
    assert isinstance(words, list)
    overrides = OverridesParser.create().parse_overrides([str(word) for word in words])
    added = {override.key_or_group for override in overrides if override.is_add() or override.is_force_add()}
    return {override.key_or_group for override in overrides}, added


def without_secrets(message: str, config: DictConfig) -> str:
    """Return a message with ``${oc.env:TOKEN}`` in place of what it holds, of every variable that a config reads."""
    raw = str(OmegaConf.to_container(config, resolve=False))
    for variable in re.findall(r"\$\{oc\.env:(\w+)", raw):
        if value := os.environ.get(variable):
            message = message.replace(value, f"${{oc.env:{variable}}}")
    return message


def references(config: DictConfig) -> set[str]:
    """Return the keys at the top to which values refer, as ``${rate}`` does."""
    raw = OmegaConf.to_container(config, resolve=False)
    return set(re.findall(r"\$\{(\w+)", str(raw)))


def changes(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the places and values in which two contents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from changes(value, after.get(key, value), (*path, key))
    elif type(before) is not type(after) or before != after:
        yield path, after


def check_job(config: DictConfig) -> None:
    """Raise UserError for what would stop a job at its start: wrong values, or radii out of reach.

    Nothing is built and no data are read, so what lies in files (images, weights) can still be wrong.
    """
    check_config(config)
    check_reach(config)


def check_reach(config: DictConfig) -> None:
    """Raise UserError where a checked config asks for what cannot be: values not given, radii out of reach."""
    from certiqa.entry.agreement import check_options

    resolved = semantic_config(config, environment=True)
    if lacking := list(missing_in(resolved)):
        raise UserError(must_be_given(lacking[0]))
    check_options(config)
    defense = resolved["defense"]
    if str(defense.get("_target_")).endswith(".MedianSmoothing") and resolved.get("certification"):
        check_certificate(resolved)


def must_be_given(key: str) -> str:
    """Return what to say of a value that is ``???``."""
    return f"{key} must be given: {key}=..."


def missing_in(content: Any, name: str = "") -> Iterator[str]:
    """Yield the dotted names of the values that are still ``???``."""
    if content == MISSING:
        yield name
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from missing_in(value, f"{name}.{key}" if name else str(key))


def targets_of(content: Any) -> Iterator[str]:
    """Yield every ``_target_`` of a resolved config."""
    if isinstance(content, dict):
        if isinstance(content.get("_target_"), str):
            yield content["_target_"]
        for value in content.values():
            yield from targets_of(value)
    elif isinstance(content, list):
        for value in content:
            yield from targets_of(value)


def check_certificate(resolved: dict[str, Any]) -> None:
    """Raise UserError where so many draws cannot certify a radius, whatever the images."""
    from certiqa.certification import CertificationRequest

    asked = resolved["certification"]
    radii, sigma = [float(radius) for radius in asked["radii"]], resolved["defense"]["sigma"]
    CertificationRequest(tuple(sorted(radii)), sigma, resolved["defense"]["num_samples"], asked["confidence"])
    if draws := asked["validation_samples"]:
        CertificationRequest((float(asked["radius"]),), sigma, draws, asked["confidence"])
