"""Set guarantees at size: seconds, floor, lowest found and the gap between them, for 125 to 3,000 images.

    python benchmarks/set_guarantees.py

Boxes are synthetic: MOS uniform in [0, 1], scores MOS plus noise (sd .2, SROCC about .85), half-widths of .02 to .06 or
.05 to .15, and once with every tenth image without an interval (an abstention). `pairs` is what the order of each pair
of images says by itself, for comparison. Seconds are of this machine, on one core where OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from certiqa.certification import (
    certified_krocc,
    certified_plcc,
    certified_srocc,
    worst_krocc,
    worst_plcc,
    worst_srocc,
)
from certiqa.certification.order_bounds import _by_pairs

Array = NDArray[np.float64]
SIZES = (125, 500, 1000, 2000, 3000)
BOXES = {"narrow": (0.02, 0.06, 0.0), "wide": (0.05, 0.15, 0.0), "narrow, 10 % abstained": (0.02, 0.06, 0.1)}
PARTS = {
    "SROCC": (certified_srocc, worst_srocc),
    "KROCC": (certified_krocc, worst_krocc),
    "PLCC": (certified_plcc, worst_plcc),
}
LIMIT = 5.0  # seconds for certified_srocc of 2,000 images


def box(count: int, least: float, most: float, abstained: float) -> tuple[Array, Array, Array]:
    """Return lower, upper and MOS of a synthetic set, shape (N,) each."""
    rng = np.random.default_rng(0)
    mos = rng.uniform(size=count)
    centre, half = mos + 0.2 * rng.normal(size=count), rng.uniform(least, most, count)
    half[rng.random(count) < abstained] = np.inf
    return centre - half, centre + half, mos


def timed(function, *arguments):
    """Return (seconds of this process, result)."""
    started = time.process_time()
    result = function(*arguments)
    return time.process_time() - started, result


def main() -> None:
    """Print a table for each statistic."""
    slowest = 0.0
    for name, (floor, search) in PARTS.items():
        heads = ["box", "images", "floor", "lowest found", "gap", "floor, s", "search, s"]
        heads += ["pairs"] * (name == "SROCC")
        print(f"\n{name}\n| " + " | ".join(heads) + " |")
        print("| --- " * len(heads) + "|")
        for label, shape in BOXES.items():
            for count in SIZES:
                lower, upper, mos = box(count, *shape)
                seconds, proven = timed(floor, lower, upper, mos)
                searching, found = timed(search, lower, upper, mos)
                assert proven <= found.value + 1e-9, "a score vector in the box passes the floor"
                cells = [label, count, f"{proven:.4f}", f"{found.value:.4f}", f"{found.value - proven:.4f}"]
                cells += [f"{seconds:.2f}", f"{searching:.2f}"]
                if name == "SROCC":
                    g = rankdata(mos) - (count + 1) / 2
                    cells.append(f"{_by_pairs(g, lower, upper) / (g @ g):.4f}")
                    slowest = max(slowest, seconds if count == 2000 else 0.0)
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\ncertified_srocc of 2,000 images: {slowest:.2f} s at most (limit {LIMIT:g} s)")
    assert slowest < LIMIT


if __name__ == "__main__":
    main()
