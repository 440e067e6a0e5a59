"""Attacks on quality metrics: each sees a metric, defended or not, and is adaptive by that."""

from certiqa.attacks.apgd import APGD
from certiqa.attacks.base import Attack, AttackResult
from certiqa.attacks.colour import ABOffset, AdvCF
from certiqa.attacks.gradient import AMIFGSM, FGSM, IFGSM, MIFGSM, PGDL2, GradientAttack, PGDLinf
from certiqa.attacks.perceptual import MADC, SSAH, Korhonen, Zhang
from certiqa.attacks.presets import calibrate, preset_options
from certiqa.attacks.registry import ATTACKS, load_attack
from certiqa.attacks.suite import Noise, Suite, members
from certiqa.attacks.spatial import StAdv
from certiqa.attacks.target import Target

__all__ = [
    "AMIFGSM",
    "APGD",
    "ATTACKS",
    "FGSM",
    "IFGSM",
    "MADC",
    "MIFGSM",
    "PGDL2",
    "SSAH",
    "ABOffset",
    "AdvCF",
    "Attack",
    "AttackResult",
    "GradientAttack",
    "Noise",
    "PGDLinf",
    "Suite",
    "Korhonen",
    "PGDLinf",
    "StAdv",
    "Target",
    "Zhang",
    "calibrate",
    "load_attack",
    "members",
    "preset_options",
]
