"""The site of a comparison: its figures, its page, the reports beside it, and the command that writes it."""

import json
import re
import shutil

import numpy as np
import pytest

from certiqa.entry.report import main
from certiqa.errors import UserError
from certiqa.evaluation import read_summary
from certiqa.reports import write_comparison
from certiqa.reports.comparison import figures as figures_module
from certiqa.reports.comparison.columns import build_table
from certiqa.reports.comparison.figures import figures
from certiqa.reports.comparison.gather import gather


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


def test_a_short_list_is_no_rival_of_a_long_one(tmp_path, write_run):
    write_run(tmp_path / "long")
    write_run(tmp_path / "short", num_images=8)
    titles = [plot.title for plot in figures(build_table(gather([tmp_path])))]
    assert sorted(titles) == [
        f"{title}: mini on mini, {count} images"
        for title in ("Correlation against certificate", "SROCC against certified radius")
        for count in (20, 8)
    ]


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
    rows = {row["name"]: row for row in table.rows}
    assert drawn["inside"][1] == pytest.approx(100 * rows["inside"]["delta_range"])
    records = table.runs[1].attacked
    change = np.median(np.abs(records["score_attacked"] - records["score"])) / 4
    assert drawn["inside"][2] == pytest.approx(100 * change)
    assert drawn["bare"][1] > drawn["inside"][1]  # in the strip of what is not certified


def test_a_run_certified_elsewhere_is_not_called_uncertified(tmp_path, write_run):
    write_run(tmp_path / "here", attacks={"pgd": 0.02})
    bare = write_run(tmp_path / "bare", defense="none", attacks={"pgd": 0.5})
    assert "certified_radius" not in bare
    table = build_table(gather([tmp_path]))
    caption = figures_module.measured_plot(table.runs, figures_module.series_of(table.runs), table.radius).caption
    assert "Grey strip: runs without a certificate. " in caption
    write_run(tmp_path / "elsewhere", defense="dms", radii=(0.2,), attacks={"pgd": 0.02})
    table = build_table(gather([tmp_path]), radius=0.03)
    caption = figures_module.measured_plot(table.runs, figures_module.series_of(table.runs), table.radius).caption
    assert "runs without a certificate, and 1 run certified at other radii alone" in caption


def test_the_page_stands_alone_and_links_to_its_runs(sweep, read_comparison):
    site = write_comparison([sweep], resamples=50)
    assert site.index == sweep / "comparison" / "index.html"
    text = site.index.read_text()
    page = read_comparison(text)
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


def test_every_key_of_every_summary_may_be_missing_null_or_nonsense(sweep, read_comparison):
    summary = read_summary(sweep / "evaluate" / "good")
    for number, value in enumerate((None, "x", [{}], -1)):
        values = dict.fromkeys(summary, value)
        folder = shutil.copytree(sweep / "evaluate" / "bad", sweep / f"odd{number}")
        (folder / "summary.json").write_text(json.dumps(values | {"status": "finished"}))
    (sweep / "train" / "cut" / "summary.json").write_text("[1, 2]")
    site = write_comparison([sweep], resamples=20)
    assert {"odd0", "odd1", "odd2", "odd3"} <= set(read_comparison(site.index.read_text()).rows)


def test_reports_are_copied_where_new_and_linked_where_asked(tmp_path, write_run, read_comparison):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", defense="dms")
    (tmp_path / "runs" / "a" / "report.html").write_text("<h1>as it was</h1>")
    site = write_comparison([tmp_path / "runs"], tmp_path / "site", resamples=50)
    assert (site.index.parent / "runs" / "a.html").read_text() == "<h1>as it was</h1>"
    linked = write_comparison([tmp_path / "runs"], tmp_path / "linked", resamples=50, link=True)
    links = read_comparison(linked.index.read_text()).links
    assert "../runs/a/report.html" in links
    assert not any("b/report" in link or link == "runs/b.html" for link in links)
    assert not (linked.index.parent / "runs").exists()


def test_studies_are_left_out_and_said_so(tmp_path, write_run, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "study", task="purification")
    site = write_comparison([tmp_path], tmp_path / "site", resamples=20)
    assert [run.key for run in site.runs] == ["a"]
    assert "Left out, as studies have reports of their own: study." in site.notes
    with pytest.raises(UserError, match="is a study with a report of its own"):
        write_comparison([tmp_path / "study"], tmp_path / "site")


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
