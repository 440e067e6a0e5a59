"""Several steps as one defense: ``defense=chain defense.steps=[resize,ms]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from certiqa.defenses.linear import LinearStep, LinearSteps
from certiqa.defenses.smoothing import MedianSmoothing
from certiqa.errors import UserError, suggest
from certiqa.metrics.base import QualityMetric


def build_chain(
    metric: nn.Module,
    steps: Sequence[str],
    *,
    name: str = "chain",
    denoiser: nn.Module | None = None,
    **options: LinearStep | Callable[..., QualityMetric],
) -> QualityMetric:
    """Build a defense of several steps, applied to an image in the order given.

    Args:
        metric: the metric to defend.
        steps: names among ``options``: linear steps, then median smoothing.
        name: what tables call it.
        denoiser: of the smoothing; ``ms`` takes none.
        options: for each name a linear step, or a function ``(metric, before=..., name=..., denoiser=...)`` that
            smooths.

    Raises:
        UserError: for an unknown name, or an order that voids the certificate.
    """
    for step in steps:
        if step not in options:
            raise UserError(f"no step '{step}'; there are: {', '.join(options)}.{suggest(step, options)}")
    chosen: list[Any] = [options[step] for step in steps]
    before = [step for step in chosen if isinstance(step, LinearStep)]
    if not chosen or chosen[:-1] != before or chosen[-1] in before:
        raise UserError(
            f"defense.steps={list(steps)} cannot be certified: linear steps come first and median smoothing last, "
            "e.g. [resize,ms]"
        )
    extra = {} if denoiser is None else {"denoiser": denoiser}
    defense = chosen[-1](metric, before=LinearSteps(before) if before else None, name=name, **extra)
    assert isinstance(defense, MedianSmoothing)
    return defense
