"""From records to the flat numbers of ``summary.json``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from certiqa.certification import (
    certified_krocc,
    certified_mse,
    certified_plcc,
    certified_srocc,
    worst_krocc,
    worst_plcc,
    worst_srocc,
)
from certiqa.evaluation import measures
from certiqa.evaluation.attacked import summarise_attacks
from certiqa.evaluation.record_lines import NO_ATTACK
from certiqa.evaluation.scale import Range, score_to_mos
from certiqa.metrics import QualityMetric
from certiqa.storage.files import DamagedFileError, read_json, write_json

SUMMARY = "summary.json"
Number = float | int | None
CORRELATIONS = ("srocc", "plcc", "krocc", "plcc_logistic")

log = logging.getLogger(__name__)


def summarise(
    table: pd.DataFrame,
    metric: QualityMetric,
    primary_radius: float | None,
    *,
    mos_range: Range | None = None,
    mos_lower_better: bool = False,
) -> dict[str, Any]:
    """Summarise the unattacked records of one run.

    Correlations count as quality does: those of a metric where lower is better are of its negated scores. Errors
    (``rmse``, ``certified_mse``) are in units of the opinion scores, the scores taken there by the straight line of
    ``certiqa.evaluation.score_to_mos``, fixed beforehand; null where the metric has no nominal range.

    Args:
        table: records as ``certiqa.evaluation.records.to_table`` returns them.
        metric: the defended metric; gives the range, the direction and hard bounds.
        primary_radius: the radius whose figures carry no suffix; None without certificates.
        mos_range: scale (low, high) of the data set's opinion scores; without it the errors are null.
        mos_lower_better: opinion scores where lower is better, as a DMOS; they count mirrored within their scale, so
            that 1 is perfect agreement and errors stay what they are.

    Returns:
        flat lower-case keys. ``num_failed`` counts the images that are left out of every figure; where there are
        any, ``num_skipped`` says of how many the file could not be read (``data.on_error=skip``). Certified figures
        stand once without suffix, at ``primary_radius``, and once per radius with the suffix ``_r<radius>``.
    """
    clean = table[table["attack"] == NO_ATTACK]
    failed = clean["failure"].notna()
    num_failed = clean[failed]["image_id"].nunique()
    clean = clean[~failed]
    images = clean.drop_duplicates("image_id")
    summary: dict[str, Any] = {"num_images": len(images), "num_failed": num_failed}
    if num_failed:
        summary["num_skipped"] = table[table["skipped"].notna()]["image_id"].nunique()
        summary["first_failure"] = table[table["failure"].notna()]["failure"].iloc[0]
    if images.empty:
        return summary
    images = images.assign(mos=_mirrored(images["mos"], mos_range, mos_lower_better))
    clean = clean.assign(mos=_mirrored(clean["mos"], mos_range, mos_lower_better))
    summary["num_forward"] = int(images["num_samples"].fillna(1).sum())
    sign = metric.quality_sign
    mos = images["mos"].to_numpy(float)
    score = sign * images["score"].to_numpy(float)
    undefended = sign * images["score_clean"].to_numpy(float)
    summary |= dict.fromkeys(f"{name}{ending}" for ending in ("", "_undefended") for name in CORRELATIONS)
    if not np.isnan(mos).any():
        mapped = score_to_mos(metric, mos_range)
        for ending, values in (("", score), ("_undefended", undefended)):
            for name in CORRELATIONS:
                summary[f"{name}{ending}"] = getattr(measures, name)(values, mos)
            summary[f"rmse{ending}"] = None if mapped is None else measures.rmse(mapped(sign * values), mos)
        summary["tau_srocc"] = summary["srocc_undefended"] - summary["srocc"]
        summary["tau_plcc"] = summary["plcc_undefended"] - summary["plcc"]
    summary["score_sd"] = float(np.std(score, ddof=1)) if len(score) > 1 else math.nan
    summary["score_sd_undefended"] = float(np.std(undefended, ddof=1)) if len(score) > 1 else math.nan
    for radius, rows in clean[clean["radius"].notna()].groupby("radius"):
        figures = certified_figures(rows, metric, summary["score_sd"], mos_range)
        if primary_radius is not None and math.isclose(float(str(radius)), primary_radius):
            summary |= figures
            summary["certified_radius"] = float(str(radius))
        summary |= {f"{key}_r{radius:g}": value for key, value in figures.items()}
    mirrored = table.assign(mos=_mirrored(table["mos"], mos_range, mos_lower_better))
    summary |= summarise_attacks(mirrored, metric, mos_range)
    return {key: finite(value) for key, value in summary.items()}


def _mirrored(mos: pd.Series, mos_range: Range | None, lower_better: bool) -> pd.Series:
    """Return opinion scores with higher = better, in their own units."""
    if not lower_better:
        return mos
    low, high = mos_range or (0.0, 0.0)
    return low + high - mos.astype(float)


def certified_figures(
    rows: pd.DataFrame, metric: QualityMetric, score_sd: float, mos_range: Range | None = None
) -> dict[str, Number]:
    """Return the certified figures of one radius: deltas, widths, abstention, and guarantees for the set."""
    score, lower, upper = (rows[column].to_numpy(float) for column in ("score", "lower", "upper"))
    delta = np.maximum(upper - score, score - lower)
    certified = np.isfinite(delta)
    median = float(np.median(delta))
    figures: dict[str, Number] = {
        "certified_delta_mean": float(delta.mean()),
        "certified_delta_mean_certified": float(delta[certified].mean()) if certified.any() else math.nan,
        "certified_delta_median": median,
        "certified_delta_range_share": median / metric.range_width if metric.range_width else None,
        "certified_delta_sd_share": median / score_sd if score_sd > 0 else None,
        "certified_half_width_median": float(np.median((upper - lower) / 2)),
        "abstention_rate": float(1 - certified.mean()),
        "num_samples_mean": float(rows["num_samples"].astype(float).mean()),
    }
    mos = rows["mos"].to_numpy(float)
    if rows["joint_lower"].notna().all() and not np.isnan(mos).any() and len(rows) > 1 and np.ptp(mos) > 0:
        figures |= set_guarantees(rows, metric, mos, mos_range)
    return figures


def set_guarantees(
    rows: pd.DataFrame, metric: QualityMetric, mos: NDArray[np.float64], mos_range: Range | None = None
) -> dict[str, Number]:
    """Return the proven floors (a ceiling for the error) of the whole set from its joint intervals.

    ``worst_found_*`` are the lowest correlations of scores found within the same intervals, no proof but its other
    side: the least that the intervals allow lies between ``certified_*`` and them. (``certified_mse`` is that exactly.)
    ``certified_mse`` is in squared units of the opinion scores, None without ``score_to_mos``'s two ranges.
    """
    lower, upper = rows["joint_lower"].to_numpy(float), rows["joint_upper"].to_numpy(float)
    bounds, mapped = metric.hard_bounds, score_to_mos(metric, mos_range)
    # the map has the metric's direction, so it takes the intervals as they are
    error = None if mapped is None else certified_mse(lower, upper, mos, hard_bounds=bounds, score_to_mos=mapped)
    if metric.lower_better:
        lower, upper = -upper, -lower
        bounds = None if bounds is None else (-bounds[1], -bounds[0])
    return {
        "certified_srocc": certified_srocc(lower, upper, mos, hard_bounds=bounds),
        "certified_krocc": certified_krocc(lower, upper, mos, hard_bounds=bounds),
        "certified_plcc": certified_plcc(lower, upper, mos, hard_bounds=bounds),
        "certified_mse": error,
        "worst_found_srocc": worst_srocc(lower, upper, mos, hard_bounds=bounds).value,
        "worst_found_krocc": worst_krocc(lower, upper, mos, hard_bounds=bounds).value,
        "worst_found_plcc": worst_plcc(lower, upper, mos, hard_bounds=bounds).value,
        "joint_confidence": float(rows["joint_confidence"].iloc[0]),
    }


def finite(value: Any) -> Any:
    """Return a figure as JSON can carry it: None for NaN, infinity as the string that float() reads back."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def write_summary(folder: str | Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json`` atomically."""
    write_json(Path(folder) / SUMMARY, dict(summary), allow_nan=False)


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """Read a run's summary, None where there is none yet; raises DamagedFileError where it cannot be read."""
    try:
        return read_json(Path(folder) / SUMMARY, dict)
    except DamagedFileError as error:
        again = "run the run's own command again, which writes it anew"
        raise DamagedFileError(error.path, error.reason, again) from error


def sound_summary(folder: str | Path) -> dict[str, Any]:
    """Return a run's summary; empty where there is none, or where it is damaged and the run has to make it again."""
    try:
        return read_summary(folder) or {}
    except DamagedFileError as error:
        log.warning("%s is made again: %s", error.path, error.reason)
        return {}
