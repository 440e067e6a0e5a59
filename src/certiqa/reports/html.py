"""A run's folder as one self-contained page, ``report.html``: no network, no file beside it."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from certiqa.errors import UserError
from certiqa.evaluation.gallery import read_gallery
from certiqa.evaluation.record_lines import NO_ATTACK
from certiqa.evaluation.records import read_records
from certiqa.evaluation.summary import read_summary
from certiqa.reports import attacks, floors, plots, tables
from certiqa.storage.files import write_aside

PICTURE_BUDGET = 2_500_000  # bytes of base64 for all gallery pictures
PICTURE_STEPS = ((512, 92), (384, 85), (256, 75), (192, 60))  # longest side in pixels, WebP quality
ROWS_SHOWN = 500
CONFIG_SHOWN = 200_000  # characters
SCRIPT = """
const box = document.querySelector("dialog");
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.zoom");
  if (button) {
    const text = document.createElement("p");
    text.textContent = button.firstElementChild.alt;
    box.replaceChildren(button.firstElementChild.cloneNode(), text);
    box.showModal();
  } else if (box.open) box.close();
});
"""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds; empty where a file is missing."""

    folder: Path
    summary: dict[str, Any]
    records: pd.DataFrame
    metrics: pd.DataFrame
    gallery: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""

    @property
    def clean(self) -> pd.DataFrame:
        """Rows of the images as they are, without attacks."""
        return self.records[self.records["attack"] == NO_ATTACK] if len(self.records) else self.records

    @property
    def radius(self) -> float | None:
        """The primary radius: the summary's, else the records' middle one, None without certificates."""
        given = tables.primary_radius(self.summary)
        if given is not None or self.records.empty:
            return given
        radii = np.sort(self.clean["radius"].dropna().unique())
        return float(radii[(len(radii) - 1) // 2]) if len(radii) else None

    @property
    def images(self) -> pd.DataFrame:
        """One row per image, at the primary radius where it has one."""
        rows = self.clean
        if rows.empty or self.radius is None:
            return rows.drop_duplicates("image_id") if len(rows) else rows
        distance = (rows["radius"] - self.radius).abs()
        return (
            rows.assign(_far=distance)
            .sort_values("_far", kind="stable")
            .drop_duplicates("image_id")
            .drop(columns="_far")
        )


def load_run(folder: str | Path) -> Run:
    """Read a run's folder; raises UserError without a summary and records, or where the summary is damaged."""
    folder = Path(folder)
    summary = read_summary(folder)
    try:
        records = read_records(folder)
    except UserError:
        records = pd.DataFrame()
    if summary is None and records.empty:
        raise UserError(
            f"no run in '{folder}': it has neither summary.json nor records; give e.g. outputs/train/<name>"
        )
    if summary is None:
        summary = {
            "status": "unfinished",
            "name": folder.resolve().name,
            "num_images": records["image_id"].nunique(),
        }
    config = _read(folder / ".hydra" / "config.yaml", lambda path: path.read_text(encoding="utf-8"))
    return Run(
        folder=folder,
        summary=summary,
        records=records,
        metrics=_curves(folder),
        gallery=read_gallery(folder),
        config=(config or "")[:CONFIG_SHOWN],
    )


def _curves(folder: Path) -> pd.DataFrame:
    """Read the training curves; a run that was interrupted and continued has a file for each part."""
    parts = [_read(path, pd.read_csv, pd.DataFrame()) for path in sorted(folder.glob("metrics*.csv"))]
    parts = [part.apply(pd.to_numeric, errors="coerce").dropna(subset="step") for part in parts if "step" in part]
    return pd.concat(parts).sort_values("step", kind="stable", ignore_index=True) if parts else pd.DataFrame()


def _read(path: Path, reader: Any, missing: Any = None) -> Any:
    """Read a file that a run may lack or have left half written (ValueError: bad json, csv or unicode)."""
    try:
        return reader(path) if path.is_file() else missing
    except (OSError, ValueError):
        return missing


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder, atomically, and return its path.

    The page holds whatever the folder has: sections without data are left out.

    Args:
        folder: a run's folder, with ``summary.json`` or records, or both.

    Raises:
        UserError: if there is no run in ``folder``, or the page cannot be written.
    """
    run = load_run(folder)
    path = run.folder / "report.html"
    try:
        with write_aside(path) as partial:
            partial.write_text(render(run), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; free space or choose another folder") from error
    return path


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    environment = Environment(
        loader=PackageLoader("certiqa.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("decimal", "native", "exact", "percent", "count", "duration"):
        environment.filters[name] = getattr(tables, name)
    summary, radius, images = run.summary, run.radius, run.images
    label = tables.mos_label(summary)
    shown = tables.radius_figures(summary, radius)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

    def number(key: str) -> float | None:
        """Look a number of the summary up, at the primary radius where it is a certified figure."""
        return tables.value_of(shown, key) if key in shown else tables.value_of(summary, key)

    return environment.get_template("report.html.j2").render(
        title=str(summary.get("name") or run.folder.resolve().name),
        summary={key: value for key, value in summary.items() if value not in (None, "")},
        number=number,
        mos_label=label,
        notice=tables.weights_notice(summary),
        radius=radius,
        figures=draw(run, radius, label),
        gallery=pictures(run),
        measures=tables.measure_rows(summary),
        error_note=tables.error_note(summary),
        certified=tables.radius_rows(summary),
        attacks=attacks.attack_rows(summary),
        attack_columns=attacks.headings(attacks.COLUMNS, summary),
        gain_meaning=attacks.gain_meaning(summary),
        purified=attacks.purified_rows(summary),
        purified_columns=attacks.headings(attacks.PURIFIED_COLUMNS, summary),
        attack_warnings=summary.get("attack_warnings") or [],
        data_notes=notes if isinstance(notes := summary.get("data_notes"), list) else [],
        table_rows=image_rows(images),
        num_images=len(images),
        config=run.config,
        script=Markup(SCRIPT),
        script_hash=digest,
    )


def draw(run: Run, radius: float | None, label: str) -> list[dict[str, Any]]:
    """Return the page's figures that the run has data for, in reading order."""
    found: list[plots.Plot | None] = [*plots.score_plots(run.images, run.summary, radius, label)]
    if len(run.clean):
        found.append(plots.delta_plot(run.clean, tables.range_width(run.summary)))
    found.append(floors.correlation_plot(run.summary, tables.radii_of(run.summary), label))
    if len(run.records):
        found.append(attacks.certificate_plot(run.records, run.summary))
        found += attacks.rank_plots(run.records, run.summary)
    found += plots.training_plots(run.metrics)
    return [
        {"key": plot.key, "title": plot.title, "caption": plot.caption, "svg": Markup(plot.svg)}
        for plot in found
        if plot is not None
    ]


def image_rows(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the per-image table, the least certain image first, at most ``ROWS_SHOWN`` of them.

    ``left`` and ``width`` place an interval on a bar from the least to the greatest finite bound, in %.
    """
    if images.empty:
        return []
    numbers = ["mos", "score_clean", "score", "lower", "upper"]
    table = images.astype(dict.fromkeys(numbers, float))
    table["delta"] = np.fmax(table["upper"] - table["score"], table["score"] - table["lower"])
    moved = (table["score"] - table["score_clean"]).abs()
    table["_sort"] = table["delta"] if table["delta"].notna().any() else moved
    table = table.sort_values("_sort", ascending=False, kind="stable").head(ROWS_SHOWN)
    ends = table[["lower", "upper", "score"]].to_numpy(float)
    ends = ends[np.isfinite(ends)]
    start, span = (ends.min(), np.ptp(ends) or 1.0) if ends.size else (0.0, 1.0)
    places = {
        name: _places(table[columns]) for name, columns in (("mos", ["mos"]), ("score", ["score_clean", "score"]))
    }
    rows = []
    for row in table.to_dict("records"):
        values = {key: tables.value_of(row, key) for key in ("mos", "score_clean", "score", "lower", "upper", "delta")}
        shown = {key: tables.decimal(value, places.get(key, places["score"])) for key, value in values.items()}
        low, high, score = values["lower"], values["upper"], values["score"]
        bar = None
        if low is not None and high is not None and score is not None and np.isfinite([low, high, score]).all():
            bar = {
                "left": 100 * (low - start) / span,
                "width": 100 * (high - low) / span,
                "at": 100 * (score - start) / span,
            }
        rows.append({"image_id": str(row["image_id"]), "bar": bar, **shown})
    return rows


def _places(columns: pd.DataFrame) -> int:
    """Return the decimals that show four digits of the largest finite value."""
    values = columns.to_numpy(float)
    values = np.abs(values[np.isfinite(values)])
    return tables.places_for(float(values.max(initial=0.0)), 4)


def pictures(run: Run) -> list[dict[str, Any]]:
    """Return the gallery, its pictures as data URIs within ``PICTURE_BUDGET``, smaller or fewer if needed."""
    scores = dict(zip(run.images["image_id"], run.images["score"], strict=True)) if len(run.images) else {}
    listed = [{"score": scores.get(str(entry.get("image_id"))), **entry} for entry in run.gallery]
    entries: list[dict[str, Any]] = []
    for side, quality in PICTURE_STEPS:
        entries = [_entry(run.folder, entry, side, quality) for entry in listed]
        entries = [entry for entry in entries if entry["panels"]]
        if sum(entry["size"] for entry in entries) <= PICTURE_BUDGET:
            return entries
    total = np.cumsum([entry["size"] for entry in entries])
    return [entry for entry, size in zip(entries, total, strict=True) if size <= PICTURE_BUDGET]


def _entry(folder: Path, entry: dict[str, Any], side: int, quality: int) -> dict[str, Any]:
    panels = []
    for panel in entry.get("panels") or []:
        source = picture_uri(folder, str(panel.get("file") or ""), side, quality)
        if source:
            score = tables.value_of(panel, "score")
            panels.append({"label": str(panel.get("label") or ""), "source": source, "score": tables.native(score)})
    numbers = {key: tables.native(tables.value_of(entry, key)) for key in ("mos", "score_clean", "score")}
    size = sum(len(panel["source"]) for panel in panels)
    return {"image_id": str(entry.get("image_id", "")), "panels": panels, "size": size, **numbers}


def picture_uri(folder: Path, name: str, side: int, quality: int) -> str | None:
    """Return a picture inside ``folder`` as a WebP data URI of at most ``side`` pixels, or None."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    try:
        with Image.open(path) as opened, io.BytesIO() as buffer:
            picture = opened.convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            picture.save(buffer, "WEBP", quality=quality)
            return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
