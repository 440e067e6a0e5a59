"""The LightningModule that trains denoisers, its objective, and the fit of a metric's head."""

from certiqa.training.module import DefenseModule
from certiqa.training.objective import DenoisingObjective, normalise, ranking_hinge

__all__ = ["DefenseModule", "DenoisingObjective", "normalise", "ranking_hinge"]
