"""Defenses: each wraps a metric and is a metric again."""

from certiqa.defenses.base import no_defense, undefended
from certiqa.defenses.chain import build_chain
from certiqa.defenses.linear import LinearOperator, LinearStep, LinearSteps, Resize
from certiqa.defenses.noise import STREAMS, fill_noise, noise_key
from certiqa.defenses.purified import PurifiedMetric, Purifier
from certiqa.defenses.purifiers import PURIFIERS, WITH_WEIGHTS, Jpeg, RandomRotate, load_purifier, purify_with
from certiqa.defenses.smoothing import MedianSmoothing, sample_median

__all__ = [
    "PURIFIERS",
    "STREAMS",
    "WITH_WEIGHTS",
    "Jpeg",
    "LinearOperator",
    "LinearStep",
    "LinearSteps",
    "MedianSmoothing",
    "PurifiedMetric",
    "Purifier",
    "RandomRotate",
    "Resize",
    "build_chain",
    "fill_noise",
    "load_purifier",
    "no_defense",
    "noise_key",
    "purify_with",
    "sample_median",
    "undefended",
]
