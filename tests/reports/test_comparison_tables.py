"""The tables of a comparison: rows made comparable, tested for significance, and exported."""

import csv
import io
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from certiqa.evaluation import read_summary
from certiqa.evaluation.records import to_table
from certiqa.reports import write_comparison
from certiqa.reports.comparison import significance
from certiqa.reports.comparison.columns import build_table
from certiqa.reports.comparison.exports import latex, to_csv, to_latex, to_markdown
from certiqa.reports.comparison.gather import ComparedRun, gather, notes_on
from certiqa.reports.comparison.significance import compare, marks_of, paired_bootstrap

FACTS = {"resamples": 300, "seed": 0}


def by_name(table):
    return {row["name"]: row for row in table.rows}


def test_rows_hold_the_summary_and_one_radius(sweep):
    runs = gather([sweep])
    table = build_table(runs)
    assert table.radius == 0.03
    rows = by_name(table)
    summary = read_summary(sweep / "evaluate" / "good")
    for key, name in (("srocc", "srocc"), ("tau_srocc", "tau_srocc"),
                      ("delta_range", "certified_delta_range_share_r0.03"),
                      ("delta_sd", "certified_delta_sd_share_r0.03"), ("abstention", "abstention_rate_r0.03"),
                      ("certified_srocc", "certified_srocc_r0.03"), ("gain", "attack_gain_ifgsm")):  # fmt: skip
        assert rows["good"][key] == summary[name], key
    worst = read_summary(sweep / "evaluate" / "jpeg")["attack_gain_worst"]
    assert rows["jpeg"]["gain"] == worst
    assert rows["jpeg"]["delta"] is None
    assert rows["none"]["certified_srocc"] is None
    assert [row["attack"] for row in table.attack_rows if row["name"] == "jpeg"] == ["ifgsm", "square", "worst"]
    other = by_name(build_table(runs, radius=0.12))
    assert other["good"]["delta_range"] == summary["certified_delta_range_share_r0.12"]


def test_two_ranges_are_normalised_and_said(tmp_path, write_run, read_comparison):
    write_run(tmp_path / "a", width=2.0)
    write_run(tmp_path / "b", metric="hundred", score_range=(0.0, 100.0), lower_better=True, width=2.0)
    table = build_table(gather([tmp_path]))
    rows = by_name(table)
    assert rows["b"]["delta"] == pytest.approx(25 * rows["a"]["delta"])
    assert rows["b"]["delta_range"] == pytest.approx(rows["a"]["delta_range"])
    assert rows["b"]["srocc"] == pytest.approx(rows["a"]["srocc"])
    assert "delta" not in [column.key for column in table.columns]
    said = [note for note in table.notes if "normalised to shares of each metric's own range" in note]
    assert len(said) == 1
    assert "mini 1 to 5, hundred 0 to 100" in said[0]
    assert said[0] in read_comparison(write_comparison([tmp_path], resamples=50).index.read_text()).text
    assert "summary.certified_delta_median" in to_csv(table)
    write_run(tmp_path / "c", metric="unranged", score_range=None)
    table = build_table(gather([tmp_path]))
    assert by_name(table)["c"]["delta_range"] is None
    assert any("unranged without a range" in note for note in table.notes)


def test_one_range_keeps_score_units(sweep):
    table = build_table(gather([sweep]))
    assert "delta" in [column.key for column in table.columns]
    assert not any("normalised" in note for note in table.notes)


def test_settings_that_follow_from_the_defense_are_not_listed(tmp_path, write_run):
    write_run(tmp_path / "a", defense="jpeg", identity={"defense.quality": 75, "trains_with": "none"}, radii=())
    write_run(tmp_path / "b", defense="jpeg", identity={"defense.quality": 30, "trains_with": "none"}, radii=())
    write_run(tmp_path / "c", defense="dms", identity={"trains_with": "mse"}, attacks={"ifgsm": 0.1})
    rows = by_name(build_table(gather([tmp_path])))
    assert {name: row["settings"] for name, row in rows.items()} == {"a": "quality=75", "b": "quality=30", "c": ""}


def test_bootstrap_is_paired_seeded_and_matches_scipy():
    rng = np.random.default_rng(0)
    mos = rng.uniform(1, 5, 60)
    one, two = mos + rng.normal(0, 0.5, 60), mos + rng.normal(0, 1.5, 60)
    first, second = np.column_stack([one, mos]), np.column_stack([two, mos])
    found = paired_bootstrap(significance.spearman_of, first, second, resamples=2000, seed=1)
    assert found.value == pytest.approx(stats.spearmanr(one, mos)[0] - stats.spearmanr(two, mos)[0])
    reference = stats.bootstrap(
        (one, two, mos), lambda a, b, m: stats.spearmanr(a, m)[0] - stats.spearmanr(b, m)[0], paired=True,
        vectorized=False, n_resamples=2000, method="percentile", rng=2,
    ).confidence_interval  # fmt: skip
    assert [found.low, found.high] == pytest.approx([reference.low, reference.high], abs=0.03)
    assert found.significant
    assert found == paired_bootstrap(significance.spearman_of, first, second, resamples=2000, seed=1)
    assert found != paired_bootstrap(significance.spearman_of, first, second, resamples=2000, seed=3)
    # what both share cancels: a constant difference in a noisy quantity is certain
    noisy = rng.normal(0, 10, (60, 1))
    shift = paired_bootstrap(significance.gain_of, np.abs(noisy), np.abs(noisy) + 0.01, resamples=200, seed=0)
    assert shift.significant
    assert shift.low == pytest.approx(0.01)
    same = paired_bootstrap(significance.median_of, noisy, noisy, resamples=50, seed=0)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_units_are_drawn_whole_and_as_many_as_there_are():
    units = np.array([2, 0, 1, 0, 2, 2, 3])  # of 2, 1, 3 and 1 rows
    members = [set(np.flatnonzero(units == unit)) for unit in range(4)]
    found = [row for rows in significance.resampled(units, 500, 1, most=50) for row in rows]
    assert len(found) == 500
    drawn = np.zeros(4)
    for rows in found:
        counts = np.bincount(rows, minlength=7)
        times = [counts[min(rows_of)] for rows_of in members]
        assert all(len({counts[row] for row in rows_of}) == 1 for rows_of in members)
        assert sum(times) == 4
        drawn += times
    assert stats.chisquare(drawn).pvalue > 0.001
    rows = next(significance.resampled(np.arange(5), 300, 0))
    assert rows.shape == (300, 5)
    assert len({tuple(sorted(row)) for row in rows}) > 80


def test_images_of_one_photograph_are_no_independent_evidence():
    """Two runs that differ by chance alone, photograph by photograph, are seldom told apart."""
    rng = np.random.default_rng(3)
    photographs = np.repeat(np.arange(12), 10)
    wrongly = {"images": 0, "references": 0}
    for repeat in range(200):
        gap = rng.normal(0, 1, 12)[photographs] + rng.normal(0, 0.3, 120)
        first, second = np.full((120, 1), 9.0), 9.0 + gap[:, None]
        for name, references in (("images", None), ("references", [str(one) for one in photographs])):
            found = paired_bootstrap(
                significance.gain_of, first, second, references=references, resamples=200, seed=repeat
            )
            wrongly[name] += found.significant
    assert wrongly["images"] > 0.4 * 200
    assert wrongly["references"] < 0.17 * 200  # .05 for many photographs; percentile intervals of 12 are a little short


def test_runs_are_compared_over_references(tmp_path, write_run):
    for name, error in (("good", 0.1), ("bad", 1.2)):
        for references in (20, 4, None):
            write_run(tmp_path / f"{references}" / name, defense=name, error=error, references=references)
    marks = {name: marks_by_name(gather([tmp_path / name]), "srocc") for name in ("20", "4", "None")}
    assert marks["20"] == marks["None"] == {"good": "best", "bad": "different"}
    assert marks["4"] == {"good": "best", "bad": "untested"}  # four photographs are too few, however many images
    pair = gather([tmp_path / "20"])
    by_reference = compare(pair[1], pair[0], "srocc", None)
    assert by_reference is not None
    assert by_reference.num_images == 20


def test_resampled_statistics_are_those_of_scipy():
    rng = np.random.default_rng(4)
    columns = rng.integers(0, 6, (7, 30, 2)).astype(float)
    for mine, theirs in ((significance.spearman_of, stats.spearmanr), (significance.pearson_of, stats.pearsonr)):
        expected = [theirs(part[:, 0], part[:, 1])[0] for part in columns]
        np.testing.assert_allclose(mine(columns), expected)
    assert significance.median_of(np.array([[[1.0], [np.inf], [np.inf]]]))[0] == -np.inf
    ratio = [-np.median(part[:, 0]) / part[:, 1].std(ddof=1) for part in columns]
    np.testing.assert_allclose(significance.median_of_sd(columns), ratio)
    abstained = np.full((10, 1), np.inf)
    both = paired_bootstrap(significance.median_of, abstained, abstained, resamples=20, seed=0)
    assert (both.low, both.high) == (0, 0)
    assert paired_bootstrap(significance.median_of, np.zeros((10, 1)), abstained, resamples=20, seed=0).significant


def marks_by_name(runs, key):
    table = build_table(runs)
    return {runs[number].key: mark for (number, column), mark in marks_of(table, **FACTS).items() if column == key}


def test_best_is_marked_and_the_rest_is_tested(sweep):
    runs = gather([sweep])
    assert marks_by_name(runs, "srocc") == {"good": "best", "jpeg": "level", "bad": "different"}
    assert marks_by_name(runs, "delta_range") == {"good": "best", "bad": "different"}
    rows = by_name(build_table(runs))
    least = min(("good", "bad"), key=lambda name: rows[name]["delta_sd"])
    assert [name for name, mark in marks_by_name(runs, "delta_sd").items() if mark == "best"] == [least]
    assert marks_by_name(runs, "gain") == {"good": "best", "bad": "different"}  # jpeg met other attacks
    assert marks_by_name(runs, "certified_srocc") == {"good": "best", "bad": "proven"}


def test_what_is_not_comparable_is_not_ranked(tmp_path, write_run):
    write_run(tmp_path / "a", defense="ms", error=0.4)
    write_run(tmp_path / "b", defense="dms", error=0.2, data="koniq")
    write_run(tmp_path / "c", defense="dms", error=0.2, metric="other")
    write_run(tmp_path / "d", defense="dms", error=0.2, num_images=12)
    assert marks_of(build_table(gather([tmp_path])), **FACTS) == {}
    said = "Runs on mini scored 2 different sets of images (of 12, 20): they are not ranked against each other"
    assert any(said in note for note in notes_on(gather([tmp_path])))
    write_run(tmp_path / "e", defense="dms", error=0.2, confidence=0.99)
    runs = gather([tmp_path])
    assert marks_by_name(runs, "srocc").keys() == {"a", "e"}
    assert marks_by_name(runs, "delta_range") == {}
    assert any("different confidence per side and image: 0.99, 0.999" in note for note in notes_on(runs))


@pytest.mark.parametrize(
    ("identity", "facts"),
    [({"attack.direction": "away"}, {}), ({}, {"attack_set_size_ifgsm": 20})],
    ids=["away from the middle", "of a whole set"],
)
def test_mean_gains_that_cancel_are_not_ranked(tmp_path, write_run, identity, facts):
    for name, gain in (("ms", 0.0), ("dms", 0.4)):
        write_run(tmp_path / name, defense=name, attacks={"ifgsm": gain}, identity=identity, **facts)
    runs = gather([tmp_path])
    assert marks_by_name(runs, "gain") == {}
    assert marks_by_name(runs, "srocc") != {}


def test_a_radius_of_many_digits_is_found(tmp_path, write_run):
    radii = (8 / 255, 16 / 255)
    write_run(tmp_path / "a", radii=radii, certified_radius=radii[1])
    assert build_table(gather([tmp_path])).radius == pytest.approx(16 / 255, rel=1e-5)


def test_without_records_nothing_is_tested(tmp_path, write_run):
    for name, error in (("a", 0.4), ("b", 0.2)):
        write_run(tmp_path / name, defense=name, error=error)
        shutil.rmtree(tmp_path / name / "records")
        (tmp_path / name / "records.parquet").unlink()
    assert sorted(marks_by_name(gather([tmp_path]), "srocc").values()) == ["best", "untested"]


def test_markdown_has_bold_best_and_says_what_is_compared(sweep):
    table = build_table(gather([sweep]))
    text = to_markdown(table, marks_of(table, **FACTS), significance.explanation(**FACTS))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(lines[0])}
    names, rows = lines[0], {line[0]: line for line in lines[2:]}
    assert list(rows) == ["none", "dms", "jpeg", "ms", "ms (random weights)"]
    at = names.index("SROCC")
    summary = read_summary(sweep / "evaluate" / "good")
    assert rows["dms"][at] == f"**{summary['srocc']:.3f}**"
    assert rows["jpeg"][at].endswith("†")
    assert "*" not in rows["ms (random weights)"][at]
    assert "*" not in rows["none"][at]
    for said in ("All runs share: metric mini, data mini", "at radius 0.03", "pseudo-MOS", "paired bootstrap",
                 "300 resamples, seed 0", "2 runs that did not finish left out"):  # fmt: skip
        assert said in text, said


def test_csv_holds_every_run_and_figure(sweep):
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(to_csv(build_table(gather([sweep])))))}
    assert len(rows) == 7
    summary = read_summary(sweep / "evaluate" / "good")
    assert float(rows["good"]["certified.delta_range@0.03"]) == summary["certified_delta_range_share_r0.03"]
    assert float(rows["good"]["summary.certified_srocc_r0.12"]) == summary["certified_srocc_r0.12"]
    assert rows["random"]["random_weights"] == "True"
    assert rows["going_on"]["status"] == "unfinished"
    assert rows["going_on"]["srocc"] == ""


@pytest.mark.parametrize(("kept", "expected"), [(True, [0.2, -0.1]), (False, [0.2, 0.3])])
def test_the_gain_of_an_image_is_that_of_the_attack_that_did_what_it_was_to_do(tmp_path, kept, expected):
    rows = [
        {"image_id": image_id, "attack": attack, "score": 3.0, "score_attacked": 3.0 + 4 * gain, "wanted": wanted}
        for image_id, wanted, gains in (("a", 1, (0.2, -0.15)), ("b", -1, (0.3, -0.1)))
        for attack, gain in zip(("one", "two"), gains, strict=True)
    ]
    failed = {"image_id": "a", "attack": "three", "score": 3.0, "score_attacked": np.inf, "wanted": 1}
    records = to_table([*rows, failed])
    run = ComparedRun(tmp_path, "run", {"metric_range": [1, 5]}, records if kept else records.drop(columns="wanted"))
    found = significance.gains(run, None)["gain"].sort_index()
    assert found.index.tolist() == ["a", "b"]
    assert found.tolist() == pytest.approx(expected)


def test_latex_is_a_booktabs_table(sweep):
    table = build_table(gather([sweep]))
    text = to_latex(table, marks_of(table, **FACTS), significance.explanation(**FACTS))
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns)}
    assert text.count(r"\begin{") == text.count(r"\end{")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{", r"\cmidrule(lr)"):
        assert part in text
    assert latex("a_b & 5% ~ \u2212\u221e\u4e2d") == r"a\_b \& 5\% \textasciitilde{} $-$$\infty$[U+4E2D]"
    only_failed = [run for run in table.runs if not run.finished]
    assert to_latex(build_table(only_failed), {}).startswith("% No run here has finished")
    assert to_markdown(build_table(only_failed), {}).startswith("No run here has finished")


@pytest.mark.full
def test_latex_compiles(sweep, write_run, tmp_path):
    program = shutil.which("pdflatex") or shutil.which("tectonic")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("pdflatex is not installed; apt-get install texlive-latex-recommended")
        pytest.skip("neither pdflatex nor tectonic is installed")
    write_run(sweep / "odd", defense=r"my_{defense}&50% \x ~^#$ <|\"Ä", metric="other_metric", radii=(0.03,))
    site = write_comparison([sweep], tmp_path / "site", resamples=50)
    document = tmp_path / "paper.tex"
    document.write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}\\begin{document}"
        f"\\input{{{site.index.parent / 'table.tex'}}}\\end{{document}}"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in program else []
    done = subprocess.run([program, *options, document.name], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert document.with_suffix(".pdf").stat().st_size > 10_000
    assert "Overfull \\hbox" not in done.stdout
