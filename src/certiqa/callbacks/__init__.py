"""Lightning glue: certification, records, gallery, progress."""

from certiqa.callbacks.certification import Certification
from certiqa.callbacks.gallery import Gallery
from certiqa.callbacks.progress import Progress
from certiqa.callbacks.records import Records

__all__ = ["Certification", "Gallery", "Progress", "Records"]
