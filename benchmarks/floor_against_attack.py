"""The certified floor of a set's SROCC against the strongest attacks found, at the same l2 radii: docs/guarantees.md.

    python benchmarks/floor_against_attack.py            # all 125 images of mini's quick list
    python benchmarks/floor_against_attack.py --crop 112 # their central 112x112 pixels
    python benchmarks/floor_against_attack.py --again A.json B.json  # what runs with --out have left, in one figure

For MS and DMS-IQA (shipped denoiser): every image gets joint intervals, from them the floor that no attack within the
radius can pass, and the worst vector found inside the intervals. Then the set is attacked, every attack seeing the
smoothed metric, in float32, with the whole radius: each image by l2 PGD in the direction in which the worst vector
moved it (`pgd_l2`), and by the set attacks SMA and rank inversion in l2, which aim at the order of the opinion scores.
Attacked images are scored by the smoothed metric with noise of their own stream, and every attacked median gets its own
two-sided interval.

The claim is tested, and the command fails if it does not hold: no attacked median lies outside its certified interval,
and no attacked set has an SROCC, KROCC or PLCC below the floor, where its own intervals count in the attack's favour.
By chance that happens with at most the probability printed. That the test can fail is shown on a linear metric with
the aligned perturbation, where the worst case is known: true intervals hold, intervals narrowed by 10 % are caught.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import center_crop

from certiqa.attacks import load_attack
from certiqa.certification import (
    certify,
    joint_confidence_per_side,
    median_interval,
    worst_krocc,
    worst_plcc,
    worst_srocc,
)
from certiqa.certification.claims import FLOORS, refuted
from certiqa.data import load_dataset
from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import load_denoiser
from certiqa.evaluation import srocc
from certiqa.metrics import QualityMetric, load_metric
from certiqa.reports.floors import Curve, write_floor_figure

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
SIGMA = 0.12
RADII = (0.03, 0.06, 0.12)
JOINT = 0.99
ATTACKED_FAILURE = 0.01  # of all intervals of attacked medians together
BATCH = 5  # images attacked at once
SEARCHES = {"srocc": worst_srocc, "krocc": worst_krocc, "plcc": worst_plcc}
ATTACKS = ("pgd_l2", "sma_l2", "rank_inversion_l2")
DENOISERS = {"ms": None, "dms_iqa": "mini_dms_iqa"}


def images_of(count: int, crop: int | None) -> tuple[Tensor, list[str], Array]:
    """Return images, ids and pseudo-MOS, evenly over mini's quick list."""
    dataset = load_dataset("mini", "quick")
    items = [dataset[int(row)] for row in np.linspace(0, len(dataset) - 1, count).round()]
    images = torch.stack([item["image"] for item in items])
    mos = np.array([item["mos"] for item in items], dtype=float)
    return (images if crop is None else center_crop(images, [crop, crop])), [item["image_id"] for item in items], mos


def intervals_of(smooth: MedianSmoothing, images: Tensor, ids: Sequence[str], draws: int) -> tuple[Array, Array, Array]:
    """Return scores (N,) and joint intervals (N, R) with confidence JOINT over all images and radii."""
    side = joint_confidence_per_side(JOINT, len(ids) * len(RADII))
    parts = [
        certify(smooth, images[row : row + 1], RADII, num_samples=draws, confidence=side, image_ids=[ids[row]])
        for row in track(range(len(ids)), "certifying")
    ]
    lower, upper = (np.concatenate([getattr(part, name) for part in parts]) for name in ("lower", "upper"))
    return np.concatenate([part.score for part in parts]), lower, upper


def attacked_set(
    name: str,
    radius: float,
    chosen: argparse.Namespace,
    smooth: MedianSmoothing,
    images: Tensor,
    ids: Sequence[str],
    mos: Array,
    signs: Array,
) -> Tensor:
    """Return the attacked images: by l2 PGD along ``signs`` (N,), or by a set attack with the opinion scores' order."""
    options = {"eps": radius, "steps": chosen.steps, "eot_samples": chosen.eot}
    parts = torch.arange(len(images)).split(BATCH)
    if name == "pgd_l2":
        attack = load_attack(name, **options)
        directions = torch.from_numpy(signs)
        return torch.cat(
            [
                attack(smooth, images[rows], directions[rows], image_ids=[ids[row] for row in rows])
                for rows in track(parts, f"{name} at {radius}")
            ]
        )
    attack = load_attack(name, reference="mos", **options)
    rated = torch.from_numpy(mos)
    batches = [{"image": images[rows], "image_id": [ids[row] for row in rows], "mos": rated[rows]} for rows in parts]
    shares = track(attack.craft_set(smooth, batches), f"{name} at {radius}", total=len(batches))
    found = {name: image for share in shares for name, image in zip(share.image_ids, share.result.images, strict=True)}
    return torch.stack([found[name] for name in ids])


def attacked_medians(smooth: MedianSmoothing, attacked: Tensor, ids: Sequence[str], draws: int, side: float) -> Array:
    """Return score, low and high of every attacked image, shape (3, N), from the stream `score`."""
    rows = []
    for image, name in zip(track(attacked, "scoring"), ids, strict=True):
        scores = smooth.sample_scores(image[None], draws, image_ids=[name], stream="score").double().numpy()
        low, high = median_interval(scores, side)
        rows.append((float(np.median(scores)), low[0], high[0]))
    return np.array(rows).T


def measure(defense: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Certify and attack mini under one defense; returns intervals and attacked medians as lists."""
    weights = DENOISERS[defense]
    denoiser = None if weights is None else load_denoiser("unet", weights=weights)
    smooth = MedianSmoothing(load_metric("mini"), SIGMA, chosen.draws, denoiser, name=defense)
    images, ids, mos = images_of(chosen.images, chosen.crop)
    score, lower, upper = intervals_of(smooth, images, ids, chosen.draws)
    if smooth.hard_bounds:
        lower, upper = np.maximum(lower, smooth.hard_bounds[0]), np.minimum(upper, smooth.hard_bounds[1])
    sets = len(chosen.defenses) * len(chosen.attacks) * len(RADII)
    side = joint_confidence_per_side(1 - ATTACKED_FAILURE, len(ids), sets)
    attacks: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen.attacks}
    for r, radius in enumerate(RADII):
        worst = worst_srocc(lower[:, r], upper[:, r], mos).scores
        for name in chosen.attacks:
            attacked = attacked_set(name, radius, chosen, smooth, images, ids, mos, np.where(worst > score, 1.0, -1.0))
            used = (attacked - images).flatten(1).norm(dim=1) / radius
            assert float(used.max()) <= 1 + 1e-4, f"{name} left its budget"
            value, low, high = attacked_medians(smooth, attacked, ids, chosen.score_draws, side)
            found = {"score": value.tolist(), "low": low.tolist(), "high": high.tolist(), "used": used.tolist()}
            attacks[name].append(found)
            print(defense, name, radius, "SROCC", round(srocc(value, mos), 3), flush=True)
    intervals = {"lower": lower.T.tolist(), "upper": upper.T.tolist()}
    return {"ids": ids, "mos": mos.tolist(), "score": score.tolist(), **intervals, "attacks": attacks}


def judge(part: dict[str, Any]) -> dict[str, Any]:
    """Return floors, the lowest found, what attacks reached and what they prove wrong, from what was measured."""
    mos, score = np.array(part["mos"]), np.array(part["score"])
    found: dict[str, Any] = {"clean": {name: exactly(name, score, mos) for name in FLOORS}, "attacks": {}}
    boxes = [(np.array(low), np.array(high)) for low, high in zip(part["lower"], part["upper"], strict=True)]
    found["certified"] = {name: [floor(*box, mos) for box in boxes] for name, floor in FLOORS.items()}
    found["worst_found"] = {name: [search(*box, mos).value for box in boxes] for name, search in SEARCHES.items()}
    for name, rows in part["attacks"].items():
        found["attacks"][name] = []
        for box, row in zip(boxes, rows, strict=True):
            value, low, high = (np.array(row[key]) for key in ("score", "low", "high"))
            moved = np.abs(value - score) / np.maximum((box[1] - box[0]) / 2, 1e-12)
            facts = {"violations": refuted(*box, low, high, mos), "least_radius_used": min(row["used"])}
            facts |= {"half_width_moved": float(np.median(moved))}
            found["attacks"][name].append(facts | {key: exactly(key, value, mos) for key in FLOORS})
    return found


def exactly(name: str, scores: Array, mos: Array) -> float:
    """Return a correlation: the floor of scores that are known exactly is the statistic itself."""
    return float(FLOORS[name](scores, scores, mos))


class Pixel(QualityMetric):
    """A linear metric: the aligned perturbation moves its smoothed score by exactly the radius."""

    def forward(self, images: Tensor, **_: object) -> Tensor:
        """Return the first value of each image."""
        return images[:, 0, 0, 0]


def known_worst_case(draws: int = 20_000, radius: float = 0.03) -> dict[str, list[str]]:
    """Return what is found wrong about the true intervals of a linear metric, and about ones narrowed by 10 %.

    Twelve images in pairs 1.9 radii apart, all pairs far from each other: the worst vector swaps every pair.
    """
    score = np.repeat(0.15 * np.arange(6), 2) + np.tile([0, 1.9 * radius], 6)
    mos = np.arange(12.0)
    shift = np.tile([radius, -radius], 6)
    smooth = MedianSmoothing(Pixel(), radius, draws, clip=False, batch_size=4096)
    attacked = torch.tensor(score + shift, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    ids = [str(row) for row in range(12)]
    _, low, high = attacked_medians(smooth, attacked, ids, draws, joint_confidence_per_side(JOINT, 12))
    widths = {"true intervals": radius, "narrowed by 10 %": 0.9 * radius}
    return {name: refuted(score - width, score + width, low, high, mos) for name, width in widths.items()}


def main() -> None:
    """Measure both defenses, draw the figure, and fail where the guarantee was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defenses", nargs="+", choices=DENOISERS, default=list(DENOISERS))
    parser.add_argument("--images", type=int, default=125)
    parser.add_argument("--crop", type=int, help="side of a central crop, in pixels; default: whole images")
    parser.add_argument("--draws", type=int, default=200, help="of a certificate")
    parser.add_argument("--score-draws", type=int, default=100, help="of an attacked score")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--eot", type=int, default=2, help="draws behind one gradient")
    parser.add_argument("--again", nargs="+", type=Path, help="judge and draw what these files hold, measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "floor_against_attack.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "floor_against_attack.svg")
    chosen = parser.parse_args()
    started = time.perf_counter()
    linear = known_worst_case()
    print("linear metric, aligned perturbation:", json.dumps(linear))
    assert not linear["true intervals"], "true intervals are found wrong"
    assert linear["narrowed by 10 %"], "intervals that are wrong are not found out"
    if chosen.again:
        files = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.again]
        saved = {"measured": {name: part for file in files for name, part in file["measured"].items()}}
    else:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("out", "figure", "again")}
        saved = {"settings": settings, "measured": {}}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        for defense in chosen.defenses:
            saved["measured"][defense] = measure(defense, chosen)
            chosen.out.write_text(json.dumps(saved) + "\n", encoding="utf-8")
    found = {defense: judge(part) for defense, part in saved["measured"].items()}
    for defense, part in found.items():
        show(defense, part)
    write_floor_figure(chosen.figure, [curve_of(name, part) for name, part in found.items()], "pseudo-MOS")
    judged = [row for part in found.values() for rows in part["attacks"].values() for row in rows]
    wrong = [row for row in judged if row["violations"]]
    print(f"\n{len(judged)} attacked sets, {len(wrong)} exceed the guarantee; {time.perf_counter() - started:.0f} s")
    chance = len(found) * (1 - JOINT) + len(chosen.again or [chosen.out]) * ATTACKED_FAILURE
    print(f"one exceeds it by chance with probability at most {chance:.2g}")
    assert not wrong, "an attack exceeds the guarantee"


def show(defense: str, part: dict[str, Any]) -> None:
    """Print the floors of one defense beside what was found."""
    print(f"\n{defense}, joint confidence {JOINT} over images and radii")
    print("| | no perturbation | " + " | ".join(f"r {radius}" for radius in RADII) + " |")
    print("| --- " * (len(RADII) + 2) + "|")
    for name in FLOORS:
        for kind in ("certified", "worst_found"):
            cells = " | ".join(f"{value:.3f}" for value in part[kind][name])
            print(f"| {kind.replace('_', ' ')} {name} | {part['clean'][name]:.3f} | {cells} |")
        for attack, rows in part["attacks"].items():
            cells = " | ".join(f"{row[name]:.3f}" for row in rows)
            print(f"| {name} under {attack} | {part['clean'][name]:.3f} | {cells} |")
    for attack, rows in part["attacks"].items():
        print(f"| {attack}: median share of the half-width moved | | ", end="")
        print(" | ".join(f"{row['half_width_moved']:.2f}" for row in rows) + " |")
        print(f"| {attack}: violations; least radius used | | ", end="")
        print(" | ".join(f"{len(row['violations'])}; {row['least_radius_used']:.3f}" for row in rows) + " |")


def curve_of(defense: str, part: dict[str, Any]) -> Curve:
    """Return what the figure shows of one defense."""
    attacks = {name: [row["srocc"] for row in rows] for name, rows in part["attacks"].items()}
    certified, found = part["certified"]["srocc"], part["worst_found"]["srocc"]
    return Curve(defense, part["clean"]["srocc"], RADII, certified, found, attacks)


if __name__ == "__main__":
    main()
