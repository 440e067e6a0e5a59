"""The purifiers."""

from certiqa.defenses.purifiers.compression import Jpeg
from certiqa.defenses.purifiers.geometric import RandomRotate
from certiqa.defenses.purifiers.registry import PURIFIERS, load_purifier

__all__ = ["PURIFIERS", "Jpeg", "RandomRotate", "load_purifier"]
