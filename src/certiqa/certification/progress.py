"""One image under certification: its draws so far, the bounds they prove, and whether they are enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from certiqa.certification import ranks
from certiqa.certification.request import CertificationRequest, RankTable
from certiqa.defenses import noise_key
from certiqa.defenses.smoothing import MedianSmoothing
from certiqa.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageCertificate:
    """The certificate of one image; bounds are ``(R,)``, fields as in ``certiqa.certification.Certificates``.

    Attributes:
        failure: what went wrong, where no score could be computed; every bound is then infinite.
    """

    score: float
    lower: Array
    upper: Array
    joint_lower: Array | None
    joint_upper: Array | None
    median_lower: float
    median_upper: float
    draws: int
    stop: str
    lipschitz: float
    failure: str | None = None


class Plan:
    """The ranks of one request for images of one size."""

    def __init__(self, smooth: MedianSmoothing, request: CertificationRequest, lipschitz: float) -> None:
        self.metric = smooth.metric.name
        self.request = request
        self.lipschitz = lipschitz
        self.outer = request.rank_table(request.confidence, lipschitz)
        self.joint = None if request.joint_side is None else request.rank_table(request.joint_side, lipschitz)
        self.median = request.median_ranks()
        self.target: float | None = None  # of the half-width, in the metric's units
        stopping = request.stopping
        if stopping is not None:
            if not smooth.range_width:
                raise UserError(
                    f"certification.tolerance is a share of the score range, but '{smooth.metric.name}' states none; "
                    "give it score_range=(low, high), or set certification.tolerance=null"
                )
            self.target = stopping.tolerance * smooth.range_width
            self.inner = request.inner_table(lipschitz)
            self.column = int(np.argmin(np.abs(np.array(request.radii) - stopping.radius)))


class Progress:
    """One image under way: its draws so far, and at each look whether they are enough."""

    def __init__(self, plan: Plan, name: str, toss: tuple[float, float], device: torch.device) -> None:
        self.plan = plan
        self.name = name
        self.toss = toss
        self.draws = torch.empty(plan.request.num_samples, device=device)
        self.num_taken = self.num_received = self.look = 0
        self._forget_bounds()
        self.inner_gap = 0.0

    def _forget_bounds(self) -> None:
        radii = len(self.plan.request.radii)
        self.outer, self.joint, self.median = (_no_bounds(count) for count in (radii, radii, 1))

    def take(self, size: int) -> range:
        """Return the next draws to make, up to the next look."""
        first = self.num_taken
        self.num_taken = min(self.plan.request.looks[self.look], first + size)
        return range(first, self.num_taken)

    def received(self, count: int) -> ImageCertificate | None:
        """Count scores that came in; returns the certificate once no more draws are needed."""
        self.num_received += count
        if self.num_received < self.plan.request.looks[self.look]:
            return None
        ordered = np.sort(self.draws[: self.num_received].double().cpu().numpy())
        failure = self._failure(ordered)
        stop: str | None = "failed"
        if failure:
            self._forget_bounds()  # those of earlier looks too: what they bound is no score
        else:
            stop = self._look_at(ordered)
        self.look += 1
        if stop is None:
            return None
        request = self.plan.request
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        joint = self.plan.joint is not None
        return ImageCertificate(
            score=float("nan") if failure else float(middle),
            lower=self.outer[0],
            upper=self.outer[1],
            joint_lower=self.joint[0] if joint else None,
            joint_upper=self.joint[1] if joint else None,
            median_lower=float(self.median[0][0]),
            median_upper=float(self.median[1][0]),
            draws=self.num_received,
            stop=stop if len(request.looks) > 1 or failure else "n",
            lipschitz=self.plan.lipschitz,
            failure=failure,
        )

    def _failure(self, ordered: Array) -> str | None:
        broken = int((~np.isfinite(ordered)).sum())
        if not broken:
            return None
        kind = "NaN" if np.isnan(ordered).any() else "an infinite value"
        where = self.name if self.name.startswith("number ") else f"image {self.name}"
        return (
            f"metric '{self.plan.metric}' scored {kind} on {broken} of {len(ordered)} noisy copies of {where}; look at "
            "the metric and, in low precision, try certification.precision=fp32"
        )

    def _look_at(self, ordered: Array) -> str | None:
        """Sharpen the bounds by this look; returns why to stop, None to go on."""
        plan, look = self.plan, self.look
        self.outer = _sharpen(self.outer, ordered, self._ranks(plan.outer, plan.request.confidence))
        if plan.joint is not None and plan.request.joint_side is not None:
            self.joint = _sharpen(self.joint, ordered, self._ranks(plan.joint, plan.request.joint_side))
        self.median = _sharpen(self.median, ordered, plan.median[look])
        reason = None if plan.target is None else self._reason_to_stop(ordered, plan.target)
        if reason and self._has_all_bounds:
            return reason
        return "n" if self.num_received == plan.request.num_samples else None

    @property
    def _has_all_bounds(self) -> bool:
        """Whether no bound is missing of those that all draws have: a stop must not make an image abstain."""
        asked = (self.outer,) if self.plan.joint is None else (self.outer, self.joint)
        return bool(np.isfinite(asked).all())

    def _ranks(self, table: RankTable, confidence: float) -> RankTable:
        request = self.plan.request
        if not request.randomised:
            return table[self.look]
        at_noise = [radius * self.plan.lipschitz for radius in request.radii]
        tossed = [
            ranks.randomised_ranks(radius, request.sigma, request.num_samples, confidence, self.toss)
            for radius in at_noise
        ]
        return np.array(tossed)

    def _reason_to_stop(self, ordered: Array, target: float) -> str | None:
        plan, stopping = self.plan, self.plan.request.stopping
        assert stopping is not None
        lower, upper = (side[plan.column] for side in self.outer)
        half_width = (upper - lower) / 2
        if half_width <= target:
            return "tolerance"
        low, high = plan.inner[self.look]
        if 1 <= low < high <= len(ordered):
            # the bounds can only come in as far as the percentiles, which lie outside these draws
            self.inner_gap = max(self.inner_gap, ordered[high - 1] - ordered[low - 1])
        if self.inner_gap / 2 > target:
            return "out of reach"
        if stopping.saturation is not None and np.isfinite(half_width):
            share = ranks.percentile_shares(stopping.radius * plan.lipschitz, plan.request.sigma)
            plain = float(np.diff(np.quantile(ordered, share))[0]) / 2
            if half_width - plain <= stopping.saturation * half_width:
                return "saturated"
        return None


def _no_bounds(count: int) -> tuple[Array, Array]:
    return np.full(count, -np.inf), np.full(count, np.inf)


def _sharpen(bounds: tuple[Array, Array], ordered: Array, table: RankTable) -> tuple[Array, Array]:
    """Intersect bounds with those of the ranks ``(R, 2)`` at this look: they hold at all looks together."""
    padded = np.concatenate([[-np.inf], ordered, [np.inf]])
    return np.maximum(bounds[0], padded[table[:, 0]]), np.minimum(bounds[1], padded[table[:, 1]])


def tosses(seed: int, stream: str, name: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) for randomised ranks, independent of all noise of the stream: draws are >= 0."""
    low, high = (noise_key(seed, stream, name, number) / 2**63 for number in (-1, -2))
    return low, high
