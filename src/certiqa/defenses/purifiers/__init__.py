"""The purifiers."""

from certiqa.defenses.linear import Flip, GaussianBlur, Resize, Upscale
from certiqa.defenses.purifiers.compression import DiffJpeg, Jpeg, Jpeg2000
from certiqa.defenses.purifiers.filters import Bilateral, ColorQuantization, MedianBlur, RandomNoise, Unsharp
from certiqa.defenses.purifiers.geometric import RandomCrop, RandomRotate
from certiqa.defenses.purifiers.registry import PURIFIERS, load_purifier

__all__ = [
    "PURIFIERS",
    "Bilateral",
    "ColorQuantization",
    "DiffJpeg",
    "Flip",
    "GaussianBlur",
    "Jpeg",
    "Jpeg2000",
    "MedianBlur",
    "RandomCrop",
    "RandomNoise",
    "RandomRotate",
    "Resize",
    "Unsharp",
    "Upscale",
    "load_purifier",
]
