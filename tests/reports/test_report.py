"""The report of synthetic runs: what it says, and that it stands alone."""

import json
import math
import re

import numpy as np
import pandas as pd
from PIL import Image

from certiqa.evaluation.gallery import read_gallery
from certiqa.reports import write_report


def test_finished_run_shows_its_numbers_and_says_what_they_mean(tmp_path, make_run, page_of):
    summary = make_run(tmp_path)
    page = page_of(tmp_path)
    for key in ("srocc", "srocc_undefended", "plcc", "krocc", "certified_srocc", "certified_plcc_r0.12"):
        assert f"{summary[key]:.3f}" in page.text, key
    assert (
        "Trained the defense dms_iqa in front of the frozen metric mini on the data set mini; 40 test images"
        in page.text
    )
    assert "population median" in page.text
    assert "99.9 % per side and image, so 99.8 % for both sides" in page.text
    assert "joint confidence 95 %" in page.text
    assert page.source.count('<figure class="plot"') == 6
    captions = re.findall(r"</svg>\s*<figcaption>(.+?)</figcaption>", page.source, flags=re.DOTALL)
    assert len(captions) == 6
    assert all(len(caption) > 60 for caption in captions)
    assert page.source.count("data:image/webp;base64,") == 6
    for fact in (
        "3f2a9c17be04",
        "torch 2.8.0",
        "12 min 34 s",
        "python train.py defense=dms_iqa",
        "num_samples: 1000",
    ):
        assert fact in page.text
    assert "photo0/type01_level1.png" in page.text
    assert "did not reach its end" not in page.text


def test_pseudo_mos_is_named_and_mos_is_not(tmp_path, make_run, page_of):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", mos_kind="MOS", data="koniq")
    assert "not comparable with published numbers" in page_of(tmp_path / "a").text
    assert "pseudo" not in page_of(tmp_path / "b").text.lower()


def test_primary_radius_chooses_the_headline_and_its_row(tmp_path, make_run, page_of):
    summary = make_run(tmp_path)
    page = page_of(tmp_path)
    assert summary["certified_radius"] == 0.06
    assert re.search(r'<tr class="primary"><td>0.06</td>', page.source)
    assert "interval at radius 0.06" in page.text


def test_run_without_certificates_claims_nothing(tmp_path, make_run, page_of):
    summary = make_run(tmp_path, radii=(), defense=None, training=False, gallery=0, task="evaluate")
    (tmp_path / ".hydra" / "config.yaml").unlink()
    page = page_of(tmp_path)
    assert "The metric mini without a defense on the data set mini; 40 test images scored." in page.text
    assert "Nothing on this page is proven" in page.text
    assert f"{summary['plcc']:.3f}" in page.text
    assert "→" not in page.text
    for absent in (
        "What this certificate says",
        "Certified",
        "Abstention",
        "Configuration ·",
        "Training loss",
        "Images ",
    ):
        assert absent not in page.text, absent
    assert page.source.count('<figure class="plot"') == 1


def test_lower_better_is_explained(tmp_path, make_run, page_of):
    summary = make_run(tmp_path, lower_better=True, metric_range=None)
    page = page_of(tmp_path)
    assert "Lower is better for this metric" in page.text
    assert summary["srocc"] > 0
    assert f"SROCC {summary['srocc']:.3f}" in page.text


def test_notes_on_the_data_are_shown(tmp_path, make_run, page_of):
    note = "tool_results.csv has image names and a column 'score', which may be another tool's: it is not read"
    make_run(tmp_path, radii=(), defense=None, data_notes=[note, "2 files are left out: a.md, b.md"])
    assert note in page_of(tmp_path).text
    assert "2 files are left out: a.md, b.md" in page_of(tmp_path).text


def test_everything_given_is_escaped(tmp_path, make_run, page_of):
    evil = "<script>alert('x')</script>"
    facts = dict.fromkeys(("name", "metric", "defense", "data", "command", "seed", "device", "task"), evil)
    make_run(tmp_path, status=f"'\"{evil}", mos_kind=evil + " $x_{$", versions={evil: evil}, **facts)
    for name in ("records.parquet", "gallery.json"):
        path = tmp_path / name
        if name == "gallery.json":
            entries = json.loads(path.read_text())
            entries[0]["image_id"] = entries[0]["panels"][0]["label"] = evil
            path.write_text(json.dumps(entries))
        else:
            table = pd.read_parquet(path)
            table["image_id"] = evil + table["image_id"]
            table.to_parquet(path)
    (tmp_path / ".hydra" / "config.yaml").write_text(f"a: {evil}</pre>{{{{ 7 * 7 }}}}")
    page = page_of(tmp_path)
    assert page.source.count("<script") == 1
    assert evil not in page.source
    assert evil in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_attacks_stand_apart_as_measured(tmp_path, make_run, page_of):
    make_run(tmp_path, attacks=True)
    page = page_of(tmp_path)
    assert "Attacks, measured" in page.text
    assert "ifgsm" in page.text
    assert "10.0 %" in page.text.replace("\u202f", " ")
    assert "8.00 % to 12.0 %" in page.text.replace("\u202f", " ")
    assert "ifgsm is only one attack" in page.text
    assert "Attacks beside the certificate" in page.text


def test_large_run_stays_small(tmp_path, make_run, page_of):
    rng = np.random.default_rng(0)
    make_run(
        tmp_path,
        num_images=2000,
        gallery=6,
        picture=lambda i: rng.integers(0, 255, (700, 900, 3), dtype=np.uint8),
    )
    page = page_of(tmp_path)
    assert "2 000, widest certified delta first, the first 500 shown" in page.text
    assert page.source.count("data:image/webp") >= 3


def test_gallery_reads_nothing_outside_the_run(tmp_path, make_run, page_of):
    make_run(tmp_path / "run", gallery=1)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "secret.png")
    entries = read_gallery(tmp_path / "run")
    entries[0]["panels"] = [
        {"label": "clean", "file": name, "score": None} for name in ("../secret.png", "none.png", "")
    ]
    (tmp_path / "run" / "gallery.json").write_text(json.dumps(entries))
    assert "data:image" not in page_of(tmp_path / "run").source


def test_gallery_takes_the_defended_score_from_the_records(tmp_path, make_run, page_of):
    make_run(tmp_path, gallery=1)
    entry = read_gallery(tmp_path)[0]
    del entry["score"], entry["panels"][1]
    (tmp_path / "gallery.json").write_text(json.dumps([entry | {"mos": math.nan}]))
    score = pd.read_parquet(tmp_path / "records.parquet").set_index("image_id")["score"][entry["image_id"]].iloc[0]
    assert f"undefended 3.40 · defended {score:.2f}" in page_of(tmp_path).text


def test_same_run_gives_the_same_page(tmp_path, make_run):
    make_run(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_errors_say_how_scores_became_opinion_scores(tmp_path, make_run, page_of):
    facts = {"rmse": 0.61, "rmse_undefended": 0.58, "mos_range": [1.0, 5.0], "mos_kind": "MOS"}
    make_run(tmp_path, metric_range=[0.0, 100.0], **facts)
    text = page_of(tmp_path).text
    assert "RMSE 0.580 0.610 +0.030" in text
    assert "the metric's range 0 to 100 is laid on 1 to 5 in a straight line; the line is fixed" in text
    make_run(tmp_path, metric_range=[0.0, 100.0], lower_better=True, **facts)
    assert "in a straight line, turned round because lower is better; the line" in page_of(tmp_path).text
    make_run(tmp_path, **facts)
    assert "in units of MOS, whose scale is the metric's own range" in page_of(tmp_path).text
    del facts["mos_range"]  # as an earlier version wrote it
    make_run(tmp_path, **facts)
    text = page_of(tmp_path).text
    assert "RMSE 0.580 0.610" in text
    assert "straight line" not in text
    assert "own range" not in text
