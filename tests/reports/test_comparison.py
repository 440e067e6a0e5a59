"""The comparison of synthetic runs: what is gathered, made comparable, tested for significance, and exported."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from certiqa.entry.report import main
from certiqa.errors import UserError
from certiqa.reports import write_comparison
from certiqa.reports.comparison import figures as figures_module
from certiqa.reports.comparison import significance
from certiqa.reports.comparison.columns import build_table
from certiqa.reports.comparison.exports import latex, to_csv, to_latex, to_markdown
from certiqa.reports.comparison.figures import figures
from certiqa.reports.comparison.gather import find_runs, gather, notes_on
from certiqa.reports.comparison.significance import marks_of, paired_bootstrap

FACTS = {"resamples": 300, "seed": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("made")
    write_run(root / "evaluate" / "none", defense="none", attacks={"ifgsm": 1.2}, radii=())
    write_run(root / "evaluate" / "good", defense="dms", error=0.1, width=2.0, attacks={"ifgsm": 0.3})
    write_run(root / "evaluate" / "bad", defense="ms", error=1.2, width=4.0, attacks={"ifgsm": 0.5})
    write_run(root / "evaluate" / "jpeg", defense="jpeg", error=0.12, radii=(), attacks={"ifgsm": 1.0, "square": -0.2})
    write_run(root / "train" / "cut", defense="dms", seed=1, status="interrupted", num_images=6)
    write_run(root / "train" / "going_on", defense="dms_iqa", seed=2, status=None, num_images=3)
    write_run(root / "train" / "random", defense="ms", error=0.01, weights="random (seed 0)")
    for name in ("evaluate/none", "evaluate/bad", "evaluate/jpeg", "train/random"):
        (root / name / "report.html").write_text("<h1>a report</h1>")
    return root


@pytest.fixture
def sweep(tmp_path, made):
    """Seven runs: a bare metric, two smoothed and a purified one, one interrupted, one going on, one random."""
    return shutil.copytree(made, tmp_path / "outputs")


def by_name(table):
    return {row["name"]: row for row in table.rows}


class Page(HTMLParser):
    """Rows of the first sortable table as {run: {column key: cell}}; every address; text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.keys, self.rows, self.tables, self.cell, self.words = [], [], {}, 0, None, []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        if tag == "table":
            self.tables += 1
        if self.tables == 1 and tag == "th" and "data-key" in found:
            self.keys.append(found["data-key"])
        if tag in ("td", "th") and "data-sort" in found:
            self.cell = [tag, found["data-sort"], found.get("class", ""), ""]

    def handle_endtag(self, tag):
        if self.cell and tag in ("td", "th") and self.tables == 1:
            if tag == "th":
                self.current = self.rows.setdefault(self.cell[1], {})
            else:
                key = self.keys[1 + len(self.current)]
                self.current[key] = {"sort": self.cell[1], "class": self.cell[2], "text": self.cell[3].strip()}
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self.cell:
            self.cell[3] += data


def test_every_kind_of_run_is_gathered(sweep):
    runs = {run.key: run for run in gather([sweep])}
    assert sorted(runs) == ["bad", "cut", "going_on", "good", "jpeg", "none", "random"]
    assert {key: run.status for key, run in runs.items() if not run.finished} == {
        "cut": "interrupted",
        "going_on": "unfinished",
    }
    assert runs["going_on"].summary["num_images"] == 3
    facts = {"metric": "mini", "defense": "dms_iqa", "data": "mini", "seed": 2}
    assert {key: runs["going_on"].summary[key] for key in facts} == facts
    assert runs["random"].random_weights
    assert runs["none"].bare
    assert len(runs["good"].images) == 20


def test_runs_are_found_at_any_depth_and_once(sweep, tmp_path):
    shutil.copytree(sweep / "evaluate" / "good", sweep / "evaluate" / "good.previous-1")
    (sweep / "evaluate" / "started" / ".hydra").mkdir(parents=True)
    (sweep / "evaluate" / "started" / ".hydra" / "config.yaml").write_text("defense: {name: ms}\n")
    names = [path.name for path in find_runs([tmp_path, sweep / "evaluate", sweep / "evaluate" / "good"])]
    assert sorted(names) == ["bad", "cut", "going_on", "good", "jpeg", "none", "random", "started"]
    assert [path.name for path in find_runs([sweep / "evaluate" / "good.previous-1"])] == ["good.previous-1"]


def test_a_folder_without_a_run_is_refused_with_what_to_do(tmp_path, write_run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run in .*empty.*give e\.g\. outputs/evaluate"):
        write_comparison([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        write_comparison([tmp_path / "nowhere"])
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"no run was certified at radius 0\.5; there are: 0\.03, 0\.06, 0\.12"):
        write_comparison([tmp_path / "run"], radius=0.5)
    with pytest.raises(UserError, match="resamples must be at least 1"):
        write_comparison([tmp_path / "run"], resamples=0)


def test_runs_cut_short_anywhere_still_make_a_site(sweep):
    (sweep / "evaluate" / "good" / "summary.json").write_text('{"status": "fini')
    (sweep / "evaluate" / "bad" / "records.parquet").write_bytes(b"PAR1")
    (sweep / "evaluate" / "none" / "summary.json").write_text(json.dumps({"status": "failed", "num_images": 0}))
    (sweep / "train" / "cut" / "records" / "identity.json").write_text("{")
    shutil.rmtree(sweep / "evaluate" / "jpeg" / "records")
    (sweep / "evaluate" / "jpeg" / "records.parquet").unlink()
    site = write_comparison([sweep], resamples=50)
    assert any("good: summary.json cannot be read" in note for note in site.notes)
    assert any("bad: its records cannot be read" in note for note in site.notes)
    assert any("1 failed, 1 interrupted, 2 unfinished" in note for note in site.notes)
    page = Page(site.index.read_text())
    assert page.rows["good"]["status"]["text"] == "unfinished"
    assert page.rows["good"]["defense"]["text"] == "dms"
    assert page.rows["bad"]["srocc"]["sort"] != ""


def test_mixed_versions_are_told_and_other_formats_are_not_read(sweep):
    path = sweep / "evaluate" / "good" / "records" / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    summary = sweep / "evaluate" / "bad" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"versions": {"certiqa": "0.0.9"}}))
    runs = gather([sweep])
    notes = " ".join(notes_on(runs))
    assert "different versions of certiqa: 0.0.9 (1 run), 0.1.0 (5 runs)" in notes
    assert "different formats of records: 1 (1 run), 2 (6 runs)" in notes
    assert "good: its records are of format 1, this version reads 2" in notes
    good = next(run for run in runs if run.key == "good")
    assert good.records.empty
    table = build_table(runs)
    marks = marks_of(table, **FACTS)
    number = next(i for i, run in enumerate(runs) if run.key == "good")
    assert marks.get((number, "srocc")) not in ("level", "different")


def test_rows_hold_the_summary_and_one_radius(sweep):
    runs = gather([sweep])
    table = build_table(runs)
    assert table.radius == 0.03
    rows = by_name(table)
    summary = json.loads((sweep / "evaluate" / "good" / "summary.json").read_text())
    for key, name in (("srocc", "srocc"), ("tau_srocc", "tau_srocc"),
                      ("delta_range", "certified_delta_range_share_r0.03"),
                      ("delta_sd", "certified_delta_sd_share_r0.03"), ("abstention", "abstention_rate_r0.03"),
                      ("certified_srocc", "certified_srocc_r0.03"), ("gain", "attack_gain_ifgsm")):  # fmt: skip
        assert rows["good"][key] == summary[name], key
    worst = json.loads((sweep / "evaluate" / "jpeg" / "summary.json").read_text())["attack_gain_worst"]
    assert rows["jpeg"]["gain"] == worst
    assert rows["jpeg"]["delta"] is None
    assert rows["none"]["certified_srocc"] is None
    assert [row["attack"] for row in table.attack_rows if row["name"] == "jpeg"] == ["ifgsm", "square", "worst"]
    other = by_name(build_table(runs, radius=0.12))
    assert other["good"]["delta_range"] == summary["certified_delta_range_share_r0.12"]


def test_two_ranges_are_normalised_and_said(tmp_path, write_run):
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
    assert said[0] in Page(write_comparison([tmp_path], resamples=50).index.read_text()).text
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


def test_without_records_nothing_is_tested(tmp_path, write_run):
    for name, error in (("a", 0.4), ("b", 0.2)):
        write_run(tmp_path / name, defense=name, error=error)
        shutil.rmtree(tmp_path / name / "records")
        (tmp_path / name / "records.parquet").unlink()
    assert sorted(marks_by_name(gather([tmp_path]), "srocc").values()) == ["best", "untested"]


def test_markdown_has_bold_best_and_says_what_is_compared(sweep):
    table = build_table(gather([sweep]))
    text = to_markdown(table, marks_of(table, **FACTS), **FACTS)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(lines[0])}
    names, rows = lines[0], {line[0]: line for line in lines[2:]}
    assert list(rows) == ["none", "dms", "jpeg", "ms", "ms (random weights)"]
    at = names.index("SROCC")
    summary = json.loads((sweep / "evaluate" / "good" / "summary.json").read_text())
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
    summary = json.loads((sweep / "evaluate" / "good" / "summary.json").read_text())
    assert float(rows["good"]["certified.delta_range@0.03"]) == summary["certified_delta_range_share_r0.03"]
    assert float(rows["good"]["summary.certified_srocc_r0.12"]) == summary["certified_srocc_r0.12"]
    assert rows["random"]["random_weights"] == "True"
    assert rows["going_on"]["status"] == "unfinished"
    assert rows["going_on"]["srocc"] == ""


def test_latex_is_a_booktabs_table(sweep):
    table = build_table(gather([sweep]))
    text = to_latex(table, marks_of(table, **FACTS), **FACTS)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns)}
    assert text.count(r"\begin{") == text.count(r"\end{")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{", r"\cmidrule(lr)"):
        assert part in text
    assert latex("a_b & 5% ~ \u2212\u221e\u4e2d") == r"a\_b \& 5\% \textasciitilde{} $-$$\infty$[U+4E2D]"
    only_failed = [run for run in table.runs if not run.finished]
    assert to_latex(build_table(only_failed), {}, **FACTS).startswith("% No run here has finished")
    assert to_markdown(build_table(only_failed), {}, **FACTS).startswith("No run here has finished")


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


def test_figures_say_how_to_read_them_and_skip_meaningless_runs(sweep):
    runs = gather([sweep])
    pages = {run.key: f"runs/{run.key}.html" for run in runs} | {"bad": None}
    found = {plot.key: plot for plot in figures(build_table(runs), pages)}
    assert list(found) == ["frontier-0", "trade-0", "measured-0"]
    assert all(len(plot.caption) > 150 for plot in found.values())
    assert "One line per run (2)" in found["frontier-0"].caption
    assert "(4)" in found["measured-0"].caption
    assert 'href="runs/good.html"' in found["trade-0"].svg
    everything = " ".join(plot.svg for plot in found.values())
    assert "runs/random.html" not in everything
    assert "runs/bad.html" not in everything
    assert "runs/cut.html" not in everything


def test_each_metric_and_data_set_has_figures_of_its_own(tmp_path, write_run):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", metric="other", score_range=(0.0, 100.0))
    write_run(tmp_path / "c", data="koniq")
    titles = [plot.title for plot in figures(build_table(gather([tmp_path])))]
    assert len(titles) == len(set(titles)) == 6
    assert "SROCC against certified radius: other on mini" in titles
    assert "Correlation against certificate: mini on koniq" in titles


def test_only_points_within_the_radius_are_filled(tmp_path, write_run, monkeypatch):
    write_run(tmp_path / "inside", attacks={"pgd": 0.02}, attack_l2=0.03)
    write_run(tmp_path / "outside", attacks={"pgd": 0.02}, attack_l2=0.05)
    write_run(tmp_path / "bare", defense="none", attacks={"pgd": 0.5}, attack_l2=0.03)
    drawn = {}

    def record(axes, group, style, pages, *, hollow=False, label=True):
        drawn.update({run.key: (hollow, x, y) for x, y, run in group})

    monkeypatch.setattr(figures_module, "_scatter", record)
    table = build_table(gather([tmp_path]))
    figures_module.measured_plot(table.runs, figures_module.series_of(table.runs), table.radius)
    assert {name: hollow for name, (hollow, _, _) in drawn.items()} == {"inside": False, "outside": True, "bare": True}
    rows = by_name(table)
    assert drawn["inside"][1] == pytest.approx(100 * rows["inside"]["delta_range"])
    records = table.runs[1].attacked
    change = np.median(np.abs(records["score_attacked"] - records["score"])) / 4
    assert drawn["inside"][2] == pytest.approx(100 * change)
    assert drawn["bare"][1] > drawn["inside"][1]  # in the strip of what is not certified


def test_the_page_stands_alone_and_links_to_its_runs(sweep):
    site = write_comparison([sweep], resamples=50)
    assert site.index == sweep / "comparison" / "index.html"
    text = site.index.read_text()
    page = Page(text)
    assert not re.search(r"https?://|@import|\bnan\b|\bNone\b", text)
    assert len(page.rows) == 7
    for name in ("good", "bad", "none", "jpeg", "cut", "random", "going_on"):
        assert f"runs/{name}.html" in page.links
        assert "<h1>" in (site.index.parent / "runs" / f"{name}.html").read_text()
    assert {link for link in page.links if not link.startswith(("data:", "runs/", "#"))} == {
        "table.csv", "table.md", "table.tex",
    }  # fmt: skip
    assert (site.index.parent / "table.csv").is_file()
    assert len(list(sweep.rglob("report.html"))) == 4  # the runs' folders are left as they are
    assert "best" in page.rows["good"]["srocc"]["class"]
    assert "best" not in page.rows["random"]["srocc"]["class"]
    assert "random weights" in page.rows["random"]["defense"]["text"]
    assert 'role="alert"' in text
    assert page.text.count("random weights: their numbers are meaningless") == 2
    assert "Certified, proven" in page.text
    assert "Attacked, measured" in page.text
    first = text
    write_comparison([sweep], resamples=50)
    assert site.index.read_text() == first


def test_everything_given_is_escaped(tmp_path, write_run):
    evil = "<script>alert('x')</script>"
    for name in ("a", "b"):
        write_run(
            tmp_path / name, defense=r"$x_{$\_", metric=evil + name, data=evil, identity={"defense.x": evil + name}
        )
    text = write_comparison([tmp_path], resamples=50).index.read_text()
    assert text.count("<script") == 1
    assert evil not in text


def test_every_key_of_every_summary_may_be_missing_null_or_nonsense(sweep):
    summary = json.loads((sweep / "evaluate" / "good" / "summary.json").read_text())
    for number, value in enumerate((None, "x", [{}], -1)):
        values = dict.fromkeys(summary, value)
        folder = shutil.copytree(sweep / "evaluate" / "bad", sweep / f"odd{number}")
        (folder / "summary.json").write_text(json.dumps(values | {"status": "finished"}))
    (sweep / "train" / "cut" / "summary.json").write_text("[1, 2]")
    site = write_comparison([sweep], resamples=20)
    assert {"odd0", "odd1", "odd2", "odd3"} <= set(Page(site.index.read_text()).rows)


def test_reports_are_copied_where_new_and_linked_where_asked(tmp_path, write_run):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", defense="dms")
    (tmp_path / "runs" / "a" / "report.html").write_text("<h1>as it was</h1>")
    site = write_comparison([tmp_path / "runs"], tmp_path / "site", resamples=50)
    assert (site.index.parent / "runs" / "a.html").read_text() == "<h1>as it was</h1>"
    linked = write_comparison([tmp_path / "runs"], tmp_path / "linked", resamples=50, link=True)
    links = Page(linked.index.read_text()).links
    assert "../runs/a/report.html" in links
    assert not any("b/report" in link or link == "runs/b.html" for link in links)
    assert not (linked.index.parent / "runs").exists()


def test_command_reports_one_run_and_compares_several(sweep, tmp_path, capsys):
    run = sweep / "evaluate" / "good"
    main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").is_file()
    main([str(run), str(sweep / "evaluate" / "bad"), "--resamples", "20", "--radius", "0.06"])
    out = capsys.readouterr().out
    assert out.strip() == f"2 runs: {sweep / 'evaluate' / 'comparison' / 'index.html'}"
    main([str(sweep), "--into", str(tmp_path / "here"), "--resamples", "20"])
    said = capsys.readouterr()
    assert "7 runs" in said.out
    assert "note: 2 of 7 runs did not reach their end" in said.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "empty")])
    assert ended.value.code == 1
    assert "certiqa-report: no run in" in capsys.readouterr().err
