"""Certify a smoothed metric: one set of draws per image, every radius from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certiqa.certification.progress import ImageCertificate, Plan, Progress, tosses
from certiqa.certification.request import CertificationRequest, Stopping
from certiqa.defenses.engine import Pair
from certiqa.defenses.smoothing import MedianSmoothing
from certiqa.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Certificates:
    """Certified intervals of N images at R radii.

    With the stated confidence per side and image, the population median of the smoothed metric stays inside
    ``[lower, upper]`` for every perturbation u with ``||u||_2 <= radius``; -inf/+inf where n draws cannot say.

    Attributes:
        score: ``(N,)`` medians of the draws.
        lower: ``(N, R)`` lower ends.
        upper: ``(N, R)`` upper ends.
        joint_lower: ``(N, R)`` lower ends that hold for all images and radii at once with ``joint_confidence``; None
            where not asked for.
        joint_upper: ``(N, R)`` upper ends, likewise.
        radii: l2 norms at the input, in [0, 1] pixel units.
        sigma: standard deviation of the noise, in the same units.
        num_samples: draws per image; the most, where a stopping rule needed fewer.
        confidence: per side and per image; ``2 * confidence - 1`` two-sided.
        joint_confidence: of all joint intervals together.
        median_lower: ``(N,)`` lower end of a confidence interval of the clean population median itself.
        median_upper: ``(N,)`` its upper end.
        draws: ``(N,)`` draws made of each image.
        stops: why no more were made: "n", "tolerance", "saturated" or "out of reach" (see ``Stopping``).
        lipschitz: ``(N,)`` constants of the step before the noise; radius times it is the radius at the noise.
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
    median_lower: Array | None = None
    median_upper: Array | None = None
    draws: NDArray[np.int64] | None = None
    stops: tuple[str, ...] = ()
    lipschitz: Array | None = None

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
    images: Tensor | Sequence[Tensor],
    radii: float | Sequence[float],
    *,
    num_samples: int | None = None,
    confidence: float = 0.999,
    joint_confidence: float | None = None,
    set_size: int | None = None,
    stopping: Stopping | None = None,
    randomised: bool = False,
    image_ids: Sequence[str] | None = None,
    seed: int | None = None,
    stream: str = "certify",
) -> Certificates:
    """Certify a smoothed metric on images (DMS-IQA, arXiv 2411.12575, Theorem 1).

    Args:
        smooth: the smoothed metric.
        images: ``(N, 3, H, W)`` in [0, 1], or a sequence of ``(3, H, W)`` of any sizes.
        radii: l2 radii at the input, in [0, 1] pixel units.
        num_samples: draws per image; default the defense's own.
        confidence: per side and per image.
        joint_confidence: add intervals that hold for all images and radii at once with this probability.
        set_size: number of images of the whole set, where it is certified in pieces; default N.
        stopping: when an image has had enough draws; None makes all ``num_samples``.
        randomised: randomised ranks: coverage exactly as stated; the toss is a function of (seed, stream, image id).
        image_ids: unique names that key the noise; without them every image gets the same draws.
        seed: of the noise; default the defense's own.
        stream: of the noise.

    Raises:
        UserError: before any work, if n draws cannot certify a radius, for duplicate ids or too small a
            ``set_size``, or for numbers that should be whole; for NaN scores.
    """
    smooth = require_certifiable(smooth)
    request = CertificationRequest(
        radii=tuple(float(radius) for radius in np.atleast_1d(np.asarray(radii, dtype=float))),
        sigma=smooth.sigma,
        num_samples=smooth.num_samples if num_samples is None else num_samples,
        confidence=confidence,
        joint_confidence=joint_confidence,
        set_size=max(1, len(images)) if set_size is None else set_size,
        stopping=stopping,
        randomised=randomised,
        largest_lipschitz=max((smooth.lipschitz(image.shape[-2:]) for image in images), default=1.0),
    )
    found = dict(certify_each(smooth, images, request, image_ids=image_ids, seed=seed, stream=stream))
    rows = [found[row] for row in range(len(images))]
    for certificate in rows:
        if certificate.failure:
            raise UserError(certificate.failure)
    joint = request.joint_side is not None
    shape = (len(rows), len(request.radii))  # also of no image
    return Certificates(
        score=np.array([row.score for row in rows]),
        lower=np.array([row.lower for row in rows]).reshape(shape),
        upper=np.array([row.upper for row in rows]).reshape(shape),
        radii=request.radii,
        sigma=smooth.sigma,
        num_samples=request.num_samples,
        confidence=confidence,
        joint_lower=np.array([row.joint_lower for row in rows]).reshape(shape) if joint else None,
        joint_upper=np.array([row.joint_upper for row in rows]).reshape(shape) if joint else None,
        joint_confidence=joint_confidence,
        median_lower=np.array([row.median_lower for row in rows]),
        median_upper=np.array([row.median_upper for row in rows]),
        draws=np.array([row.draws for row in rows], dtype=np.int64),
        stops=tuple(row.stop for row in rows),
        lipschitz=np.array([row.lipschitz for row in rows]),
    )


def certify_each(
    smooth: MedianSmoothing,
    images: Tensor | Sequence[Tensor],
    request: CertificationRequest,
    *,
    image_ids: Sequence[str] | None = None,
    seed: int | None = None,
    stream: str = "certify",
) -> Iterator[tuple[int, ImageCertificate]]:
    """Yield (row, certificate) of each image as soon as it has its draws.

    Images share batches; where a stopping rule lets some finish early, others take their place. Images of different
    sizes are grouped by size. Arguments as for ``certify``; a failed image is yielded with its ``failure``.

    Raises:
        UserError: as ``certify``; also if the request is for another sigma than the smoothing's.
    """
    if request.sigma != smooth.sigma:
        raise UserError(
            f"the request is for sigma={request.sigma}, but '{smooth.name}' smooths with sigma={smooth.sigma}, "
            f"and ranks for one bound nothing of the other; make the request with sigma={smooth.sigma}"
        )
    if request.set_size < len(images):
        raise UserError(
            f"set_size={request.set_size} is less than the {len(images)} images given; joint intervals would not hold"
        )
    if image_ids is not None and len(set(image_ids)) != len(image_ids):
        twice = next(name for name in image_ids if list(image_ids).count(name) > 1)
        raise UserError(f"image id '{twice}' occurs twice; ids key the noise and must be unique, e.g. relative paths")
    if image_ids is not None and len(image_ids) != len(images):
        raise UserError(f"{len(images)} images but {len(image_ids)} image ids; give one id per image")
    sizes: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        sizes.setdefault(tuple(image.shape), []).append(row)
    for rows in sizes.values():
        batch = images[rows] if isinstance(images, Tensor) else torch.stack([images[row] for row in rows])
        ids = [f"number {row}" if image_ids is None else image_ids[row] for row in rows]
        chances = [tosses(smooth.seed if seed is None else seed, stream, name) for name in ids]
        plan = Plan(smooth, request, smooth.lipschitz(batch.shape[-2:]))
        under_way = [Progress(plan, name, toss, batch.device) for name, toss in zip(ids, chances, strict=True)]
        noise_ids = None if image_ids is None else ids
        for local, certificate in _draw(smooth, batch, under_way, noise_ids, seed, stream):
            yield rows[local], certificate


def _draw(
    smooth: MedianSmoothing,
    images: Tensor,
    under_way: list[Progress],
    ids: Sequence[str] | None,
    seed: int | None,
    stream: str,
) -> Iterator[tuple[int, ImageCertificate]]:
    active = dict(enumerate(under_way))

    def take(size: int) -> list[Pair]:
        pairs: list[Pair] = []
        for row, progress in active.items():
            pairs += [(row, draw) for draw in progress.take(size - len(pairs))]
            if len(pairs) == size:
                break
        return pairs

    for pairs, values in smooth.stream_scores(images, take, image_ids=ids, seed=seed, stream=stream):
        start = 0
        for row, group in groupby(pairs, key=lambda pair: pair[0]):
            draws = [draw for _, draw in group]
            active[row].draws[draws[0] : draws[0] + len(draws)] = values[start : start + len(draws)]
            start += len(draws)
            certificate = active[row].received(len(draws))
            if certificate is not None:
                del active[row]
                yield row, certificate
