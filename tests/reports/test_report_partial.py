"""The report of runs of which something is missing, damaged, infinite or null."""

import json
import math

import pandas as pd
import pytest

from certiqa.errors import UserError
from certiqa.reports import html as html_module
from certiqa.reports import write_report

SECTIONS = {
    "metrics.csv": "Training loss",
    "gallery.json": "Click one to enlarge",
    ".hydra/config.yaml": "as composed",
    "records.parquet": "Every image",
}


@pytest.mark.parametrize(("missing", "heading"), SECTIONS.items())
def test_a_section_vanishes_with_its_data(tmp_path, missing, heading, make_run, page_of):
    make_run(tmp_path)
    assert heading in page_of(tmp_path).source
    (tmp_path / missing).unlink()
    assert heading not in page_of(tmp_path).source


def test_interrupted_run_says_how_far_it_came(tmp_path, make_run, page_of):
    make_run(tmp_path, num_images=3, status="interrupted", certified_srocc=None, command=None, seconds=None)
    page = page_of(tmp_path)
    assert 'class="badge interrupted"' in page.source
    assert "the 3 images finished so far" in page.text


def test_failed_run_without_any_image(tmp_path, page_of):
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed", "name": "x", "num_images": 0}))
    page = page_of(tmp_path)
    assert "This run failed. No image was finished." in page.text
    assert "<figure" not in page.source


def test_records_alone_make_a_report(tmp_path, make_run, page_of):
    make_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    page = page_of(tmp_path)
    assert 'class="badge unfinished"' in page.source
    assert "the 40 images finished so far" in page.text


def test_every_key_of_the_summary_may_be_null(tmp_path, make_run, page_of):
    summary = make_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(dict.fromkeys(summary)))
    page_of(tmp_path)


DRAWN = {"certified_radius", "metric_range", "srocc", "certified_srocc_r0.06", "joint_confidence"}


def test_each_single_key_may_be_missing(tmp_path, monkeypatch, make_run):
    summary = make_run(tmp_path, num_images=6, radii=(0.03, 0.06), gallery=0, training=False)
    run, draw = html_module.load_run(tmp_path), html_module.draw
    for key in set(summary) - {"name"}:
        monkeypatch.setattr(html_module, "draw", draw if key in DRAWN else lambda *_: [])
        run.summary.clear()
        run.summary.update({name: value for name, value in summary.items() if name != key})
        assert "<h1>dms_iqa-mini</h1>" in html_module.render(run)


def test_abstention_is_infinite_not_a_crash(tmp_path, make_run, page_of):
    facts = {
        "certified_delta_median_r0.12": "inf",
        "certified_delta_sd_share_r0.12": "inf",
        "certified_srocc_r0.12": -1.0,
    }
    make_run(tmp_path, abstain_at=0.06, abstention_rate=0.25, **facts)
    page = page_of(tmp_path)
    assert "10 of 40 images not certified at radius 0.06" in page.text
    assert "10 without a bar could not be certified" in page.text
    assert "not certified" in page.text
    assert "∞" in page.text
    assert "\u22121.000" in page.text


def test_nothing_certified_at_all(tmp_path, make_run, page_of):
    make_run(tmp_path, certified_delta_median="inf", abstention_rate=1.0)
    table = pd.read_parquet(tmp_path / "records.parquet")
    for column, value in (
        ("lower", -math.inf),
        ("upper", math.inf),
        ("joint_lower", -math.inf),
        ("joint_upper", math.inf),
    ):
        table[column] = value
    table.to_parquet(tmp_path / "records.parquet")
    assert "Certified delta against radius" not in page_of(tmp_path).text


def test_half_written_files_are_left_out(tmp_path, make_run, page_of):
    make_run(tmp_path)
    (tmp_path / "gallery.json").write_text('[{"image_id": ')
    (tmp_path / "metrics.csv").write_text("")
    page = page_of(tmp_path)
    assert "Training loss" not in page.text


def test_folder_without_a_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(tmp_path)
