"""The report of synthetic runs: what it says, what it leaves out, and that it stands alone."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from certiqa.errors import UserError
from certiqa.evaluation.records import COLUMNS
from certiqa.reports import comparison_table, print_summary, write_report
from certiqa.reports import html as html_module

RADII = (0.03, 0.06, 0.09, 0.12)


def make_run(
    folder: Path,
    *,
    num_images: int = 40,
    radii: tuple[float, ...] = RADII,
    abstain_at: float = math.inf,
    lower_better: bool = False,
    training: bool = True,
    gallery: int = 2,
    attacks: bool = False,
    picture: Any = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write a run's folder as the entry points do, return its summary; ``facts`` overrides summary keys."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    sign = -1 if lower_better else 1
    mos = rng.uniform(1.1, 4.7, num_images)
    clean = np.clip(mos + rng.normal(0, 0.42, num_images), 1, 5) * sign
    score = (0.55 * mos + 1.2 + rng.normal(0, 0.32, num_images)) * sign
    if facts.get("defense", "") is None:
        score = clean
    slack = rng.lognormal(math.log(0.55), 0.35, num_images)
    ids = [f"photo{i % 5}/type{i // 5 + 1:02d}_level{i % 5 + 1}.png" for i in range(num_images)]
    rows = []
    for radius in radii or (None,):
        for i, name in enumerate(ids):
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {"image_id": name, "path": name, "mos": mos[i], "score_clean": clean[i], "score": score[i]}
            row |= {
                "attack": "none",
                "radius": radius,
                "sigma": 0.12,
                "num_samples": 1000,
                "confidence": 0.999,
            }
            if radius is not None:
                out = radius >= abstain_at and i % 4 == 0
                half = math.inf if out else slack[i] * (radius + 0.01)
                row |= {"lower": score[i] - half, "upper": score[i] + 1.1 * half, "abstained": out}
                row |= {
                    "joint_lower": score[i] - 1.5 * half,
                    "joint_upper": score[i] + 1.6 * half,
                    "joint_confidence": 0.95,
                }
            rows.append(row)
            if attacks and radius == (radii or (None,))[0]:
                rows.append({**row, "attack": "ifgsm", "score_attacked": score[i] + 0.4, "l2": 6.0, "linf": 4 / 255})
    pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(folder / "records.parquet", index=False)

    summary: dict[str, Any] = {
        "status": "finished",
        "task": "train",
        "name": "dms_iqa-mini",
        "metric": "mini",
    }
    summary |= {
        "metric_range": [1.0, 5.0],
        "lower_better": lower_better,
        "defense": "dms_iqa",
        "data": "mini",
    }
    summary |= {
        "mos_kind": "pseudo-MOS",
        "sigma": 0.12,
        "num_samples": 1000,
        "confidence": 0.999,
        "radii": list(radii),
    }
    summary |= {"seed": 0, "num_images": num_images, "num_forward": num_images * 1100, "seconds": 754.2}
    summary |= {"seconds_training": 402.0, "images_per_second": 183.4, "device": "cpu", "precision": "fp32"}
    summary |= {"versions": {"certiqa": "0.1.0", "torch": "2.8.0"}, "config_hash": "3f2a9c17be04"}
    summary |= {"data_fingerprint": "b1946ac92492", "weights_fingerprint": "591785b794601e21"}
    summary |= {"command": "python train.py defense=dms_iqa metric=mini data=mini"}
    if attacks:
        figures = {"gain": 0.1, "gain_low": 0.08, "gain_high": 0.12, "gain_of_noise": 0.01, "srocc": 0.4}
        summary |= {f"attack_{key}_ifgsm": value for key, value in figures.items()}
        summary |= {"attacks": ["ifgsm"], "attack_warnings": ["ifgsm is only one attack"]}
    for ending, values in (("", score), ("_undefended", clean)):
        summary[f"srocc{ending}"] = float(stats.spearmanr(sign * values, mos)[0])
        summary[f"plcc{ending}"] = float(stats.pearsonr(sign * values, mos)[0])
        summary[f"krocc{ending}"] = float(stats.kendalltau(sign * values, mos)[0])
        summary[f"score_sd{ending}"] = float(values.std(ddof=1))
    for radius in radii:
        delta = 1.1 * slack * (radius + 0.01)
        abstaining = radius >= abstain_at
        figures = {"certified_delta_mean": "inf" if abstaining else float(delta.mean())}
        figures |= {
            "certified_delta_median": float(np.median(delta)),
            "abstention_rate": 0.25 if abstaining else 0.0,
        }
        figures |= {"certified_delta_mean_certified": float(delta.mean()), "joint_confidence": 0.95}
        figures |= {"certified_delta_range_share": float(np.median(delta)) / 4}
        figures |= {"certified_delta_sd_share": float(np.median(delta)) / summary["score_sd"]}
        figures |= {
            "certified_srocc": summary["srocc"] - 3.4 * radius,
            "certified_krocc": summary["krocc"] - 4 * radius,
        }
        figures |= {"certified_plcc": summary["plcc"] - 3.9 * radius, "certified_mse": 0.4 + radius}
        figures |= {f"worst_found_{name}": figures[f"certified_{name}"] + 0.013 for name in ("srocc", "krocc", "plcc")}
        summary |= {f"{key}_r{radius:g}": value for key, value in figures.items()}
        if radius == radii[min(1, len(radii) - 1)]:
            summary |= figures | {"certified_radius": radius}
    summary |= facts
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    if training:
        write_metrics(folder, rng)
    if gallery:
        write_gallery(folder, ids[:gallery], picture or (lambda i: rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)))
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text("sigma: 0.12\nnum_samples: 1000\ndefense:\n  name: dms_iqa\n")
    return summary


def write_metrics(folder: Path, rng: np.random.Generator) -> None:
    """Write sparse rows as Lightning's CSVLogger does."""
    rows = []
    for step in range(9, 1200, 10):
        fall = math.exp(-step / 250)
        mse, ranking, target = 0.004 + 0.03 * fall, 0.02 + 0.07 * fall, 0.03 + 0.05 * fall
        mse, ranking, target = (value * rng.lognormal(0, 0.12) for value in (mse, ranking, target))
        loss = mse + 0.05 * (ranking + target)
        row = {"train/loss": loss, "train/mse": mse, "train/ranking": ranking, "train/target": target}
        rows.append({"step": step, "epoch": step // 100, "train/psnr": -10 * math.log10(mse), **row})
        if step % 100 == 99:
            val = {
                "val/srocc": 0.7 - 0.3 * fall,
                "val/psnr": 24.5 - 5 * fall,
                "val/certified_delta": 0.09 - 0.03 * fall,
            }
            rows.append({"step": step, "epoch": step // 100, **val})
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)


def write_gallery(folder: Path, ids: list[str], picture: Any) -> None:
    """Write three pictures per image and ``gallery.json``."""
    (folder / "gallery").mkdir(exist_ok=True)
    entries = []
    for i, name in enumerate(ids):
        pixels = np.asarray(picture(i))
        noise = np.random.default_rng(i).normal(0, 0.12 * 255, pixels.shape)
        noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        panels = []
        for label, values, score in (
            ("clean", pixels, 3.4),
            ("noisy", noisy, 1.3),
            ("denoised", pixels // 8 * 8, 3.1),
        ):
            file = f"gallery/{i}-{label}.png"
            Image.fromarray(values).save(folder / file)
            panels.append({"label": label, "file": file, "score": score})
        entries.append({"image_id": name, "mos": 3.2, "score_clean": 3.4, "score": 3.05, "panels": panels})
    (folder / "gallery.json").write_text(json.dumps(entries))


class Page(HTMLParser):
    """Collects ids, references and text; notes tags that are closed without being open."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.ids, self.loads, self.words = text, [], [], []
        self.open: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.partial"))
    assert path.stat().st_size < 5_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith(("data:", "#")) for load in page.loads), page.loads
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)
    assert not re.search(r"\b(nan|None|undefined,)\b", page.text)
    return page


def test_finished_run_shows_its_numbers_and_says_what_they_mean(tmp_path):
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


def test_pseudo_mos_is_named_and_mos_is_not(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", mos_kind="MOS", data="koniq")
    assert "not comparable with published numbers" in page_of(tmp_path / "a").text
    assert "pseudo" not in page_of(tmp_path / "b").text.lower()


def test_primary_radius_chooses_the_headline_and_its_row(tmp_path):
    summary = make_run(tmp_path)
    page = page_of(tmp_path)
    assert summary["certified_radius"] == 0.06
    assert re.search(r'<tr class="primary"><td>0.06</td>', page.source)
    assert "interval at radius 0.06" in page.text


def test_run_without_certificates_claims_nothing(tmp_path):
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


SECTIONS = {
    "metrics.csv": "Training loss",
    "gallery.json": "Click one to enlarge",
    ".hydra/config.yaml": "as composed",
    "records.parquet": "Every image",
}


@pytest.mark.parametrize(("missing", "heading"), SECTIONS.items())
def test_a_section_vanishes_with_its_data(tmp_path, missing, heading):
    make_run(tmp_path)
    assert heading in page_of(tmp_path).source
    (tmp_path / missing).unlink()
    assert heading not in page_of(tmp_path).source


def test_interrupted_run_says_how_far_it_came(tmp_path):
    make_run(tmp_path, num_images=3, status="interrupted", certified_srocc=None, command=None, seconds=None)
    page = page_of(tmp_path)
    assert 'class="badge interrupted"' in page.source
    assert "the 3 images finished so far" in page.text


def test_failed_run_without_any_image(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed", "name": "x", "num_images": 0}))
    page = page_of(tmp_path)
    assert "This run failed. No image was finished." in page.text
    assert "<figure" not in page.source


def test_records_alone_make_a_report(tmp_path):
    make_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    page = page_of(tmp_path)
    assert 'class="badge unfinished"' in page.source
    assert "the 40 images finished so far" in page.text


def test_every_key_of_the_summary_may_be_null(tmp_path):
    summary = make_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(dict.fromkeys(summary)))
    page_of(tmp_path)


DRAWN = {"certified_radius", "metric_range", "srocc", "certified_srocc_r0.06", "joint_confidence"}


def test_each_single_key_may_be_missing(tmp_path, monkeypatch):
    summary = make_run(tmp_path, num_images=6, radii=(0.03, 0.06), gallery=0, training=False)
    run, draw = html_module.load_run(tmp_path), html_module.draw
    for key in set(summary) - {"name"}:
        monkeypatch.setattr(html_module, "draw", draw if key in DRAWN else lambda *_: [])
        run.summary.clear()
        run.summary.update({name: value for name, value in summary.items() if name != key})
        assert "<h1>dms_iqa-mini</h1>" in html_module.render(run)


def test_abstention_is_infinite_not_a_crash(tmp_path):
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


def test_nothing_certified_at_all(tmp_path):
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


def test_lower_better_is_explained(tmp_path):
    summary = make_run(tmp_path, lower_better=True, metric_range=None)
    page = page_of(tmp_path)
    assert "Lower is better for this metric" in page.text
    assert summary["srocc"] > 0
    assert f"SROCC {summary['srocc']:.3f}" in page.text


def test_everything_given_is_escaped(tmp_path):
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


def test_attacks_stand_apart_as_measured(tmp_path):
    make_run(tmp_path, attacks=True)
    page = page_of(tmp_path)
    assert "Attacks, measured" in page.text
    assert "ifgsm" in page.text
    assert "10.0 %" in page.text.replace("\u202f", " ")
    assert "8.00 % to 12.0 %" in page.text.replace("\u202f", " ")
    assert "ifgsm is only one attack" in page.text
    assert "Attacks beside the certificate" in page.text


def test_large_run_stays_small(tmp_path):
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


def test_gallery_reads_nothing_outside_the_run(tmp_path):
    make_run(tmp_path / "run", gallery=1)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "secret.png")
    entries = json.loads((tmp_path / "run" / "gallery.json").read_text())
    entries[0]["panels"] = [
        {"label": "clean", "file": name, "score": None} for name in ("../secret.png", "none.png", "")
    ]
    (tmp_path / "run" / "gallery.json").write_text(json.dumps(entries))
    assert "data:image" not in page_of(tmp_path / "run").source


def test_gallery_takes_the_defended_score_from_the_records(tmp_path):
    make_run(tmp_path, gallery=1)
    entry = json.loads((tmp_path / "gallery.json").read_text())[0]
    del entry["score"], entry["panels"][1]
    (tmp_path / "gallery.json").write_text(json.dumps([entry | {"mos": math.nan}]))
    score = pd.read_parquet(tmp_path / "records.parquet").set_index("image_id")["score"][entry["image_id"]].iloc[0]
    assert f"undefended 3.40 · defended {score:.2f}" in page_of(tmp_path).text


def test_half_written_files_are_left_out(tmp_path):
    make_run(tmp_path)
    (tmp_path / "gallery.json").write_text('[{"image_id": ')
    (tmp_path / "metrics.csv").write_text("")
    page = page_of(tmp_path)
    assert "Training loss" not in page.text


def test_same_run_gives_the_same_page(tmp_path):
    make_run(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_folder_without_a_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(tmp_path)


def printed(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(summary, console)
    return console.export_text()


def test_terminal_table(tmp_path):
    summary = make_run(tmp_path, training=False, gallery=0)
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


def test_errors_say_how_scores_became_opinion_scores(tmp_path):
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


def test_a_metric_without_a_range_shows_dashes(tmp_path):
    nulls = dict.fromkeys(("rmse", "rmse_undefended", "certified_mse", "certified_delta_range_share"))
    nulls |= {f"{key}_r{radius:g}": None for key in list(nulls)[2:] for radius in RADII}
    summary = make_run(tmp_path, metric_range=None, mos_range=[1.0, 5.0], **nulls)
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


NOTICE = "random weights: every number here is meaningless, for smoke runs only"


def test_random_weights_are_said_above_everything_else(tmp_path):
    summary = make_run(tmp_path, weights="random (seed 0)")
    text = printed(summary)
    assert text.strip().startswith("random weights")
    assert NOTICE in " ".join(text.split())
    page = page_of(tmp_path)
    assert page.source.count(NOTICE) == 1
    assert page.source.index(NOTICE) < page.source.index("<h1>")
    assert "Weights random (seed 0)" in page.text


@pytest.mark.parametrize("weights", ["shipped", "mine-random.safetensors", None])
def test_without_random_weights_nothing_is_said(tmp_path, weights):
    summary = make_run(tmp_path, weights=weights)
    assert "meaningless" not in printed(summary)
    page = page_of(tmp_path)
    assert "meaningless" not in page.source
    assert 'role="alert"' not in page.source
    assert (f"Weights {weights}" in page.text) == (weights is not None)
