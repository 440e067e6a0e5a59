"""Synthetic runs for reports, written without a run, and what a report's page says."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from certiqa.evaluation.records import COLUMNS
from certiqa.reports import write_report

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
