"""How a run's numbers are written, and the table the terminal shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

Summary = Mapping[str, Any]
NOTHING, MINUS = "-", "\u2212"
SPACE = "\u202f"  # narrow and not breaking
MEASURES = (
    ("SROCC", "srocc"),
    ("PLCC, raw", "plcc"),
    ("PLCC, logistic fit", "plcc_logistic"),
    ("KROCC", "krocc"),
    ("RMSE", "rmse"),
    ("sd of the scores", "score_sd"),
)
"""Measures of the whole set: how tables call them, and their key in the summary."""
RANDOM_WEIGHTS = "random weights: every number here is meaningless, for smoke runs only"


def value_of(summary: Mapping[Any, Any], key: str) -> float | None:
    """Return a number of the summary as float, infinities included; None where there is no number."""
    value = summary.get(key)
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def radii_of(summary: Summary) -> list[float]:
    """Return the radii that the summary has certified figures for, in rising order."""
    pattern = re.compile(r"certified_\w+?_r(\d[\d.e+-]*)")
    found = {match[1] for key in summary if (match := pattern.fullmatch(str(key)))}
    return sorted(number for number in map(float, found) if math.isfinite(number))


def primary_radius(summary: Summary) -> float | None:
    """Return the radius of the figures without suffix, else the middle one of those certified, else None."""
    radii = radii_of(summary)
    given = value_of(summary, "certified_radius")
    if given is not None:
        return given
    return radii[(len(radii) - 1) // 2] if radii else None


def radius_figures(summary: Summary, radius: float | None) -> dict[str, Any]:
    """Return the certified figures of one radius under their names without suffix."""
    if radius is None:
        return {}
    ending = f"_r{radius:g}"
    return {key.removesuffix(ending): value for key, value in summary.items() if key.endswith(ending)}


def mos_label(summary: Summary) -> str:
    """Return "pseudo-MOS" where the opinion scores are not of these very images, else "MOS"."""
    return "pseudo-MOS" if "pseudo" in str(summary.get("mos_kind") or "").lower() else "MOS"


def weights_notice(summary: Summary) -> str | None:
    """Return what must stand above everything else where the metric's weights are random, else None."""
    return RANDOM_WEIGHTS if str(summary.get("weights") or "").strip().lower().startswith("random") else None


def decimal(value: float | None, places: int = 3, signed: bool = False) -> str:
    """Write a number with fixed decimals and a true minus sign; a dash for None, the sign for infinity.

    >>> decimal(0.5), decimal(0.5, signed=True), decimal(None), decimal(float("inf"))
    ('0.500', '+0.500', '-', '∞')
    """
    if value is None or math.isnan(value):
        return NOTHING
    text = "∞" if math.isinf(value) else f"{abs(value):.{places}f}"
    zero = not math.isinf(value) and float(text) == 0
    sign = "" if zero else MINUS if value < 0 else "+" if signed else ""
    return sign + text


def native(value: float | None, digits: int = 3) -> str:
    """Write a number in a metric's own units with ``digits`` significant digits.

    >>> native(0.07712), native(12.3), native(1234.5), native(0.0)
    ('0.0771', '12.3', '1234', '0')
    """
    if value is None or not math.isfinite(value) or value == 0:
        return "0" if value == 0 else decimal(value)
    return decimal(value, places_for(value, digits))


def places_for(value: float, digits: int) -> int:
    """Return how many decimals show ``digits`` significant digits of ``value``, between 0 and 8."""
    return min(8, max(0, digits - 1 - math.floor(math.log10(abs(value))))) if value else digits - 1


def exact(value: float | None) -> str:
    """Write a setting (sigma, a radius) as it was given: no digits added, six at most.

    >>> exact(0.12), exact(8 / 255)
    ('0.12', '0.0313725')
    """
    return decimal(value) if value is None or not math.isfinite(value) else f"{value:.6g}"


def percent(share: float | None, setting: bool = False) -> str:
    """Write a share as per cent, with a space that does not break; a ``setting`` as it was given.

    >>> [percent(share).replace(SPACE, " ") for share in (0.016, 0.25, 0.0)]
    ['1.60 %', '25.0 %', '0 %']
    >>> percent(0.999, setting=True).replace(SPACE, " ")
    '99.9 %'
    """
    if share is None or not math.isfinite(share):
        return decimal(share)
    return f"{(exact if setting else native)(100 * share)}{SPACE}%"


def count(value: float | None) -> str:
    """Write a whole number with narrow spaces between thousands."""
    return decimal(value) if value is None or not math.isfinite(value) else f"{int(value):,}".replace(",", SPACE)


def duration(seconds: float | None) -> str:
    """Write a time span in its two largest units.

    >>> duration(8.25), duration(192), duration(7380)
    ('8.2 s', '3 min 12 s', '2 h 3 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def range_of(summary: Summary, key: str) -> tuple[float, float] | None:
    """Return a range (low, high) of the summary, None where there is none of a positive, finite width."""
    given = summary.get(key)
    ends = [value_of({"end": end}, "end") for end in given] if isinstance(given, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return (ends[0], ends[1]) if 0 < ends[1] - ends[0] < math.inf else None


def range_width(summary: Summary) -> float | None:
    """Return the width of the metric's nominal range, None where it has none."""
    ends = range_of(summary, "metric_range")
    return None if ends is None else ends[1] - ends[0]


def error_note(summary: Summary) -> str | None:
    """Return how scores were compared with opinion scores; None where no error was asked for, or not said how."""
    scale, width = range_of(summary, "mos_range"), range_of(summary, "metric_range")
    if scale is None or "rmse" not in summary:
        return None
    label = mos_label(summary)
    if width is None:
        return f"RMSE and MSE need the metric's score range, and '{summary.get('metric') or 'metric'}' states none."
    if width == scale and not summary.get("lower_better"):
        return f"RMSE and MSE are in units of {label}, whose scale is the metric's own range."
    ends = (f"{exact(low)} to {exact(high)}" for low, high in (width, scale))
    turned = ", turned round because lower is better" if summary.get("lower_better") else ""
    return (
        "RMSE and MSE compare scores with {} on its scale: the metric's range {} is laid on {} in a straight line{}; "
        "the line is fixed by these ranges, not fitted."
    ).format(label, *ends, turned)


def measure_rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    """Return (measure, undefended, defended, change) for every measure of the run; one that is null shows dashes."""
    rows = []
    unrated = summary.get("mos_kind") == "none"
    for name, key in MEASURES:
        if unrated and key != "score_sd":
            continue
        if key not in summary and f"{key}_undefended" not in summary:
            continue
        before, after = value_of(summary, f"{key}_undefended"), value_of(summary, key)
        change = None if before is None or after is None else after - before
        rows.append((name, decimal(before), decimal(after), decimal(change, signed=True)))
    return rows


def radius_rows(summary: Summary) -> list[dict[str, str]]:
    """Return the certified figures of every radius, written out, under their names in the summary."""
    rows = []
    for radius in radii_of(summary):
        figures = radius_figures(summary, radius)
        written = {"radius": f"{radius:g}", "abstention_rate": percent(value_of(figures, "abstention_rate"))}
        for name in ("median", "mean_certified"):
            written[f"certified_delta_{name}"] = native(value_of(figures, f"certified_delta_{name}"))
        for name in ("range", "sd"):
            written[f"certified_delta_{name}_share"] = percent(value_of(figures, f"certified_delta_{name}_share"))
        for name in ("srocc", "krocc", "plcc", "mse"):
            written[f"certified_{name}"] = decimal(value_of(figures, f"certified_{name}"))
            written[f"worst_found_{name}"] = decimal(value_of(figures, f"worst_found_{name}"))
        rows.append(written)
    return rows


def comparison_table(summary: Summary) -> Table:
    """Return undefended beside defended as a table for the terminal, one column per radius.

    A radius column holds three lines: the median certified delta in native units, the same as a share of the
    standard deviation of the defended scores, and the certified SROCC.

    Args:
        summary: a run's ``summary.json``; keys that are missing or null show as a dash.
    """
    radii = radii_of(summary)
    title = Text(str(summary.get("name") or "run"))
    if notice := weights_notice(summary):
        title = Text.assemble((notice, "bold white on red not italic"), "\n", title)
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for name in ("SROCC", "PLCC", "KROCC"):
        table.add_column(name, justify="right")
    if radii:
        table.add_column("certified", style="dim", no_wrap=True)
    for radius in radii:
        table.add_column(f"r {radius:g}", justify="right")
    keys = ("srocc", "plcc", "krocc")
    undefended = [decimal(value_of(summary, f"{key}_undefended")) for key in keys]
    defended = [decimal(value_of(summary, key)) for key in keys]
    table.add_row("undefended", *undefended, *([NOTHING] * (len(radii) + 1) if radii else []), end_section=True)
    lines = [Text("delta\nof sd\nSROCC ≥")] if radii else []
    table.add_row(
        Text(str(summary.get("defense") or "defended")),
        *defended,
        *lines,
        *(_cell(summary, radius) for radius in radii),
    )
    table.caption = Text(". ".join(_caption(summary, bool(radii))) + ".")
    return table


def _cell(summary: Summary, radius: float) -> str:
    figures = radius_figures(summary, radius)
    delta = native(value_of(figures, "certified_delta_median"))
    share = percent(value_of(figures, "certified_delta_sd_share"))
    return f"{delta}\n{share}\n{decimal(value_of(figures, 'certified_srocc'))}"


def _caption(summary: Summary, certified: bool) -> list[str]:
    """Return the sentences below the terminal's table: what was certified, how, and how far to trust it."""
    facts = []
    if (sigma := value_of(summary, "sigma")) is not None:
        facts.append(f"sigma {exact(sigma)}")
    if (draws := value_of(summary, "num_samples")) is not None:
        mean = value_of(summary, "num_samples_mean")
        average = "" if mean is None or mean >= draws else f"on average {count(round(mean))} of "
        facts.append(f"{average}{count(draws)} draws")
    if (images := value_of(summary, "num_images")) is not None:
        facts.append(f"{count(images)} images")
    if certified:
        facts.append("delta of the median image")
    if certified and (confidence := value_of(summary, "confidence")) is not None:
        facts.append(f"confidence {percent(confidence, setting=True)} per side and image")
    if certified and (joint := value_of(summary, "joint_confidence")) is not None:
        facts.append(f"joint confidence {percent(joint, setting=True)} for certified SROCC")
    sentences = [", ".join(facts)] if facts else []
    if failed := value_of(summary, "num_failed"):
        sentences.append(f"{count(failed)} images could not be scored and are left out")
    if summary.get("lower_better"):
        sentences.append("Lower scores are better: correlations are of the negated scores")
    if summary.get("mos_lower_better"):
        sentences.append("Lower opinion scores are better: they count mirrored within their scale")
    if summary.get("mos_kind") == "none":
        sentences.append("The images have no opinion scores, so there are no correlations")
    sentences += [str(note) for note in summary.get("notes") or []]
    if not certified:
        sentences.append("No certificates in this run")
    if summary.get("status") not in (None, "finished"):
        sentences.append(f"This run is {summary['status']}: the figures are of the images finished so far")
    if mos_label(summary) == "pseudo-MOS":
        sentences.append("Correlations are with pseudo-MOS and not comparable with published ones")
    return sentences
