"""``train.py experiment=mini_metric``: make the embedded metric and say how good it is."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from certiqa.console import plain_console
from certiqa.entry.admission import take
from certiqa.entry.build import build
from certiqa.entry.composing import with_home
from certiqa.storage.files import write_aside
from certiqa.training.mini_metric import MetricFit


def fit_metric(config: DictConfig, folder: Path) -> None:
    """Fit the head, print the figures, and write them beside the weights as the model card's table."""
    fit = build(config.metric_fit)
    assert isinstance(fit, MetricFit)
    table = describe_fit(fit)
    take(folder, config)
    with write_aside(folder / "figures.md") as partial:
        partial.write_text(table, encoding="utf-8")
    console = plain_console()
    console.print(table)
    console.print(f"weights: {with_home(config.metric_fit.path)}", soft_wrap=True)


def describe_fit(fit: MetricFit) -> str:
    """Return the figures as a Markdown table."""
    groups = ", ".join(f"{value:.3f}" for value in fit.groups)
    rows = [
        ("photographs", "SROCC with pseudo-MOS"),
        ("---", "---"),
        ("cross-validated: groups of training photographs left out, mean", f"{fit.cross_validated:.3f} ({groups})"),
        ("cross-validated: inside one left-out photograph, mean", f"{fit.per_photograph:.3f}"),
        ("three validation photographs", f"{fit.validation:.3f}"),
        ("five test photographs", f"{fit.test:.3f} (PLCC {fit.test_plcc:.3f})"),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([*lines, "", f"ridge penalty {fit.penalty:g}", ""])
