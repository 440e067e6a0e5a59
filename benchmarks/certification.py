"""Speed of certification, as ratios in one run.

    python benchmarks/certification.py

The reference is that of the papers' public code: one image at a time, float32, contiguous, the image repeated and noise
added in chunks of 20. The floor is the raw forward pass of certiqa's own network on noise that is ready: what no engine
around it can beat. Prints tables and writes the numbers to outputs/bench/certification.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import build
from torch import Tensor

from certiqa.certification import Stopping, certify
from certiqa.data import load_dataset
from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import load_denoiser

SIGMA, CHUNK = 0.12, 20
SPEED = (  # metric, denoiser, (height, width), images, draws of each
    ("mini", None, (224, 224), 4, 100),
    ("mini", "mini_dms_iqa", (224, 224), 4, 100),
    ("metaiqa", None, (224, 224), 3, 60),
    ("dbcnn", None, (384, 512), 1, 20),
)


def reference_loop(function: Callable[[Tensor], Tensor], images: Tensor, num_samples: int) -> list[Tensor]:
    """Return sorted scores per image as the reference code computes them."""
    result = []
    with torch.no_grad():
        for image in images:
            scores = []
            for _ in range(num_samples // CHUNK):
                copies = image.repeat(CHUNK, 1, 1, 1)
                scores.append(function((copies + SIGMA * torch.randn_like(copies)).clamp(0, 1)))
            result.append(torch.cat(scores).sort().values)
    return result


def raw_forward(function: Callable[[Tensor], Tensor], noisy: list[Tensor], threads: int) -> None:
    """Score ready-made noisy batches, by the caller alone or by one thread per core."""

    def work(mine: list[Tensor], operators: int) -> None:
        torch.set_num_threads(operators)
        with torch.inference_mode():
            for batch in mine:
                function(batch)

    before = torch.get_num_threads()
    if threads == 1:
        work(noisy, before)
    else:
        workers = [threading.Thread(target=work, args=(noisy[start::threads], 1)) for start in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    torch.set_num_threads(before)


def seconds(job: Callable[[], object], repeats: int = 3) -> float:
    """Return the best of some runs after one to warm up."""
    job()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def pictures(count: int, size: tuple[int, int], device: str) -> Tensor:
    """Return random images."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)


def compare(
    name: str, weights: str | None, size: tuple[int, int], num_images: int, draws: int, device: str, precision: str
) -> dict[str, object]:
    """Measure reference loop, raw forward and engine on one network."""
    images, count = pictures(num_images, size, device), num_images * draws
    slow_metric = build(name, fast=False).to(device)
    slow_denoiser = None if weights is None else load_denoiser("unet", weights=weights).eval().to(device)
    if slow_denoiser is not None:
        slow_denoiser.to(memory_format=torch.contiguous_format)

    def reference(noisy: Tensor) -> Tensor:
        return slow_metric(noisy if slow_denoiser is None else slow_denoiser(noisy).clamp(0, 1))

    denoiser = None if weights is None else load_denoiser("unet", weights=weights).to(device)
    smooth = MedianSmoothing(build(name, fast=True).to(device), SIGMA, draws, denoiser, precision=precision)
    ids = [str(number) for number in range(num_images)]
    batch = 4 if device == "cpu" else 64
    noisy = [
        (images[:1] + SIGMA * torch.randn(batch, 3, *size, device=device)).clamp(0, 1)
        for _ in range(max(2, count // batch))
    ]
    arrangements = (1, torch.get_num_threads()) if device == "cpu" else (1,)
    floors = [seconds(partial(raw_forward, smooth.base_function, noisy, threads)) for threads in arrangements]
    floor = batch * len(noisy) / min(floors)
    found = count / seconds(lambda: certify(smooth, images, 0.06, num_samples=draws, image_ids=ids))
    looped = count / seconds(lambda: reference_loop(reference, images, draws), 2)
    return {
        "network": name if weights is None else f"{name} + U-Net",
        "size": f"{size[1]}x{size[0]}",
        "device": device,
        "precision": precision,
        "reference_per_s": looped,
        "certiqa_per_s": found,
        "ratio": found / looped,
        "floor_per_s": floor,
        "share_of_floor": found / floor,
    }


def speed_rows(device: str, precision: str = "fp32") -> list[dict[str, object]]:
    """Compare engine, reference loop and raw forward at equal numbers of draws."""
    rows: list[dict[str, object]] = []
    for name, weights, size, num_images, draws in SPEED:
        if device == "cuda":
            num_images, draws = num_images * 4, 1000
        rows.append(compare(name, weights, size, num_images, draws, device, precision))
        show([rows[-1]], header=len(rows) == 1)
    return rows


def has_bf16_units() -> bool:
    """Say whether this CPU multiplies bfloat16 itself; where it does not, bf16 is slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())


def tolerance_rows(device: str, num_images: int = 6, most: int = 1000) -> list[dict[str, object]]:
    """Count the draws that a tolerance needs on mini, against a fixed number."""
    dataset = load_dataset("mini", "quick_validation")
    items = [dataset[int(row)] for row in np.linspace(0, len(dataset) - 1, num_images).round()]
    images, ids = torch.stack([item["image"] for item in items]).to(device), [item["image_id"] for item in items]
    rows = []
    for label, weights in (("MS", None), ("DMS-IQA", "mini_dms_iqa")):
        denoiser = None if weights is None else load_denoiser("unet", weights=weights).to(device)
        smooth = MedianSmoothing(build("mini", fast=True).to(device), SIGMA, most, denoiser)
        for radius in (0.03, 0.06):
            for tolerance in (0.01, 0.02, 0.04):
                stopping = Stopping(tolerance, radius)
                bounds = certify(smooth, images, [radius], stopping=stopping, image_ids=ids)
                assert bounds.draws is not None
                rows.append(
                    {
                        "defense": label,
                        "radius": radius,
                        "tolerance": tolerance,
                        "mean_draws": float(bounds.draws.mean()),
                        "fewer": most / float(bounds.draws.mean()),
                        "stops": ", ".join(f"{stop} {bounds.stops.count(stop)}" for stop in sorted(set(bounds.stops))),
                    }
                )
                show([rows[-1]], header=len(rows) == 1)
    return rows


def scaling_rows() -> list[dict[str, object]]:
    """Time and peak memory for more draws, images, and processes; each in a process of its own."""
    rows = []
    base = {"images": 2, "draws": 100, "processes": 1}
    cases = [base, base | {"draws": 400}, base | {"images": 8}, base | {"images": 8, "processes": 2}]
    for case in cases:
        share = case["images"] // case["processes"]
        command = [sys.executable, __file__, "--measure", str(share), str(case["draws"])]
        environment = {"OMP_NUM_THREADS": "1"} if case["processes"] > 1 else {}
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
            for _ in range(case["processes"])
        ]
        found = [json.loads(process.communicate()[0]) for process in running]
        total = case["images"] * case["draws"]
        slowest = max(result["seconds"] for result in found)
        rows.append(
            {**case, "draws_per_s": total / slowest, "peak_mib_each": max(result["peak_mib"] for result in found)}
        )
        show([rows[-1]], header=len(rows) == 1)
    return rows


def measure(num_images: int, draws: int) -> None:
    """Certify in this process and print its time and peak memory as JSON."""
    smooth = MedianSmoothing(build("mini", fast=True), SIGMA, draws, load_denoiser("unet", weights="mini_dms_iqa"))
    images, ids = pictures(num_images, (224, 224), "cpu"), [str(number) for number in range(num_images)]
    smooth.sample_scores(images[:1], 8)
    started = time.perf_counter()
    certify(smooth, images, 0.06, image_ids=ids)
    elapsed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": elapsed, "peak_mib": peak}))


def show(rows: list[dict[str, object]], *, header: bool) -> None:
    """Print rows as Markdown."""
    if header:
        print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, type=int, metavar=("IMAGES", "DRAWS"), help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("speed", "tolerance", "scaling"))
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure)
        return
    has_gpu = torch.cuda.is_available()
    chip = torch.cuda.get_device_name() if has_gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {chip}; {torch.backends.cpu.get_cpu_capability()}")
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "certification.json"
    result: dict[str, object] = json.loads(path.read_text()) if path.is_file() else {}
    result |= {"torch": torch.__version__, "chip": chip}
    if chosen.only in (None, "speed"):
        result["speed"] = speed_rows("cpu")
        if has_bf16_units():
            result["speed_bf16"] = speed_rows("cpu", "bf16")
        if has_gpu:
            result["speed_gpu"] = speed_rows("cuda") + speed_rows("cuda", "bf16")
    if chosen.only in (None, "tolerance"):
        result["tolerance"] = tolerance_rows("cuda" if has_gpu else "cpu")
    if chosen.only in (None, "scaling"):
        result["scaling"] = scaling_rows()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
