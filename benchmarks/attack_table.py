"""The table of docs/attacks.md: every attack on the embedded metric at equal l_inf.

    python benchmarks/attack_table.py

Gradient attacks on 60 test images of mini, black-box attacks with 500 queries on 20 of them; each attack has a mean
l_inf of 4/255 by its eps or its preset, measured on validation photographs. Prints Markdown and writes the numbers to
outputs/bench/attacks.json. Universal attacks are trained on 200 training images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from certiqa.attacks import ATTACKS, SetAttack, load_attack
from certiqa.attacks.presets import LEFT_OUT, preset_options
from certiqa.attacks.suite import noise_like
from certiqa.data import load_dataset
from certiqa.evaluation import absolute_gain, bootstrap_interval, image_distances, srocc
from certiqa.metrics import QualityMetric, load_metric

LINF = 4 / 255
QUERIES = 500
SINGLE = [name for name, attack in ATTACKS.items() if not issubclass(attack, SetAttack)]  # sets: set_attacks.py


def load(split: str, count: int) -> tuple[Tensor, list[str], np.ndarray]:
    """Return images, ids and opinion scores, spread over a list."""
    dataset = load_dataset("mini", split)
    items = [dataset[int(row)] for row in np.linspace(0, len(dataset) - 1, count).round()]
    images = torch.stack([item["image"] for item in items])
    return images, [item["image_id"] for item in items], np.array([item["mos"] for item in items])


def options_of(name: str) -> dict[str, object] | None:
    """Return an attack's options at equal l_inf; None where l_inf means nothing for it."""
    if name in LEFT_OUT:
        return None
    options: dict[str, object] = {}
    if ATTACKS[name].norm == "linf":
        options["eps"] = LINF
    elif ATTACKS[name].uses_gradient:
        options |= preset_options(name, LINF)
    if not ATTACKS[name].uses_gradient and name != "noise":
        options["queries"] = QUERIES
    return options


def measure(name: str, metric: QualityMetric, images: Tensor, ids: list[str], mos: np.ndarray) -> dict[str, object]:
    """Attack images and return a row of the table."""
    attack = load_attack(name, **(options_of(name) or {}))
    if hasattr(attack, "fit"):
        training, names, _ = load("train", 200)
        batches = [
            {"image": training[start : start + 8], "image_id": names[start : start + 8]} for start in range(0, 200, 8)
        ]
        attack.fit(metric, batches, progress=False)
    started = time.perf_counter()
    parts = [attack.craft(metric, images[at : at + 10], image_ids=ids[at : at + 10]) for at in range(0, len(ids), 10)]
    seconds = (time.perf_counter() - started) / len(ids)
    attacked = torch.cat([part.images for part in parts])
    with torch.no_grad():
        clean, after = metric(images).numpy(), metric(attacked).numpy()
        noisy = metric(noise_like(images, attacked, ids)).numpy()
    assert metric.score_range is not None
    gain = absolute_gain(clean, after, score_range=metric.score_range)
    low, high = bootstrap_interval(np.mean, gain)
    distances = [image_distances(first, second) for first, second in zip(images, attacked, strict=True)]
    return {
        "attack": name,
        "images": len(ids),
        "gain": f"{gain.mean():.3f} [{low:.3f}, {high:.3f}]",
        "noise": f"{absolute_gain(clean, noisy, score_range=metric.score_range).mean():+.3f}",
        "SROCC": f"{srocc(clean, mos):.3f} -> {srocc(after, mos):.3f}",
        "l_inf": f"{255 * np.mean([row['linf'] for row in distances]):.1f}/255",
        "PSNR": f"{np.mean([row['psnr'] for row in distances]):.1f}",
        "SSIM": f"{np.mean([row['ssim'] for row in distances]):.3f}",
        "gradients": sum(part.gradient_calls for part in parts) / len(ids),
        "queries": sum(part.forward_calls for part in parts) / len(ids),
        "s an image": f"{seconds:.2f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--black-box-images", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=SINGLE)
    chosen = parser.parse_args()
    metric = load_metric("mini")
    rows: list[dict[str, object]] = []
    for name in chosen.only:
        if options_of(name) is None:
            continue
        black_box = not ATTACKS[name].uses_gradient and name != "noise"
        rows.append(measure(name, metric, *load("quick", chosen.black_box_images if black_box else chosen.images)))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values())
        print("| " + " | ".join(cells) + " |", flush=True)
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "attacks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
