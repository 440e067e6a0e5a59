"""Studies: many defenses against many attacks on one metric, cell by cell."""

from certiqa.studies.cells import Cell, grid
from certiqa.studies.figures import study_figures
from certiqa.studies.purification import PurificationStudy

__all__ = ["Cell", "PurificationStudy", "grid", "study_figures"]
