"""The project's W&B workspace: which panels it has, as plain data, and the same as a wandb-workspaces object.

Every key named here is one that runs log (tests/reports/test_dashboard.py holds it against a real run).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from certiqa.errors import UserError
from certiqa.evaluation.tracked import RADIUS, curve_name

Kind = Literal["line", "bar", "scatter", "parallel", "table", "media"]
STEP = "trainer/global_step"
PINNED = ("status", "defense", "srocc", "certified_srocc")
"""Keys of the summary that stand beside a run's name."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what stands above it.
        kind: line (curves over ``x``), bar (one bar a run and key), scatter (``x`` against the one key), parallel
            (an axis a key), table or media (the one key).
        keys: what it shows; those beginning with ``config:`` are options of the runs, others are logged.
        x: the key of the horizontal axis, of lines and scatters.
    """

    title: str
    kind: Kind
    keys: tuple[str, ...]
    x: str | None = None

    @property
    def all_keys(self) -> tuple[str, ...]:
        """Every key that the panel needs."""
        return self.keys if self.x is None else (self.x, *self.keys)


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    name: str
    panels: tuple[Panel, ...]


def dashboard(attacks: Sequence[str]) -> tuple[Section, ...]:
    """Return the workspace's sections.

    Proven and measured figures never share a panel.

    Args:
        attacks: names of attacks as records have them, e.g. ``("ifgsm", "square")``; runs without one of them leave
            its bar out.
    """
    gains = tuple(f"attack_gain_{name}" for name in attacks)
    after = tuple(f"attack_srocc_{name}" for name in attacks)
    noise = tuple(f"attack_gain_of_noise_{name}" for name in attacks)
    return (
        Section(
            "Correlation with opinion scores",
            (
                Panel("SROCC, defended and undefended", "bar", ("srocc", "srocc_undefended")),
                Panel("PLCC, defended and undefended", "bar", ("plcc", "plcc_undefended")),
                Panel("What the defense costs", "bar", ("tau_srocc", "tau_plcc")),
                Panel("SROCC at validation", "line", ("val/srocc",), STEP),
                Panel("Training loss", "line", ("train/loss",), STEP),
                Panel("PSNR of the denoiser at validation, dB", "line", ("val/psnr",), STEP),
            ),
        ),
        Section(
            "Certificates against radius (proven)",
            (
                *(
                    Panel(title, "line", (curve_name(figure),), RADIUS)
                    for title, figure in (
                        ("Certified delta of the median image, native units", "certified_delta_median"),
                        ("Certified delta, share of the range", "certified_delta_range_share"),
                        ("Certified delta, share of the scores' standard deviation", "certified_delta_sd_share"),
                        ("Certified SROCC of the whole set", "certified_srocc"),
                        ("Certified KROCC of the whole set", "certified_krocc"),
                        ("Images without a certificate", "abstention_rate"),
                    )
                ),
                Panel("SROCC against certified delta", "scatter", ("srocc",), "certified_delta_sd_share"),
            ),
        ),
        Section(
            "Attack gains (measured)",
            (
                Panel("Mean gain, share of the range", "bar", gains),
                Panel("Gain of noise of the same norm", "bar", noise),
                Panel("SROCC after the attack", "bar", after),
                Panel("Attacks", "table", ("attacks",)),
            ),
        ),
        Section(
            "Sweeps",
            (
                Panel(
                    "Options and what came of them",
                    "parallel",
                    (
                        *("metric", "defense", "config:sigma", "config:num_samples"),
                        *("srocc", "certified_delta_sd_share", "certified_srocc"),
                    ),
                ),
                Panel("SROCC against sigma", "scatter", ("srocc",), "config:sigma"),
                Panel("Certified SROCC against sigma", "scatter", ("certified_srocc",), "config:sigma"),
                Panel("Images per second", "bar", ("images_per_second",)),
            ),
        ),
        Section(
            "Images",
            (Panel("Gallery", "media", ("gallery",)), Panel("Records of every image", "table", ("records",))),
        ),
    )


def workspace(sections: Sequence[Section], *, entity: str, project: str, name: str) -> Any:
    """Return the sections as a ``wandb_workspaces`` workspace; nothing is sent.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'certiqa[dashboard]'")
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=section.name, panels=[_panel(panel) for panel in section.panels], is_open=True)
            for section in sections
        ],
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{key}" for key in PINNED]),
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    def metric(key: str) -> Any:
        return wr.Config(key.removeprefix("config:")) if key.startswith("config:") else wr.SummaryMetric(key)

    if panel.kind == "line":
        return wr.LinePlot(title=panel.title, x=panel.x, y=list(panel.keys))
    if panel.kind == "bar":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
    if panel.kind == "scatter":
        assert panel.x is not None
        return wr.ScatterPlot(title=panel.title, x=metric(panel.x), y=metric(panel.keys[0]))
    if panel.kind == "parallel":
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric(key)) for key in panel.keys]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.keys[0])
    return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
