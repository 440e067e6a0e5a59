"""Runs that differ in seeds alone become one row: mean and standard deviation."""

import csv
import io
import re
import statistics

import pytest

from certiqa.reports import write_comparison
from certiqa.reports.comparison.columns import Column, Spread, build_table
from certiqa.reports.comparison.exports import to_latex, to_markdown
from certiqa.reports.comparison.gather import gather
from certiqa.reports.comparison.seeds import over_seeds, seeds_to_csv
from certiqa.reports.comparison.significance import best_marks
from certiqa.reports.tables import decimal, percent


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("seeds")
    write_run(root / "none", defense="none", radii=())
    for seed in (0, 1, 2):
        write_run(root / f"dms-{seed}", defense="dms", error=0.2, seed=seed, name="mini-dms")
        write_run(root / f"ms-{seed}", defense="ms", error=0.9, width=4.0, seed=seed, name="mini-ms")
    write_run(root / "dms-more", defense="dms", error=0.2, seed=0, identity={"certification.confidence": 0.99})
    write_run(root / "dms-cut", defense="dms", seed=3, status="interrupted", num_images=20)
    write_run(root / "dms-random", defense="dms", seed=4, weights="random (seed 0)")
    return root


def averaged(root):
    found = over_seeds(build_table(gather([root])))
    assert found is not None
    return found, {row["name"]: row for row in found.rows}


def test_a_figure_over_seeds_is_mean_and_sample_deviation():
    value = Spread.of([0.25, 0.5, 0.9])
    assert value == pytest.approx(statistics.mean([0.25, 0.5, 0.9]))
    assert value.sd == pytest.approx(statistics.stdev([0.25, 0.5, 0.9]))
    column = Column("x", "X", "", "", decimal)
    assert column.text(value) == "0.550 ± 0.328"
    assert column.text(Spread.of([0.25])) == "0.250"
    assert column.text(Spread.of([float("inf"), 1.0])) == column.text(float("inf"))
    shares = Column("x", "X", "", "", percent)
    assert shares.text(Spread.of([0.101, 0.203])) == percent(0.152).replace("15.2", "15.2 ± 7.2")
    assert shares.text(Spread.of([-0.3, -0.1])).startswith("\N{MINUS SIGN}20.0 ± 14.1")


def test_runs_of_one_kind_become_one_row(seeds):
    table, rows = averaged(seeds)
    assert set(rows) == {"none", "mini-dms", "mini-ms", "dms-more"}
    single = {row["name"]: row for row in build_table(gather([seeds])).rows}
    for name in ("dms", "ms"):
        row = rows[f"mini-{name}"]
        assert row["seeds"] == "0, 1, 2"
        for key in ("srocc", "plcc", "tau_srocc", "delta_range", "certified_srocc"):
            values = [single[f"{name}-{seed}"][key] for seed in (0, 1, 2)]
            assert row[key] == pytest.approx(statistics.mean(values)), key
            assert row[key].sd == pytest.approx(statistics.stdev(values)), key
    assert rows["none"]["srocc"] == single["none"]["srocc"]
    assert rows["dms-more"]["seeds"] == "0"
    keys = [column.key for column in table.columns]
    assert "seed" not in keys
    assert "seconds" not in keys
    assert any("a mean of them certifies nothing" in note for note in table.notes)


def test_a_figure_that_a_seed_lacks_has_no_mean(tmp_path, write_run):
    write_run(tmp_path / "a", seed=0, name="ms")
    write_run(tmp_path / "b", seed=1, name="ms", srocc=None)
    _, rows = averaged(tmp_path)
    assert rows["ms"]["srocc"] is None
    assert isinstance(rows["ms"]["plcc"], float)


def test_what_differs_in_more_than_seeds_is_not_averaged(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path / f"q{seed}", defense="jpeg", radii=(), seed=seed, identity={"defense.quality": 30 + seed})
    assert over_seeds(build_table(gather([tmp_path]))) is None
    site = write_comparison([tmp_path], resamples=20)
    assert not (site.index.parent / "seeds.csv").exists()
    assert "Over seeds" not in site.index.read_text()


def test_splits_and_trained_weights_follow_from_seeds(tmp_path, write_run):
    for seed in (0, 1):
        identity = {"data.split_seed": seed, "weights": f"digest{seed}", "defense.seed": seed}
        write_run(tmp_path / f"s{seed}", seed=5, num_images=20, identity=identity, name="ms")
    _, rows = averaged(tmp_path)
    assert rows["ms"]["seeds"] == "5 (split 0), 5 (split 1)"
    assert rows["ms"]["settings"] == ""


def test_a_seed_counts_once(tmp_path, write_run):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, seed=seed, name="ms")
    table, rows = averaged(tmp_path)
    assert rows["ms"]["seeds"] == "0, 1"
    assert any("1 run with a seed that was there already left out" in note for note in table.notes)


def test_exports_hold_mean_and_deviation(seeds, tmp_path):
    table, rows = averaged(seeds)
    text = to_markdown(table, best_marks(table))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    at = lines[0].index("SROCC")
    cells = [line[at] for line in lines[2:]]  # bare, dms of one seed, dms, ms
    assert len(cells) == 4
    assert re.fullmatch(r"0\.\d{3}", cells[0])
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", cells[3])
    assert [cell.startswith("**") for cell in cells].count(True) == 1
    assert f"**{decimal(float(rows['mini-dms']['srocc']))}" in text
    assert "the best mean of the rows of its block over the same seeds, without a test" in text
    assert "bootstrap" not in text
    assert r"$\pm$" in to_latex(table, {})
    found = {row["run"]: row for row in csv.DictReader(io.StringIO(seeds_to_csv(table)))}
    assert float(found["mini-ms"]["srocc.mean"]) == pytest.approx(float(rows["mini-ms"]["srocc"]))
    assert float(found["mini-ms"]["srocc.sd"]) == pytest.approx(rows["mini-ms"]["srocc"].sd)
    assert found["none"]["srocc.sd"] == ""
    assert "certified.certified_srocc@0.03.mean" in found["none"]
    assert found["mini-dms"]["seeds"] == "0, 1, 2"


def test_the_page_has_the_rows_and_an_earlier_comparisons_files_go(seeds, tmp_path, write_run):
    index = write_comparison([seeds], tmp_path / "site", resamples=20).index
    text = index.read_text()
    assert "Over seeds" in text
    assert "mini-dms" in text
    assert all((index.parent / f"seeds.{kind}").is_file() for kind in ("csv", "tex", "md"))
    write_run(tmp_path / "runs" / "only")
    write_comparison([tmp_path / "runs"], tmp_path / "site", resamples=20)
    assert not list((tmp_path / "site").glob("seeds.*"))


def test_seed_and_split_are_two_things(tmp_path, write_run):
    for seed in (0, 1):
        for split in (0, 1):
            write_run(tmp_path / f"{seed}{split}", seed=seed, identity={"data.split_seed": split}, name="ms")
    table, rows = averaged(tmp_path)
    assert rows["ms"]["seeds"] == "0 (split 0), 0 (split 1), 1 (split 0), 1 (split 1)"
    assert not any("left out of the means" in note for note in table.notes)
    text = write_comparison([tmp_path], tmp_path / "site", resamples=20).index.read_text()
    assert text.count('"seed": ["0", "1"]') == 1, "the filter finds it by either seed"


def test_seeds_are_shown_even_where_all_rows_have_the_same(tmp_path, write_run, read_comparison):
    for seed in (4, 3):
        write_run(tmp_path / f"a{-seed}", seed=seed, name="ms")  # by folder the later seed comes first
        write_run(tmp_path / f"b{seed}", seed=seed, defense="dms", name="dms")
    text = write_comparison([tmp_path], tmp_path / "site", resamples=20).index.read_text()
    assert text.count(">3, 4<") == 2
    assert re.search(r"All rows share: [^.]*metric mini", read_comparison(text).text)


def test_only_means_over_the_same_seeds_are_ranked(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path / f"ms{seed}", error=0.9, seed=seed, name="ms")
        write_run(tmp_path / f"dms{seed}", defense="dms", error=0.2, seed=seed, name="dms")
    write_run(tmp_path / "dms_iqa", defense="dms_iqa", error=0.01, seed=0)
    table, rows = averaged(tmp_path)
    best = {table.rows[number]["name"] for number, key in best_marks(table) if key == "srocc"}
    assert rows["dms_iqa"]["srocc"] > rows["dms"]["srocc"] > rows["ms"]["srocc"]
    assert best == {"dms"}


def test_another_copy_of_a_data_set_is_not_averaged_with_the_first(tmp_path, write_run):
    for seed, copy in ((0, "a"), (1, "a"), (0, "b"), (1, "b")):
        write_run(tmp_path / f"{copy}{seed}", seed=seed, name=copy, data_fingerprint=copy)
    _, rows = averaged(tmp_path)
    assert {name: row["seeds"] for name, row in rows.items()} == {"a": "0, 1", "b": "0, 1"}


def test_gains_of_either_sign_are_ranked_by_their_size(tmp_path, write_run):
    for seed, gain in ((0, 0.4), (1, -0.4)):
        write_run(tmp_path / f"ms{seed}", seed=seed, name="ms", attacks={"ifgsm": gain})
        write_run(tmp_path / f"dms{seed}", defense="dms", seed=seed, name="dms", attacks={"ifgsm": 0.1})
    table, rows = averaged(tmp_path)
    assert abs(rows["ms"]["gain"]) < abs(rows["dms"]["gain"])
    assert [table.rows[number]["name"] for number, key in best_marks(table) if key == "gain"] == ["dms"]
