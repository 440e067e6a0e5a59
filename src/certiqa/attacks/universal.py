"""One pattern for all images: fitted once on training images, saved, and added to any image at no cost."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from certiqa.attacks.base import Attack
from certiqa.attacks.loading import batches, shown
from certiqa.attacks.parts import tile
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, as_metric
from certiqa.metrics.weights import read_weights
from certiqa.options import Budget, PositiveInt, PositiveShare, Step, Through
from certiqa.storage.files import CHECKSUM, write_aside


class UniversalAttack(Attack):
    """Base of attacks with one pattern v, ``|v| <= eps``: the attacked image is ``clip(x + amplitude * tile(v))``.

    The pattern is repeated and cropped to an image's size. ``fit`` makes it, by the metric's gradients;
    ``load`` reads a saved one; applying it asks the metric nothing. Subclasses say how a step changes it.

    Args:
        eps: bound of the pattern, in [0, 1] pixel units.
        size: side of the pattern in pixels.
        epochs: passes over the training images.
        lr: of the optimiser, see each attack.
        batch_size: split larger batches of the loader into steps of so many images; None takes them as they come.
        amplitude: factor on the pattern where it is applied, in (0, 1]; not in training.
        pattern_file: a saved pattern to start with, see ``load``.
        eot_samples: see ``Target``.
        through: see ``Target``.

    Attributes:
        pattern: ``(1, 3, size, size)``, None before ``fit`` or ``load``.
        facts: what the pattern was fitted for, as it is saved.
    """

    name = "universal"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        size: PositiveInt = 256,
        epochs: PositiveInt = 5,
        lr: Step = 1e-3,
        batch_size: PositiveInt | None = None,
        amplitude: PositiveShare = 1.0,
        pattern_file: str | Path | None = None,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        if not 0 < amplitude <= 1:
            raise UserError(
                f"attack.amplitude of {self.name} must be above 0 and at most 1, a share of eps, got {amplitude}; for "
                "more, fit a pattern with a larger attack.eps"
            )
        self.size = self.at_least("size", size, 1)
        self.epochs = self.at_least("epochs", epochs, 1)
        self.lr = self.above_zero("lr", lr)
        self.batch_size = None if batch_size is None else self.at_least("batch_size", batch_size, 1)
        self.amplitude = float(amplitude)
        self.pattern: Tensor | None = None
        self.facts: dict[str, str] = {}
        if pattern_file is not None:
            self.load(pattern_file)

    # -- training ------------------------------------------------------------------------------------------

    def fit(
        self,
        metric: QualityMetric,
        loader: Iterable[Any],
        direction: str = "raise",
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Make the pattern that moves the mean score of training images most.

        The metric stays as it is: no parameter of it gets a gradient. Two runs on the same batches and seed give the
        same pattern; the seed also serves a loader that shuffles by torch's own generator.

        Args:
            metric: the metric, defended or not.
            loader: yields batches, dicts with "image" ``(N, 3, H, W)`` in [0, 1] and "image_id", or tensors; gone
                through once per epoch. Its images must not be those that the attack is judged on.
            direction: "raise" or "lower".
            seed: of all randomness.
            progress: show a bar, where there is a terminal.

        Raises:
            UserError: another direction, a loader without images or used up, a metric without gradients.
        """
        if direction not in ("raise", "lower"):
            raise UserError(
                f"{self.name} has one pattern for all images, so all scores must go one way: direction must be raise "
                f"or lower, got '{direction}'; fit two patterns, or use an attack per image"
            )
        metric = as_metric(metric)
        device = next((tensor.device for tensor in _tensors(metric)), torch.device("cpu"))
        accelerators = [device] if device.type == "cuda" else []
        steps = failed = 0
        with torch.random.fork_rng(devices=accelerators), torch.enable_grad():
            torch.manual_seed(seed)
            self.begin(device, seed)
            for epoch in range(self.epochs):
                passed = shown(loader, f"{self.name}, pass {epoch + 1} of {self.epochs}", progress)
                before = steps
                for images, ids in batches(passed, self.batch_size):
                    # a seed per step: fresh draws of a random metric
                    target = Target(
                        metric,
                        images.to(device),
                        direction,
                        image_ids=ids,
                        seed=seed * 1_000_003 + steps,
                        eot_samples=self.eot_samples,
                        through=self.through,
                    )
                    self.step(target, images.to(device))
                    steps += 1
                    failed += int(target.failed.sum())
                if steps == before:
                    raise UserError(
                        f"the loader of {self.name}.fit gave no images in pass {epoch + 1} of {self.epochs}; give a "
                        "DataLoader or a list of batches, which can be gone through again, with images in it"
                    )
            pattern = self.finish().detach().clamp(-self.eps, self.eps)
        self.pattern = pattern
        self.facts = {
            "attack": self.name,
            "eps": repr(self.eps),
            "size": str(self.size),
            "metric": metric.name,
            "direction": direction,
            "seed": str(seed),
            "steps": str(steps),
        }
        if failed:
            warnings.warn(f"{self.name}: {failed} gradients were not finite and left out of training", stacklevel=2)
        reached = float(pattern.abs().amax()) / self.eps
        if reached < 0.1:
            warnings.warn(
                f"{self.name}: after {steps} steps the pattern reaches {reached:.1%} of eps; raise attack.lr "
                f"({self.lr:g}) or train for more epochs ({self.epochs})",
                stacklevel=2,
            )
        return self

    def begin(self, device: torch.device, seed: int) -> None:
        """Set up what is trained, under a seeded generator."""
        raise NotImplementedError(f"{type(self).__name__} must define begin(device, seed)")

    def step(self, target: Target, images: Tensor) -> None:
        """Change it once, by a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define step(target, images)")

    def finish(self) -> Tensor:
        """Return the pattern ``(1, 3, size, size)``."""
        raise NotImplementedError(f"{type(self).__name__} must define finish()")

    def loss(self, target: Target, images: Tensor, pattern: Tensor) -> Tensor:
        """Return a scalar whose gradient is that of minus the batch's mean J by the pattern.

        The gradient is taken by image first, so that an image whose gradient is not finite is left out.
        """
        attacked = (images + tile(pattern, *images.shape[-2:])).clamp(0, 1)
        _, gradient = target.gradient(attacked)
        return -(attacked * gradient).sum() / len(images)

    # -- use -----------------------------------------------------------------------------------------------

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return images with the pattern on them.

        Raises:
            UserError: no pattern yet, or one that was fitted for the other direction.
        """
        if self.pattern is None:
            raise UserError(
                f"{self.name} has no pattern yet: call fit(metric, loader) on training images, or load(path) a saved "
                "one (attack.pattern_file)"
            )
        fitted = 1 if self.facts["direction"] == "raise" else -1
        asked = target.signs * target.metric.quality_sign
        if target.targets is not None or not bool((asked == fitted).all()):
            raise UserError(
                f"the pattern of {self.name} was fitted to {self.facts['direction']} all scores; use "
                f"direction={self.facts['direction']}, or fit one for what is asked"
            )
        pattern = self.pattern.to(images)
        return (images + self.amplitude * tile(pattern, *images.shape[-2:])).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the pattern as safetensors with ``facts`` as metadata; raises UserError where there is none."""
        if self.pattern is None:
            raise UserError(f"{self.name} has no pattern to save; call fit(metric, loader) first")
        pattern = self.pattern.cpu().contiguous()
        with write_aside(path) as partial:
            save_file({"pattern": pattern}, partial, metadata=self.facts | {CHECKSUM: _checksum(pattern, self.facts)})

    def load(self, path: str | Path) -> Self:
        """Read a saved pattern.

        Raises:
            UserError: no pattern in the file, one that is not as it was written, or one of another attack, size or eps.
        """
        state, facts = read_weights(path)
        said = facts.pop(CHECKSUM, None)  # older files have none
        if said is not None and said != _checksum(state.get("pattern"), facts):
            raise UserError(f"'{path}' is not as it was written; fit the pattern again")
        if "pattern" not in state or not {"attack", "eps", "size", "direction"} <= facts.keys():
            raise UserError(f"'{path}' holds no universal pattern; give a file that {self.name}.save wrote")
        if facts["attack"] != self.name:
            raise UserError(
                f"the pattern in '{path}' is of attack '{facts['attack']}', not '{self.name}'; use that one"
            )
        pattern = state["pattern"]
        if tuple(pattern.shape) != (1, 3, self.size, self.size):
            raise UserError(
                f"the pattern in '{path}' is {'x'.join(map(str, pattern.shape[-2:]))} pixels, but attack.size is "
                f"{self.size}; set attack.size={pattern.shape[-1]}, or fit one of {self.size}"
            )
        eps = float(facts["eps"])
        if abs(eps - self.eps) > 1e-6:
            raise UserError(
                f"the pattern in '{path}' was fitted for eps={eps:g}, but attack.eps is {self.eps:g}; set that, and "
                "scale the pattern by attack.amplitude"
            )
        self.pattern, self.facts = pattern.float().clamp(-self.eps, self.eps), dict(facts)
        return self


def _checksum(pattern: Tensor | None, facts: Mapping[str, str]) -> str:
    content = b"" if pattern is None else pattern.numpy().tobytes()
    return f"{zlib.crc32(content + json.dumps(dict(facts), sort_keys=True).encode()):08x}"


def _tensors(metric: QualityMetric) -> Iterator[Tensor]:
    yield from metric.parameters()
    yield from metric.buffers()
