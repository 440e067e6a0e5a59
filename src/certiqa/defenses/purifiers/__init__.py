"""The purifiers."""

from certiqa.defenses.purifiers.build import purify_with
from certiqa.defenses.purifiers.compression import Jpeg
from certiqa.defenses.purifiers.diffusion import Diffpure, DiffpureUnsharp
from certiqa.defenses.purifiers.disco import Disco
from certiqa.defenses.purifiers.fcn import Fcn
from certiqa.defenses.purifiers.geometric import RandomRotate
from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS, load_purifier
from certiqa.defenses.purifiers.restoration import Restoration

__all__ = [
    "PURIFIERS",
    "WITH_WEIGHTS",
    "Diffpure",
    "DiffpureUnsharp",
    "Disco",
    "Fcn",
    "Jpeg",
    "RandomRotate",
    "Restoration",
    "load_purifier",
    "purify_with",
]
