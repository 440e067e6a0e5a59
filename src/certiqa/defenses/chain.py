"""Several steps as one defense: ``defense=chain defense.steps=[resize,ms]``, ``[ms,jpeg]``, ``[flip,jpeg]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Len
from torch import nn

from certiqa.defenses.base import Defense
from certiqa.defenses.purified import LipschitzSteps, PurifiedMetric, Purifier
from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS, check_step_names, load_step, options_by_step
from certiqa.errors import UserError, suggest
from certiqa.metrics.base import QualityMetric, as_metric
from certiqa.options import Choices, Node, Seed
from certiqa.signatures import hands_on

SMOOTHING = "ms"  # what conf/defense/chain.yaml calls it, whether or not it is among the steps
Option = Purifier | Mapping[str, Any] | Callable[..., QualityMetric]


def options_of_chain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands beside a chain's own options: those of its purifiers, and steps of the user's own."""
    own = [key for key, value in given.items() if isinstance(value, Mapping) and "_target_" in value]
    return {**options_by_step(given), **dict.fromkeys((SMOOTHING, *own), Annotated[Any, Node()] | None)}


@hands_on(options_of_chain)
def build_chain(
    metric: nn.Module,
    steps: Annotated[Sequence[str], Len(1)],
    *,
    name: str = "chain",
    denoiser: nn.Module | None = None,
    backward: Annotated[str, Choices("native", "identity", "none")] | None = None,
    seed: Seed = 0,
    **options: Option,
) -> QualityMetric:
    """Build a defense of several steps, applied to an image in the order given.

    With median smoothing among them the chain is certified. Before its noise only purifiers with a known Lipschitz
    constant may stand, and none that is random; whatever stands after it is part of what is smoothed, with fresh
    randomness at every draw, behind the denoiser where there is one. Without smoothing nothing is certified.

    Args:
        metric: the metric to defend.
        steps: names of purifiers, or among ``options``, in the order of application.
        name: what tables call it.
        denoiser: of the smoothing; ``ms`` takes none.
        backward: of the purifiers, see ``PurifiedMetric``; None for what suits each. A step before the noise has
            its own gradient.
        seed: of random purifiers.
        options: for each name a purifier, the options of a purifier of that name, or a function
            ``(metric, before=..., name=..., denoiser=...)`` that smooths. Purifiers that are no steps may have some.

    Raises:
        UserError: for an unknown name, of a step or of options, a network without weights, two smoothings, or a step
            that would void the certificate.
    """
    if not steps:
        raise UserError("defense.steps is empty; give steps in order, e.g. [resize,ms], [ms,jpeg] or [flip,jpeg]")
    check_step_names(options, steps, also=[SMOOTHING])
    chosen = [_step(step, options, metric) for step in steps]
    smoothing = [place for place, step in enumerate(chosen) if not isinstance(step, Purifier)]
    if len(smoothing) > 1:
        raise UserError(
            f"defense.steps={list(steps)} smooths {len(smoothing)} times, but a certificate speaks of one noise; keep "
            "one of them"
        )
    split = smoothing[0] if smoothing else -1
    defended = as_metric(metric)
    for place in range(len(chosen) - 1, split, -1):
        last = place == split + 1
        defended = PurifiedMetric(
            defended, chosen[place], backward=backward, seed=seed, place=place, name=name if last else None
        )
    if not smoothing:
        if denoiser is not None:
            raise UserError(
                f"defense.steps={list(steps)} has no smoothing, so that nothing would use the denoiser; add ms, or set "
                "denoiser=none"
            )
        return defended
    before = LipschitzSteps(chosen[:split]) if split else None
    extra = {} if denoiser is None else {"denoiser": denoiser}
    defense: Defense = chosen[split](defended, before=before, name=name, **extra)
    assert defense.certifiable
    return defense


def _step(name: str, options: Mapping[str, Option], metric: nn.Module) -> Any:
    """Return a purifier, or the function that smooths."""
    option = options.get(name)
    if name not in options and name not in PURIFIERS and name not in WITH_WEIGHTS:
        known = dict.fromkeys([*options, *PURIFIERS, *WITH_WEIGHTS])
        raise UserError(f"no step '{name}'; there are: {', '.join(known)}.{suggest(name, known)}")
    if option is None or isinstance(option, Mapping):
        return load_step(name, option, metric)
    return option
