"""Whether attacks that know the defense beat those that do not, and what of an attack is left when they do.

    python benchmarks/adaptive.py

I-FGSM at l_inf 4/255 (10 steps) on test images of mini, raising the score: made on the undefended metric and replayed
(transfer), made on the defended metric with one or more draws a step (adaptive, EOT), and noise of equal norm. A random
defense is attacked with draws of its own, and judged on others. Prints Markdown and writes the numbers to
outputs/bench/adaptive.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from attack_table import load
from torch import Tensor

from certiqa.attacks import load_attack
from certiqa.attacks.suite import noise_like
from certiqa.defenses import MedianSmoothing, PurifiedMetric, load_purifier
from certiqa.denoisers import load_denoiser
from certiqa.evaluation import absolute_gain, bootstrap_interval
from certiqa.metrics import QualityMetric, load_metric

EPS = 4 / 255
MANY = 5  # draws behind one gradient
BATCH = 5  # images attacked at once


def defenses(metric: QualityMetric, draws: int) -> dict[str, QualityMetric]:
    """Return the defenses by name: smoothed, random and neither, and one without a gradient."""
    unet = load_denoiser("unet", weights="mini_dms_iqa", sigma=0.12)
    return {
        "ms": MedianSmoothing(metric, sigma=0.12, num_samples=draws),
        "dms_iqa": MedianSmoothing(metric, sigma=0.12, num_samples=draws, denoiser=unet),
        "random_rotate": PurifiedMetric(metric, load_purifier("random_rotate")),
        "jpeg": PurifiedMetric(metric, load_purifier("jpeg", quality=75)),
    }


def attack_all(metric: QualityMetric, images: Tensor, ids: list[str], draws: int) -> Tensor:
    """Return I-FGSM's images, a few at a time."""
    attack = load_attack("ifgsm", eps=EPS, eot_samples=draws)
    return torch.cat(
        [attack(metric, images[at : at + BATCH], image_ids=ids[at : at + BATCH]) for at in range(0, len(ids), BATCH)]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--draws", type=int, default=50, help="of a smoothed score")
    chosen = parser.parse_args()
    metric = load_metric("mini")
    images, ids, _ = load("quick", chosen.images)
    scale = metric.score_range
    assert scale is not None
    transferred = attack_all(metric, images, ids, 1)
    rows = []
    print("| defense | noise | transfer | adaptive, 1 draw | adaptive, 5 draws | adaptive - transfer |")
    print("| --- |" + " --- |" * 5)
    for name, defended in defenses(metric, chosen.draws).items():
        attacked = {"noise": noise_like(images, transferred, ids), "transfer": transferred}
        for draws in (1, MANY) if defended.is_random else (1,):
            attacked[f"eot {draws}"] = attack_all(defended, images, ids, draws)
        with torch.no_grad():
            clean = defended(images, image_ids=ids).numpy()
            scores = {key: defended(pictures, image_ids=ids).numpy() for key, pictures in attacked.items()}
        gains = {key: absolute_gain(clean, after, score_range=scale) for key, after in scores.items()}
        best = max((key for key in gains if key.startswith("eot")), key=lambda key: gains[key].mean())
        ahead = gains[best] - gains["transfer"]
        gains["ahead"] = ahead
        cells = []
        for key in ("noise", "transfer", "eot 1", f"eot {MANY}", "ahead"):
            if key not in gains:
                cells.append("as with 1")
                continue
            low, high = bootstrap_interval(np.mean, gains[key])
            cells.append(f"{gains[key].mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        rows.append({"defense": name, "gains": {key: list(map(float, gain)) for key, gain in gains.items()}})
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "adaptive.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "images": ids, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
