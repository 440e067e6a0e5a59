"""The one signature of the house: images ``(N, 3, H, W)`` RGB float in [0, 1] -> scores ``(N,)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from certiqa.errors import UserError

Range = tuple[float, float]
LARGEST_PIXEL = 16.0  # an image in [0, 1] with noise stays far below, one in 0 to 255 does not


class QualityMetric(nn.Module):
    """Anything that scores images: a base metric, or a metric with a defense around it.

    What a defense has, a base metric has none of: ``trained_network``, ``purified_by``, ``stages``, a certificate. So
    whoever is given a metric asks it, and need not know what it is.

    Attributes:
        name: what tables call it.
        score_range: nominal range (low, high) in native units, finite, the "range" of every share-of-range figure;
            None if it has none.
        lower_better: whether a lower score means better quality.
        hard_bounds: bounds that no input can leave, only where proven (e.g. behind a sigmoid).
        min_size: smallest side in pixels of a square image that it accepts; see ``min_sides``.
        is_random: whether ``forward`` draws random numbers; then they are seedable per image and
            independent of the rest of the batch.
        num_samples: draws behind one score of a random metric; None where a score is a single draw.
        certifiable: whether ``certiqa.certification.certify`` takes it.
        thread_safe: whether several threads may call ``forward`` at once, each with its own images; then draws are
            scored by one thread per core. False where hooks or attributes carry anything from one line to the next.
        keeps_contract: whether this project's own tests hold it to the contract; others are checked before a run.
        weights_source: where its weights came from: "shipped", the name of the file or of the download, or "random
            (seed 0)", which tables and reports answer with a warning; None where it does not say.
    """

    name: str = "metric"
    score_range: Range | None = None
    lower_better: bool = False
    hard_bounds: Range | None = None
    min_size: int = 1
    is_random: bool = False
    num_samples: int | None = None
    certifiable: bool = False
    thread_safe: bool = False
    keeps_contract: bool = False
    weights_source: str | None = None

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score images ``(N, 3, H, W)`` in [0, 1]; returns ``(N,)`` in native units.

        Args:
            images: RGB images.
            image_ids: names that key the randomness of a random metric; plain metrics ignore them.
            generator: seeds a random metric in place of its own seed; plain metrics ignore it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, *, image_ids, generator)")

    def expected_scores(
        self, images: Tensor, draws: int, *, image_ids: Sequence[str] | None = None, seed: int = 0, first: int = 0
    ) -> Tensor:
        """Return the mean score ``(N,)`` over ``draws`` evaluations with fresh randomness, differentiable.

        What an attack follows (expectation over transformation, Athalye et al., ICML 2018). A metric that is not
        random is scored once.

        Args:
            images: ``(N, 3, H, W)``.
            draws: evaluations.
            image_ids: names that key the randomness.
            seed: of the evaluations; draws of other seeds are independent.
            first: number of the first evaluation, so that many can be asked for in parts.
        """
        if not self.is_random:
            return self(images, image_ids=image_ids)
        ids = [""] * len(images) if image_ids is None else image_ids
        scores = [
            self(images, image_ids=[f"attack|{seed}|{draw}|{name}" for name in ids])
            for draw in range(first, first + draws)
        ]
        return torch.stack(scores).mean(dim=0)

    def stops_gradient(self) -> str | None:
        """Return the name of the step that lets no gradient through, None where there is none known."""
        return None

    def stages(self, images: Tensor, image_ids: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return what a defense makes of images ``(N, 3, H, W)``, by name in order; empty where that is no picture."""
        return {}

    @property
    def trained_network(self) -> nn.Module | None:
        """The network that a training changes, None where there is nothing to train."""
        return None

    @property
    def purified_by(self) -> nn.Module | None:
        """The ``certiqa.defenses.Purifier`` that images pass first, None where there is none or are several."""
        return None

    @property
    def min_sides(self) -> tuple[int, int]:
        """Smallest (height, width) that it accepts: ``min_size`` twice, but behind a crop that is not square."""
        return self.min_size, self.min_size

    @property
    def range_width(self) -> float | None:
        """Width of ``score_range`` in native units, None where there is none."""
        return None if self.score_range is None else float(self.score_range[1] - self.score_range[0])

    @property
    def quality_sign(self) -> int:
        """+1 where a higher score means better quality, -1 where ``lower_better``."""
        return -1 if self.lower_better else 1

    def check_images(self, images: Tensor) -> None:
        """Raise UserError unless ``images`` is a float batch of RGB images of at least ``min_size``.

        Noise may leave [0, 1], so only a scale that no noise explains is refused, and only where looking at the values
        does not stop a GPU or the tracing of a graph.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            hint = ""
            if not images.is_floating_point():
                hint = "; divide 8-bit images by 255"
            elif images.ndim == 3:
                hint = "; add the batch axis: image[None]"
            elif images.ndim == 4 and images.shape[1] == 1:
                hint = "; repeat a grey image's channel: images.expand(-1, 3, -1, -1)"
            elif images.ndim == 4 and images.shape[3] == 3:
                hint = "; put the channels first: images.permute(0, 3, 1, 2)"
            raise UserError(
                f"metric '{self.name}' needs a float batch of shape (N, 3, H, W) in [0, 1], "
                f"got {images.dtype} of shape {tuple(images.shape)}{hint}"
            )
        height, width = images.shape[-2:]
        least_height, least_width = self.min_sides
        if height < least_height or width < least_width:
            raise UserError(
                f"metric '{self.name}' needs images of at least {least_height}x{least_width} pixels, "
                f"got {height}x{width}; use larger images or crops"
            )
        if images.device.type != "cpu" or not images.numel() or torch.compiler.is_compiling():
            return  # a graph that is traced, by torch.compile or torch.export, cannot depend on values
        largest = float(images.detach()[..., ::8, ::8].amax())  # enough to tell the scale
        if largest > LARGEST_PIXEL:
            raise UserError(
                f"metric '{self.name}' needs images in [0, 1], got a pixel of {largest:g}; divide images of "
                "the scale 0 to 255 by 255"
            )


class FrozenMetric(QualityMetric):
    """A network as a frozen metric: no parameter requires grad and ``train()`` leaves it in eval mode.

    Gradients still flow to the images. The network does its own preprocessing. Images of another float type than its
    weights' are converted, so scores are in the precision of the weights.

    Args:
        network: module ``(N, 3, H, W)`` -> ``(N,)`` or ``(N, 1)``.
        name: see ``QualityMetric``.
        score_range: see ``QualityMetric``.
        lower_better: see ``QualityMetric``.
        hard_bounds: see ``QualityMetric``.
        min_size: see ``QualityMetric``.
        weights_source: see ``QualityMetric``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str | None = None,
        score_range: Range | None = None,
        lower_better: bool = False,
        hard_bounds: Range | None = None,
        min_size: int = 1,
        weights_source: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name or type(network).__name__.lower()
        self.score_range = checked_range(self.name, score_range)
        self.lower_better = lower_better
        self.hard_bounds = hard_bounds
        self.min_size = min_size
        self.weights_source = weights_source
        self.requires_grad_(False)
        self.eval()

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score images; see ``QualityMetric.forward``."""
        self.check_images(images)
        scores = self.network(as_floats_of(self.network, images))
        if not isinstance(scores, Tensor) or scores.numel() != images.shape[0] or not scores.ndim:
            found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise UserError(
                f"metric '{self.name}' returned {found} for {images.shape[0]} images; "
                "it must return one score per image, a tensor of shape (N,) or (N, 1)"
            )
        return scores.reshape(images.shape[0])

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a metric under test must not update its statistics or drop units."""
        return super().train(False)


def as_floats_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return images in the float type that a network computes in, differentiably.

    That is float64 for weights of float64 and float32 for all others; a network without weights takes images as they
    are, and images of the very type of the weights stay so.
    """
    weights = next((value.dtype for value in network.parameters() if value.is_floating_point()), images.dtype)
    if images.dtype == weights:
        return images
    return images.to(torch.float64 if weights == torch.float64 else torch.float32)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are: what follows must not be rounded to half precision."""
    return values if values.dtype == torch.float64 else values.float()


def checked_range(name: str, score_range: Sequence[float] | None) -> Range | None:
    """Return a metric's nominal range as two floats; raises UserError unless both are finite and low < high."""
    if score_range is None:
        return None
    ends = [float(end) for end in score_range]
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
        raise UserError(
            f"score_range={tuple(score_range)} of metric '{name}' must be (low, high), both finite and low < high; "
            "None where there is none"
        )
    return ends[0], ends[1]


def as_metric(module: nn.Module) -> QualityMetric:
    """Return ``module`` if it is a QualityMetric, else wrap a plain ``nn.Module`` as a FrozenMetric.

    Raises:
        UserError: it is no module, or its ``score_range`` is no range.
    """
    if isinstance(module, QualityMetric):
        checked_range(module.name, module.score_range)
        return module
    if not isinstance(module, nn.Module):
        raise UserError(f"a metric must be a torch.nn.Module, got {type(module).__name__}")
    keywords = {
        key: getattr(module, key)
        for key in ("name", "score_range", "lower_better", "hard_bounds", "min_size", "weights_source")
        if hasattr(module, key)
    }
    metric = FrozenMetric(module, **keywords)
    metric.thread_safe = bool(getattr(module, "thread_safe", False))
    return metric
