"""What can be known to be wrong with a composed config before anything is built or started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from certiqa.entry.identity import semantic_config
from certiqa.entry.limits import refuse_limits
from certiqa.entry.trust import refuse_loaders
from certiqa.errors import UserError


def check_job(config: DictConfig) -> None:
    """Raise UserError for what would stop a job at its start: values not given, classes not there, radii out of reach.

    Nothing is built and no data are read, so what lies in files (images, weights) can still be wrong.
    """
    from certiqa.entry.agreement import check_options

    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    missing = [key for part, node in content.items() if part != "hydra" for key in missing_in(node, str(part))]
    if missing:
        raise UserError(must_be_given(missing[0]))
    check_seed(config)
    refuse_limits(config.trainer)
    resolved = semantic_config(config, environment=True)
    check_options(config)
    refuse_loaders(resolved)
    for target in set(targets_of(resolved)):
        check_target(target)
    defense = resolved["defense"]
    if str(defense.get("_target_")).endswith(".MedianSmoothing") and resolved.get("certification"):
        check_certificate(resolved)


def must_be_given(key: str) -> str:
    """Return what to say of a value that is ``???``."""
    return f"{key} must be given: {key}=..."


def check_seed(config: DictConfig) -> None:
    """Raise UserError for a seed that NumPy's generators do not take."""
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {config.seed}")


def missing_in(content: Any, name: str) -> Iterator[str]:
    """Yield the dotted names of the values that are still ``???``."""
    if content == "???":
        yield name
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from missing_in(value, f"{name}.{key}")


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


def check_target(target: str) -> None:
    """Raise UserError where a ``_target_`` names nothing that can be imported."""
    try:
        get_object(target)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"cannot find '{target}', which a _target_ names: {reason[0] if reason else type(error).__name__}"
        ) from error


def check_certificate(resolved: dict[str, Any]) -> None:
    """Raise UserError where so many draws cannot certify a radius, whatever the images."""
    from certiqa.certification import CertificationRequest

    asked = resolved["certification"]
    radii, sigma = [float(radius) for radius in asked["radii"]], resolved["defense"]["sigma"]
    CertificationRequest(tuple(sorted(radii)), sigma, resolved["defense"]["num_samples"], asked["confidence"])
    if draws := asked["validation_samples"]:
        CertificationRequest((float(asked["radius"]),), sigma, draws, asked["confidence"])
