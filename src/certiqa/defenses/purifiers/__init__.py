"""The purifiers."""

from certiqa.defenses.linear import Flip, GaussianBlur, Resize, Upscale
from certiqa.defenses.purifiers.build import purify_with
from certiqa.defenses.purifiers.compression import DiffJpeg, Jpeg, Jpeg2000
from certiqa.defenses.purifiers.diffusion import Diffpure, DiffpureUnsharp
from certiqa.defenses.purifiers.disco import Disco
from certiqa.defenses.purifiers.fcn import Fcn
from certiqa.defenses.purifiers.filters import Bilateral, ColorQuantization, MedianBlur, RandomNoise, Unsharp
from certiqa.defenses.purifiers.geometric import RandomCrop, RandomRotate
from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS, load_purifier
from certiqa.defenses.purifiers.restoration import Restoration

__all__ = [
    "PURIFIERS",
    "WITH_WEIGHTS",
    "Bilateral",
    "ColorQuantization",
    "DiffJpeg",
    "Diffpure",
    "DiffpureUnsharp",
    "Disco",
    "Fcn",
    "Flip",
    "GaussianBlur",
    "Jpeg",
    "Jpeg2000",
    "MedianBlur",
    "RandomCrop",
    "RandomNoise",
    "RandomRotate",
    "Resize",
    "Restoration",
    "Unsharp",
    "Upscale",
    "load_purifier",
    "purify_with",
]
