"""The purification study as a table for the terminal and as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from certiqa.errors import UserError
from certiqa.reports import plots
from certiqa.reports.html import SCRIPT, picture_uri
from certiqa.reports.plots import Plot
from certiqa.reports.tables import NOTHING, SPACE, decimal, percent
from certiqa.storage.csv_cells import plain_cell
from certiqa.storage.files import DamagedFileError, read_json, sha256, write_aside

Facts = dict[str, Any]
Rows = list[dict[str, str]]
UNAVAILABLE = "weights not available"
INAPPLICABLE = "not applicable"
KEYS = ("purifier", "strength", "attack", "aim")
FACTS: dict[str, type] = {
    **dict.fromkeys(("name", "weights", "metric", "data", "direction", "status"), str),
    "attacks": dict,
    "best": dict,
    "unavailable": list,
    "pseudo_mos": bool,
}
"""What ``study.json`` holds at least."""


def number(row: Any, key: str) -> float | None:
    """Return a finite value of a row of a table, None for anything else."""
    value = row.get(key)
    return float(value) if value is not None and np.isfinite(value) else None


def parts_of(figures: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the attacked parts, (attack, aim), in the order of the study."""
    attacked = figures[figures["attack"] != "none"]
    return list(attacked[["attack", "aim"]].drop_duplicates().itertuples(index=False, name=None))


def change(value: float | None, facts: Facts) -> str:
    """Return a change of scores as a share of the metric's range, in native units where it has none."""
    return percent(value) if facts["score_range"] else decimal(value)


def columns_of(figures: pd.DataFrame) -> dict[str, str]:
    """Return key -> heading of the main table."""
    columns = {"purifier": "Purifier", "strength": "Strength", "kept": "SROCC kept", "quality": "Quality score"}
    for attack, aim in parts_of(figures):
        columns[f"robust {attack} {aim}"] = f"{attack}, {aim}: change"
        columns[f"srocc {attack} {aim}"] = f"{attack}, {aim}: SROCC"
    return columns


def table_rows(figures: pd.DataFrame, facts: Facts, *, best_only: bool = True) -> Rows:
    """Return the main table: without purifier, each purifier at its best strength, and those without weights."""
    parts = parts_of(figures)
    first = figures[figures["attack"] != "none"].drop_duplicates(["attack", "aim"]).set_index(["attack", "aim"])
    blank = dict.fromkeys(columns_of(figures), NOTHING)
    bare = {**blank, "purifier": "none", "strength": "", "kept": decimal(1.0)}
    for part in parts:
        # an adaptive attack on no defense is the transfer attack itself
        source = first.loc[(part[0], "transfer")] if (part[0], "transfer") in first.index else None
        if source is not None:
            bare[f"robust {part[0]} {part[1]}"] = change(number(source, "nonpurified_abs_gain"), facts)
            bare[f"srocc {part[0]} {part[1]}"] = decimal(number(source, "attacked_srocc_mos"))
    rows = [bare]
    for (purifier, strength), group in figures.groupby(["purifier", "strength"], sort=False):
        if best_only and facts["best"].get(purifier) != strength:
            continue
        row = {**blank, "purifier": str(purifier), "strength": str(strength)}
        for _, cell in group.iterrows():
            if cell["attack"] == "none":
                row["kept"] = decimal(number(cell, "robust_clear_srocc_clear"))
                row["quality"] = decimal(number(cell, "quality_score"), 2)
                continue
            under = f"{cell['attack']} {cell['aim']}"
            row[f"robust {under}"] = change(number(cell, "robust_abs_gain"), facts)
            row[f"srocc {under}"] = decimal(number(cell, "robust_attacked_srocc_mos"))
        rows.append(row)
    if best_only:
        rows += [{**blank, "purifier": name, "strength": UNAVAILABLE} for name in facts["unavailable"]]
        named = dict.fromkeys(cell["purifier"] for cell in facts.get("inapplicable", []))
        rows += [{**blank, "purifier": name, "strength": INAPPLICABLE} for name in named if name not in facts["best"]]
    return rows


def print_study(figures: pd.DataFrame, facts: Facts, console: Console) -> None:
    """Print the main table in the width of a terminal: SROCC under attack and names of options are in the report."""
    table = Table(box=box.SIMPLE, title=facts["name"], title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("Purifier, strength", no_wrap=True)
    for heading in ("SROCC\nkept", "Quality\nscore"):
        table.add_column(heading, justify="right")
    attacked = [key for key in columns_of(figures) if key.startswith("robust ")]
    for key in attacked:
        _, attack, aim = key.split()
        table.add_column(f"{attack}{' %' if facts['score_range'] else ''}\n{aim}", justify="right")
    for row in table_rows(figures, facts):
        if row["strength"] not in (UNAVAILABLE, INAPPLICABLE):
            name = f"{row['purifier']} {row['strength'].rpartition(' ')[2]}".strip()
            table.add_row(name, row["kept"], row["quality"], *(row[key].rstrip(f"{SPACE}%") for key in attacked))
    console.print(table)
    console.print(legend(facts), style="dim")


def legend(facts: Facts) -> str:
    """Return how to read the table."""
    unit = "as a share of the range" if facts["score_range"] else "in the metric's own units"
    label = "pseudo-MOS, not comparable with published figures" if facts["pseudo_mos"] else "MOS"
    return (
        "SROCC kept: of clear scores behind the purifier with clear scores without it. Quality score: SSIM + PSNR/40 "
        "of the purified clear image. Change: mean absolute change from the clear undefended score to that of the "
        f"purified attacked image, {unit}; less is better. SROCC: of those scores with {label}. Each "
        "purifier stands with its best strength on these very images, the one of least change under adaptive attacks. "
        "All of it is measured, nothing certified."
    )


@plots.styled()
def trade_off(figures: pd.DataFrame, facts: Facts, attack: str, aim: str) -> Plot | None:
    """Return the correlation that a purifier keeps against what an attack still does; None without a correlation."""
    import matplotlib.pyplot as plt

    if "robust_clear_srocc_clear" not in figures:  # of two images
        return None
    figure, axes = plt.subplots(figsize=(plots.WIDTH, plots.HEIGHT + 0.9), layout="constrained")
    unit, scale = ("% of range", 100.0) if facts["score_range"] else ("score units", 1.0)
    clean = figures[figures["attack"] == "none"].set_index(["purifier", "strength"])["robust_clear_srocc_clear"]
    rows = figures[(figures["attack"] == attack) & (figures["aim"] == aim)].set_index(["purifier", "strength"])
    bare = float(rows["nonpurified_abs_gain"].mean()) if aim == "transfer" else None
    for place, (purifier, part) in enumerate(rows.groupby(level=0, sort=False)):
        kept, left = clean.loc[part.index].to_numpy(float), part["both_defended_abs_gain"].to_numpy(float)
        marker = "osD^vPX*"[place // 7 % 8]
        axes.plot(kept, scale * left, marker=marker, ms=4.5, lw=0.9, color=plots.SERIES[place % 7], label=purifier)
    if bare is not None:
        axes.axhline(scale * bare, color=plots.UNDEFENDED, lw=1, ls="--")
        axes.annotate(
            "no purifier",
            (0.0, scale * bare),
            (2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8.5,
            color=plots.UNDEFENDED,
        )
    axes.set_xlabel("SROCC of clear scores with and without purifier")
    axes.set_ylabel(f"attack moves the score by, {unit}")
    axes.set_ylim(bottom=0)
    figure.legend(ncols=3, loc="outside lower center", fontsize=8.5, handlelength=1.4, columnspacing=1.0)
    caption = (
        f"{attack}, {aim}: to the right a purifier keeps the order of clear images, below it leaves the attack less. A "
        "line joins the strengths of one purifier. The best corner is at the lower right."
    )
    key = f"trade-off-{attack}-{aim}"
    svg = plots.svg_of(figure, key)
    plt.close(figure)
    return Plot(key, f"Robustness against correlation kept: {attack}, {aim}", svg, caption)


def read_study(folder: Path) -> tuple[pd.DataFrame, Facts]:
    """Return the figures and the facts of a finished study; raises UserError where there is none, or a damaged one."""
    path, table = folder / "study.json", folder / "study.csv"
    try:
        facts = read_json(path, dict)
        if facts is None:
            raise FileNotFoundError(f"there is no '{path.name}'")
        if lacking := [key for key, kind in FACTS.items() if not isinstance(facts.get(key), kind)]:
            raise ValueError(f"'{path.name}' does not say {', '.join(lacking)}")
        if facts.get("figures", digest := sha256(table)) != digest:
            raise ValueError(f"'{table.name}' has changed since it was written")
        figures = pd.read_csv(table, keep_default_na=True).map(plain_cell)
        if lacking := [key for key in KEYS if key not in figures]:
            raise ValueError(f"'{table.name}' has no column {', '.join(lacking)}")
    except (OSError, ValueError, DamagedFileError) as error:
        raise UserError(f"no finished purification study in '{folder}': {error}; run it again to finish it") from error
    return figures.fillna({"strength": "", "aim": ""}), facts


def write_study_report(folder: str | Path) -> Path:
    """Write ``report.html`` of a study from its ``study.csv`` and ``study.json``, and return its path.

    Raises:
        UserError: no finished study in ``folder``.
    """
    folder = Path(folder)
    figures, facts = read_study(folder)
    environment = Environment(
        loader=PackageLoader("certiqa.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [plot for attack, aim in parts_of(figures) if (plot := trade_off(figures, facts, attack, aim)) is not None]
    pictures = [
        {**entry, "source": picture_uri(folder, entry["file"], 256, 85), "score": decimal(entry["score"])}
        for entry in facts.get("gallery") or []
    ]
    page = environment.get_template("study.html.j2").render(
        facts=facts,
        columns=columns_of(figures),
        rows=table_rows(figures, facts),
        everything=table_rows(figures, facts, best_only=False)[1:],
        legend=legend(facts),
        figures=[{"title": plot.title, "caption": plot.caption, "svg": Markup(plot.svg)} for plot in drawn],
        pictures=[picture for picture in pictures if picture["source"]],
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )
    path = folder / "report.html"
    with write_aside(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
