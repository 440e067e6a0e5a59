"""Attacks on quality metrics: each sees a metric, defended or not, and is adaptive by that."""

from certiqa.attacks.base import Attack, AttackResult
from certiqa.attacks.gradient import AMIFGSM, FGSM, IFGSM, MIFGSM, PGDL2, GradientAttack, PGDLinf
from certiqa.attacks.registry import ATTACKS, load_attack
from certiqa.attacks.suite import Noise, Suite, members
from certiqa.attacks.target import Target

__all__ = [
    "AMIFGSM",
    "ATTACKS",
    "FGSM",
    "IFGSM",
    "MIFGSM",
    "PGDL2",
    "Attack",
    "AttackResult",
    "GradientAttack",
    "Noise",
    "PGDLinf",
    "Suite",
    "Target",
    "load_attack",
    "members",
]
