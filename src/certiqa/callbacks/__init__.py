"""Lightning glue: certification, attacks, records, gallery, checkpoints, progress, tracking."""

from certiqa.callbacks.attacks import Attacks
from certiqa.callbacks.certification import Certification
from certiqa.callbacks.checkpoints import Checkpoints, DurableCheckpointIO
from certiqa.callbacks.gallery import Gallery
from certiqa.callbacks.progress import Progress
from certiqa.callbacks.records import Records
from certiqa.callbacks.tracking import WandbTracker

__all__ = [
    "Attacks",
    "Certification",
    "Checkpoints",
    "DurableCheckpointIO",
    "Gallery",
    "Progress",
    "Records",
    "WandbTracker",
]
