"""Find the options that give every attack the same mean l_inf, and write them where ``preset_options`` reads them.

    python benchmarks/attack_presets.py

The embedded metric scores eight images of mini's validation photographs (none of its test photographs), whole; the
attacks raise its score. What is reached is printed, before and after rounding to 8 bits, with the mean gain.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from certiqa.attacks import ATTACKS, load_attack
from certiqa.attacks.presets import FILE, LEFT_OUT, LEVELS, calibrate, mean_linf
from certiqa.data import load_dataset
from certiqa.metrics import load_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--attacks", nargs="*", help="only these; the others' presets stay as they are")
    chosen = parser.parse_args()
    dataset = load_dataset("mini", "quick_validation")
    rows = np.linspace(0, len(dataset) - 1, chosen.images).round().astype(int)
    items = [dataset[int(row)] for row in rows]
    images, ids = torch.stack([item["image"] for item in items]), [item["image_id"] for item in items]
    metric = load_metric("mini")
    with torch.no_grad():
        clean = metric(images)
    balls = [name for name, attack in ATTACKS.items() if attack.norm == "linf" and attack.strength == "eps"]
    searched = [
        name
        for name, attack in ATTACKS.items()
        if name not in balls and name not in LEFT_OUT and attack.norm in ("rmse", "none") and attack.uses_gradient
    ]
    print("| attack | option | l_inf | value | reached | after rounding | RMSE | gain | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in searched:
        if chosen.attacks and name not in chosen.attacks:
            continue
        found: dict[str, float] = {}
        start = None
        for level in LEVELS:
            value = float(
                f"{calibrate(name, level / 255, metric, images, image_ids=ids, start=start, tolerance=0.03):.3g}"
            )
            found[str(level)] = value
            began = time.perf_counter()
            attack = load_attack(name, **{ATTACKS[name].strength: value})
            result = attack.craft(metric, images, image_ids=ids)
            seconds = time.perf_counter() - began
            rounded = float((result.images - images).abs().flatten(1).amax(dim=1).mean()) * 255
            error = float((result.images - images).square().mean().sqrt()) * 255
            with torch.no_grad():
                gain = float((metric(result.images) - clean).mean())
            print(
                f"| {name} | {ATTACKS[name].strength} | {level}/255 | {value:.3g} "
                f"| {mean_linf(result, images) * 255:.2f} | {rounded:.2f} | {error:.2f} | {gain:.3f} | {seconds:.1f} |",
                flush=True,
            )
            start = 2 * value
        keep(name, found, ids)


def keep(name: str, found: dict[str, float], ids: list[str]) -> None:
    """Write one attack's presets; those of others stay as they are."""
    strengths = json.loads(FILE.read_text(encoding="utf-8"))["strengths"] if FILE.exists() else {}
    record = {
        "about": "values of each attack's strength option for a mean l_inf of 2, 4, 8 and 16 / 255",
        "made_by": "python benchmarks/attack_presets.py",
        "images": ids,
        "strengths": dict(sorted({**strengths, name: found}.items())),
    }
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
