"""A comparison as a static site: one page that sorts and filters, a page for every run, and the table as files."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from certiqa.errors import UserError
from certiqa.reports import html
from certiqa.reports.comparison.columns import (
    ATTACK_COLUMNS,
    GROUPS,
    RUN,
    RUN_COLUMNS,
    SETTINGS,
    Column,
    Table,
    Value,
    build_table,
)
from certiqa.reports.comparison.exports import marked, to_csv, to_latex, to_markdown
from certiqa.reports.comparison.figures import figures
from certiqa.reports.comparison.gather import ComparedRun, comparable, gather, is_run, notes_on
from certiqa.reports.comparison.seeds import over_seeds, seeds_to_csv
from certiqa.reports.comparison.significance import BEST, best_marks, explanation, marks_of
from certiqa.reports.tables import NOTHING
from certiqa.storage.files import write_aside

FACETS = ("metric", "defense", "attack", "data", "seed", "status")
EXPORTS = {"table.csv": "CSV", "table.tex": "LaTeX", "table.md": "Markdown"}
ALWAYS = ("defense", "seeds")
"""Columns that are shown even where all rows agree."""
SEED_EXPORTS = {"seeds.csv": "CSV", "seeds.tex": "LaTeX", "seeds.md": "Markdown"}


@dataclass(frozen=True)
class Site:
    """A comparison that was written: its first page, the runs in it, and what a reader must know."""

    index: Path
    runs: Sequence[ComparedRun]
    notes: Sequence[str]


def write_comparison(
    folders: Iterable[str | Path],
    into: str | Path | None = None,
    *,
    radius: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    link: bool = False,
) -> Site:
    """Gather every run at or below ``folders`` into a static site that needs no network.

    Args:
        folders: runs, or folders of runs at any depth.
        into: where the site goes; by default ``comparison/`` in the folder given, or in what several have in common.
        radius: of the certified figures in the table; by default the primary one of most runs.
        resamples: of the paired bootstrap behind the marks.
        seed: of the paired bootstrap.
        link: link to each run's ``report.html`` where it lies, instead of copying it into the site.

    Raises:
        UserError: where there is no run, no run was certified at ``radius``, or the site cannot be written.
    """
    given = [Path(folder) for folder in folders]
    if resamples < 1:
        raise UserError(f"the number of resamples must be at least 1, got {resamples}; 1000 is usual")
    runs, left_out = comparable(gather(given))
    target = Path(into) if into is not None else default_target(given)
    table = build_table(runs, radius)
    marks = marks_of(table, resamples=resamples, seed=seed)
    marking = explanation(resamples, seed)
    try:
        target.mkdir(parents=True, exist_ok=True)
        pages = [page_of(run, target, link=link) for run in runs]
        _write(target / "table.csv", to_csv(table))
        _write(target / "table.tex", to_latex(table, marks, marking))
        _write(target / "table.md", to_markdown(table, marks, marking))
        averaged = write_averages(over_seeds(table), target)
        notes = [*left_out, *notes_on(runs)]
        _write(target / "index.html", render(table, marks, pages, notes, marking, averaged))
    except OSError as error:
        raise UserError(f"cannot write the comparison to '{target}': {error}; choose another folder") from error
    return Site(target / "index.html", runs, notes)


def default_target(folders: Sequence[Path]) -> Path:
    """Return ``comparison/`` in the folder given, or in the folder that holds all of several."""
    if len(folders) == 1:
        only = folders[0]
        return (only.resolve().parent if is_run(only) else only) / "comparison"
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if is_run(common):
        common = common.parent
    if common == Path(common.anchor):
        raise UserError("these folders have no folder in common to write the comparison into; say where with --into")
    return common / "comparison"


def write_averages(averaged: Table | None, target: Path) -> Table | None:
    """Write the table over seeds as files, where runs differ in seeds alone; those of an earlier comparison go."""
    if averaged is None:
        for name in SEED_EXPORTS:
            (target / name).unlink(missing_ok=True)
        return None
    best = best_marks(averaged)
    _write(target / "seeds.csv", seeds_to_csv(averaged))
    _write(target / "seeds.tex", to_latex(averaged, best, label="tab:certiqa-seeds"))
    _write(target / "seeds.md", to_markdown(averaged, best))
    return averaged


def _write(path: Path, text: str) -> None:
    with write_aside(path, durable=False) as partial:
        partial.write_text(text, encoding="utf-8")


def page_of(run: ComparedRun, target: Path, *, link: bool = False) -> str | None:
    """Put a run's page into the site and return its address relative to ``target``; None where there is no page.

    The run's own ``report.html`` is copied where it is as new as its results; else the page is drawn from the folder,
    which is left as it is, since the run may still go on.
    """
    report = run.folder / "report.html"
    written = report.stat().st_mtime if report.is_file() else None
    if link:
        return Path(os.path.relpath(report.resolve(), target.resolve())).as_posix() if written else None
    page = target / "runs" / f"{run.key}.html"
    page.parent.mkdir(exist_ok=True)
    sources = [run.folder / "summary.json", *(run.folder / "records").glob("rank-*.jsonl")]
    newest = max((path.stat().st_mtime for path in sources if path.is_file()), default=0.0)
    if written is not None and written >= newest:
        if not (page.is_file() and page.stat().st_mtime == written):
            with write_aside(page, durable=False) as partial:
                shutil.copy2(report, partial)
        return f"runs/{page.name}"
    try:
        text = html.render(html.load_run(run.folder))
    except (UserError, ValueError, KeyError, TypeError):
        page.unlink(missing_ok=True)  # of an earlier comparison, when there was something to show
        return None
    _write(page, text)
    return f"runs/{page.name}"


def render(
    table: Table,
    marks: dict[tuple[int, str], str],
    pages: Sequence[str | None],
    notes: Sequence[str],
    marking: str,
    averaged: Table | None = None,
) -> str:
    """Return the site's first page; ``averaged`` is the table over seeds, where there is one."""
    environment = Environment(
        loader=PackageLoader("certiqa.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "comparison.js")[0]
    constant = {column.key for column in table.columns} - {column.key for column in shown_columns(table)[0]}
    attack_columns = [
        column
        for column in ATTACK_COLUMNS
        if (column.key not in constant or column.key == "attack")
        and any(row.get(column.key) not in (None, "") for row in table.attack_rows)
    ]
    columns, shared = shown_columns(table)
    mean_columns, mean_shared = shown_columns(averaged) if averaged else ([], [])
    best = best_marks(averaged) if averaged else {}
    return environment.get_template("comparison.html.j2").render(
        table=table,
        columns=columns,
        shared=shared,
        heads=heads_of(columns),
        rows=[row_of(table, row, columns, marks, pages) for row in table.rows],
        attack_heads=heads_of(attack_columns),
        attack_columns=attack_columns,
        attack_rows=[row_of(table, row, attack_columns, {}, pages) for row in table.attack_rows],
        mean_heads=heads_of(mean_columns),
        mean_columns=mean_columns,
        mean_shared=mean_shared,
        mean_rows=[row_of(averaged, row, mean_columns, best, ()) for row in averaged.rows] if averaged else [],
        mean_notes=[note for note in averaged.notes if note not in table.notes] if averaged else [],
        mean_exports=SEED_EXPORTS,
        groups=[group for group in GROUPS if any(column.group == group for column in columns)],
        all_groups=GROUPS,
        facets=facets_of(table),
        figures=[
            {"key": plot.key, "title": plot.title, "caption": plot.caption, "svg": Markup(plot.svg)}
            for plot in figures(table, {run.key: page for run, page in zip(table.runs, pages, strict=True)})
        ],
        exports=EXPORTS,
        notes=notes,
        marking=marking,
        random=sum(run.random_weights for run in table.runs),
        finished=sum(run.finished for run in table.runs),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shown_columns(table: Table) -> tuple[list[Column], list[str]]:
    """Return the columns that the page shows, and as text what all of several runs share instead."""
    columns, shared = [], []
    for column in table.columns:
        values = {column.text(row.get(column.key)) for row in table.rows}
        if len(table.rows) > 1 and len(values) == 1 and column.group in (RUN, SETTINGS) and column.key not in ALWAYS:
            shared += [f"{column.title.lower()} {value}" for value in values - {NOTHING}]
        else:
            columns.append(column)
    return columns, shared


def heads_of(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the groups of neighbouring columns and how many columns each spans."""
    spans: list[tuple[str, int]] = []
    for column in columns:
        if spans and spans[-1][0] == column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    return spans


def facets_of(table: Table) -> list[tuple[str, str, list[str]]]:
    """Return (key, title, values) of what rows can be chosen by, where there is more than one value."""
    found = []
    for key in FACETS:
        values = {value for row in table.rows for value in facet_values(table, row, key)}
        if len(values) > 1:
            title = next(column.title for column in RUN_COLUMNS if column.key == key)
            found.append((key, title, sorted(values, key=in_order)))
    return found


def in_order(text: str) -> tuple[bool, int, str]:
    """Order a choice: nothing first, numbers by size, names by letter."""
    return text != NOTHING, int(text) if text.isdecimal() else 0, text


def facet_values(table: Table, row: dict[str, Value], key: str) -> list[str]:
    """Return the values under which a row is found: one, but all attacks of a run with several."""
    column = next(column for column in RUN_COLUMNS if column.key == key)
    if key == "seed" and row.get("seeds"):
        return sorted({text.partition(" ")[0] for text in str(row["seeds"]).split(", ")})
    several = key == "attack" and row.get("attack") not in (None, *table.runs[number_of(row)].attacks)
    return table.runs[number_of(row)].attacks if several else [column.text(row.get(key))]


def number_of(row: dict[str, Value]) -> int:
    """Return which run a row is of."""
    return int(float(row["number"] or 0))


def row_of(
    table: Table,
    row: dict[str, Value],
    columns: Sequence[Column],
    marks: dict[tuple[int, str], str],
    pages: Sequence[str | None],
) -> dict[str, Any]:
    """Return one row as the page shows it: what it is called, where it leads, and its cells."""
    number = number_of(row)
    run = table.runs[number]
    cells = []
    for column in columns:
        value = row.get(column.key)
        mark = marks.get((number, column.key))
        cells.append({
            "column": column,
            "text": marked(column.text(value), mark, "{}"),
"sort": sort_key(value),
            "best": mark == BEST,
        })  # fmt: skip
    return {
        "name": str(row["name"]),
        "page": pages[number] if pages else None,
        "status": run.status,
        "finished": run.finished,
        "random": run.random_weights,
        "problems": "; ".join(run.problems),
        "facets": {key: facet_values(table, row, key) for key in FACETS},
        "cells": cells,
    }


def sort_key(value: Value) -> str:
    """Return what the page's script sorts by: a number as JavaScript reads it, nothing for nothing."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value).replace("inf", "Infinity")
    return str(value or "")
