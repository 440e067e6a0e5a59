"""What is proven about a set's SROCC beside what was found: the certified floor, and how close anything came to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from certiqa.reports import plots
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


def write_floor_figure(path: str | Path, curves: Sequence[Curve], mos_label: str) -> None:
    """Write floor, worst found and attacks against the radius as SVG, one panel for each defense."""
    with plots.styled():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(plots.WIDTH * len(curves), plots.HEIGHT * 1.15), layout="constrained")
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
        panels[0].legend(loc="lower left")
        with write_aside(Path(path)) as partial:
            figure.savefig(partial, format="svg")
