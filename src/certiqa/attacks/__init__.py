"""Attacks on quality metrics: each sees a metric, defended or not, and is adaptive by that."""

from certiqa.attacks.base import Attack, AttackResult
from certiqa.attacks.blackbox import BlackBox
from certiqa.attacks.evolution import OnePixel
from certiqa.attacks.generator import GenerativeUAP
from certiqa.attacks.gradient import AMIFGSM, FGSM, IFGSM, MIFGSM, PGDL2, GradientAttack, PGDLinf
from certiqa.attacks.nes import NES
from certiqa.attacks.parsimonious import Parsimonious
from certiqa.attacks.patch import PatchRS
from certiqa.attacks.patterns import UAP, CumulativeUAP
from certiqa.attacks.registry import ATTACKS, load_attack
from certiqa.attacks.square import Ran, Square
from certiqa.attacks.target import Target
from certiqa.attacks.universal import UniversalAttack

__all__ = [
    "AMIFGSM",
    "ATTACKS",
    "FGSM",
    "IFGSM",
    "MIFGSM",
    "NES",
    "PGDL2",
    "UAP",
    "Attack",
    "AttackResult",
    "BlackBox",
    "CumulativeUAP",
    "GenerativeUAP",
    "GradientAttack",
    "OnePixel",
    "PGDLinf",
    "Parsimonious",
    "PatchRS",
    "Ran",
    "Square",
    "Target",
    "UniversalAttack",
    "load_attack",
]
