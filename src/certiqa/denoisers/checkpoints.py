"""Denoiser checkpoints: weights beside the architecture and the noise level they were trained for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from certiqa.denoisers.dncnn import DnCNN
from certiqa.denoisers.unet import UNet
from certiqa.errors import UserError, suggest
from certiqa.metrics.weights import SHIPPED, load_strictly, read_weights, save_weights
from certiqa.options import Budget, Choices
from certiqa.signatures import hands_on

DENOISERS: dict[str, type[nn.Module]] = {"unet": UNet, "dncnn": DnCNN}
"""The networks that ``load_denoiser`` builds, by name."""
_OPTIONS = {"unet": ("channels",), "dncnn": ("depth", "width")}


def name_of(denoiser: nn.Module) -> str:
    """Return the name under which ``DENOISERS`` has this architecture, or its class path."""
    for name, architecture in DENOISERS.items():
        if type(denoiser) is architecture:
            return name
    return f"{type(denoiser).__module__}.{type(denoiser).__qualname__}"


def build_denoiser(name: str, **options: Any) -> nn.Module:
    """Build an untrained denoiser by name; raises UserError for an unknown one."""
    if name not in DENOISERS:
        raise UserError(f"no denoiser '{name}'; there are: {', '.join(DENOISERS)}.{suggest(name, DENOISERS)}")
    return DENOISERS[name](**options)


def save_denoiser(
    denoiser: nn.Module, path: str | Path, *, sigma: float | tuple[float, float], notes: Mapping[str, str]
) -> None:
    """Write weights as safetensors with architecture, options, sigma (or its range) and ``notes`` as metadata.

    A tensor that a network shares between layers is written under each of its names, so that ``load_state_dict`` of the
    same network finds all of them.
    """
    name = name_of(denoiser)
    options = {key: getattr(denoiser, key) for key in _OPTIONS.get(name, ())}
    metadata = {**notes, "denoiser": name, "options": json.dumps(options), "sigma": json.dumps(sigma)}
    save_weights(denoiser, path, {key: str(value) for key, value in metadata.items()})


@hands_on(lambda given: DENOISERS.get(str(given.get("name", "unet"))))
def load_denoiser(
    name: Annotated[str, Choices(*DENOISERS)] = "unet",
    *,
    weights: str | Path | None = None,
    sigma: Budget | None = None,
    allow_sigma_mismatch: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a denoiser, untrained or with weights.

    One with weights carries what they say of themselves: ``trained_sigma``, the level (or the range) that they were
    trained for, by which ``certiqa.defenses.MedianSmoothing`` refuses to smooth with another; ``trained_objective``;
    and ``trained_through``, the name of the metric that they were trained through. None where the file does not say.

    Args:
        name: architecture, one of ``DENOISERS``; weights that say their own architecture must agree.
        weights: a path, or the name of shipped ones (``shipped_denoisers()``); None leaves it untrained.
        sigma: noise level it is to serve, in [0, 1] pixel units; weights trained for another are refused at once. None
            leaves that to the defense.
        allow_sigma_mismatch: accept weights trained for any level, here and in the defense.
        options: of the architecture; those that the weights say of theirs must agree, and need not be given.

    Raises:
        UserError: unknown name, weights that are missing or do not fit, other options than theirs, or another sigma.
    """
    if weights is None:
        return build_denoiser(name, **options)
    path = SHIPPED / f"{weights}.safetensors" if str(weights) in shipped_denoisers() else Path(weights)
    state, metadata = read_weights(path)
    if metadata.get("denoiser", name) != name:
        raise UserError(f"the weights in '{path}' are of a {metadata['denoiser']}; use denoiser={metadata['denoiser']}")
    said = json.loads(metadata.get("options", "{}"))
    for key, value in said.items():
        given = options.get(key)
        if given is not None and (list(given) if isinstance(given, Sequence) else given) != value:
            raise UserError(
                f"the weights in '{path}' are of a {name} with {key}={value}, but denoiser.{key}={given} is asked for; "
                f"set denoiser.{key}={value}"
            )
    denoiser = build_denoiser(name, **{**options, **said})
    load_strictly(denoiser, state, path)
    denoiser.trained_sigma = json.loads(metadata.get("sigma", "null"))
    denoiser.trained_objective = metadata.get("objective")  # type: ignore[assignment]
    denoiser.trained_through = trained_through(metadata)  # type: ignore[assignment]
    denoiser.weights_source = str(weights)  # type: ignore[assignment]
    denoiser.allow_sigma_mismatch = allow_sigma_mismatch  # type: ignore[assignment]
    if sigma is not None:
        check_sigma(denoiser, sigma, f" in '{path}'")
    return denoiser


def trained_through(metadata: Mapping[str, str]) -> str | None:
    """Return the metric whose scores a network was trained with, by its file; None for none, or none known."""
    if "trained_through" in metadata:
        return metadata["trained_through"] or None
    return metadata.get("metric") if metadata.get("objective") == "mse_ranking" else None


def shipped_denoisers() -> list[str]:
    """Return the names of the denoisers shipped with the package, ``<metric>_<defense>``."""
    return sorted(path.stem for path in SHIPPED.glob("*_dms*.safetensors"))


def check_sigma(denoiser: nn.Module, sigma: float, source: str = "") -> None:
    """Raise UserError for a denoiser that is known to be trained for another noise level, unless it was allowed.

    Args:
        denoiser: any network; nothing is known of one without ``trained_sigma``, a level or a (low, high) range.
        sigma: the smoothing's noise level, in [0, 1] pixel units.
        source: where its weights come from, for the message.
    """
    level = getattr(denoiser, "trained_sigma", None)
    if level is None or getattr(denoiser, "allow_sigma_mismatch", False):
        return
    low, high = level if isinstance(level, list | tuple) else (level, level)
    if not low - 1e-9 <= sigma <= high + 1e-9:
        raise UserError(
            f"the denoiser{source} was trained for sigma={level}, but sigma={sigma} is asked for; train one for "
            f"sigma={sigma}, or accept it with denoiser.allow_sigma_mismatch=true "
            "(load_denoiser(..., allow_sigma_mismatch=True))"
        )
