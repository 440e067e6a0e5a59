"""Verify that a user's metric keeps the contract the rest of the house relies on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from certiqa.errors import UserError, first_line
from certiqa.metrics.base import QualityMetric, as_metric


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

    def raise_on_failure(self) -> None:
        """Raise UserError that lists every failure."""
        if self.failures:
            problems = "\n".join(f"  {name}: {reason}" for name, reason in self.failures.items())
            raise UserError(f"metric '{self.name}' breaks the contract of a quality metric:\n{problems}")


def check_metric(metric: nn.Module, *, size: int | None = None, defended: bool = False, seed: int = 0) -> MetricCheck:
    """Check that a metric can be certified, attacked and trained through.

    A base metric must be frozen (no parameter requires grad, eval mode survives ``train()``),
    deterministic, independent of the batch, differentiable to the input, finite, one score per image, and within
    its hard bounds. A defended metric may be random (``is_random``), but the same image id must give the same
    score, alone or in a batch.

    Args:
        metric: a QualityMetric, or a plain module ``(N, 3, H, W)`` -> ``(N,)``.
        size: side of the probe images in pixels; default the larger of 64 and the metric's min_size.
        defended: check the contract of a defended metric.
        seed: seeds the probe images.

    Returns:
        a MetricCheck; call ``raise_on_failure()`` to turn failures into an error.
    """
    wrapped = as_metric(metric)
    report = MetricCheck(wrapped.name)
    side = size or max(64, wrapped.min_size)
    device = next((tensor.device for tensor in wrapped.state_dict().values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    low_pass = torch.rand(2, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(low_pass, size=(side, side), mode="bicubic", align_corners=False)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1).to(device)
    ids = [f"probe-{index}" for index in range(len(images))]

    def score(batch: Tensor, batch_ids: list[str]) -> Tensor:
        return wrapped(batch, image_ids=batch_ids)

    def record(name: str, failure: str | None) -> None:
        if failure is None:
            report.passed.append(name)
        else:
            report.failures[name] = failure

    with torch.no_grad():
        try:
            together = score(images, ids)
        except UserError as error:
            record("one score per image", str(error))
            return report
        except (RuntimeError, ValueError, AssertionError) as error:  # by which networks refuse a size
            problem = f"could not score {side}x{side} probe images: {first_line(error)}"
            record("one score per image", f"{problem}; set min_size to the smallest side that it takes")
            return report
        shape = tuple(together.shape) if isinstance(together, Tensor) else None
        record(
            "one score per image",
            None if shape == (2,) else f"returned {shape or type(together).__name__} for 2 images, not shape (2,)",
        )
        if shape != (2,):
            return report
        finite = bool(torch.isfinite(together).all())
        record("finite", None if finite else f"scores {together.tolist()} on valid images")
        if not finite:
            return report
        scale = wrapped.range_width or max(1.0, float(together.abs().max()))
        tolerance = 1e-4 * scale
        again = score(images, ids)
        drift = float((again - together).abs().max())
        record(
            "deterministic",
            None
            if drift <= tolerance
            else f"the same images scored {drift:.3g} apart at the second call; fix its crops or seed it per image id",
        )
        alone = torch.cat([score(images[i : i + 1], ids[i : i + 1]) for i in range(len(ids))])
        mixed = score(images.flip(0), ids[::-1]).flip(0)
        gap = float(torch.maximum((alone - together).abs(), (mixed - together).abs()).max())
        record(
            "independent of the batch",
            None if gap <= tolerance else f"an image scores {gap:.3g} apart alone and in a batch, or in another order",
        )
        if wrapped.hard_bounds is not None:
            low, high = wrapped.hard_bounds
            extremes = torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0]), *images])
            values = score(extremes, ["black", "white", *ids])
            inside = bool(((values >= low) & (values <= high)).all())
            record("hard bounds", None if inside else f"scores {values.tolist()} leave {wrapped.hard_bounds}")

    probe = images.clone().requires_grad_(True)
    with torch.enable_grad():
        total = score(probe, ids).sum()
        if total.requires_grad:
            total.backward()
    gradient = probe.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()) or float(gradient.abs().max()) == 0:
        state = "no" if gradient is None else ("a non-finite" if not gradient.isfinite().all() else "a zero")
        record("differentiable", f"{state} gradient reaches the images; attacks and DMS-IQA need one (is it detached?)")
    else:
        record("differentiable", None)

    if not defended:
        frozen = not any(parameter.requires_grad for parameter in wrapped.parameters())
        record("frozen", None if frozen else "parameters require grad; call metric.requires_grad_(False)")
        was_training = any(module.training for module in wrapped.modules())
        wrapped.train()
        stays = not any(module.training for module in wrapped.modules())
        wrapped.train(was_training)
        record("eval mode", None if stays else "train() puts it in training mode; derive it from FrozenMetric")
        if wrapped.is_random:
            record("not random", "a base metric must not be random; fix its crops, or average over fixed ones")
    return report


def require_metric(metric: nn.Module) -> QualityMetric:
    """Wrap and check a base metric; raises UserError if it breaks the contract.

    Those of this project are checked by its tests, not again before every run.
    """
    wrapped = as_metric(metric)
    if not wrapped.keeps_contract:
        check_metric(wrapped).raise_on_failure()
    return wrapped
