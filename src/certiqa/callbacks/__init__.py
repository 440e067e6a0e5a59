"""Lightning glue: certification, attacks, records, gallery, progress."""

from certiqa.callbacks.attacks import Attacks
from certiqa.callbacks.certification import Certification
from certiqa.callbacks.gallery import Gallery
from certiqa.callbacks.progress import Progress
from certiqa.callbacks.records import Records

__all__ = ["Attacks", "Certification", "Gallery", "Progress", "Records"]
