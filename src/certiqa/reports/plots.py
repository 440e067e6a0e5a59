"""The report's figures: matplotlib drawings as inline SVG that follow the page's fonts and colours.

Every function returns a ``Plot``, or None where the run has no data for it. Colours are drawn as the
hex values of ``TOKENS`` and written as CSS variables, so that a page in dark mode recolours them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from certiqa.reports.tables import decimal, exact, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[NDArray[Any], NDArray[Any]]
INK, MUTED, LINE = "#1c2230", "#667085", "#dfe3e8"
UNDEFENDED, DEFENDED, CERTIFIED = "#d55e00", "#0072b2", "#009e73"
AMBER, PURPLE = "#e69f00", "#cc79a7"
SERIES = ("#d55e00", "#cc79a7", "#e69f00", "#0072b2", "#56b4e9", "#1c2230", "#667085") * 4
# fmt: off
TOKENS = {
    INK: "ink", MUTED: "muted", LINE: "line", UNDEFENDED: "undefended", DEFENDED: "defended",
    CERTIFIED: "certified", AMBER: "amber", PURPLE: "purple",
}
"""Colours (Okabe and Ito's, safe for colour-blind readers, plus greys) and the CSS variables they become."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 10, "axes.labelsize": 10, "legend.fontsize": 9.5,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": LINE, "grid.linewidth": 0.7, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
}
# fmt: on
WIDTH, HEIGHT = 4.58, 3.3  # inches: 330 x 238 pt, 440 px wide on a page
RASTER_ABOVE = 1500  # images; more points than this become one picture inside the SVG


@dataclass(frozen=True)
class Plot:
    """One figure of the report: its heading, its inline SVG and how to read it."""

    key: str
    title: str
    svg: str
    caption: str


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's matplotlib style, and leave matplotlib as it was."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@styled()
def score_plots(images: pd.DataFrame, summary: dict[str, Any], radius: float | None, mos_label: str) -> list[Plot]:
    """Return score against opinion score, undefended and defended, on the same axes.

    Args:
        images: one row per image, at the primary radius where there is one.
        summary: the run's summary, for the correlations.
        radius: the primary radius, None without certificates.
        mos_label: "MOS" or "pseudo-MOS".
    """
    if images.empty or not images[["mos", "score"]].notna().all(axis=1).any():
        return []
    mos = images["mos"].to_numpy(float)
    bounds = {name: images[name].to_numpy(float) for name in ("lower", "upper", "joint_lower", "joint_upper")}
    panels = (
        ("undefended", "score_clean", "srocc_undefended", UNDEFENDED),
        ("defended", "score", "srocc", DEFENDED),
    )
    every = np.concatenate([images["score_clean"], images["score"], *bounds.values()]).astype(float)
    every = every[np.isfinite(every)]
    margin = 0.05 * (np.ptp(every) or 1.0)
    turned = bool(summary.get("lower_better"))
    plots = []
    for key, column, measure, color in panels:
        score = images[column].to_numpy(float)
        same = key == "defended" and np.array_equal(score, images["score_clean"].to_numpy(float))
        if same or not np.isfinite(score).any():
            continue
        figure, (axes,) = new_figure()
        raster = len(images) > RASTER_ABOVE
        # room for the SROCC above; up is better whatever the metric's direction
        worst, best = (every.max(), every.min()) if turned else (every.min(), every.max())
        outwards = -margin if turned else margin
        axes.set_ylim(worst - outwards, best + 3 * outwards)
        caption = f"Each point is one image; points that rise along one curve agree with {mos_label}."
        caption += " Lower is better for this metric, so its axis is turned round: up is better." if turned else ""
        if key == "defended" and radius is not None and np.isfinite(bounds["upper"] - bounds["lower"]).any():
            joint = _bars(axes, mos, bounds["joint_lower"], bounds["joint_upper"], color, alpha=0.28, lw=4)
            bars = _bars(axes, mos, bounds["lower"], bounds["upper"], color, lw=1.4)
            caption += f" Thin bar: how far any perturbation of l2 norm up to {radius:g} can move that score."
            caption += " Broad pale bar: the interval that holds jointly for all images." if joint else ""
            abstained = len(images) - bars
            caption += f" {abstained} without a bar could not be certified." if abstained else ""
            for collection in axes.collections:
                collection.set_rasterized(raster)
        elif key == "undefended":
            caption += " No bars: nothing is proven about the undefended metric."
        axes.scatter(mos, score, s=8, color=color, linewidths=0, rasterized=raster)
        axes.set_xlabel(f"{mos_label} (lower is better)" if summary.get("mos_lower_better") else mos_label)
        if summary.get("mos_lower_better"):
            axes.invert_xaxis()
        axes.set_ylabel(f"{key} score (lower is better)" if turned else f"{key} score")
        if (value := value_of(summary, measure)) is not None:
            axes.text(0.03, 0.97, f"SROCC {decimal(value)}", transform=axes.transAxes, ha="left", va="top")
        plots.append(Plot(f"score-{key}", f"Score against {mos_label}, {key}", svg_of(figure, key), caption))
    return plots


@styled()
def delta_plot(records: pd.DataFrame, range_width: float | None) -> Plot | None:
    """Return certified delta against radius: median and quartiles over the images of ``records``."""
    rows = records[records["radius"].notna()]
    if rows.empty:
        return None
    points = []
    for radius, group in rows.groupby("radius"):
        score, lower, upper = (group[name].to_numpy(float) for name in ("score", "lower", "upper"))
        delta = np.maximum(upper - score, score - lower)
        delta = delta[~np.isnan(delta)]
        if delta.size:
            low, high = np.quantile(delta, 0.25, method="lower"), np.quantile(delta, 0.75, method="higher")
            points.append((float(str(radius)), float(low), float(np.median(delta)), float(high)))
    x, low, median, high = np.array(points or [(np.nan,) * 4]).T
    if not np.isfinite(median).any():
        return None
    figure, (axes,) = new_figure()
    shown = np.isfinite(median)
    top = 1.18 * max(median[shown].max(), high[np.isfinite(high)].max(initial=0)) or 1.0
    axes.fill_between(x[shown], low[shown], np.minimum(high, top)[shown], color=DEFENDED, alpha=0.18, lw=0)
    axes.plot(x[shown], median[shown], color=DEFENDED, marker="o", ms=4.5)
    axes.set_ylim(0, top)
    radius_axis(axes, x)
    axes.set_ylabel("certified delta (score units)")
    caption = (
        "The most that any perturbation of this l2 norm or less can move a score. Line: the median image; "
        "band: the middle half of the images; proven at the dots. Lower is stronger."
    )
    if range_width:
        share = 100 / range_width
        right = axes.secondary_yaxis(
            "right", functions=(lambda v: np.multiply(v, share), lambda v: np.divide(v, share))
        )
        right.set_ylabel("% of the metric's range")
        right.spines["right"].set_visible(False)
        right.tick_params(length=0)
    if not np.isfinite(high).all():
        caption += " Where the band reaches the top, a quarter or more could not be certified; no point: half."
    return Plot("delta", "Certified delta against radius", svg_of(figure, "delta"), caption)


@styled()
def training_plots(metrics: pd.DataFrame) -> list[Plot]:
    """Return the training curves of Lightning's ``metrics.csv``: loss parts, and the validation measures."""
    plots = []
    axis = next((name for name in ("step", "epoch") if name in metrics), None)
    parts = {"loss": INK, "mse": DEFENDED, "ranking": AMBER, "target": PURPLE}
    curves = {name: curve for name in parts if (curve := _curve(metrics, axis, f"train/{name}"))}
    if curves:
        figure, (axes,) = new_figure()
        if all((y > 0).any() for _, y in curves.values()):
            axes.set_yscale("log")
        for name, (x, y) in curves.items():
            label, color = {"loss": "total", "mse": "MSE"}.get(name, name), parts[name]
            axes.plot(x, y, color=color, label=label, lw=1.6, marker="o" if len(x) == 1 else None)
        axes.set_xlabel(f"training {axis}")
        axes.set_ylabel("loss")
        axes.grid(visible=False, which="minor")
        spacing = {"handlelength": 1.2, "columnspacing": 1.2}
        axes.legend(ncols=len(curves), loc="lower left", bbox_to_anchor=(-0.02, 1.0), **spacing)
        caption = "Loss on the training images: the total and the parts it is made of. Lower is better."
        plots.append(Plot("loss", "Training loss", svg_of(figure, "loss"), caption))
    measures = {"srocc": "SROCC", "psnr": "PSNR (dB)", "certified_delta": "cert. delta"}
    curves = {name: curve for name in measures if (curve := _curve(metrics, axis, f"val/{name}"))}
    if curves:
        figure, grid = new_figure(len(curves))
        colors = (DEFENDED, CERTIFIED, PURPLE)
        for axes, (name, (x, y)), color in zip(grid, curves.items(), colors, strict=False):
            axes.plot(x, y, color=color, lw=1.6, marker="o", ms=3)
            axes.set_ylabel(measures[name])
            axes.margins(y=0.15)
        grid[-1].set_xlabel(f"training {axis}")
        caption = (
            "Measures on the validation images while training, one panel each. "
            "SROCC and PSNR should rise; a certified delta that falls while SROCC holds is a gain."
        )
        plots.append(Plot("validation", "Validation while training", svg_of(figure, "validation"), caption))
    return plots


def _curve(table: pd.DataFrame, axis: str | None, column: str, points: int = 300) -> Curve | None:
    """Return a sparse column as (x, y), averaged down to at most ``points`` values."""
    if axis is None or column not in table:
        return None
    rows = table[[axis, column]].apply(pd.to_numeric, errors="coerce").dropna()
    x, y = rows[axis].to_numpy(float), rows[column].to_numpy(float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) > points:
        x, y = (np.array([part.mean() for part in np.array_split(values, points)]) for values in (x, y))
    return (x, y) if len(x) else None


def _bars(axes: Axes, x: NDArray[Any], lower: NDArray[Any], upper: NDArray[Any], color: str, **style: Any) -> int:
    """Draw a bar wherever both ends are finite; returns how many there are."""
    whole = np.isfinite(lower) & np.isfinite(upper)
    axes.vlines(x[whole], lower[whole], upper[whole], color=color, **style)
    return int(whole.sum())


def new_figure(rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, one per row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def radius_axis(axes: Axes, radii: NDArray[Any]) -> None:
    """Label the axis of l2 radii, shape (R,), with a tick at each where there are few."""
    axes.set_xlabel("radius: l2 norm of the perturbation")
    if len(radii) <= 8:
        axes.set_xticks(radii, [exact(float(radius)) for radius in radii])


def svg_of(figure: Figure, key: str) -> str:
    """Return the figure as inline SVG: no metadata, ids unique in the page, colours as CSS variables."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": key}), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", transparent=True)
        text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    names = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in names else "", text)
    text = re.sub(r"url\(#", f"url(#{key}-", text).replace('href="#', f'href="#{key}-')
    for color, token in TOKENS.items():
        text = text.replace(color, f"var(--{token})")
    return re.sub(r"\n\s*", "\n", text)
