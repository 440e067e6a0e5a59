"""Verify that a user's metric keeps the contract the rest of the house relies on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from certiqa.errors import UserError, first_line
from certiqa.metrics.base import QualityMetric, as_metric

Size = tuple[int, int]
MOST_PIXELS = 1 << 22
"""Of a probe image, where a run tests larger ones: two of them, scored at once, must fit the memory."""


@dataclass
class MetricCheck:
    """What ``check_metric`` found: ``passed`` names, and ``failures`` as name -> what is wrong."""

    name: str
    passed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def record(self, name: str, failure: str | None) -> None:
        """Keep the outcome of a check at one size: it passes if it does at all, and its first failure is told."""
        if failure is not None:
            self.failures.setdefault(name, failure)
        self.passed = [other for other in dict.fromkeys([*self.passed, name]) if other not in self.failures]

    def raise_on_failure(self) -> None:
        """Raise UserError that lists every failure."""
        if self.failures:
            problems = "\n".join(f"  {name}: {reason}" for name, reason in self.failures.items())
            raise UserError(f"metric '{self.name}' breaks the contract of a quality metric:\n{problems}")


def check_metric(
    metric: nn.Module,
    *,
    sizes: Iterable[Size] | None = None,
    size: int | None = None,
    gradient: bool = True,
    defended: bool = False,
    seed: int = 0,
) -> MetricCheck:
    """Check that a metric can be certified, attacked and trained through.

    A base metric must be frozen (no parameter requires grad, eval mode survives ``train()``),
    deterministic, independent of the batch, differentiable to the input, finite, one score per image, and within
    its hard bounds. A defended metric may be random (``is_random``), but the same image id must give the same
    score, alone or in a batch. Nothing that the metric does is raised: it is reported.

    Args:
        metric: a QualityMetric, or a plain module ``(N, 3, H, W)`` -> ``(N,)``.
        sizes: (height, width) of the probe images in pixels: give those of the images to be tested, since what a metric
            does may depend on the size (random crops of images beyond 224 pixels, say). Default: a square of 64 pixels
            or its min_size, and 256x320.
        size: side of square probe images, in place of ``sizes``.
        gradient: whether it must be differentiable, which attacks that use gradients and training through it need.
        defended: check the contract of a defended metric.
        seed: seeds the probe images.

    Returns:
        a MetricCheck; call ``raise_on_failure()`` to turn failures into an error.

    >>> from certiqa.metrics import load_metric
    >>> check_metric(load_metric("mini"), sizes=[(224, 224), (96, 128)]).ok
    True
    """
    wrapped = as_metric(metric)
    report = MetricCheck(wrapped.name)
    side = size or max(64, wrapped.min_size)
    default = [(side, side)] if size else [(side, side), (max(256, side), max(320, side))]
    chosen = sorted(set(default if sizes is None else sizes), key=lambda each: each[0] * each[1])
    device = next((tensor.device for tensor in wrapped.state_dict().values()), torch.device("cpu"))
    for place, each in enumerate(chosen):
        try:
            check_scores(wrapped, report, probe_images(each, seed).to(device), thorough=place == 0)
        except UnscoredError as error:
            advice = "; where it takes no such images, give the sizes that you test" if place and not sizes else ""
            report.record("one score per image", f"{error}{advice}")
    if "one score per image" in report.failures or "finite" in report.failures:
        return report
    if gradient:
        report.record("differentiable", gradient_failure(wrapped, probe_images(chosen[0], seed).to(device)))
    if not defended:
        frozen = not any(parameter.requires_grad for parameter in wrapped.parameters())
        report.record("frozen", None if frozen else "parameters require grad; call metric.requires_grad_(False)")
        was_training = any(module.training for module in wrapped.modules())
        wrapped.train()
        stays = not any(module.training for module in wrapped.modules())
        wrapped.train(was_training)
        report.record("eval mode", None if stays else "train() puts it in training mode; derive it from FrozenMetric")
        if wrapped.is_random:
            report.record("not random", "a base metric must not be random; fix its crops, or average over fixed ones")
    return report


class UnscoredError(Exception):
    """A metric gave no scores for probe images; the text says why."""


def probe_images(size: Size, seed: int) -> Tensor:
    """Return two smooth images ``(2, 3, H, W)`` with some noise."""
    generator = torch.Generator().manual_seed(seed)
    low_pass = torch.rand(2, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(low_pass, size=size, mode="bicubic", align_corners=False)
    return (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def probe_ids(images: Tensor) -> list[str]:
    """Return a name for each probe image."""
    return [f"probe-{index}" for index in range(len(images))]


def scores_of(metric: QualityMetric, images: Tensor, ids: Sequence[str]) -> Tensor:
    """Return scores ``(N,)``; raises UnscoredError for anything else that the metric does or returns."""
    height, width = images.shape[-2:]
    try:
        scores = metric(images, image_ids=ids)
    except UserError as error:
        raise UnscoredError(str(error)) from error
    except Exception as error:  # networks refuse a size, or a batch of one, by whatever happens to fail in them
        count = "" if len(images) == 2 else f"{len(images)} "
        problem = f"could not score {count}{height}x{width} probe images: {first_line(error)}"
        raise UnscoredError(f"{problem}; set min_size to the smallest side that it takes") from error
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(images),):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UnscoredError(
            f"returned {found} for {len(images)} images of {height}x{width} pixels, not shape ({len(images)},)"
        )
    return scores


@torch.no_grad()
def check_scores(metric: QualityMetric, report: MetricCheck, images: Tensor, *, thorough: bool) -> None:
    """Record what can be seen of a metric's scores of two images of one size; ``thorough`` tries its bounds too."""
    ids = probe_ids(images)
    at = f" ({images.shape[-2]}x{images.shape[-1]} pixels)"
    together = scores_of(metric, images, ids)
    report.record("one score per image", None)
    finite = bool(torch.isfinite(together).all())
    report.record("finite", None if finite else f"scores {together.tolist()} on valid images{at}")
    if not finite:
        return
    tolerance = 1e-4 * (metric.range_width or max(1.0, float(together.abs().max())))
    drift = float((scores_of(metric, images, ids) - together).abs().max())
    report.record(
        "deterministic",
        None
        if drift <= tolerance
        else f"the same images scored {drift:.3g} apart at the second call{at}; fix its crops or seed it per image id",
    )
    alone = torch.cat([scores_of(metric, images[i : i + 1], ids[i : i + 1]) for i in range(len(ids))])
    mixed = scores_of(metric, images.flip(0), ids[::-1]).flip(0)
    gap = float(torch.maximum((alone - together).abs(), (mixed - together).abs()).max())
    report.record(
        "independent of the batch",
        None if gap <= tolerance else f"an image scores {gap:.3g} apart alone and in a batch, or in another order{at}",
    )
    if thorough and metric.hard_bounds is not None:
        low, high = metric.hard_bounds
        extremes = torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0]), *images])
        values = scores_of(metric, extremes, ["black", "white", *ids])
        inside = bool(((values >= low) & (values <= high)).all())
        report.record("hard bounds", None if inside else f"scores {values.tolist()} leave {metric.hard_bounds}")


def gradient_failure(metric: QualityMetric, images: Tensor) -> str | None:
    """Say what is wrong with the gradient that reaches images, None where it is sound."""
    probe = images.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            total = metric(probe, image_ids=probe_ids(images)).sum()
            if total.requires_grad:
                total.backward()
    except Exception as error:  # NumPy, for one, takes no tensor that has a gradient
        return f"no gradient can be taken: {first_line(error)}; {GRADIENT_NEEDED}"
    gradient = probe.grad
    if gradient is not None and bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0:
        return None
    state = "no" if gradient is None else ("a non-finite" if not gradient.isfinite().all() else "a zero")
    return f"{state} gradient reaches the images (is it detached?); {GRADIENT_NEEDED}"


GRADIENT_NEEDED = (
    "attacks that use gradients need one, and so does training through the metric (DMS-IQA); certificates and "
    "black-box attacks, e.g. attack=square, do without"
)


def probed_sizes(sizes: Iterable[Size]) -> list[Size]:
    """Return which of the tested sizes to probe: the smallest, the largest and the most oblong."""
    distinct = sorted(set(sizes), key=lambda size: size[0] * size[1])
    feasible = [size for size in distinct if size[0] * size[1] <= MOST_PIXELS] or distinct[:1]
    oblong = max(feasible, key=lambda size: max(size) / min(size), default=None)
    return list(dict.fromkeys([*feasible[:1], *feasible[-1:], *([oblong] if oblong else [])]))


def require_metric(metric: nn.Module, *, sizes: Iterable[Size] | None = None, gradient: bool = True) -> QualityMetric:
    """Wrap and check a base metric; raises UserError if it breaks the contract.

    Those of this project are checked by its tests, not again before every run.

    Args:
        metric: see ``check_metric``.
        sizes: (height, width) of the images to be tested; default those of ``check_metric``.
        gradient: whether an attack or a training needs its gradient.
    """
    wrapped = as_metric(metric)
    if not wrapped.keeps_contract:
        chosen = None if sizes is None else probed_sizes(sizes)
        check_metric(wrapped, sizes=chosen or None, gradient=gradient).raise_on_failure()
    return wrapped
