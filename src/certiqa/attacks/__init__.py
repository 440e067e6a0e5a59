"""Attacks on quality metrics: each sees a metric, defended or not, and is adaptive by that."""

from certiqa.attacks.apgd import APGD
from certiqa.attacks.base import Attack, AttackResult
from certiqa.attacks.blackbox import BlackBox
from certiqa.attacks.colour import ABOffset, AdvCF
from certiqa.attacks.evolution import OnePixel
from certiqa.attacks.generator import GenerativeUAP
from certiqa.attacks.gradient import AMIFGSM, FGSM, IFGSM, MIFGSM, PGDL2, GradientAttack, PGDLinf
from certiqa.attacks.nes import NES
from certiqa.attacks.parsimonious import Parsimonious
from certiqa.attacks.patch import PatchRS
from certiqa.attacks.patterns import UAP, CumulativeUAP
from certiqa.attacks.perceptual import MADC, SSAH, Korhonen, Zhang
from certiqa.attacks.permutahedron import soft_ranks
from certiqa.attacks.presets import calibrate, preset_options
from certiqa.attacks.rank_inversion import RankInversion, RankInversionL2
from certiqa.attacks.registry import ATTACKS, load_attack
from certiqa.attacks.sets import SetAttack
from certiqa.attacks.sma import SMA, SMAL2
from certiqa.attacks.spatial import StAdv
from certiqa.attacks.square import Ran, Square
from certiqa.attacks.suite import Noise, Suite, members
from certiqa.attacks.target import Target
from certiqa.attacks.universal import UniversalAttack

__all__ = [
    "AMIFGSM",
    "APGD",
    "ATTACKS",
    "FGSM",
    "IFGSM",
    "MADC",
    "MIFGSM",
    "NES",
    "PGDL2",
    "SMA",
    "SMAL2",
    "SSAH",
    "UAP",
    "ABOffset",
    "AdvCF",
    "Attack",
    "AttackResult",
    "BlackBox",
    "CumulativeUAP",
    "GenerativeUAP",
    "GradientAttack",
    "Korhonen",
    "Noise",
    "OnePixel",
    "PGDLinf",
    "Parsimonious",
    "PatchRS",
    "Ran",
    "RankInversion",
    "RankInversionL2",
    "SetAttack",
    "Square",
    "StAdv",
    "Suite",
    "Target",
    "UniversalAttack",
    "Zhang",
    "calibrate",
    "load_attack",
    "members",
    "preset_options",
    "soft_ranks",
]
