"""What the adapters of published metrics cost and save, as ratios in one run.

    python benchmarks/metrics.py

Random weights of the published sizes. "bare" is the adapter's own network called directly, so that its ratio is what
the adapter adds; "upstream" is pyiqa's own call, or for SPAQ the authors' loop over patches. Prints a table and writes
the numbers to outputs/bench/metrics.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from networks import upstream

from certification import pictures, show
from certiqa.metrics import load_metric

CASES = (  # metric, (height, width), images at a time, compared with upstream
    ("mini", (224, 224), 4, False),
    ("clipiqa_plus", (384, 512), 4, True),
    ("clipiqa_plus", (224, 224), 4, True),
    ("dbcnn", (384, 512), 2, True),
    ("metaiqa", (384, 512), 8, True),
    ("linearity", (384, 512), 1, False),
    ("spaq", (384, 512), 1, True),
)


def together(jobs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the best time of each job; they take turns, so that a slow moment of the machine hits all."""
    for job in jobs:
        job()
    times = [float("inf")] * len(jobs)
    for _ in range(repeats):
        for index, job in enumerate(jobs):
            started = time.perf_counter()
            job()
            times[index] = min(times[index], time.perf_counter() - started)
    return times


@torch.inference_mode()
def compare(name: str, size: tuple[int, int], count: int, with_upstream: bool, repeats: int) -> dict[str, object]:
    """Measure adapter, bare network and upstream on the same images."""
    metric, images = load_metric(name, weights="random"), pictures(count, size, "cpu")
    jobs: list[Callable[[], object]] = [lambda: metric(images), lambda: metric.network(images)]
    if with_upstream:
        theirs = upstream(name)
        jobs.append(lambda: theirs(images))
    times = together(jobs, repeats)
    return {
        "metric": name,
        "size": f"{size[1]}x{size[0]}",
        "images": count,
        "adapter_per_s": count / times[0],
        "adapter / bare time": times[0] / times[1],
        "upstream / adapter time": times[2] / times[0] if with_upstream else "-",
    }


def peak_of_spaq(mode: str) -> float:
    """Return by how many MiB memory grows while one 512x683 image is scored, in a process of its own."""
    command = [sys.executable, __file__, "--peak", mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@torch.inference_mode()
def measure_peak(mode: str) -> None:
    """Print the growth of this process's memory while it scores with one way of taking patches."""
    images = pictures(1, (512, 683), "cpu")
    score = upstream("spaq") if mode == "upstream" else load_metric("spaq", weights="random")
    before = highest = in_mib("VmRSS")  # the system's own peak counts loading, and not every kernel can set it back
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(torch.inference_mode()(score), images)  # the mode is a thread's own
        while not scoring.done():
            highest = max(highest, in_mib("VmRSS"))
            time.sleep(0.001)
    scoring.result()
    print(highest - before)


def in_mib(field: str) -> float:
    """Return a memory figure of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=("batch", "upstream"), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=12)
    chosen = parser.parse_args()
    if chosen.peak:
        measure_peak(chosen.peak)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    rows = []
    for case in CASES:
        rows.append(compare(*case, chosen.repeats))
        show([rows[-1]], header=len(rows) == 1)
    peaks = {mode: peak_of_spaq(mode) for mode in ("batch", "upstream")}
    print(f"\nspaq, memory for 24 patches: {peaks['batch']:.0f} MiB at once, {peaks['upstream']:.0f} MiB one by one")
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "rows": rows, "spaq_peak_mib": peaks}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
