"""A metric behind a purifier that is named: what the configs of neural purifiers call."""

from __future__ import annotations

from typing import Annotated, Any

from torch import nn

from certiqa.defenses.purified import PurifiedMetric
from certiqa.defenses.purifiers.network import given_weights
from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS, load_purifier, weights_for
from certiqa.options import Choices, Seed
from certiqa.signatures import hands_on


@hands_on(lambda given: (PURIFIERS | WITH_WEIGHTS).get(str(given.get("purifier"))))
def purify_with(
    metric: nn.Module,
    purifier: str,
    *,
    backward: Annotated[str, Choices("native", "identity", "none")] | None = None,
    seed: Seed = 0,
    name: str | None = None,
    **options: Any,
) -> PurifiedMetric:
    """Return ``PurifiedMetric(metric, load_purifier(purifier, **options))``.

    So that the weights of ``defense=restoration`` are ``defense.weights``.

    Args:
        metric: the metric to defend.
        purifier: one of ``PURIFIERS``.
        backward: see ``PurifiedMetric``.
        seed: see ``PurifiedMetric``.
        name: see ``PurifiedMetric``.
        options: of the purifier; a network without weights takes those that are shipped for the metric.

    Raises:
        UserError: see ``load_purifier``; no weights are given, and none are shipped for the metric.
    """
    if purifier in WITH_WEIGHTS and not given_weights(options.get("weights")):
        options["weights"] = weights_for(purifier, metric)
    return PurifiedMetric(metric, load_purifier(purifier, **options), backward=backward, seed=seed, name=name)
