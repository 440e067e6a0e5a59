"""The table in the terminal, and what it says in the same words as the page."""

import json
import re
from typing import Any

import pytest
from rich.console import Console

from certiqa.reports import comparison_table, print_summary, write_report
from certiqa.reports.attacks import COLUMNS, PURIFIED_COLUMNS, attack_rows, attack_table, headings

RADII = (0.03, 0.06, 0.09, 0.12)
NOTICE = "random weights: every number here is meaningless, for smoke runs only"


def printed(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(summary, console)
    return console.export_text()


def test_terminal_table(tmp_path, make_run):
    summary = make_run(tmp_path, radii=RADII, training=False, gallery=0)
    text = printed(summary)
    for radius in RADII:
        assert f"r {radius:g}" in text
        assert f"{summary[f'certified_srocc_r{radius:g}']:.3f}" in text
    assert f"{summary['srocc_undefended']:.3f}" in text
    flat = " ".join(text.split())
    assert "sigma 0.12, 1 000 draws, 40 images, delta of the median image, confidence 99.9 % per side" in flat
    assert "pseudo-MOS and not comparable" in flat
    assert all(len(line) <= 80 for line in printed(summary, width=80).splitlines())


def test_terminal_table_without_anything():
    assert comparison_table({}).row_count == 2
    text = " ".join(printed({"name": "[bold]x[/bold]", "defense": "[red]", "status": "interrupted"}).split())
    assert "[bold]x[/bold]" in text
    assert "[red]" in text
    assert "No certificates in this run. This run is interrupted" in text


def test_a_metric_without_a_range_shows_dashes(tmp_path, make_run, page_of):
    nulls = dict.fromkeys(("rmse", "rmse_undefended", "certified_mse", "certified_delta_range_share"))
    nulls |= {f"{key}_r{radius:g}": None for key in list(nulls)[2:] for radius in RADII}
    summary = make_run(tmp_path, radii=RADII, metric_range=None, mos_range=[1.0, 5.0], **nulls)
    page = page_of(tmp_path)
    assert "RMSE - - -" in page.text
    assert "'mini' states none" in page.text
    assert "of the metric's range" not in page.source
    row = re.search(r'<tr class="primary">(.*?)</tr>', page.source, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert (cells[2], cells[-1]) == ("-", "-")
    assert cells.count("-") == 2
    assert "r 0.06" in printed(summary)


def test_random_weights_are_said_above_everything_else(tmp_path, make_run, page_of):
    summary = make_run(tmp_path, weights="random (seed 0)")
    text = printed(summary)
    assert text.strip().startswith("random weights")
    assert NOTICE in " ".join(text.split())
    page = page_of(tmp_path)
    assert page.source.count(NOTICE) == 1
    assert page.source.index(NOTICE) < page.source.index("<h1>")
    assert "Weights random (seed 0)" in page.text


@pytest.mark.parametrize("weights", ["shipped", "mine-random.safetensors", None])
def test_without_random_weights_nothing_is_said(tmp_path, weights, make_run, page_of):
    summary = make_run(tmp_path, weights=weights)
    assert "meaningless" not in printed(summary)
    page = page_of(tmp_path)
    assert "meaningless" not in page.source
    assert 'role="alert"' not in page.source
    assert (f"Weights {weights}" in page.text) == (weights is not None)


def test_gains_without_a_range_are_in_score_units(tmp_path, make_run):
    summary = make_run(tmp_path, attacks=True, metric_range=None)
    summary |= {"attack_gain_ifgsm": None, "attack_gain_native_ifgsm": 12.5, "attack_robust_abs_gain_ifgsm": 7.5}
    summary["attack_nonpurified_abs_gain_ifgsm"] = 8.5
    for facts, unit in ((summary, "score units"), (summary | {"metric_range": [0, 100]}, "of the range")):
        table = attack_table(facts)
        assert unit in str(table.caption)
        titles = headings(COLUMNS, facts) | headings(PURIFIED_COLUMNS, facts)
        said = [titles[key] for key in ("gain", "nonpurified_abs_gain")]
        assert all(title.endswith("score units" if unit == "score units" else "of range") for title in said)
    assert attack_rows(summary)[0]["gain"] == "12.5"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Mean gain, score units" in page
    assert "of the range" not in page.split("Attacks, measured")[1].split("</h3>")[0]
    assert "change of the score, score units" in page
    assert "change of the score, of range" not in page
