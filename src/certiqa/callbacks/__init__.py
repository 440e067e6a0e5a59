"""Lightning glue: certification, attacks, records, gallery, progress, tracking."""

from certiqa.callbacks.attacks import Attacks
from certiqa.callbacks.certification import Certification
from certiqa.callbacks.gallery import Gallery
from certiqa.callbacks.progress import Progress
from certiqa.callbacks.records import Records
from certiqa.callbacks.tracking import WandbTracker

__all__ = ["Attacks", "Certification", "Gallery", "Progress", "Records", "WandbTracker"]
