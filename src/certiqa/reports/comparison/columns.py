"""The columns of a comparison and each run's values; what is certified and what was measured stay apart."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certiqa.errors import UserError
from certiqa.evaluation.attacked import WORST
from certiqa.reports.comparison.gather import ComparedRun, plural, settings_that_differ
from certiqa.reports.tables import (
    NOTHING,
    count,
    decimal,
    duration,
    exact,
    mos_label,
    native,
    percent,
    radii_of,
    radius_figures,
    value_of,
)


class Spread(float):
    """The mean of a figure over several runs.

    Attributes:
        sd: its standard deviation (ddof 1), NaN of a single run.
        size: the mean of the absolute values, which gains of either sign are ranked by.
    """

    sd: float
    size: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the mean of ``values`` with their deviation."""
        with np.errstate(invalid="ignore"):
            found = cls(np.mean(values))
            found.size = float(np.mean(np.abs(values)))
            found.sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return found


Value = float | str | None
RUN, SETTINGS, QUALITY = "Run", "Settings", "Correlation, no perturbation"
CERTIFIED, ATTACKED = "Certified, proven", "Attacked, measured"
CLOSE = 1e-5  # of radii: keys of a summary have six digits of them
GROUPS = (RUN, QUALITY, CERTIFIED, ATTACKED, SETTINGS)


@dataclass(frozen=True)
class Column:
    """One column: its key in a row, its heading, the group it stands in, and how a number of it is written.

    ``best`` is +1 where more is better, -1 where less is, 0 where runs are not ranked by it; ``help`` says what it is.
    """

    key: str
    title: str
    group: str
    help: str
    write: Callable[[float | None], str] | None = None
    best: int = 0

    @property
    def is_number(self) -> bool:
        """Whether it sorts by number."""
        return self.write is not None

    def text(self, value: Value) -> str:
        """Return a value as it is shown."""
        if self.write is None:
            return NOTHING if value in (None, "") else str(value)
        text = self.write(value if isinstance(value, int | float) else None)
        return with_deviation(text, value.sd) if isinstance(value, Spread) and math.isfinite(value.sd) else text


def with_deviation(text: str, deviation: float) -> str:
    """Return a mean as it is written with its deviation in the same unit and to the same decimals.

    >>> with_deviation("28.6 %", 0.00335)
    '28.6 ± 0.3 %'
    """
    found = re.search(r"\d(?:\.(\d+))?(\D*)$", text)
    decimals, unit = found.groups("") if found else ("", "")
    shown = deviation * 100 if "%" in unit else deviation
    return f"{text.removesuffix(unit)} ± {shown:.{len(decimals)}f}{unit}"


RUN_COLUMNS = (
    Column("status", "Status", RUN, "finished, interrupted, failed, or unfinished: going on, or cut short"),
    Column("metric", "Metric", RUN, "the frozen metric"),
    Column("defense", "Defense", RUN, "what stands in front of the metric"),
    Column("attack", "Attack", RUN, "the attacks of this run"),
    Column("data", "Data", RUN, "the data set"),
    Column("settings", "Settings", SETTINGS, "the settings that the runs of this page do not share"),
    Column("seed", "Seed", SETTINGS, "the run's seed", exact),
    Column("sigma", "\u03c3", SETTINGS, "standard deviation of the noise, pixels in [0, 1]", exact),
    Column("num_samples", "Draws", SETTINGS, "draws behind a score and a certificate", count),
    Column("num_images", "Images", SETTINGS, "images scored", count),
    Column("seconds", "Time", SETTINGS, "of the whole run", duration),
)
QUALITY_COLUMNS = (
    Column("srocc_undefended", "SROCC undef.", QUALITY, "Spearman correlation of the undefended metric", decimal),
    Column("srocc", "SROCC", QUALITY, "Spearman correlation of the defended metric", decimal, +1),
    Column("tau_srocc", "τ SROCC", QUALITY, "what the defense costs: SROCC undefended minus defended", decimal),
    Column("plcc_undefended", "PLCC undef.", QUALITY, "Pearson correlation of the undefended raw scores", decimal),
    Column("plcc", "PLCC", QUALITY, "Pearson correlation of the defended raw scores", decimal, +1),
    Column("tau_plcc", "τ PLCC", QUALITY, "what the defense costs: PLCC undefended minus defended", decimal),
)
NATIVE_DELTA = Column(
    "delta", "Delta", CERTIFIED, "certified delta of the median image, in score units: no perturbation moves it more",
    native, -1,
)  # fmt: skip
CERTIFIED_COLUMNS = (
    Column("delta_range", "Delta / range", CERTIFIED, "median certified delta as a share of the metric's range",
           percent, -1),
    Column("delta_sd", "Delta / sd", CERTIFIED, "median certified delta over the sd of the defended scores",
           percent, -1),
    Column("abstention", "Abstention", CERTIFIED, "share of the images that could not be certified", percent),
    Column("certified_srocc", "SROCC ≥", CERTIFIED, "proven floor of SROCC, whatever perturbation each image gets",
           decimal, +1),
)  # fmt: skip
GAIN = Column(
    "gain", "Gain", ATTACKED, "mean change by the attack as a share of the range, above zero where it raised quality; "
    "of each image's worst attack where the run has several", percent, -1,
)  # fmt: skip
ATTACKED_COLUMNS = (
    GAIN,
    Column("gain_interval", "95 % interval", ATTACKED, "t interval of the mean gain"),
    Column("noise", "Noise", ATTACKED, "mean gain of random noise of the attack's norm", percent),
    Column("attack_srocc", "SROCC after", ATTACKED, "SROCC of the attacked images", decimal),
    Column("attack_l2", "l2", ATTACKED, "mean l2 norm of the attack's perturbations", native),
)
ATTACK_COLUMNS = (
    *(column for column in RUN_COLUMNS if column.key in ("metric", "defense", "attack", "data")),
    *ATTACKED_COLUMNS,
    Column("robustness", "R score", ATTACKED, "log10 of the greatest possible change over the change there was",
           lambda value: decimal(value, 2)),
    Column("linf", "l∞ · 255", ATTACKED, "mean l∞ norm in steps of 1/255",
           lambda value: decimal(value, 1)),
    Column("psnr", "PSNR, dB", ATTACKED, "of the attacked images", lambda value: decimal(value, 1)),
    Column("ssim", "SSIM", ATTACKED, "of the attacked images", decimal),
    *(column for column in RUN_COLUMNS if column.key in ("settings", "seed")),
)  # fmt: skip
"""The columns of the table with one row per attack of a run."""


@dataclass(frozen=True)
class Table:
    """What is compared: runs, the columns that they have values for, and a row of values for each.

    ``radius`` is the one that every certified figure in ``rows`` is of; ``notes`` say what was made comparable how;
    ``averaged`` whether rows are means over seeds, of which ``runs`` has the first one each.
    """

    runs: Sequence[ComparedRun]
    columns: Sequence[Column]
    rows: Sequence[dict[str, Value]]
    attack_rows: Sequence[dict[str, Value]]
    radius: float | None
    notes: Sequence[str]
    averaged: bool = False


def build_table(runs: Sequence[ComparedRun], radius: float | None = None) -> Table:
    """Return the table of ``runs`` at one radius, by default the primary one of most of them.

    Raises:
        UserError: if no run was certified at the radius asked for.
    """
    chosen = shared_radius(runs, radius)
    mixed = len({run.score_range for run in runs if "metric_range" in run.summary}) > 1
    settings = settings_that_differ(runs)
    rows: list[dict[str, Value]] = []
    attack_rows: list[dict[str, Value]] = []
    for number, (run, differing) in enumerate(zip(runs, settings, strict=True)):
        facts = _facts(run) | {"number": float(number), "settings": settings_text(differing)}
        rows.append(facts | _quality(run) | _certified(run, chosen) | _attack_of(run))
        names = run.attacks + ([WORST] if len(run.attacks) > 1 else [])
        attack_rows += [facts | _attack_figures(run, name) | {"attack": name} for name in names if _measured(run, name)]
    delta = () if mixed else (NATIVE_DELTA,)
    offered = (*RUN_COLUMNS, *QUALITY_COLUMNS, *delta, *CERTIFIED_COLUMNS, *ATTACKED_COLUMNS)
    always = ("status", "metric", "defense", "data")
    columns = [
        column
        for column in sorted(offered, key=lambda column: GROUPS.index(column.group))
        if column.key in always or any(row.get(column.key) not in (None, "", NOTHING) for row in rows)
    ]
    return Table(runs, columns, rows, attack_rows, chosen, table_notes(runs, chosen, mixed))


def settings_text(settings: Mapping[str, str]) -> str:
    """Return settings as they are shown: ``quality=30, attack.eps=0.01569``."""
    return ", ".join(f"{key.removeprefix('defense.')}={value}" for key, value in settings.items())


def shared_radius(runs: Iterable[ComparedRun], radius: float | None) -> float | None:
    """Return the radius asked for, by default the primary one of most certified runs, at a draw the smallest."""
    runs = list(runs)
    known = sorted({value for run in runs for value in radii_of(run.summary)})
    if radius is None:
        stated = [value_of(run.summary, "certified_radius") for run in runs]
        primary = Counter(
            value
            for asked in stated
            for value in known
            if asked is not None and math.isclose(value, asked, rel_tol=CLOSE)
        )
        return min(primary, key=lambda value: (-primary[value], value)) if primary else next(iter(known), None)
    for value in known:
        if math.isclose(value, radius, rel_tol=CLOSE):
            return value
    listed = ", ".join(f"{value:g}" for value in known)
    raise UserError(f"no run was certified at radius {radius:g}; {f'there are: {listed}' if known else 'none was'}")


def _facts(run: ComparedRun) -> dict[str, Value]:
    summary = run.summary
    names = ("metric", "defense", "data")
    facts: dict[str, Value] = {name: None if summary.get(name) is None else str(summary[name]) for name in names}
    facts |= {key: value_of(summary, key) for key in ("seed", "sigma", "num_samples", "num_images", "seconds")}
    return facts | {"name": run.key, "status": run.status, "attack": ", ".join(run.attacks) or None}


def _quality(run: ComparedRun) -> dict[str, Value]:
    return {column.key: value_of(run.summary, column.key) for column in QUALITY_COLUMNS}


def _certified(run: ComparedRun, radius: float | None) -> dict[str, Value]:
    figures = radius_figures(run.summary, radius)
    wanted = {
        "delta": "certified_delta_median",
        "delta_range": "certified_delta_range_share",
        "delta_sd": "certified_delta_sd_share",
        "abstention": "abstention_rate",
        "certified_srocc": "certified_srocc",
    }
    return {key: value_of(figures, name) for key, name in wanted.items()}


def _attack_of(run: ComparedRun) -> dict[str, Value]:
    """Return the attacked figures of the run's row: of its only attack, or of each image's worst."""
    return _attack_figures(run, attack_shown(run)) if run.attacks else {}


def attack_shown(run: ComparedRun) -> str:
    """Return the suffix of the attacked figures that stand for the whole run."""
    return WORST if len(run.attacks) > 1 else run.attacks[0]


def _measured(run: ComparedRun, name: str) -> bool:
    return value_of(run.summary, f"attack_num_images_{name}") is not None or any(
        value_of(run.summary, f"attack_{key}_{name}") is not None for key in ("gain", "gain_native")
    )


def _attack_figures(run: ComparedRun, name: str) -> dict[str, Value]:
    def figure(key: str) -> float | None:
        return value_of(run.summary, f"attack_{key}_{name}")

    low, high, linf = figure("gain_low"), figure("gain_high"), figure("linf_mean")
    return {
        "gain": figure("gain"),
        "gain_low": low,
        "gain_high": high,
        "gain_native": figure("gain_native"),
        "gain_interval": None if low is None or high is None else f"{percent(low)} to {percent(high)}",
        "noise": figure("gain_of_noise"),
        "attack_srocc": figure("srocc"),
        "attack_l2": figure("l2_mean"),
        "robustness": figure("robustness_score"),
        "linf": None if linf is None else 255 * linf,
        "psnr": figure("psnr_mean"),
        "ssim": figure("ssim_mean"),
    }


def table_notes(runs: Sequence[ComparedRun], radius: float | None, mixed: bool) -> list[str]:
    """Return how the figures were made comparable."""
    notes = []
    if radius is not None:
        notes.append(f"Certified figures are at radius {radius:g} (l2 norm at the input, pixels in [0, 1]).")
        other = [run for run in runs if radii_of(run.summary) and radius not in radii_of(run.summary)]
        if other:
            notes.append(f"{plural(len(other))} certified at other radii alone: --radius chooses another.")
    if mixed:
        said: dict[str, None] = {}
        for run in runs:
            if "metric_range" in run.summary:
                name = run.summary.get("metric")
                ends = run.score_range
                said[f"{name} {'without a range' if ends is None else f'{ends[0]:g} to {ends[1]:g}'}"] = None
        notes.append(
            f"The metrics here have different ranges ({', '.join(said)}): certified deltas and gains are normalised to "
            "shares of each metric's own range (a dash where it states none); score units stand in the CSV alone."
        )
    pseudo = sorted({str(run.summary.get("data")) for run in runs if mos_label(run.summary) == "pseudo-MOS"})
    if pseudo:
        notes.append(f"Correlations on {', '.join(pseudo)} are with pseudo-MOS, not comparable with published numbers.")
    if any(run.summary.get("lower_better") for run in runs):
        notes.append("Of metrics where lower is better the negated scores are correlated: 1 is perfect agreement.")
    return notes


def attack_identity(run: ComparedRun) -> str:
    """Return what decides how a run was attacked: gains of different attacks are no contest."""
    settings = {key: value for key, value in run.identity.items() if key.startswith("attack.")}
    return json.dumps([run.attacks, settings], sort_keys=True)


def facts_for_csv(run: ComparedRun) -> dict[str, Any]:
    """Return every scalar figure of a run's summary, flat, for the CSV."""
    return {
        key: value for key, value in run.summary.items() if value is None or isinstance(value, str | int | float | bool)
    }
