"""What a certification will take and can give, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from certiqa.certification.ranks import joint_confidence_per_side, largest_radius, smallest_num_samples
from certiqa.defenses.smoothing import MedianSmoothing
from certiqa.errors import UserError


@dataclass(frozen=True)
class RadiusPlan:
    """Draws one radius needs; None where no number of draws is enough.

    Attributes:
        radius: at the input, in [0, 1] pixel units.
        at_noise: the same where the noise is added.
        needed: draws for its interval.
        needed_joint: draws for its joint interval; None also where none is asked for.
    """

    radius: float
    at_noise: float
    needed: int | None
    needed_joint: int | None


@dataclass(frozen=True)
class CertificationPlan:
    """What a certification takes and can give.

    Attributes:
        num_images: images.
        num_samples: draws of each at most.
        num_forward: the product of both.
        draws_per_second: measured by a probe; None without one.
        reach: largest radius at the input that so many draws certify; None where they certify none.
        joint_reach: the same at the joint confidence.
        lipschitz: largest constant of a linear step before the noise.
        radii: what each asked radius needs.
    """

    num_images: int
    num_samples: int
    num_forward: int
    draws_per_second: float | None
    reach: float | None
    joint_reach: float | None
    lipschitz: float
    radii: tuple[RadiusPlan, ...]

    @property
    def seconds(self) -> float | None:
        """Estimated time of all draws; None without a probe."""
        return None if self.draws_per_second is None else self.num_forward / self.draws_per_second


def plan_certification(
    smooth: MedianSmoothing,
    sizes: Sequence[tuple[int, int]],
    radii: Sequence[float],
    *,
    num_samples: int | None = None,
    confidence: float = 0.999,
    joint_confidence: float | None = None,
    probe_seconds: float | None = 3.0,
    device: torch.device | str = "cpu",
) -> CertificationPlan:
    """Plan the certification of images of these (height, width).

    Args:
        smooth: the smoothed metric, on ``device``.
        sizes: of every image.
        radii: l2 radii at the input, in [0, 1] pixel units.
        num_samples: draws per image; default the defense's own.
        confidence: per side and per image.
        joint_confidence: of all images and radii together; None for no joint intervals.
        probe_seconds: about how long to measure the speed, on noise of the most common size; None for no probe.
        device: where it will run.
    """
    count = smooth.num_samples if num_samples is None else num_samples
    lipschitz = max((smooth.lipschitz(size) for size in set(sizes)), default=1.0)
    joint = None if joint_confidence is None else joint_confidence_per_side(joint_confidence, len(sizes), len(radii))

    def needed(radius: float, side: float | None) -> int | None:
        try:
            return None if side is None else smallest_num_samples(radius * lipschitz, smooth.sigma, side)
        except UserError:
            return None

    def reach(side: float | None) -> float | None:
        try:
            return None if side is None else largest_radius(count, smooth.sigma, side) / lipschitz
        except UserError:
            return None

    speed = None if probe_seconds is None or not sizes else measure_speed(smooth, sizes, probe_seconds, device)
    return CertificationPlan(
        num_images=len(sizes),
        num_samples=count,
        num_forward=len(sizes) * count,
        draws_per_second=speed,
        reach=reach(confidence),
        joint_reach=reach(joint),
        lipschitz=lipschitz,
        radii=tuple(RadiusPlan(r, r * lipschitz, needed(r, confidence), needed(r, joint)) for r in radii),
    )


def measure_speed(
    smooth: MedianSmoothing, sizes: Sequence[tuple[int, int]], seconds: float, device: torch.device | str = "cpu"
) -> float:
    """Return draws per second on a grey image of the most common size, after a warm-up."""
    size = max(set(sizes), key=list(sizes).count)
    image = torch.full((1, 3, *size), 0.5, device=device)
    count, elapsed = 4, 0.0
    smooth.sample_scores(image, count)
    while True:
        started = time.perf_counter()
        smooth.sample_scores(image, count)
        if image.device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
        if elapsed >= seconds / 2:
            return count / elapsed
        count = int(count * min(8.0, max(2.0, seconds / max(elapsed, 1e-6))))
