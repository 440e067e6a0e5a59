"""What is proven about a set's SROCC beside what was found: the certified floor, and how close anything came to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certiqa.reports import plots
from certiqa.reports.tables import percent, radius_figures, value_of
from certiqa.storage.files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (plots.UNDEFENDED, plots.AMBER, plots.INK) * 4
NAMES = {"ms": "MS", "dms": "DMS", "dms_iqa": "DMS-IQA"}


@dataclass(frozen=True)
class Curve:
    """SROCC of one defense against the l2 radius.

    Attributes:
        name: of the defense.
        clean: SROCC without any perturbation.
        radii: shape (R,), rising.
        certified: proven floor at each radius.
        worst_found: lowest SROCC of any scores found within the intervals.
        attacks: measured SROCC of each attack, at each radius.
    """

    name: str
    clean: float
    radii: Sequence[float]
    certified: Sequence[float]
    worst_found: Sequence[float]
    attacks: Mapping[str, Sequence[float]] = field(default_factory=dict)


def draw_floor(axes: Axes, radii: Sequence[float], certified: Sequence[float], bottom: float) -> None:
    """Draw a floor as steps: a radius proves its floor for all smaller ones."""
    ledge, level = np.array([0.0, *radii]), np.array([certified[0], *certified])
    axes.step(ledge, level, where="pre", color=plots.CERTIFIED)
    axes.plot(radii, certified, color=plots.CERTIFIED, marker="o", ms=4.5, ls="none")
    axes.fill_between(ledge, bottom, level, step="pre", color=plots.CERTIFIED, alpha=0.12, lw=0)


def draw_found(axes: Axes, radii: Sequence[float], worst_found: Sequence[float]) -> None:
    """Draw the lowest correlation found within the intervals: the true least one is between it and the floor."""
    axes.plot(radii, worst_found, color=plots.PURPLE, marker="v", ms=4, lw=1.2, ls=(0, (1.5, 1.5)))


@plots.styled()
def correlation_plot(summary: dict[str, Any], radii: Sequence[float], mos_label: str) -> plots.Plot | None:
    """Return SROCC (no perturbation), certified SROCC, the lowest found and attacks against the radius."""
    pairs = [(radius, value_of(radius_figures(summary, radius), "certified_srocc")) for radius in radii]
    certified = [(radius, value) for radius, value in pairs if value is not None]
    if not certified:
        return None
    x, y = np.array(certified).T
    found = [(radius, value_of(radius_figures(summary, radius), "worst_found_srocc")) for radius in x]
    found = [(radius, value) for radius, value in found if value is not None]
    attacked = attack_points(summary, 1.04 * float(x.max()))
    clean, undefended = (value_of(summary, key) for key in ("srocc", "srocc_undefended"))
    figure, (axes,) = plots.new_figure()
    floor = min(0.0, min([*y, *(value for _, value in found), *(value for *_, value in attacked)]) - 0.08)
    plots.radius_axis(axes, x)
    gap = None if clean is None or undefended is None else undefended - clean
    for name, value, color in (("undefended", undefended, plots.UNDEFENDED), ("defended", clean, plots.DEFENDED)):
        if value is not None:
            axes.axhline(value, color=color, lw=1.5, ls=(0, (4, 2.5)))
            below = gap is not None and ((name == "defended") == (gap >= 0)) and abs(gap) < 0.12
            axes.annotate(
                f"{name}, no perturbation", (0.985, value), xycoords=("axes fraction", "data"), color=color,
                xytext=(0, -4 if below else 4), textcoords="offset points", ha="right",
                va="top" if below else "bottom", fontsize=9.5,
            )  # fmt: skip
    draw_floor(axes, list(x), list(y), floor)
    if found:
        draw_found(axes, *map(list, zip(*found, strict=True)))
    for _, radius, value in attacked:
        axes.plot(radius, value, color=plots.DEFENDED, marker="s", ms=5, ls="none")
    axes.text(0.06, 0.05, "certified floor", transform=axes.transAxes, color=plots.CERTIFIED, fontsize=9.5)
    axes.set(xlim=(0, 1.04 * x.max()), ylim=(floor, 1.0))
    axes.set_ylabel(f"SROCC with {mos_label}")
    joint = value_of(summary, "joint_confidence")
    said = f" with joint confidence {percent(joint, setting=True)}" if joint is not None else ""
    caption = (
        f"Solid: a floor, proven{said}: whatever perturbation within the radius each image gets, SROCC stays "
        "on or above it (a step holds up to its dot). Dashed: SROCC measured without any perturbation. The closer "
        "solid is to the dashed line of the defense, the more of its correlation is guaranteed."
    )
    if found:
        caption += (
            " Dotted with triangles: the lowest SROCC found for any scores inside the proven intervals; the least that "
            "the intervals allow lies between it and the floor. It is not an attack."
        )
    if attacked:
        names = ", ".join(sorted({name for name, *_ in attacked}))
        caption += f" Squares: SROCC measured under attack ({names}), at the largest l2 norm of its perturbations."
    caption += " Lower is better for this metric: the scores count negated." if summary.get("lower_better") else ""
    return plots.Plot("correlation", "SROCC and certified SROCC", plots.svg_of(figure, "correlation"), caption)


def attack_points(summary: Mapping[str, Any], largest: float) -> list[tuple[str, float, float]]:
    """Return (attack, largest l2 norm of its perturbations, SROCC under it) where that norm is at most ``largest``."""
    found = []
    for name in summary.get("attacks") or []:
        norm, value = (value_of(summary, f"attack_{key}_{name}") for key in ("l2_max", "srocc"))
        if norm is not None and value is not None and norm <= largest:
            found.append((str(name), norm, value))
    return found


def write_floor_figure(path: str | Path, curves: Sequence[Curve], mos_label: str) -> None:
    """Write floor, worst found and attacks against the radius as SVG, one panel for each defense."""
    with plots.styled():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(plots.WIDTH * len(curves), plots.HEIGHT * 1.35), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        shown = [v for c in curves for v in (*c.certified, *c.worst_found, *(x for a in c.attacks.values() for x in a))]
        bottom = min(0.0, min(shown) - 0.08)
        for axes, curve in zip(panels, curves, strict=True):
            axes.axhline(curve.clean, color=plots.DEFENDED, lw=1.5, ls=(0, (4, 2.5)), label="no perturbation")
            for (name, values), color in zip(curve.attacks.items(), COLORS, strict=False):
                axes.plot(curve.radii, values, color=color, marker="s", ms=4, lw=1.2, label=f"{name} (measured)")
            draw_found(axes, curve.radii, curve.worst_found)
            axes.lines[-1].set_label("lowest found in the intervals")
            draw_floor(axes, curve.radii, curve.certified, bottom)
            axes.lines[-1].set_label("certified floor (proven)")
            axes.set(xlim=(0, 1.04 * max(curve.radii)), ylim=(bottom, 1.0), title=NAMES.get(curve.name, curve.name))
            axes.set_xlabel("l2 radius")
            axes.xaxis.set_major_locator(MaxNLocator(5))
        panels[0].set_ylabel(f"SROCC with {mos_label}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        with write_aside(Path(path)) as partial:
            figure.savefig(partial, format="svg")
