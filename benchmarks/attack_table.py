"""The table of docs/attacks.md: every attack on the embedded metric at equal l_inf.

    python benchmarks/attack_table.py

Gradient attacks on 60 test images of mini, black-box attacks with 500 queries on 20 of them; each attack has a mean
l_inf of 4/255 (``--linf``) by its eps or its preset, measured on validation photographs. Attacks that l_inf says little
of (colours, flows, pixels, patches, l2) stand below with their own defaults. Prints Markdown and writes the numbers to
outputs/bench/attacks-LINF.json. Universal attacks are trained on 200 training images. Times are of the processor, all
threads together, so that other jobs on the machine matter little.
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
from certiqa.attacks.presets import preset_options, presets
from certiqa.attacks.suite import noise_like
from certiqa.data import load_dataset
from certiqa.evaluation import absolute_gain, bootstrap_interval, image_distances, srocc
from certiqa.metrics import QualityMetric, load_metric

QUERIES = 500
OWN_BUDGET = ("advcf", "ab_offset", "stadv", "onepixel", "patch_rs", "pgd_l2")
SINGLE = [name for name, attack in ATTACKS.items() if not issubclass(attack, SetAttack)]  # sets: set_attacks.py


def load(split: str, count: int) -> tuple[Tensor, list[str], np.ndarray]:
    """Return images, ids and opinion scores, spread over a list."""
    dataset = load_dataset("mini", split)
    items = [dataset[int(row)] for row in np.linspace(0, len(dataset) - 1, count).round()]
    images = torch.stack([item["image"] for item in items])
    return images, [item["image_id"] for item in items], np.array([item["mos"] for item in items])


def options_of(name: str, linf: float | None) -> dict[str, object]:
    """Return an attack's options at equal l_inf, or with None its own defaults."""
    options: dict[str, object] = {}
    if linf is not None:
        options = {"eps": linf} if ATTACKS[name].norm == "linf" else preset_options(name, linf)
    if not ATTACKS[name].uses_gradient and name != "noise":
        options["queries"] = QUERIES
    return options


def measure(
    name: str, linf: float | None, metric: QualityMetric, images: Tensor, ids: list[str], mos: np.ndarray
) -> dict[str, object]:
    """Attack images and return a row of the table."""
    attack = load_attack(name, **options_of(name, linf))
    if hasattr(attack, "fit"):
        training, names, _ = load("train", 200)
        batches = [
            {"image": training[start : start + 8], "image_id": names[start : start + 8]} for start in range(0, 200, 8)
        ]
        attack.fit(metric, batches, progress=False)
    started = time.process_time()
    parts = [attack.craft(metric, images[at : at + 10], image_ids=ids[at : at + 10]) for at in range(0, len(ids), 10)]
    seconds = (time.process_time() - started) / len(ids)
    attacked = torch.cat([part.images for part in parts])
    with torch.no_grad():
        clean, after = metric(images).numpy(), metric(attacked).numpy()
        noisy = metric(noise_like(images, attacked, ids)).numpy()
    assert metric.score_range is not None
    gain = absolute_gain(clean, after, score_range=metric.score_range)
    low, high = bootstrap_interval(np.mean, gain)
    distances = [image_distances(first, second) for first, second in zip(images, attacked, strict=True)]
    return {
        "attack": name if linf is not None else f"{name}, own budget",
        "images": len(ids),
        "gain": f"{gain.mean():.3f} [{low:.3f}, {high:.3f}]",
        "noise": f"{absolute_gain(clean, noisy, score_range=metric.score_range).mean():+.3f}",
        "SROCC": f"{srocc(clean, mos):.3f} -> {srocc(after, mos):.3f}",
        "l_inf": f"{255 * np.mean([row['linf'] for row in distances]):.1f}/255",
        "PSNR": f"{np.mean([row['psnr'] for row in distances]):.1f}",
        "SSIM": f"{np.mean([row['ssim'] for row in distances]):.3f}",
        "gradients": sum(part.gradient_calls for part in parts) / len(ids),
        "queries": sum(part.forward_calls for part in parts) / len(ids),
        "CPU s an image": f"{seconds:.2f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--black-box-images", type=int, default=20)
    parser.add_argument("--linf", type=int, choices=(2, 4, 8, 16), default=4, help="of 255")
    parser.add_argument("--only", nargs="*", default=SINGLE, choices=SINGLE)
    chosen = parser.parse_args()
    metric = load_metric("mini")
    at_equal = [(name, chosen.linf / 255) for name in chosen.only if ATTACKS[name].norm == "linf" or name in presets()]
    rows: list[dict[str, object]] = []
    for name, linf in [*at_equal, *((name, None) for name in chosen.only if name in OWN_BUDGET)]:
        black_box = not ATTACKS[name].uses_gradient and name != "noise"
        images = load("quick", chosen.black_box_images if black_box else chosen.images)
        rows.append(measure(name, linf, metric, *images))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values())
        print("| " + " | ".join(cells) + " |", flush=True)
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / f"attacks-{chosen.linf}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
