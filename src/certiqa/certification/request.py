"""What is asked of a certification, checked before any work, and the ranks it will be read off with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from certiqa.certification import ranks
from certiqa.certification.sequential import inner_ranks, look_sizes, sequential_ranks
from certiqa.errors import UserError

RankTable = NDArray[np.int64]


@dataclass(frozen=True)
class Stopping:
    """When an image has had enough draws, decided at looks whose bounds hold together.

    Whatever the reason, no image stops before every bound that was asked for exists, at all radii and jointly: the
    farthest radius and the joint confidence set how few draws can be enough.

    Args:
        tolerance: certified half-width to reach, as a share of the metric's score range.
        radius: the radius at which it counts; must be among the certified ones.
        saturation: also stop where the sampling part of the half-width (what more draws could still gain over the
            percentiles of the draws themselves) is at most this share of it; None never stops for that.
        first_look: draws before the first look.
        look_ratio: factor from one look to the next.
    """

    tolerance: float
    radius: float
    saturation: float | None = 0.25
    first_look: int = 50
    look_ratio: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise UserError(
                f"certification.tolerance={self.tolerance} is a share of the score range, which must lie in (0, 1), "
                "e.g. 0.02"
            )
        if self.saturation is not None and not 0 < self.saturation < 1:
            raise UserError(f"certification.saturation={self.saturation} must lie in (0, 1), or be null")
        look_sizes(self.first_look, self.first_look, self.look_ratio)  # checks both


@dataclass(frozen=True)
class CertificationRequest:
    """A checked request: which intervals, from how many draws.

    Args:
        radii: l2 radii at the input, in [0, 1] pixel units.
        sigma: standard deviation of the noise.
        num_samples: draws per image; the most, where a stopping rule may need fewer.
        confidence: per side and per image.
        joint_confidence: of all images and radii together; None for no joint intervals.
        set_size: number of images of the whole set.
        stopping: when to stop before ``num_samples``; None draws them all.
        randomised: toss for the rank, so that the bounds fail exactly as often as stated instead of less often.
        largest_lipschitz: largest constant of a linear step before the noise that will occur; radii times it must
            be certifiable.

    Raises:
        UserError: an argument is out of its range, or ``num_samples`` draws cannot certify a radius.
    """

    radii: tuple[float, ...]
    sigma: float
    num_samples: int
    confidence: float
    joint_confidence: float | None = None
    set_size: int = 1
    stopping: Stopping | None = None
    randomised: bool = False
    largest_lipschitz: float = 1.0
    looks: tuple[int, ...] = field(init=False)
    joint_side: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.radii:
            raise UserError("radii is empty; give at least one l2 radius in [0, 1] pixel units, e.g. 0.05")
        at_noise = [radius * self.largest_lipschitz for radius in self.radii]
        ranks.validate_request(at_noise, self.sigma, self.num_samples, self.confidence)
        looks: tuple[int, ...] = (self.num_samples,)
        if self.stopping is not None:
            if not any(np.isclose(self.stopping.radius, self.radii)):
                raise UserError(
                    f"the tolerance counts at radius {self.stopping.radius}, which must be one of {list(self.radii)}"
                )
            if self.randomised:
                raise UserError(
                    "randomised ranks need a fixed number of draws: set certification.tolerance=null or "
                    "certification.randomised=false"
                )
            looks = look_sizes(self.stopping.first_look, self.num_samples, self.stopping.look_ratio)
        object.__setattr__(self, "looks", looks)
        if self.joint_confidence is not None:
            side = ranks.joint_confidence_per_side(self.joint_confidence, self.set_size, len(self.radii))
            object.__setattr__(self, "joint_side", side)
            self._check_joint(at_noise, side)
        # several looks need no more: the rank that the last look has alone is spent earlier or still there, and no
        # image stops before it has all of them

    def _check_joint(self, at_noise: Sequence[float], side: float) -> None:
        try:
            ranks.validate_request(at_noise, self.sigma, self.num_samples, side)
        except UserError as error:
            raise UserError(
                f"joint_confidence={self.joint_confidence} over {self.set_size} images and {len(self.radii)} radii "
                f"needs confidence {side:.7f} per side: {error}. Or leave set guarantees out with "
                "certification.joint_confidence=null"
            ) from error

    def rank_table(self, confidence: float, lipschitz: float = 1.0) -> RankTable:
        """Return the ranks ``(looks, radii, 2)`` of the lower and upper bounds, each at all looks together."""
        return self._table([radius * lipschitz for radius in self.radii], confidence)

    def median_ranks(self) -> RankTable:
        """Return the ranks ``(looks, 1, 2)`` of the interval of the clean median itself."""
        return self._table([0.0], self.confidence)

    def inner_table(self, lipschitz: float = 1.0) -> RankTable:
        """Return the ranks ``(looks, 2)`` between which more draws can never bring the stopping radius's bounds."""
        assert self.stopping is not None
        return np.array(inner_ranks(self.stopping.radius * lipschitz, self.sigma, self.looks, self.confidence))

    def _table(self, at_noise: Sequence[float], confidence: float) -> RankTable:
        if len(self.looks) == 1:
            n = self.num_samples
            return np.array([[ranks.order_statistic_ranks(r, self.sigma, n, confidence) for r in at_noise]])
        pairs = [sequential_ranks(r, self.sigma, self.looks, confidence) for r in at_noise]
        return np.array(pairs).transpose(1, 0, 2)
