"""Lightning glue: certification, records, gallery."""

from certiqa.callbacks.certification import Certification
from certiqa.callbacks.gallery import Gallery
from certiqa.callbacks.records import Records

__all__ = ["Certification", "Gallery", "Records"]
