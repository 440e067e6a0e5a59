"""What of a finished run goes to an experiment tracker: rows of curves and tables, from its summary and records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from certiqa.evaluation.attacked import WORST

RADIUS = "certified/radius"
CERTIFIED = (
    *("certified_delta_median", "certified_delta_mean_certified", "certified_half_width_median", "abstention_rate"),
    *("certified_delta_range_share", "certified_delta_sd_share"),
    *("certified_srocc", "certified_krocc", "certified_plcc", "certified_mse"),
)
"""Figures of the summary that exist once for each radius."""
ATTACKED = (
    *("num_images", "gain", "gain_low", "gain_high", "gain_native", "gain_of_noise", "srocc_before", "srocc"),
    *("robustness_score", "linf_mean", "l2_mean", "psnr_mean", "ssim_mean"),
    *("gradient_calls", "forward_calls", "seconds"),
)
"""Figures of the summary that exist once for each attack."""


def curve_name(figure: str) -> str:
    """Return what the curve of a certified figure is called: ``certified_srocc`` -> ``certified/srocc``."""
    return f"certified/{figure.removeprefix('certified_')}"


def radius_curves(summary: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the certified figures against the radius, a row for each radius of the run in rising order.

    Args:
        summary: a run's ``summary.json``.

    Returns:
        rows with ``certified/radius`` and the finite ones among ``certified/delta_median``, ``certified/srocc``, ...
    """
    rows = []
    for radius in sorted(float(value) for value in summary.get("radii") or []):
        row = {RADIUS: radius}
        for figure in CERTIFIED:
            value = number(summary.get(f"{figure}_r{radius:g}"))
            if value is not None:
                row[curve_name(figure)] = value
        if len(row) > 1:
            rows.append(row)
    return rows


def attack_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of every attack of a run, a row for each; the worst case of several comes last."""
    names = [str(name) for name in summary.get("attacks") or []]
    names += [WORST] if len(names) > 1 else []
    return [{"attack": name} | {key: number(summary.get(f"attack_{key}_{name}")) for key in ATTACKED} for name in names]


def record_rows(records: pd.DataFrame, limit: int) -> tuple[list[str], list[list[Any]]]:
    """Return the columns that hold anything, and at most ``limit`` rows, of plain values.

    What is not finite becomes None, which a tracker's tables can hold: the column ``abstained`` says where a
    certificate is infinite.
    """
    shown = records.dropna(axis="columns", how="all").head(limit)
    return [str(name) for name in shown.columns], [
        [_plain(value) for value in row] for row in shown.itertuples(index=False, name=None)
    ]


def flat_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary as a tracker takes it: infinities as numbers again, nested entries with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif value is not None:
            flat[key] = float(value) if value in ("inf", "-inf") else value
    return flat


def number(value: Any) -> float | None:
    """Return a finite number of a summary as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
