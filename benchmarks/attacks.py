"""What attacks cost beyond the passes through the metric that they cannot do without, as ratios in one run.

    python benchmarks/attacks.py

"bare" makes the same number of forward and backward passes through the metric on the same images in a loop of its own,
and of forward passes where the attack only looks. The bar for gradient attacks is 1.1. Also: I-FGSM with 10 steps on
100 images, in seconds. Prints a table and writes the numbers to outputs/bench/attack_cost.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from attack_table import load
from torch import Tensor

from certiqa.attacks import ATTACKS, UniversalAttack, load_attack
from certiqa.metrics import QualityMetric, load_metric
from metrics import together


def bare(metric: QualityMetric, images: Tensor, gradients: int, forwards: int) -> None:
    """Make that many passes and nothing else."""
    for _ in range(gradients):
        probe = images.clone().requires_grad_(True)
        torch.autograd.grad(metric(probe).sum(), probe)
    with torch.no_grad():
        for _ in range(forwards):
            metric(images)


def compare(name: str, metric: QualityMetric, images: Tensor, repeats: int) -> dict[str, object]:
    """Measure an attack and its bare passes, which take turns."""
    options = {} if ATTACKS[name].uses_gradient else {"queries": 60}
    attack = load_attack(name, **options)
    result = attack.craft(metric, images)
    gradients, forwards = (count // len(images) for count in (result.gradient_calls, result.forward_calls))
    whole, passes = together(
        [lambda: attack.craft(metric, images), lambda: bare(metric, images, gradients, forwards)], repeats
    )
    return {"attack": name, "gradients": gradients, "queries": forwards, "ratio": whole / passes}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    chosen = parser.parse_args()
    metric = load_metric("mini")
    images, _, _ = load("quick", chosen.images)
    rows = []
    print("| attack | gradients an image | queries an image | time / bare passes |\n| --- | --- | --- | --- |")
    for name in chosen.only:
        if issubclass(ATTACKS[name], UniversalAttack) or name == "noise":
            continue
        rows.append(compare(name, metric, images, chosen.repeats))
        print("| {attack} | {gradients} | {queries} | {ratio:.2f} |".format(**rows[-1]), flush=True)
    many, ids, _ = load("quick", 100)
    started = time.perf_counter()
    for at in range(0, 100, 10):
        load_attack("ifgsm", eps=4 / 255, steps=10)(metric, many[at : at + 10], image_ids=ids[at : at + 10])
    seconds = time.perf_counter() - started
    print(f"\nI-FGSM, 10 steps, 100 images: {seconds:.1f} s")
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "attack_cost.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "ifgsm_100_seconds": seconds}
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
