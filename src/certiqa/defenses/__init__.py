"""Defenses: each wraps a metric and is a metric again."""

from certiqa.defenses.base import Defense, no_defense, reported_scores, undefended
from certiqa.defenses.chain import build_chain
from certiqa.defenses.ensemble import PurifierEnsemble
from certiqa.defenses.linear import Flip, GaussianBlur, LinearOperator, LinearStep, Resize, Upscale
from certiqa.defenses.noise import STREAMS, fill_noise, noise_key
from certiqa.defenses.purified import LipschitzSteps, PurifiedMetric, Purifier, purified_images
from certiqa.defenses.purifiers import (
    PURIFIERS,
    WITH_WEIGHTS,
    Bilateral,
    ColorQuantization,
    DiffJpeg,
    Jpeg,
    Jpeg2000,
    MedianBlur,
    RandomCrop,
    RandomNoise,
    RandomRotate,
    Unsharp,
    load_purifier,
    purify_with,
)
from certiqa.defenses.smoothing import MedianSmoothing, sample_median

__all__ = [
    "PURIFIERS",
    "STREAMS",
    "WITH_WEIGHTS",
    "Bilateral",
    "ColorQuantization",
    "Defense",
    "DiffJpeg",
    "Flip",
    "GaussianBlur",
    "Jpeg",
    "Jpeg2000",
    "LinearOperator",
    "LinearStep",
    "LipschitzSteps",
    "MedianBlur",
    "MedianSmoothing",
    "PurifiedMetric",
    "Purifier",
    "PurifierEnsemble",
    "RandomCrop",
    "RandomNoise",
    "RandomRotate",
    "Resize",
    "Unsharp",
    "Upscale",
    "build_chain",
    "fill_noise",
    "load_purifier",
    "no_defense",
    "noise_key",
    "purified_images",
    "purify_with",
    "reported_scores",
    "sample_median",
    "undefended",
]
