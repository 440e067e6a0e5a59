"""Attacks by name."""

from __future__ import annotations

import inspect
from typing import Any

from certiqa.attacks.apgd import APGD
from certiqa.attacks.base import Attack
from certiqa.attacks.colour import ABOffset, AdvCF
from certiqa.attacks.evolution import OnePixel
from certiqa.attacks.generator import GenerativeUAP
from certiqa.attacks.gradient import AMIFGSM, FGSM, IFGSM, MIFGSM, PGDL2, PGDLinf
from certiqa.attacks.nes import NES
from certiqa.attacks.parsimonious import Parsimonious
from certiqa.attacks.patch import PatchRS
from certiqa.attacks.patterns import UAP, CumulativeUAP
from certiqa.attacks.perceptual import MADC, SSAH, Korhonen, Zhang
from certiqa.attacks.rank_inversion import RankInversion, RankInversionL2
from certiqa.attacks.sma import SMA, SMAL2
from certiqa.attacks.spatial import StAdv
from certiqa.attacks.square import Ran, Square
from certiqa.attacks.suite import Noise
from certiqa.errors import UserError, suggest

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        *(FGSM, IFGSM, MIFGSM, AMIFGSM, PGDLinf, PGDL2, APGD),
        *(MADC, Korhonen, Zhang, SSAH, AdvCF, ABOffset, StAdv),
        *(UAP, CumulativeUAP, GenerativeUAP),
        *(Square, Ran, NES, Parsimonious, OnePixel, PatchRS),
        *(SMA, SMAL2, RankInversion, RankInversionL2),
        Noise,
    )
}
"""The attacks by the name that ``load_attack`` and ``attack=`` take."""


def load_attack(name: str, **options: Any) -> Attack:
    """Build an attack by name, e.g. ``load_attack("ifgsm", eps=4/255, steps=10)``.

    Args:
        name: one of ``ATTACKS``.
        options: of that attack.

    Raises:
        UserError: unknown name or option, or a budget that is not allowed.
    """
    if name not in ATTACKS:
        raise UserError(f"no attack '{name}'; there are: {', '.join(ATTACKS)}.{suggest(name, ATTACKS)}")
    known = options_of(ATTACKS[name])
    for key in options:
        if key not in known:
            raise UserError(f"attack '{name}' has no option '{key}'; it has: {', '.join(known)}.{suggest(key, known)}")
    return ATTACKS[name](**options)


def options_of(attack: type[Attack]) -> list[str]:
    """Return the options of an attack, its own and those that it hands on."""
    names: dict[str, None] = {}
    for owner in attack.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = inspect.signature(owner.__init__).parameters  # type: ignore[misc]
        names |= {name: None for name in parameters if name not in ("self", "options")}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return list(names)
