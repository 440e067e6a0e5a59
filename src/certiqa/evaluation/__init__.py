"""Measures (correlation, error, certified figures) and per-image records."""

from certiqa.evaluation.distances import image_distances
from certiqa.evaluation.measures import (
    bootstrap_interval,
    fit_logistic4,
    krocc,
    logistic4,
    mean_interval,
    plcc,
    plcc_logistic,
    rmse,
    srocc,
)
from certiqa.evaluation.purification import purification_gains, purification_sroccs, quality_score
from certiqa.evaluation.records import RecordStore, read_records
from certiqa.evaluation.robustness import (
    absolute_gain,
    fitted_range,
    mean_absolute_change,
    neutralised,
    relative_gain,
    relative_gain_of_range,
    robustness_score,
    score_distance,
)
from certiqa.evaluation.scale import score_to_mos
from certiqa.evaluation.summary import read_summary, summarise, write_summary

__all__ = [
    "RecordStore",
    "absolute_gain",
    "bootstrap_interval",
    "fit_logistic4",
    "fitted_range",
    "image_distances",
    "krocc",
    "logistic4",
    "mean_absolute_change",
    "mean_interval",
    "neutralised",
    "plcc",
    "plcc_logistic",
    "purification_gains",
    "purification_sroccs",
    "quality_score",
    "read_records",
    "read_summary",
    "relative_gain",
    "relative_gain_of_range",
    "rmse",
    "robustness_score",
    "score_distance",
    "score_to_mos",
    "srocc",
    "summarise",
    "write_summary",
]
