"""Certify a smoothed metric: one set of draws per image, every radius from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certiqa.certification.ranks import certified_interval, joint_confidence_per_side, validate_request
from certiqa.defenses.smoothing import MedianSmoothing, sample_median
from certiqa.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Certificates:
    """Certified intervals of N images at R radii.

    With the stated confidence per side and image, the population median of the smoothed metric stays inside
    ``[lower, upper]`` for every perturbation u with ``||u||_2 <= radius``; -inf/+inf where n draws cannot say.

    Attributes:
        score: ``(N,)`` medians of the draws.
        lower, upper: ``(N, R)``.
        joint_lower, joint_upper: ``(N, R)`` intervals that hold for all images and radii at once with
            ``joint_confidence``; None where not asked for.
        radii, sigma: in [0, 1] pixel units, l2 norm.
        num_samples: draws per image.
        confidence: per side and per image; ``2 * confidence - 1`` two-sided.
        joint_confidence: of all joint intervals together.
    """

    score: Array
    lower: Array
    upper: Array
    radii: tuple[float, ...]
    sigma: float
    num_samples: int
    confidence: float
    joint_lower: Array | None = None
    joint_upper: Array | None = None
    joint_confidence: float | None = None

    @property
    def certified_delta(self) -> Array:
        """``max(upper - score, score - lower)``, ``(N, R)``; infinite where abstained."""
        score = self.score[:, None]
        return np.maximum(self.upper - score, score - self.lower)

    @property
    def half_width(self) -> Array:
        """``(upper - lower) / 2``, ``(N, R)``."""
        return (self.upper - self.lower) / 2

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """Whether either side is infinite, ``(N, R)``."""
        return ~np.isfinite(self.upper - self.lower)


def require_certifiable(metric: object) -> MedianSmoothing:
    """Return ``metric`` if a certificate can be computed for it; raise UserError that says why not."""
    if isinstance(metric, MedianSmoothing):
        return metric
    name = getattr(metric, "name", type(metric).__name__)
    raise UserError(
        f"'{name}' cannot be certified: a certificate needs median smoothing as its outermost step "
        "(defense=ms, dms or dms_iqa, or MedianSmoothing(metric, sigma=...))"
    )


def certify(
    smooth: MedianSmoothing,
    images: Tensor,
    radii: float | Sequence[float],
    *,
    num_samples: int | None = None,
    confidence: float = 0.999,
    joint_confidence: float | None = None,
    set_size: int | None = None,
    image_ids: Sequence[str] | None = None,
    seed: int | None = None,
    stream: str = "certify",
) -> Certificates:
    """Certify a smoothed metric on images (DMS-IQA, arXiv 2411.12575, Theorem 1).

    Args:
        smooth: the smoothed metric.
        images: ``(N, 3, H, W)`` in [0, 1].
        radii: l2 radii in [0, 1] pixel units.
        num_samples: draws per image; default the defense's own.
        confidence: per side and per image.
        joint_confidence: add intervals that hold for all images and radii at once with this probability.
        set_size: number of images of the whole set, where it is certified in pieces; default N.
        image_ids: unique names that key the noise; without them every image gets the same draws.
        seed: of the noise; default the defense's own.
        stream: of the noise.

    Raises:
        UserError: before any work, if n draws cannot certify a radius, for duplicate ids or too small a
            ``set_size``; for NaN scores.
    """
    smooth = require_certifiable(smooth)
    radius_list = tuple(float(radius) for radius in np.atleast_1d(np.asarray(radii, dtype=float)))
    count = smooth.num_samples if num_samples is None else int(num_samples)
    size = len(images) if set_size is None else set_size
    if size < len(images):
        raise UserError(f"set_size={size} is less than the {len(images)} images given; joint intervals would not hold")
    side = check_certificate_request(radius_list, smooth.sigma, count, confidence, joint_confidence, size)
    if image_ids is not None and len(set(image_ids)) != len(image_ids):
        twice = next(name for name in image_ids if list(image_ids).count(name) > 1)
        raise UserError(f"image id '{twice}' occurs twice; ids key the noise and must be unique, e.g. relative paths")
    with torch.inference_mode():
        draws = smooth.sample_scores(images, count, image_ids=image_ids, seed=seed, stream=stream)
        score = sample_median(draws).double().cpu().numpy()
    scores = draws.double().cpu().numpy()
    if np.isnan(scores).any():
        row = int(np.isnan(scores).any(axis=1).argmax())
        name = image_ids[row] if image_ids is not None else f"number {row}"
        raise UserError(
            f"metric '{smooth.metric.name}' scored NaN on {int(np.isnan(scores[row]).sum())} of {count} noisy copies "
            f"of image {name}; look at the metric and, in low precision, try certification.precision=fp32"
        )
    lower, upper = certified_interval(scores, radius_list, smooth.sigma, confidence)
    joint_lower = joint_upper = None
    if side is not None:
        joint_lower, joint_upper = certified_interval(scores, radius_list, smooth.sigma, side)
    return Certificates(
        score=score,
        lower=lower,
        upper=upper,
        radii=radius_list,
        sigma=smooth.sigma,
        num_samples=count,
        confidence=confidence,
        joint_lower=joint_lower,
        joint_upper=joint_upper,
        joint_confidence=joint_confidence,
    )


def check_certificate_request(
    radii: Sequence[float],
    sigma: float,
    num_samples: int,
    confidence: float,
    joint_confidence: float | None,
    set_size: int,
) -> float | None:
    """Validate a request before any work; returns the per-side confidence of joint intervals, None without them."""
    validate_request(radii, sigma, num_samples, confidence)
    if joint_confidence is None:
        return None
    side = joint_confidence_per_side(joint_confidence, set_size, len(radii))
    try:
        validate_request(radii, sigma, num_samples, side)
    except UserError as error:
        raise UserError(
            f"joint_confidence={joint_confidence} over {set_size} images and {len(radii)} radii needs confidence "
            f"{side:.7f} per side: {error}. Or leave set guarantees out with certification.joint_confidence=null"
        ) from error
    return side
