"""Defenses: each wraps a metric and is a metric again."""

from certiqa.defenses.base import no_defense, undefended
from certiqa.defenses.chain import build_chain
from certiqa.defenses.linear import LinearOperator, LinearStep, LinearSteps, Resize
from certiqa.defenses.noise import STREAMS, fill_noise, noise_key
from certiqa.defenses.purified import PurifiedMetric, Purifier
from certiqa.defenses.purifiers import PURIFIERS, Jpeg, Rotate
from certiqa.defenses.smoothing import MedianSmoothing, sample_median

__all__ = [
    "PURIFIERS",
    "STREAMS",
    "Jpeg",
    "LinearOperator",
    "LinearStep",
    "LinearSteps",
    "MedianSmoothing",
    "PurifiedMetric",
    "Purifier",
    "Resize",
    "Rotate",
    "build_chain",
    "fill_noise",
    "no_defense",
    "noise_key",
    "sample_median",
    "undefended",
]
