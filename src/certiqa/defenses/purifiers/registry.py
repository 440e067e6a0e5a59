"""Purifiers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from torch import nn

from certiqa.defenses.base import undefended
from certiqa.defenses.linear import Flip, GaussianBlur, Resize, Upscale
from certiqa.defenses.purified import Purifier
from certiqa.defenses.purifiers.compression import DiffJpeg, Jpeg, Jpeg2000
from certiqa.defenses.purifiers.diffusion import Diffpure, DiffpureUnsharp
from certiqa.defenses.purifiers.disco import Disco
from certiqa.defenses.purifiers.fcn import Fcn
from certiqa.defenses.purifiers.filters import Bilateral, ColorQuantization, MedianBlur, RandomNoise, Unsharp
from certiqa.defenses.purifiers.geometric import RandomCrop, RandomRotate
from certiqa.defenses.purifiers.network import given_weights, shipped_weights
from certiqa.defenses.purifiers.restoration import RESTORERS
from certiqa.errors import UserError, suggest
from certiqa.options import OptionsOf

PURIFIERS: dict[str, type[Purifier]] = {
    purifier.name: purifier
    for purifier in (
        *(Flip, RandomRotate, RandomCrop, Resize, Upscale),
        *(RandomNoise, GaussianBlur, MedianBlur, Bilateral, Unsharp, ColorQuantization),
        *(Jpeg, DiffJpeg, Jpeg2000),
    )
}
"""The purifiers that are not networks, by the name that ``load_purifier`` and ``defense=`` take."""

_NETWORKS: tuple[type[Purifier], ...] = (Fcn, *RESTORERS, Disco, Diffpure, DiffpureUnsharp)
WITH_WEIGHTS: dict[str, type[Purifier]] = {purifier.name: purifier for purifier in _NETWORKS}
"""Purifiers that are networks: they need ``weights``, and never take random ones."""


def weights_for(name: str, metric: nn.Module) -> str:
    """Return the weights of a network of ``WITH_WEIGHTS`` that are shipped for a metric.

    Raises:
        UserError: there are none; it says where weights come from.
    """
    purifier: Any = WITH_WEIGHTS[name]
    found = shipped_weights(getattr(purifier, "shipped", None), undefended(metric).name)
    if found is None:
        raise purifier.missing_weights()
    return found


def load_step(name: str, options: Mapping[str, Any] | None, metric: nn.Module) -> Purifier:
    """Build one of several purifiers of a defense by name, whose options stand under ``defense.<name>``.

    A network without weights takes those that are shipped for the metric.

    Raises:
        UserError: see ``load_purifier``; for a network without weights it says where they go.
    """
    chosen = {str(key): value for key, value in (options or {}).items()}
    shipped = shipped_weights(getattr(WITH_WEIGHTS.get(name), "shipped", None), undefended(metric).name)
    if name in WITH_WEIGHTS and not given_weights(chosen.get("weights")):
        chosen["weights"] = shipped
    if name in WITH_WEIGHTS and chosen["weights"] is None:
        upstream = getattr(WITH_WEIGHTS[name], "upstream", None)
        which = f" ({upstream.file}, from {upstream.source})" if upstream else ""
        raise UserError(
            f"step '{name}' needs weights{which}; give them with +defense.{name}.weights=path, in Python "
            f'{name}={{"weights": path}}'
        )
    return load_purifier(name, **chosen)


def options_by_step(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of a defense of several steps: for each purifier a mapping of what it takes, or null."""
    known = PURIFIERS | WITH_WEIGHTS
    return {name: Annotated[Mapping[str, Any], OptionsOf(known[name])] | None for name in known}


def check_step_names(given: Iterable[str], steps: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise UserError for options of a name that is no step, no purifier and not among ``also``.

    A config may hold the options of purifiers that are not among the steps; a misspelt name would go unnoticed.
    """
    known = dict.fromkeys([*steps, *PURIFIERS, *WITH_WEIGHTS, *also])
    for name in given:
        if name not in known:
            raise UserError(
                f"defense.{name} gives options to '{name}', which is neither a step nor a purifier; there are: "
                f"{', '.join(known)}.{suggest(name, known)}"
            )


def load_purifier(name: str, **options: Any) -> Purifier:
    """Build a purifier by name, e.g. ``load_purifier("jpeg", quality=50)``.

    Args:
        name: one of ``PURIFIERS`` or ``WITH_WEIGHTS``.
        options: of that purifier; those that are None keep their default.

    Raises:
        UserError: unknown name or option, or a value that is not allowed.
    """
    purifiers = PURIFIERS | WITH_WEIGHTS
    if name not in purifiers:
        raise UserError(f"no purifier '{name}'; there are: {', '.join(purifiers)}.{suggest(name, purifiers)}")
    purifier = purifiers[name]
    parameters = inspect.signature(purifier).parameters.values()
    known = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for key in options:
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise UserError(f"purifier '{name}' has no option '{key}'; {has}.{suggest(key, known)}")
    return purifier(**{key: value for key, value in options.items() if value is not None})
