"""What attacks did: rows, the terminal's table, and the figure that lays them beside the certificate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.stats import rankdata

from certiqa.evaluation.attacked import WORST
from certiqa.evaluation.record_lines import NO_ATTACK
from certiqa.reports import plots
from certiqa.reports.tables import NOTHING, Summary, count, decimal, duration, native, percent, range_width, value_of

COLUMNS = {
    "attack": "Attack",
    "images": "Images",
    "gain": "Mean gain, of range",
    "interval": "95 % interval",
    "noise": "Noise of equal norm",
    "srocc": "SROCC after",
    "robustness": "R score",
    "linf": "l∞",
    "l2": "l2",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "calls": "Gradients, queries",
    "seconds": "Time an image",
}
UNRANGED = {"gain": "Mean gain, score units", "nonpurified_abs_gain": "Undefended, score units"}
"""Headings where the metric states no range to take a share of."""
SHORT = ("attack", "gain", "noise", "srocc", "robustness", "psnr", "ssim", "seconds")
"""The columns of the terminal."""


def headings(columns: Mapping[str, str], summary: Summary) -> dict[str, str]:
    """Return key -> heading of ``COLUMNS`` or ``PURIFIED_COLUMNS``, in the units of this run's metric."""
    ranged = range_width(summary) is not None
    return {key: title if ranged else UNRANGED.get(key, title) for key, title in columns.items()}


def gain_meaning(summary: Summary) -> str:
    """Return what a gain is, in the units of this run's metric."""
    unit = "share of the range" if range_width(summary) else "score units (the metric states no range)"
    return f"Gain: {unit} by which attacks raised quality (below zero: lowered); no guarantee against others"


def attack_rows(summary: Summary) -> list[dict[str, str]]:
    """Return what each attack of the run did to the defended score: measured, not proven."""
    names = [str(name) for name in summary.get("attacks") or []]
    names += [WORST] if len(names) > 1 else []
    rows = []
    for name in names:
        figures = {key: value_of(summary, f"attack_{key}_{name}") for key in _KEYS}
        gain = figures["gain"]
        low, high = figures["gain_low"], figures["gain_high"]
        gradients, queries = figures["gradient_calls"], figures["forward_calls"]
        rows.append(
            {
                "attack": "worst of all, image by image" if name == WORST else name,
                "images": count(figures["num_images"]),
                "gain": percent(gain) if gain is not None else native(figures["gain_native"]),
                "interval": f"{percent(low)} to {percent(high)}" if low is not None and high is not None else NOTHING,
                "noise": percent(figures["gain_of_noise"]),
                "srocc": decimal(figures["srocc"]),
                "robustness": decimal(figures["robustness_score"], 2),
                "linf": _of_255(figures["linf_mean"]),
                "l2": native(figures["l2_mean"]),
                "psnr": decimal(figures["psnr_mean"], 1),
                "ssim": decimal(figures["ssim_mean"]),
                "calls": f"{native(gradients)}, {native(queries)}",
                "seconds": duration(figures["seconds"]),
            }
        )
    return rows


_KEYS = (
    *("num_images", "gain", "gain_low", "gain_high", "gain_native", "gain_of_noise", "srocc", "robustness_score"),
    *("linf_mean", "l2_mean", "psnr_mean", "ssim_mean", "gradient_calls", "forward_calls", "seconds"),
)


PURIFIED_COLUMNS = {
    "attack": "Attack",
    "nonpurified_abs_gain": "Undefended, of range",
    "robust_abs_gain": "Defended attacked from clear",
    "both_defended_abs_gain": "Defended attacked from defended clear",
    "neutralised": "Neutralised",
    "purified_quality": "SSIM + PSNR/40, attacked",
    "purified_quality_clean": "… clear",
    "clear_srocc_mos": "SROCC clear",
    "attacked_srocc_mos": "… attacked",
    "robust_clear_srocc_mos": "… defended clear",
    "robust_attacked_srocc_mos": "… defended attacked",
}


def purified_rows(summary: Summary) -> list[dict[str, str]]:
    """Return what the defense undid of each attack; none where there was no defense."""
    shares = ("nonpurified_abs_gain", "robust_abs_gain", "both_defended_abs_gain", "neutralised")
    rows = []
    for name in map(str, summary.get("attacks") or []):
        figures = {key: value_of(summary, f"attack_{key}_{name}") for key in PURIFIED_COLUMNS}
        if figures["robust_abs_gain"] is None:
            continue
        # without a nominal range gains are in the metric's own units
        share = percent if range_width(summary) else native
        shown = {key: share(value) if key in shares else decimal(value) for key, value in figures.items()}
        rows.append({**shown, "attack": name, "neutralised": percent(figures["neutralised"])})
    return rows


def _of_255(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 255:.1f}/255"


def attack_table(summary: Summary) -> Table | None:
    """Return the attacks of a run as a table for the terminal, None where there were none."""
    rows = attack_rows(summary)
    if not rows:
        return None
    titles = headings(COLUMNS, summary)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="Attacks, measured", title_justify="left")
    for key in SHORT:
        table.add_column(titles[key].split(",")[0], justify="left" if key == "attack" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[key]) for key in SHORT))
    notes = [
        gain_meaning(summary),
        *(str(warning) for warning in summary.get("attack_warnings") or []),
    ]
    table.caption = Text(". ".join(notes) + ".")
    table.caption_justify = "left"
    return table


@plots.styled()
def certificate_plot(records: pd.DataFrame, summary: dict[str, Any]) -> plots.Plot | None:
    """Return the change that attacks made against its l2 norm, beside what is certified at each radius.

    Two things that are never one number: the band is proven for every perturbation of that norm, the points are what
    these attacks found, at norms that are mostly far beyond the certified radii.
    """
    attacked = records[(records["attack"] != NO_ATTACK) & records.get("score_attacked", pd.Series(dtype=float)).notna()]
    clean = records[(records["attack"] == NO_ATTACK) & records["radius"].notna()]
    if attacked.empty or clean.empty:
        return None
    width = range_width(summary) or 1.0
    figure, (axes,) = plots.new_figure()
    for color, (name, rows) in zip(plots.SERIES, attacked.groupby("attack"), strict=False):
        change = (rows["score_attacked"] - rows["score"]).abs().to_numpy(float) / width
        axes.scatter(rows["l2"].astype(float), change, s=9, color=color, linewidths=0, label=str(name))
    bounds = []
    for radius, rows in clean.groupby("radius"):
        score, lower, upper = (rows[column].to_numpy(float) for column in ("score", "lower", "upper"))
        delta = np.maximum(upper - score, score - lower) / width
        bounds.append((float(str(radius)), *np.quantile(delta, [0.25, 0.5, 0.75], method="nearest")))
    x, low, middle, high = np.array(bounds).T
    shown = np.isfinite(middle)
    top = 1.0 if range_width(summary) else max([*high[np.isfinite(high)], *middle[shown]], default=1.0)
    axes.fill_between(x[shown], low[shown], np.minimum(high[shown], top), color=plots.CERTIFIED, alpha=0.25, lw=0)
    axes.plot(x[shown], middle[shown], color=plots.CERTIFIED, marker="o", ms=3.5, label="certified delta")
    axes.axvline(float(x.max()), color=plots.MUTED, lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_xlabel("l2 norm of the perturbation")
    axes.set_ylabel(f"change of the score, {'of range' if range_width(summary) else 'score units'}")
    axes.legend(loc="upper left")
    caption = (
        "Points: what attacks did to the defended score (measured). Green: certified delta of the median image and "
        "quartiles, which no perturbation of that norm exceeds (proven). Right of the dotted line nothing is proven."
    )
    return plots.Plot("attacks", "Attacks beside the certificate", plots.svg_of(figure, "attacks"), caption)


@plots.styled()
def rank_plots(records: pd.DataFrame, summary: dict[str, Any]) -> list[plots.Plot]:
    """Return, for every attack on a whole set, the images' places by score before it against those after."""
    if "set_size" not in records:
        return []
    found = []
    attacked = records[records["set_size"].notna() & records["score_attacked"].notna()]
    sign = -1 if summary.get("lower_better") else 1
    for name, rows in attacked.groupby("attack"):
        before, after = (rankdata(sign * rows[column].to_numpy(float)) for column in ("score", "score_attacked"))
        figure, (axes,) = plots.new_figure()
        raster = len(rows) > plots.RASTER_ABOVE
        axes.scatter(before, after, s=8, color=plots.DEFENDED, linewidths=0, rasterized=raster)
        axes.plot([1, len(rows)], [1, len(rows)], color=plots.MUTED, lw=0.8, ls=":")
        axes.set_xlabel("place by score before (last: best)")
        axes.set_ylabel(f"place after {name}")
        caption = (
            "Each point is one image of the set. On the dotted line no image has changed its place; an attack on the "
            f"ranking turns it round. {_ranking_text(summary, str(name))}Measured, after rounding where the attack "
            "rounds."
        )
        key = "ranks-" + re.sub(r"\W+", "-", str(name)).strip("-")
        title = f"Places before and after {name}"
        found.append(plots.Plot(key, title, plots.svg_of(figure, key), caption))
    return found


def _ranking_text(summary: dict[str, Any], name: str) -> str:
    """Return SROCC and KROCC after an attack on a set, with the clean scores and with the opinion scores."""
    parts = []
    for kind, words in (("clean", "the clean scores"), ("mos", "the opinion scores")):
        for measure in ("srocc", "krocc"):
            value, low, high = (
                value_of(summary, f"attack_{measure}_with_{kind}{ending}_{name}") for ending in ("", "_low", "_high")
            )
            if value is not None:
                parts.append(f"{measure.upper()} with {words} {decimal(value)} [{decimal(low)}, {decimal(high)}]")
    return "; ".join(parts) + " (95 % bootstrap intervals). " if parts else ""
