"""A comparison as CSV (every figure), and as LaTeX and Markdown (the table for the paper)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from certiqa.reports.comparison.columns import CERTIFIED, RUN, SETTINGS, Column, Table, facts_for_csv
from certiqa.reports.comparison.gather import plural
from certiqa.reports.comparison.significance import BEST, LEVEL, UNTESTED, block_of
from certiqa.reports.tables import MINUS, NOTHING, SPACE
from certiqa.storage.csv_cells import safe_cell

Marks = Mapping[tuple[int, str], str]
SIGNS = {LEVEL: "†", UNTESTED: "‡"}
LEFT_OUT = ("status", "num_images", "seconds")
"""Columns that no exported table needs."""
TOO_WIDE = ("plcc_undefended", "tau_plcc", "gain_interval", "noise", "attack_l2")
"""Columns that LaTeX's page has no room for."""
CONSTANT = ("metric", "attack", "data", "seed", "sigma", "num_samples")
"""Columns that go into the caption where all runs share their value."""
NONE_FINISHED = "No run here has finished."
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    MINUS: "$-$",
    SPACE: r"\,",
    "\u03c3": r"$\sigma$",
    "τ": r"$\tau$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "†": r"\textsuperscript{$\dagger$}",
    "‡": r"\textsuperscript{$\ddagger$}",
    "·": r"$\cdot$",
    "±": r"$\pm$",
}


LATIN = 0x180  # pdfLaTeX knows no letter beyond Latin Extended-A


def marked(text: str, mark: str | None, bold: str) -> str:
    """Return a cell with its mark; ``bold`` is the template of the best one, e.g. ``**{}**``."""
    return bold.format(text) if mark == BEST else text + SIGNS.get(mark or "", "")


def to_csv(table: Table) -> str:
    """Return every run, finished or not, with the table's raw values first and then every figure of its summary.

    Columns of the table keep their key (certified ones with the radius, as ``certified.delta_range@0.06``); figures of
    ``summary.json`` have ``summary.`` before theirs. Missing values are empty, infinities ``inf``.
    """
    keys: list[str] = ["run", "folder", "random_weights"]
    lines: list[dict[str, object]] = []
    for run, row in zip(table.runs, table.rows, strict=True):
        line: dict[str, object] = {"run": run.key, "folder": str(run.folder), "random_weights": run.random_weights}
        for column in table.columns:
            at = f"certified.{column.key}@{table.radius:g}" if column.group == CERTIFIED else column.key
            line[at] = row.get(column.key)
        line |= {f"summary.{key}": value for key, value in facts_for_csv(run).items()}
        keys += [key for key in line if key not in keys]
        lines.append(line)
    first = [key for key in keys if not key.startswith("summary.")]
    with io.StringIO(newline="") as buffer:
        writer = csv.DictWriter(buffer, [*first, *sorted(set(keys) - set(first))], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: safe_cell(value) for key, value in line.items()} for line in lines)
        return buffer.getvalue()


def paper_rows(table: Table) -> list[list[int]]:
    """Return the finished runs in blocks of one data set and metric: the bare metric first, random weights last."""
    blocks: dict[object, list[int]] = {}
    for number, run in enumerate(table.runs):
        if run.finished:
            blocks.setdefault(block_of(run), []).append(number)
    order = sorted(blocks.values(), key=lambda block: str(block_of(table.runs[block[0]])[:4]))

    def place(number: int) -> tuple[object, ...]:
        row, run = table.rows[number], table.runs[number]
        names = (str(row.get(key) or "") for key in ("defense", "attack", "settings"))
        return (not run.bare, run.random_weights, *names, row.get("seed") or 0, number)

    return [sorted(block, key=place) for block in order]


def paper_columns(table: Table, numbers: Sequence[int]) -> tuple[list[Column], list[str]]:
    """Return the columns of an exported table, settings before results, and what all its runs share, as text."""
    columns, shared = [], []
    for column in sorted(table.columns, key=lambda column: column.group not in (RUN, SETTINGS)):
        values = {column.text(table.rows[number].get(column.key)) for number in numbers}
        if column.key in ("sigma", "num_samples"):
            values -= {NOTHING}  # of defenses without noise
        if column.key in CONSTANT and len(values) == 1:
            shared += [f"{column.title.lower()} {value}" for value in values - {NOTHING}]
        elif column.key not in LEFT_OUT and values - {NOTHING}:
            columns.append(column)
    return columns, shared


def name_of(table: Table, number: int, column: Column) -> str:
    """Return a cell's text; a run with random weights says so beside its defense."""
    text = column.text(table.rows[number].get(column.key))
    return f"{text} (random weights)" if column.key == "defense" and table.runs[number].random_weights else text


def caption_of(table: Table, shared: Sequence[str], marking: str) -> list[str]:
    """Return the sentences below an exported table."""
    blocks = paper_rows(table)
    left = len(table.runs) - sum(map(len, blocks))
    sentences = [f"All runs share: {', '.join(shared)}."] if shared else []
    sentences += list(table.notes)
    if any(column.group == CERTIFIED for column in table.columns) and not table.averaged:
        sentences.append("Certified columns are proven for every perturbation within the radius.")
    if table.attack_rows:
        sentences.append("Attacked columns are what these attacks did, no guarantee against others.")
    sentences += [marking] if marking else []
    if left:
        sentences.append(f"{plural(left)} that did not finish left out.")
    return sentences


def to_markdown(table: Table, marks: Marks, marking: str = "") -> str:
    """Return the finished runs as a Markdown table; ``marking`` says below it what the marks mean."""
    blocks = paper_rows(table)
    numbers = [number for block in blocks for number in block]
    if not numbers:
        return NONE_FINISHED + "\n"
    columns, shared = paper_columns(table, numbers)
    lines = [[column.title for column in columns], ["---:" if column.is_number else "---" for column in columns]]
    for number in numbers:
        cells = ((column, name_of(table, number, column)) for column in columns)
        lines.append([marked(_plain(text), marks.get((number, column.key)), "**{}**") for column, text in cells])
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{body}\n\n" + " ".join(_plain(text) for text in caption_of(table, shared, marking)) + "\n"


def _plain(text: str) -> str:
    """Escape what Markdown would read as its own."""
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text.replace("\n", " "))


def to_latex(table: Table, marks: Marks, marking: str = "", *, label: str = "tab:certiqa-comparison") -> str:
    """Return the finished runs as a LaTeX table for ``\\input``; needs the packages booktabs and graphicx."""
    blocks = paper_rows(table)
    if not blocks:
        return f"% {NONE_FINISHED}\n"
    columns, shared = paper_columns(table, [number for block in blocks for number in block])
    columns = [column for column in columns if column.key not in TOO_WIDE]
    spans: list[list[Column]] = []
    for column in columns:
        if spans and spans[-1][0].group == column.group:
            spans[-1].append(column)
        else:
            spans.append([column])
    groups, rules, start = [], [], 1
    for span in spans:
        title = "" if span[0].group in (RUN, SETTINGS) else latex(span[0].group.partition(",")[0])
        groups.append(f"\\multicolumn{{{len(span)}}}{{c}}{{{title}}}")
        rules += [f"\\cmidrule(lr){{{start}-{start + len(span) - 1}}}"] if title else []
        start += len(span)
    body = []
    for block in blocks:
        body.append(r"\midrule")
        for number in block:
            cells = ((column, latex(name_of(table, number, column))) for column in columns)
            shown = (_mark(text, marks.get((number, column.key))) for column, text in cells)
            body.append(" & ".join(shown) + r" \\")
    below = " ".join(latex(text) for text in caption_of(table, shared, marking))
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table}",
        r"\centering",
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{{''.join('r' if column.is_number else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(groups) + r" \\",
        "".join(rules),
        " & ".join(latex(column.title) for column in columns) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\caption{Runs of certiqa compared.}",
        f"\\label{{{label}}}",
        f"\\par\\footnotesize\\raggedright {below}",
        r"\end{table}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _mark(text: str, mark: str | None) -> str:
    return f"\\textbf{{{text}}}" if mark == BEST else text + latex(SIGNS.get(mark or "", ""))


def latex(text: str) -> str:
    """Escape a text for LaTeX.

    >>> latex("dms_iqa, 5 %")
    'dms\\\\_iqa, 5 \\\\%'
    """
    return "".join(LATEX.get(sign, sign if ord(sign) < LATIN else f"[U+{ord(sign):04X}]") for sign in text)
