"""The tables of docs/set_attacks.md: attacks on the ranking of a set, beside I-FGSM on each image by itself.

    python benchmarks/set_attacks.py                    # both tables
    python benchmarks/set_attacks.py --only stage1      # how long it takes to plan 2,000 scores
    python benchmarks/set_attacks.py --record FILE      # clean scores of the validation photographs, for the tests

The first table is of the embedded metric without a defense on the quick test list of mini, all attacks at l_inf 4/255
with 10 steps, scored after rounding to 8 bits. Prints Markdown; writes the numbers to outputs/bench/set_attacks.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from certiqa.attacks import load_attack, soft_ranks
from certiqa.attacks.planning import Descent, descend
from certiqa.attacks.sets import SetAttack
from certiqa.data import load_dataset
from certiqa.evaluation import bootstrap_interval, krocc, plcc, srocc
from certiqa.metrics import QualityMetric, load_metric

EPS = 4 / 255
BATCH = 25
ATTACKS = {
    "I-FGSM, lower": ("ifgsm", {}, "lower"),
    "I-FGSM, raise": ("ifgsm", {}, "raise"),
    "I-FGSM, away": ("ifgsm", {}, "away"),
    "SMA, plan=paper": ("sma", {"plan": "paper"}, None),
    "SMA, plan=paper, the authors' loops": (
        "sma",
        {"plan": "paper", "keep": "last", "halve": False, "dither": False},
        None,
    ),
    "SMA, plan=reverse": ("sma", {"plan": "reverse"}, None),
    "SMA, plan=reachable": ("sma", {"plan": "reachable"}, None),
    "rank inversion": ("rank_inversion", {}, None),
}


def load(split: str, count: int | None = None, crop: int | None = None) -> list[dict[str, object]]:
    """Return images or their middles, ids and opinion scores in batches, spread over a list."""
    dataset = load_dataset("mini", split)
    rows = np.linspace(0, len(dataset) - 1, min(count or len(dataset), len(dataset))).round().astype(int)
    items = [dataset[int(row)] for row in rows]
    side = items[0]["image"].shape[-1]
    middle = slice(0, side) if crop is None else slice((side - crop) // 2, (side + crop) // 2)
    return [
        {
            "image": torch.stack([item["image"][:, middle, middle] for item in items[at : at + BATCH]]),
            "image_id": [item["image_id"] for item in items[at : at + BATCH]],
            "mos": torch.tensor([float(item["mos"]) for item in items[at : at + BATCH]]),
        }
        for at in range(0, len(items), BATCH)
    ]


@torch.no_grad()
def score(metric: QualityMetric, batches: list[Tensor]) -> np.ndarray:
    """Return scores ``(n,)`` of batches of images."""
    return torch.cat([metric(images) for images in batches]).double().numpy()


def measure(label: str, metric: QualityMetric, batches: list[dict], clean: np.ndarray, mos: np.ndarray) -> dict:
    """Attack the set and return a row of the table."""
    name, options, direction = ATTACKS[label]
    attack = load_attack(name, eps=EPS, steps=10, **options)
    if isinstance(attack, SetAttack):
        results = [share.result for share in attack.craft_set(metric, batches)]
    else:
        results = [
            attack.craft(metric, batch["image"], direction, image_ids=batch["image_id"], seed=0) for batch in batches
        ]
    attacked = score(metric, [result.images for result in results])
    unrounded = score(metric, [result.unrounded for result in results])
    linf = max(
        float((result.images - batch["image"]).abs().amax()) for result, batch in zip(results, batches, strict=True)
    )
    assert linf <= EPS + 1e-6, f"{label} left the ball: {linf}"
    low, high = bootstrap_interval(srocc, attacked, mos)
    return {
        "attack": label,
        "SROCC, pseudo-MOS": f"{srocc(attacked, mos):.3f} [{low:.3f}, {high:.3f}]",
        "KROCC": f"{krocc(attacked, mos):.3f}",
        "PLCC": f"{plcc(attacked, mos):.3f}",
        "MAE": f"{np.abs(attacked - mos).mean():.2f}",
        "SROCC, clean scores": f"{srocc(attacked, clean):.3f}",
        "not rounded": f"{srocc(unrounded, clean):.3f}",
        "KROCC ": f"{krocc(attacked, clean):.3f}",
        "PLCC ": f"{plcc(attacked, clean):.3f}",
        "MAE ": f"{np.abs(attacked - clean).mean():.2f}",
    }


def stage1(scores: int, steps: int) -> list[dict[str, object]]:
    """Return how long the plan takes, and what 100,000 of the authors' steps would, from a number of them measured.

    Their loop is written here with this project's soft ranks, torch's autograd and torch's Adam; with a slower
    regression in it, it would take longer.
    """
    clean = np.random.default_rng(0).beta(4, 2.2, scores) * 100
    started = time.perf_counter()
    targets = descend(clean, (0.0, 100.0))
    seconds = time.perf_counter() - started
    long = descend(clean, (0.0, 100.0), descent=Descent(steps=100_000, lr=0.005, keep="last"))
    reference = torch.from_numpy(stats.rankdata(clean))
    reference = (reference - reference.mean()) / (reference - reference.mean()).norm()
    moving = torch.from_numpy(clean).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([moving], lr=0.005)
    started = time.perf_counter()
    for _ in range(steps):
        ranks = soft_ranks(moving)
        ranks = ranks - ranks.mean()
        gap = moving - torch.from_numpy(clean)
        loss = (reference @ ranks) / ranks.norm() - 1e-4 * moving.var() - 1e-4 * gap.square().mean()
        optimiser.zero_grad()
        loss.backward()
        moving.grad = moving.grad.nan_to_num().sign()
        optimiser.step()
        with torch.no_grad():
            moving.clamp_(0, 100)
    loop = (time.perf_counter() - started) / steps * 100_000

    def objective(found: np.ndarray) -> float:
        return srocc(found, clean) - 1e-4 * found.var(ddof=1) - 1e-4 * float(np.mean((found - clean) ** 2))

    rows = []
    for label, found, took in (
        ("1,000 steps of 0.5, best kept (default)", targets, f"{seconds:.2f}"),
        ("100,000 steps of 0.005, last kept (the authors')", long, f"{loop:.0f}, from {steps} steps of a torch loop"),
    ):
        rows.append(
            {
                "plan of 2,000 scores" if scores == 2000 else f"plan of {scores} scores": label,
                "SROCC": f"{srocc(found, clean):.3f}",
                "MAE, of 100": f"{np.abs(found - clean).mean():.1f}",
                "objective": f"{objective(found):.3f}",
                "seconds": took,
                "ratio": f"{loop / seconds:.0f}" if found is targets else "1",
            }
        )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=None, help="of the quick test list; all 125 by default")
    parser.add_argument("--crop", type=int, default=None, help="attack the middle of each image, of so many pixels")
    parser.add_argument("--scores", type=int, default=2000, help="of the plan that is timed")
    parser.add_argument("--steps", type=int, default=2000, help="of the authors' loop that are timed")
    parser.add_argument("--only", choices=["stage1", "attacks"], default=None)
    parser.add_argument("--record", type=Path, default=None, help="write clean scores of the validation photographs")
    chosen = parser.parse_args()
    metric = load_metric("mini")
    if chosen.record:
        batches = load("validation")
        scores = score(metric, [batch["image"] for batch in batches])
        chosen.record.write_text(json.dumps([round(float(value), 4) for value in scores]) + "\n")
        print(f"{len(scores)} scores written to {chosen.record}")
        return
    found: dict[str, object] = {"torch": torch.__version__}
    if chosen.only != "stage1":
        batches = load("quick", chosen.images, chosen.crop)
        clean = score(metric, [batch["image"] for batch in batches])
        mos = np.concatenate([batch["mos"] for batch in batches])
        low, high = bootstrap_interval(srocc, clean, mos)
        print(
            f"{len(clean)} images of {batches[0]['image'].shape[-1]} pixels; before any attack SROCC "
            f"{srocc(clean, mos):.3f} [{low:.3f}, {high:.3f}], KROCC "
            f"{krocc(clean, mos):.3f}, PLCC {plcc(clean, mos):.3f}, MAE {np.abs(clean - mos).mean():.2f} to "
            "pseudo-MOS\n"
        )
        found["attacks"] = rows = []
        for label in ATTACKS:
            rows.append(measure(label, metric, batches, clean, mos))
            show(rows[-1:]) if len(rows) == 1 else print(f"| {' | '.join(map(str, rows[-1].values()))} |", flush=True)
        print()
    if chosen.only != "attacks":
        found["stage1"] = stage1(chosen.scores, chosen.steps)
        show(found["stage1"])
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "set_attacks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
