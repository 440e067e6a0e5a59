"""What an attack sees of a metric: an objective to raise, its gradient, and how often both were asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from numbers import Number

import torch
from torch import Tensor

from certiqa.errors import UserError
from certiqa.metrics import QualityMetric

DIRECTIONS = ("raise", "lower", "away")
Direction = str | int | Tensor
THROUGH = ("mean", "median")
UNPUBLISHED_DRAWS = 20
"""Draws behind a score of a random metric whose published score is a single draw, where many are asked for."""

NEARLY = 1e-3  # share of the range within which a score is at its end


class Target:
    """A metric as an attack's objective ``J (N,)``, to be raised.

    Without target scores J is the score times a sign, as a share of the metric's range (plain units where it states
    none); with them it is minus the squared distance to the target, in the same units.

    Args:
        metric: the metric, defended or not.
        images: clean images ``(N, 3, H, W)``, which decide the direction "away".
        direction: "raise" (towards better quality), "lower", "away" (towards the farther end of the range), their
            aliases +1 and -1, or a tensor ``(N,)`` of such signs.
        targets: scores ``(N,)`` to reach instead, native units.
        image_ids: names that key the randomness of a random metric.
        seed: of that randomness, a stream of its own.
        eot_samples: evaluations of a random metric that one value averages (expectation over transformation); None for
            as many as its published score takes, see ``published_draws``.
        through: "mean" differentiates the mean of a smoothed metric's draws, "median" the median itself.
        watch: told after each pass how many images it scored, e.g. the ``update`` of a tqdm bar.

    Attributes:
        draws: evaluations of the metric behind one score: 1 unless it is random.
        forward_calls: images scored without a gradient; each draw of a random metric counts.
        gradient_calls: images scored with one, likewise; a gradient through the median counts its draws as forward
            calls and once here.
        failed: ``(N,)``, images that had a gradient or value that is not finite.
        flat: ``(N,)``, images that had a gradient of zero short of the best value there is.
        steepest: ``(N,)``, the largest l1 norm of the gradient of J.
        trace: J ``(N,)`` at each gradient of the whole batch.
    """

    def __init__(
        self,
        metric: QualityMetric,
        images: Tensor,
        direction: Direction = "raise",
        *,
        targets: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
        eot_samples: int | None = 1,
        through: str = "mean",
        watch: Callable[[int], object] | None = None,
    ) -> None:
        if not len(images):
            raise UserError(f"an attack needs at least one image, got a batch of shape {tuple(images.shape)}")
        if (eot_samples is not None and eot_samples < 1) or through not in THROUGH:
            raise UserError(
                f"attack.eot_samples must be at least 1 and attack.through one of {', '.join(THROUGH)}, "
                f"got {eot_samples} and '{through}'"
            )
        self.metric = metric
        self.image_ids = [str(row) for row in range(len(images))] if image_ids is None else list(image_ids)
        if len(self.image_ids) != len(images):
            raise UserError(f"{len(images)} images but {len(self.image_ids)} image ids; give one id per image")
        self.seed = seed
        self.through = through
        self.draws = 1 if eot_samples is None or not metric.is_random else eot_samples
        if eot_samples is None or through == "median":
            self.draws = published_draws(metric, through)
        self.watch = watch
        self.forward_calls = self.gradient_calls = 0
        self.failed = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.flat = torch.zeros_like(self.failed)
        self.steepest = torch.zeros(len(images), device=images.device)
        self.trace: list[Tensor] = []
        self._round = 0
        if targets is not None:
            check_targets(targets, len(images))
        self.targets = None if targets is None else targets.to(images)
        self.signs = torch.ones(len(images), device=images.device)
        if self.targets is None:
            self.signs = self._signs(images, direction)

    def __len__(self) -> int:
        return len(self.image_ids)

    def _signs(self, images: Tensor, direction: Direction) -> Tensor:
        """Return +1 where the native score is to rise, -1 where it is to fall, ``(N,)``."""
        if isinstance(direction, str) and direction == "away":
            if self.metric.score_range is None:
                raise UserError(
                    f"direction 'away' means towards the farther end of the range, but metric '{self.metric.name}' "
                    "states no score_range; use raise or lower"
                )
            middle = sum(self.metric.score_range) / 2
            return torch.where(self.scores(images) > middle, -1.0, 1.0)
        aliases = {"raise": 1, "lower": -1, 1: 1, -1: -1}
        if isinstance(direction, Tensor):
            signs = direction.to(images)
            if signs.shape != (len(images),) or not bool((signs.abs() == 1).all()):
                raise UserError(f"a tensor of directions must hold +1 or -1 for each of the {len(images)} images")
        elif isinstance(direction, str | Number) and direction in aliases:
            signs = torch.full((len(images),), float(aliases[direction]), device=images.device)
        else:
            raise UserError(
                f"no direction '{direction}'; there are: {', '.join(DIRECTIONS)}, +1 and -1, or a tensor (N,) of such "
                "signs"
            )
        return signs * self.metric.quality_sign

    def _at_its_best(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """Return where J is as good as it can be, so that no gradient is to be expected, ``(n,)``."""
        if self.targets is not None:
            return values > -(NEARLY**2)
        if self.metric.hard_bounds is None:
            return torch.zeros_like(values, dtype=torch.bool)
        ends = torch.tensor(self.metric.hard_bounds, device=values.device) / (self.metric.range_width or 1.0)
        return values > (self.signs[list(rows)][:, None] * ends).amax(dim=1) - NEARLY

    # -- scores --------------------------------------------------------------------------------------------

    def _score(self, images: Tensor, rows: Sequence[int], salt: int, only: int | None = None) -> Tensor:
        """Return native scores ``(n,)``; of a random metric's draws ``only`` one, or the mean of all."""
        ids = [self.image_ids[row] for row in rows]
        if not self.metric.is_random:
            return self.metric(images, image_ids=ids)
        key = hashlib.blake2b(f"attack|{self.seed}|{salt}".encode(), digest_size=7).digest()
        seed = int.from_bytes(key, "little")
        if self.through == "median":
            generator = torch.Generator().manual_seed(seed)
            return self.metric(images, image_ids=ids, generator=generator)
        if only is not None:
            return self.metric.expected_scores(images, 1, image_ids=ids, seed=seed, first=only)
        return self.metric.expected_scores(images, self.draws, image_ids=ids, seed=seed)

    def _value(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        width = self.metric.range_width or 1.0
        chosen = list(rows)
        if self.targets is not None:
            return -(((scores - self.targets[chosen]) / width) ** 2)
        return self.signs[chosen] * scores / width

    @torch.no_grad()
    def scores(self, images: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Return native scores ``(n,)`` of images that belong to ``rows``; the same randomness at every call."""
        rows = range(len(self)) if rows is None else rows
        self.forward_calls += len(rows) * self.draws
        return self._told(self._score(images, rows, salt=-1))

    def values(self, images: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Return J ``(n,)`` without gradients; the same randomness at every call, so that values can be compared."""
        rows = range(len(self)) if rows is None else rows
        return self._value(self.scores(images, rows), rows)

    def objective(self, images: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Return J ``(n,)`` with gradients to ``images``; fresh randomness at every call."""
        rows = range(len(self)) if rows is None else rows
        self._count_gradients(len(rows))
        self._round += 1
        with torch.enable_grad():
            return self._told(self._value(self._score(images, rows, salt=self._round), rows))

    def _count_gradients(self, images: int) -> None:
        through_median = self.through == "median" and self.draws > 1
        self.gradient_calls += images * (1 if through_median else self.draws)
        self.forward_calls += images * self.draws if through_median else 0

    def _told(self, answer: Tensor) -> Tensor:
        if self.watch is not None:
            self.watch(len(answer))
        return answer

    def gradient(self, images: Tensor, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return (J ``(n,)``, gradient of the sum of J), one row per image; see ``differentiate``."""
        whole = rows is None
        rows = range(len(self)) if rows is None else rows
        scores, slope = self._slopes(images, rows)
        with torch.enable_grad():
            inner = scores.clone().requires_grad_(True)
            values = self._value(inner, rows)
            (rate,) = torch.autograd.grad(values.sum(), inner)
        values = values.detach()
        gradient = self._sound(rate.view(-1, *([1] * (slope.ndim - 1))) * slope, values, rows)
        chosen = list(rows)
        self.flat[chosen] |= (gradient.flatten(1) == 0).all(dim=1) & ~self._at_its_best(values, chosen)
        self.steepest[chosen] = self.steepest[chosen].maximum(gradient.flatten(1).abs().sum(dim=1).float())
        if whole:
            self.trace.append(values)
        return values, gradient

    def score_gradient(self, images: Tensor, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return (native scores ``(n,)``, gradient of their sum), whatever direction or targets say."""
        rows = range(len(self)) if rows is None else rows
        scores, slope = self._slopes(images, rows)
        gradient = self._sound(slope, scores, rows)
        self.flat[list(rows)] |= (gradient.flatten(1) == 0).all(dim=1)
        return scores, gradient

    def _slopes(self, images: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (native scores, gradient of their sum) with fresh randomness.

        Draws of a random metric are differentiated one after another: the memory is that of one.
        """
        self._round += 1
        self._count_gradients(len(rows))
        draws = self.draws if self.through == "mean" else 1
        scores, slope = torch.zeros(len(rows), device=images.device), torch.zeros_like(images)
        for draw in range(draws):
            probe = images.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                part = self._score(probe, rows, salt=self._round, only=draw)
                gradient = self._differentiated(part, probe)
            scores = scores + part.detach() / draws
            slope = slope + gradient / draws
        return self._told(scores), slope

    def differentiate(self, values: Tensor, parameters: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Return the gradient of ``values.sum()`` by parameters ``(n, ...)``, one row per image.

        What is not finite is set to zero and its image marked in ``failed``, so that others go on.

        Raises:
            UserError: no gradient arrives, with the step that stops it where the defense knows.
        """
        gradient = self._sound(self._differentiated(values, parameters), values.detach(), rows)
        chosen = list(range(len(self)) if rows is None else rows)
        self.flat[chosen] |= (gradient.flatten(1) == 0).all(dim=1) & ~self._at_its_best(values.detach(), chosen)
        return gradient

    def _differentiated(self, values: Tensor, parameters: Tensor) -> Tensor:
        if not values.requires_grad:
            raise UserError(self._no_gradient())
        with torch.enable_grad():  # callers may have switched gradients off
            (gradient,) = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
        if gradient is None:
            raise UserError(self._no_gradient())
        return gradient

    def _sound(self, gradient: Tensor, values: Tensor, rows: Sequence[int] | None) -> Tensor:
        """Return a gradient with zeros for what is not finite, whose images are marked."""
        chosen = list(range(len(self)) if rows is None else rows)
        finite = gradient.flatten(1).isfinite().all(dim=1) & values.isfinite()
        self.failed[chosen] |= ~finite
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def _no_gradient(self) -> str:
        step = self.metric.stops_gradient()
        where = f"its step '{step}' stops it" if step else "it is detached somewhere inside"
        return (
            f"no gradient comes through metric '{self.metric.name}': {where}. Give that step a backward pass (BPDA: "
            "defense.backward=identity), or use a black-box attack, e.g. attack=square"
        )


def published_draws(metric: QualityMetric, through: str = "mean") -> int:
    """Return how many evaluations show what a random metric publishes: the ``num_samples`` of a smoothed one.

    The published score of another random metric is a single evaluation. Its "median" is that evaluation; for its
    "mean" ``UNPUBLISHED_DRAWS`` stand in, since an image that suits one draw need not suit the next.
    """
    if not metric.is_random:
        return 1
    return metric.num_samples or (1 if through == "median" else UNPUBLISHED_DRAWS)


def check_targets(targets: Tensor, count: int) -> None:
    """Raise UserError unless ``targets`` are a tensor ``(count,)`` of finite scores."""
    if not isinstance(targets, Tensor) or targets.shape != (count,) or not bool(torch.isfinite(targets).all()):
        given = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise UserError(f"targets must be a tensor of one finite score per image, {count} of them, got {given}")
