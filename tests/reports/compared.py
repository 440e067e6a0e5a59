"""Synthetic runs for comparisons, real records and summaries of made-up scores, and what a comparison's page shows."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from certiqa.evaluation import RecordStore, summarise, write_summary
from certiqa.metrics import QualityMetric

RADII = (0.03, 0.06, 0.12)


class Metric(QualityMetric):
    """A range and a direction; never asked for a score."""

    def __init__(self, score_range: tuple[float, float] | None, lower_better: bool) -> None:
        super().__init__()
        self.score_range, self.lower_better = score_range, lower_better


def write_run(
    folder: Path,
    *,
    defense: str = "ms",
    metric: str = "mini",
    data: str = "mini",
    score_range: tuple[float, float] | None = (1.0, 5.0),
    lower_better: bool = False,
    num_images: int = 20,
    references: int | None = None,
    error: float = 0.3,
    width: float = 3.0,
    radii: tuple[float, ...] = RADII,
    attacks: dict[str, float] | None = None,
    attack_l2: float = 6.0,
    seed: int = 0,
    status: str | None = "finished",
    identity: dict[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write a run whose defended scores miss the opinion scores by ``error``, and return its summary.

    Args:
        references: how many photographs the images were made from, in turn; None where that is not known.
        width: certified delta per unit of radius, in units of a range of 4.
        attacks: name -> gain in units of a range of 4.
        status: None for a run without a summary, as one that goes on.
        facts: override keys of the summary.
    """
    mos = np.random.default_rng(1).uniform(1.2, 4.8, num_images)
    rng = np.random.default_rng([seed, *defense.encode()])
    base = mos + np.random.default_rng(2).normal(0, 0.2, num_images)
    low, high = score_range or (1.0, 5.0)
    unit = (high - low) / 4
    sign = -1 if lower_better else 1

    def native(score: Any) -> Any:
        return (low + high) / 2 + sign * unit * (score - 3)

    defended = base if defense == "none" else base + rng.normal(0, error, num_images)
    slack = rng.uniform(0.8, 1.2, num_images)
    names = list(attacks or {})
    settings: dict[str, Any] = {"seed": seed, "defense.name": defense, "data.name": data}
    settings |= {"attack.eps": 4 / 255} if names else {}
    store = RecordStore(folder, identity=settings | (identity or {}))
    for i in range(num_images):
        common = {"image_id": f"photo{i:03d}.png", "path": f"photo{i:03d}.png", "mos": mos[i]}
        common |= {"reference_id": "" if references is None else f"photo{i % references}"}
        common |= {"score_clean": native(base[i]), "score": native(defended[i])}
        rows = []
        for radius in (radii if defense != "none" else ()) or (None,):
            row = dict(common)
            if radius is not None:
                half = unit * width * slack[i] * radius
                bounds = {"lower": -half, "upper": half, "joint_lower": -1.2 * half, "joint_upper": 1.2 * half}
                row |= {name: row["score"] + offset for name, offset in bounds.items()}
                row |= {"radius": radius, "sigma": 0.12, "num_samples": 100, "confidence": 0.999}
                row |= {"joint_confidence": 0.95, "abstained": False}
            rows.append(row)
        store.append(rows)
        for name in names:
            gain = (attacks or {})[name] * (0.8 + 0.4 * slack[i] - 0.4)
            hit = {"attack": name, "score_attacked": native(defended[i] + gain), "score_noise": native(defended[i])}
            hit |= {"l2": attack_l2, "linf": 4 / 255, "psnr": 36.0, "ssim": 0.93, "seconds": 0.5}
            store.append([common | hit])
    summary: dict[str, Any] = {"status": status, "task": "evaluate", "name": folder.name, "metric": metric}
    summary |= {"metric_range": None if score_range is None else list(score_range), "lower_better": lower_better}
    summary |= {"weights": "shipped", "defense": defense, "data": data, "seed": seed, "seconds": 12.0}
    summary |= {"mos_kind": "pseudo-MOS" if data == "mini" else "MOS", "mos_range": [1.0, 5.0]}
    summary |= {"sigma": 0.12 if radii and defense != "none" else None, "num_samples": 100, "confidence": 0.999}
    summary |= {"versions": {"certiqa": "0.1.0"}, "data_fingerprint": f"{data}-{num_images}"}
    if status is None:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(
            f"seed: {seed}\nsigma: 0.12\ndata: {{name: {data}}}\ndefense: {{name: {defense}, sigma: '${{sigma}}'}}\n"
            "metric: {_target_: certiqa.metrics.MiniMetric}\n"
        )
        return {}
    table = store.compile()
    summary |= summarise(table, Metric(score_range, lower_better), radii[0] if radii else None, mos_range=(1.0, 5.0))
    summary |= facts
    write_summary(folder, json.loads(json.dumps(summary)))
    return summary


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
