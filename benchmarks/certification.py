"""Certification against the public reference loop, as a ratio in one run.

    python benchmarks/certification.py

The reference is that of the papers' public code: one image at a time, float32, contiguous, the image repeated and noise
added in chunks of 20. Both draw the same number of noisy images through the same networks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from certiqa.certification import certify
from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import load_denoiser
from certiqa.metrics import load_metric

SIGMA = 0.12
CHUNK = 20


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


def contiguous(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with plain memory layout, as the reference has it."""
    return module.to(memory_format=torch.contiguous_format)


def seconds(job: Callable[[], object]) -> float:
    """Return the best of two runs after one to warm up."""
    job()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print one row for the metric alone and one with the shipped denoiser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--draws", type=int, default=100, help="a multiple of 20")
    chosen = parser.parse_args()
    images = torch.rand(chosen.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(f"{'':>14} {'reference/s':>12} {'certiqa/s':>12} {'ratio':>6}   noisy images per second, fp32")
    for name, weights in (("mini", None), ("mini + U-Net", "mini_dms_iqa")):
        metric = contiguous(load_metric("mini"))
        denoiser = None if weights is None else contiguous(load_denoiser("unet", weights=weights).eval())

        def base(noisy: Tensor, metric=metric, denoiser=denoiser) -> Tensor:
            return metric(noisy if denoiser is None else denoiser(noisy).clamp(0, 1))

        count = chosen.images * chosen.draws
        slow = count / seconds(lambda base=base: reference_loop(base, images, chosen.draws))
        fast_denoiser = None if weights is None else load_denoiser("unet", weights=weights)
        smooth = MedianSmoothing(load_metric("mini"), SIGMA, chosen.draws, fast_denoiser)
        ids = [str(index) for index in range(chosen.images)]
        fast = count / seconds(lambda smooth=smooth, ids=ids: certify(smooth, images, 0.06, image_ids=ids))
        print(f"{name:>14} {slow:12.1f} {fast:12.1f} {fast / slow:6.2f}")


if __name__ == "__main__":
    main()
