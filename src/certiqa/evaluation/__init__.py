"""Measures (correlation, error, certified figures) and per-image records."""

from certiqa.evaluation.measures import (
    bootstrap_interval,
    fit_logistic4,
    krocc,
    logistic4,
    plcc,
    plcc_logistic,
    rmse,
    srocc,
)
from certiqa.evaluation.records import RecordStore, read_records
from certiqa.evaluation.scale import score_to_mos
from certiqa.evaluation.summary import read_summary, summarise, write_summary

__all__ = [
    "RecordStore",
    "bootstrap_interval",
    "fit_logistic4",
    "krocc",
    "logistic4",
    "plcc",
    "plcc_logistic",
    "read_records",
    "read_summary",
    "rmse",
    "score_to_mos",
    "srocc",
    "summarise",
    "write_summary",
]
