"""Options that give attacks of different kinds the same l_inf, and the search that finds them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from certiqa.attacks.base import AttackResult
from certiqa.attacks.registry import ATTACKS, load_attack
from certiqa.attacks.target import Direction
from certiqa.errors import UserError, suggest
from certiqa.metrics import QualityMetric

LEVELS = (2, 4, 8, 16)
"""Mean l_inf of the presets, in 8-bit steps."""

FILE = Path(__file__).parents[1] / "assets" / "attack_presets.json"
"""Written by benchmarks/attack_presets.py."""

LEFT_OUT = dict.fromkeys(
    ("pgd_l2", "sma_l2", "rank_inversion_l2"),
    "its budget is an l2 radius, which it uses to compare with certificates of that radius",
)
"""Attacks that equal l_inf would say nothing about, with the reason."""


@cache
def presets() -> dict[str, dict[int, float]]:
    """Return the measured strengths: attack -> l_inf in 8-bit steps -> value of the attack's ``strength`` option."""
    found = json.loads(FILE.read_text(encoding="utf-8"))["strengths"]
    return {name: {int(level): value for level, value in values.items()} for name, values in found.items()}


def preset_options(name: str, linf: float = 4 / 255) -> dict[str, float]:
    """Return the options that give an attack this mean l_inf: ``load_attack(name, **preset_options(name, 8/255))``.

    For attacks inside an l_inf ball they are its eps, whatever the level. For the others they were measured, on the
    embedded metric and photographs; another metric gives another mean, which ``calibrate`` can set right.

    Args:
        name: one of ``ATTACKS``.
        linf: mean of the images' largest changes, in [0, 1] pixel units: 2, 4, 8 or 16 / 255 where it was measured.

    Raises:
        UserError: unknown attack or level, or an attack for which l_inf means nothing.
    """
    if name not in ATTACKS:
        raise UserError(f"no attack '{name}'; there are: {', '.join(ATTACKS)}.{suggest(name, ATTACKS)}")
    if ATTACKS[name].norm == "linf" and ATTACKS[name].strength == "eps":
        return {"eps": float(linf)}
    if name not in presets():
        reason = LEFT_OUT.get(name, f"its budget is of norm '{ATTACKS[name].norm}'")
        raise UserError(f"attack '{name}' has no preset of equal l_inf: {reason}; give its own options instead")
    level = round(linf * 255)
    if level not in presets()[name] or abs(linf * 255 - level) > 1e-3:
        known = ", ".join(f"{level}/255" for level in presets()[name])
        raise UserError(
            f"presets of '{name}' were measured at an l_inf of {known}, not {linf:g}; take one of these, or find "
            "the option with certiqa.attacks.calibrate"
        )
    return {ATTACKS[name].strength: presets()[name][level]}


def mean_linf(result: AttackResult, images: Tensor) -> float:
    """Return the mean over images of the largest change before rounding, in [0, 1] pixel units."""
    return float((result.unrounded - images).abs().flatten(1).amax(dim=1).mean())


def calibrate(
    name: str,
    linf: float,
    metric: QualityMetric,
    images: Tensor,
    *,
    direction: Direction = "raise",
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    start: float | None = None,
    tolerance: float = 0.02,
    evaluations: int = 16,
    **options: Any,
) -> float:
    """Return the value of an attack's ``strength`` option that gives this mean l_inf over images.

    Brackets it by doubling or halving, then bisects, on logarithms and with a secant's guess where that lies well
    inside the bracket. Attacks inside an l_inf ball need no search: their eps is returned.

    Args:
        name: one of ``ATTACKS``.
        linf: wanted mean of the images' largest changes before rounding, in [0, 1] pixel units.
        metric: the metric to attack.
        images: clean images ``(N, 3, H, W)`` in [0, 1], not those of a test.
        direction: of the attack.
        image_ids: of the attack.
        seed: of the attack.
        start: first guess.
        tolerance: relative error of the mean l_inf that is good enough.
        evaluations: attacks at most.
        options: other options of the attack.

    Raises:
        UserError: unknown attack or option, or no value found; then the nearest is named.
    """
    if not 0 < linf <= 1:
        raise UserError(f"linf must be in (0, 1], in [0, 1] pixel units (8/255), got {linf}")
    attack = load_attack(name, **options)
    if attack.norm == "linf" and attack.strength == "eps":
        return float(linf)
    low = high = nearest = None  # (log of strength, log of relative l_inf)
    guess = math.log(float(getattr(attack, attack.strength)) if start is None else start)
    for _ in range(evaluations):
        attack = load_attack(name, **{**options, attack.strength: math.exp(guess)})
        result = attack.craft(metric, images, direction, image_ids=image_ids, seed=seed)
        point = guess, math.log(max(mean_linf(result, images), 1e-9) / linf)
        if nearest is None or abs(point[1]) < abs(nearest[1]):
            nearest = point
        if abs(point[1]) <= tolerance:
            break
        if point[1] < 0:
            low = point
        else:
            high = point
        if low is None or high is None:
            guess -= max(-math.log(4), min(math.log(4), point[1] * 1.2))
            continue
        share = -low[1] / (high[1] - low[1])
        guess = low[0] + (high[0] - low[0]) * (share if 0.1 < share < 0.9 else 0.5)
    assert nearest is not None
    if abs(nearest[1]) > max(0.1, tolerance):
        raise UserError(
            f"no {attack.strength} gives attack '{name}' a mean l_inf of {linf:g}: the nearest of {evaluations} tried, "
            f"{math.exp(nearest[0]):.4g}, gives {linf * math.exp(nearest[1]):.4g}; try more steps, or another start"
        )
    return math.exp(nearest[0])
