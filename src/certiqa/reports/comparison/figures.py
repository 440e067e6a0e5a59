"""The figures of a comparison: what is guaranteed by radius, correlation against certificate, measured against proven.

Series differ by colour (Okabe and Ito's, safe for colour-blind readers), marker and dashes at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certiqa.reports import plots
from certiqa.reports.comparison.columns import CLOSE, Table
from certiqa.reports.comparison.gather import ComparedRun, plural
from certiqa.reports.comparison.significance import gains
from certiqa.reports.tables import mos_label, percent, radii_of, radius_figures, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of Okabe and Ito's colours those that show on white and on dark, where the page exchanges them
OKABE_ITO = (plots.DEFENDED, plots.UNDEFENDED, plots.CERTIFIED, plots.PURPLE, plots.AMBER, plots.INK)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
REST = plots.MUTED
LONGEST = 22  # characters of a name in a legend
BLOCKS = 6  # metrics on data sets with figures of their own
WIDTH, HEIGHT = 5.4, 4.0


@dataclass(frozen=True)
class Series:
    """How the runs of one defense are drawn."""

    name: str
    color: str
    marker: str
    dashes: Any


Pages = Mapping[str, str | None] | None
Styles = dict[str, Series]
Point = tuple[float, float, ComparedRun]


def drawn_runs(table: Table) -> list[ComparedRun]:
    """Return the runs whose numbers mean something: finished, and not with random weights."""
    return [run for run in table.runs if run.finished and not run.random_weights]


def series_of(runs: Sequence[ComparedRun]) -> Styles:
    """Return how each defense is drawn, the same in all figures; the least frequent ones share grey."""
    sizes = Counter(family(run) for run in runs)
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    kept = order if len(order) <= len(OKABE_ITO) else order[: len(OKABE_ITO) - 1]
    found = {name: Series(_short(name), OKABE_ITO[i], MARKERS[i], DASHES[i]) for i, name in enumerate(kept)}
    rest = Series(f"{len(order) - len(kept)} others", REST, ".", ":")
    return {name: found.get(name, rest) for name in order}


def _short(name: str) -> str:
    """Return a name as a legend can show it: cut, and no mathematics to matplotlib."""
    return (name if len(name) <= LONGEST else name[: LONGEST - 1] + "…").replace("$", r"\$")


def family(run: ComparedRun) -> str:
    """Return what is drawn alike: the runs of one defense."""
    return "no defense" if run.bare else str(run.summary.get("defense"))


def figures(table: Table, pages: Pages = None) -> list[plots.Plot]:
    """Return every figure that these runs have data for, in reading order; ``pages``: where a run's points lead.

    Each metric on each data set has its own, and each length of its list of images: a floor over 20 images is no rival
    of one over 2,000. The ``BLOCKS`` with most runs are drawn.
    """
    runs = drawn_runs(table)
    blocks: dict[tuple[str, str, int], list[ComparedRun]] = {}
    for run in runs:
        count = int(value_of(run.summary, "num_images") or 0)
        blocks.setdefault((str(run.summary.get("metric")), str(run.summary.get("data")), count), []).append(run)
    lengths = Counter((metric, data) for metric, data, _ in blocks)
    largest = sorted(blocks, key=lambda name: (-len(blocks[name]), name))
    styles = series_of(runs)
    found: list[plots.Plot | None] = []
    for number, (metric, data, count) in enumerate(largest[:BLOCKS]):
        title = f": {metric} on {data}" if len(blocks) > 1 else ""
        title += f", {plural(count, 'image')}" if lengths[metric, data] > 1 else ""
        if number == BLOCKS - 1 and len(blocks) > BLOCKS:
            title += f" (the last of the {BLOCKS} largest groups of {len(blocks)})"
        block = blocks[metric, data, count]
        found.append(frontier_plot(block, styles, f"frontier-{number}", title))
        found.append(trade_plot(block, styles, table.radius, pages, f"trade-{number}", title))
        found.append(measured_plot(block, styles, table.radius, pages, f"measured-{number}", title))
    return [plot for plot in found if plot is not None]


@plots.styled()
def frontier_plot(
    runs: Sequence[ComparedRun], styles: Styles, key: str = "frontier", title: str = ""
) -> plots.Plot | None:
    """Return certified SROCC against radius, a line a run, and the frontier: the highest floor at each radius."""
    if not any(_floors(run)[0].size for run in runs):
        return None
    figure, axes = _axes()
    drawn: set[str] = set()
    best: dict[float, float] = {}
    count = 0
    for run in runs:
        x, y = _floors(run)
        if not x.size:
            continue
        count += 1
        style = styles[family(run)]
        clean = value_of(run.summary, "srocc")
        line = (np.array([0.0, *x]), np.array([clean, *y])) if clean is not None else (x, y)
        label = style.name if style.name not in drawn else None
        drawn.add(style.name)
        axes.plot(*line, color=style.color, ls=style.dashes, marker=style.marker, ms=4.5, lw=1.3, label=label,
                  alpha=0.9 if len(runs) < 30 else 0.45)  # fmt: skip
        for radius, value in zip(*line, strict=True):
            best[float(radius)] = max(best.get(float(radius), -1.0), float(value))
    if count > 1:
        radii = sorted(best)
        # a floor proven at one radius holds at every smaller one
        values = np.maximum.accumulate([best[radius] for radius in reversed(radii)])[::-1]
        axes.plot(radii, values, color=plots.INK, lw=5, alpha=0.13, zorder=0,
                  solid_joinstyle="round", label="frontier")  # fmt: skip
    label = mos_label(runs[0].summary)
    axes.set_xlabel("certified radius: l2 norm of the perturbation (0: none)")
    axes.set_ylabel(f"SROCC with {label}, guaranteed")
    axes.margins(x=0.03, y=0.06)
    _legend(axes)
    caption = (
        f"One line per run ({count}), drawn left to right from its measured SROCC without perturbation (radius 0) to "
        "the floor that is proven for every perturbation up to each radius; only the marks are figures. Higher is "
        "better. The broad pale line joins the highest value at each radius: the frontier. Where lines cross, which "
        "defense is best depends on the radius that matters to you."
    )
    levels = sorted({value for run in runs if (value := value_of(run.summary, "joint_confidence")) is not None})
    if levels:
        caption += f" Joint confidence {' and '.join(percent(level, setting=True) for level in levels)}."
    return plots.Plot(key, f"SROCC against certified radius{title}", plots.svg_of(figure, key), caption)


def _floors(run: ComparedRun) -> tuple[NDArray[Any], NDArray[Any]]:
    pairs = [(r, value_of(radius_figures(run.summary, r), "certified_srocc")) for r in radii_of(run.summary)]
    known = [(radius, value) for radius, value in pairs if value is not None and np.isfinite(value)]
    return np.array([radius for radius, _ in known]), np.array([value for _, value in known])


@plots.styled()
def trade_plot(
    runs: Sequence[ComparedRun],
    styles: Styles,
    radius: float | None,
    pages: Pages = None,
    key: str = "trade",
    title: str = "",
) -> plots.Plot | None:
    """Return SROCC without perturbation against the median certified delta at one radius, with the Pareto frontier."""
    points: list[Point] = []
    for run in runs:
        x = value_of(radius_figures(run.summary, radius), "certified_delta_range_share")
        y = value_of(run.summary, "srocc")
        if x is not None and y is not None and np.isfinite(x):
            points.append((100 * x, y, run))
    if not points:
        return None
    figure, axes = _axes()
    for style, group in _by_style(points, styles):
        _scatter(axes, group, style, pages)
    front, best = [], -np.inf
    for x, y, _ in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            front.append((x, y))
            best = y
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=plots.INK, lw=5, alpha=0.13, zorder=0, drawstyle="steps-post")
    bare = {value for _, _, run in points if (value := value_of(run.summary, "srocc_undefended")) is not None}
    for value in sorted(bare)[-4:]:
        axes.axhline(value, color=plots.MUTED, lw=1, ls=(0, (1, 2)), zorder=0)
    axes.set_xlabel(f"certified delta, median image, at radius {radius:g}, % of range")
    axes.set_ylabel(f"SROCC with {mos_label(runs[0].summary)}, no perturbation")
    axes.set_xlim(left=0, right=1.12 * max(x for x, _, _ in points) or 1.0)
    axes.margins(y=0.12)
    _legend(axes)
    caption = (
        f"One point per run ({len(points)}); a click opens it. Up: agrees better with {mos_label(runs[0].summary)}. "
        "Left: no perturbation within the radius moves the median image by more than this, proven. The broad "
        "pale line turns at the runs that no other beats in both. Dotted: the metric without a defense, of which "
        "nothing is proven."
    )
    return plots.Plot(key, f"Correlation against certificate{title}", plots.svg_of(figure, key), caption)


@plots.styled()
def measured_plot(
    runs: Sequence[ComparedRun],
    styles: Styles,
    radius: float | None,
    pages: Pages = None,
    key: str = "measured",
    title: str = "",
) -> plots.Plot | None:
    """Return the change that attacks made to the median image against the certified delta of the median image."""
    points: list[Point] = []
    bare, unranged, elsewhere = [], 0, 0
    covered = set()  # keys of runs whose perturbations are all within the radius
    for run in runs:
        if not run.attacks or not len(run.attacked):
            continue
        if run.score_range is None:
            unranged += 1
            continue
        change = 100 * float(gains(run, radius)["gain"].abs().median())
        delta = value_of(radius_figures(run.summary, radius), "certified_delta_range_share")
        if delta is None or not np.isfinite(delta):
            bare.append((change, run))
            elsewhere += bool(radii_of(run.summary))
            continue
        points.append((100 * delta, change, run))
        if radius is not None and float(run.attacked["l2"].astype(float).max()) <= radius * (1 + CLOSE):
            covered.add(run.key)
    if not points and not bare:
        return None
    figure, axes = _axes()
    reach = max([x for x, _, _ in points], default=1.0)
    right, edge = 1.15 * reach, 1.38 * reach
    middle = (right + edge) / 2  # of the strip for what is not certified
    shown = points + [(middle, change, run) for change, run in bare]
    top = 1.15 * max(y for _, y, _ in shown) or 1.0
    for style, group in _by_style(shown, styles):
        filled = [point for point in group if point[2].key in covered]
        hollow = [point for point in group if point[2].key not in covered]
        _scatter(axes, hollow, style, pages, hollow=True, label=not filled)
        _scatter(axes, filled, style, pages)
    if points:
        axes.plot([0, right], [0, right], color=plots.MUTED, lw=1, ls=(0, (4, 3)), zorder=0)
    if bare:
        axes.axvspan(right, edge, color=plots.LINE, alpha=0.5, lw=0, zorder=0)
        strip = "no finite\ndelta" if elsewhere else "nothing\ncertified"
        axes.text(middle, 0.985, strip, transform=axes.get_xaxis_transform(), ha="center",
                  va="top", fontsize=9, color=plots.MUTED)  # fmt: skip
    axes.set(xlim=(0, edge if bare else right), ylim=(0, 1.18 * top))
    at = f" at radius {radius:g}" if radius is not None else ""
    axes.set_xlabel(f"proven: certified delta, median image{at}, % of range")
    axes.set_ylabel("measured: change, median image, % of range")
    if not points:
        axes.set_xticks([])
        axes.set_xlabel("")
    _legend(axes)
    without = "runs without a certificate"
    if elsewhere:
        without += f", and {plural(elsewhere)} certified at other radii alone or abstaining at the median image"
    caption = (
        f"One point per attacked run ({len(points) + len(bare)}): how far its attack (of several, each image's worst) "
        "moved the score of the median image, against how far any perturbation within the radius can provably move it. "
        "Lower is more robust against these attacks, further left is proven more robust; the two are different things "
    )
    caption += (
        "and stand on different axes. Hollow: the attack's perturbations are larger than the radius, so lying above "
        "the dashed line of equality contradicts nothing. Filled: all of them are within the radius, the certificate "
        f"covers them. Grey strip: {without}. "
        if points
        else f"and there are only {without}. "
    )
    caption += "Attacks differ between runs: the table says which and how strong."
    caption += f" Left out: {unranged} runs whose metric states no range." if unranged else ""
    return plots.Plot(key, f"Measured against proven{title}", plots.svg_of(figure, key), caption)


def _axes() -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
    return figure, figure.subplots()


def _by_style(points: Sequence[Point], styles: Styles) -> Iterator[tuple[Series, list[Point]]]:
    """Yield each style in the order of the legend, with the points of the runs that are drawn so."""
    for name in dict.fromkeys(style.name for style in styles.values()):
        style = next(style for style in styles.values() if style.name == name)
        yield style, [point for point in points if styles[family(point[2])].name == name]


def _scatter(
    axes: Axes,
    group: Sequence[Point],
    style: Series,
    pages: Pages,
    *,
    hollow: bool = False,
    label: bool = True,
) -> None:
    """Draw one series; each point is a link to its run's page."""
    if not group:
        return
    x, y, runs = zip(*group, strict=True)
    drawn = axes.scatter(
        x, y, s=42, marker=style.marker, facecolors="none" if hollow else style.color, edgecolors=style.color,
        linewidths=1.5, label=style.name if label else None,
    )  # fmt: skip
    drawn.set_urls([(pages or {}).get(run.key) for run in runs])


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=2.2,
                    columnspacing=1.2)  # fmt: skip
