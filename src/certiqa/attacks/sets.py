"""Attacks on the ranking of a whole set: what is wanted of an image depends on the scores of all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Number
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from certiqa.attacks.base import Attack, AttackResult, per_image
from certiqa.attacks.gradient import Best
from certiqa.attacks.parts import Sign, UnitL2, onto_sphere, project_linf
from certiqa.attacks.planning import check_mos, check_scores
from certiqa.attacks.set_batches import Survey, again, device_of, set_batches
from certiqa.attacks.target import Direction, Target, check_targets
from certiqa.errors import UserError, suggest
from certiqa.metrics import QualityMetric, as_metric
from certiqa.options import Choices, Length, PositiveInt, Range, Step, Through

Array = NDArray[np.float64]
REFERENCES = ("scores", "mos")
PAPER_RANGE = (0.0, 100.0)
SLACK = 1e-5  # share of the range by which rounding may move a score
NOISE_SLACK = 0.05  # and by which the draws of a random metric may


@dataclass
class Share:
    """One batch of an attacked set: what it was, what came of it, and the targets ``(N,)`` where there were any."""

    image_ids: list[str]
    images: Tensor
    result: AttackResult
    targets: Tensor | None = None


class SetAttack(Attack):
    """Base of attacks on the ranking of a set, which decide for each image from the scores of all.

    ``craft_set`` goes over a set of any size, in batches of any size and order, and holds one batch in memory at a
    time. Calling the attack on a tensor takes that batch for the whole set, unless it is given ``targets``. There is
    no direction: some images rise, others fall.

    The second stage drives every image to its target: signed steps (of unit l2 norm in an l2 ball) towards it, and
    once the score has passed the target, halving between the last two iterates, which costs no gradient. The iterate
    nearest to the target is returned, in l_inf never farther than the clean image; in l2 the clean image itself is
    returned only where it stands at its target. Single scores of a random metric do not tell whether a target is
    passed, nor which iterate is nearest: on it the steps go on back and forth, and the last iterate is returned.

    Args:
        eps: radius of the ball, in [0, 1] pixel units.
        steps: looks at the score of every image, each with a gradient until the target is passed.
        step_size: of each step; default eps / 5, in l2 2.5 * eps / steps.
        reference: whose order is to be turned round: the metric's own clean "scores", or "mos".
        score_range: least and greatest target, widened where the clean scores leave it; None for the metric's nominal
            range, or where it has none the least and greatest clean score.
        halve: halve after passing the target; False steps back and forth, as the paper does and as is done on random
            metrics in any case.
        dither: round to 8 bits by a fixed pattern of thresholds, which keeps small changes on average where plain
            rounding takes all or none of them; and look at the rounded image in every step, since that is scored.
        score_samples: draws that one score of a random metric averages, where scores are compared.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    name = "set"

    def __init__(
        self,
        eps: Length | None = 4 / 255,
        *,
        steps: PositiveInt = 10,
        step_size: Step | None = None,
        reference: Annotated[str, Choices("scores", "mos")] = "scores",
        score_range: Range | None = None,
        halve: bool = True,
        dither: bool = True,
        score_samples: PositiveInt = 20,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        if reference not in REFERENCES:
            raise UserError(
                f"attack.reference must be one of {', '.join(REFERENCES)}, got '{reference}'"
                f"{suggest(str(reference), REFERENCES)}"
            )
        if score_range is not None and (len(score_range) != 2 or not score_range[0] < score_range[1]):
            raise UserError(f"attack.score_range must be [low, high] with low < high, e.g. [0, 100], got {score_range}")
        self.steps = self.at_least("steps", steps, 1)
        usual = min(self.eps, 2.5 * self.eps / self.steps) if self.norm == "l2" else self.eps / 5
        self.step_size = usual if step_size is None else self.above_zero("step_size", step_size)
        self.reference = reference
        self.score_range = None if score_range is None else (float(score_range[0]), float(score_range[1]))
        self.halve = halve
        self.dither = dither and self.rounds
        self.score_samples = self.at_least("score_samples", score_samples, 1)

    # -- first stage ---------------------------------------------------------------------------------------

    def plan(self, scores: ArrayLike, mos: ArrayLike | None = None, *, score_range: Range | None = None) -> Tensor:
        """Return the score ``(n,)`` that every image is to get.

        Args:
            scores: clean scores ``(n,)`` of all images of the set.
            mos: opinion scores ``(n,)``, higher for images whose score should be higher; used with reference "mos".
            score_range: least and greatest target; default the option of that name, else 0 to 100. A range that is
                given is nominal: it is widened where the clean scores leave it.

        Raises:
            UserError: fewer than three images, scores that are constant or not finite, opinion scores that are missing
                or of another length, scores outside 0 to 100 without a range.
        """
        clean = check_scores(scores, ranked=self.reference == "scores")
        opinions = check_mos(mos, len(clean)) if self.reference == "mos" else None
        return torch.from_numpy(self.targets(clean, opinions, self.span(clean, score_range)))

    def targets(self, scores: Array, mos: Array | None, span: Range) -> Array:
        """Return targets ``(n,)`` of checked scores; ``mos`` is None where the scores are the reference."""
        raise NotImplementedError(f"{type(self).__name__} must define targets(scores, mos, span)")

    def span(self, scores: Array, score_range: Range | None = None) -> Range:
        """Return the least and greatest target."""
        given = score_range or self.score_range
        low, high = float(scores.min()), float(scores.max())
        if given is None:
            if low < PAPER_RANGE[0] or high > PAPER_RANGE[1]:
                raise UserError(
                    f"the scores go from {low:g} to {high:g}, outside 0 to 100; give their scale with "
                    "score_range=(low, high)"
                )
            return PAPER_RANGE
        return min(given[0], low), max(given[1], high)

    # -- the whole set -------------------------------------------------------------------------------------

    def survey(self, metric: QualityMetric, batches: Iterable[Any], seed: int = 0) -> Survey:
        """Score the set as it is; raises UserError for images that cannot be ranked or have one id twice."""
        found = Survey([], np.empty(0), None)
        ids, scores, mos = found.image_ids, list[Tensor](), list[Tensor]()
        for images, names, opinions in set_batches(batches, device_of(metric)):
            judge = self.judge(metric, images, names, seed)
            scores.append(judge.scores(images).double().cpu())
            found.count(judge)
            ids += names
            if opinions is not None:
                mos.append(opinions.double().cpu() * metric.quality_sign)
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise UserError(f"image id '{twice}' stands for more than one image of the set; give each its own")
        values = torch.cat(scores).numpy() if scores else np.empty(0)
        found.scores = check_scores(values, ranked=self.reference == "scores")
        found.mos = torch.cat(mos).numpy() if sum(map(len, mos)) == len(ids) else None
        return found

    def judge(self, metric: QualityMetric, images: Tensor, image_ids: Sequence[str], seed: int) -> Target:
        """Return a target whose scores may be compared: those of a random metric average ``score_samples`` draws."""
        return Target(
            metric, images, image_ids=image_ids, seed=seed, eot_samples=self.score_samples, through=self.through
        )

    def craft_set(
        self,
        metric: QualityMetric,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        wanted: Collection[str] | None = None,
        workspace: str | Path | None = None,
    ) -> Iterator[Share]:
        """Attack a set, and yield it batch by batch.

        Args:
            metric: the metric, defended or not.
            batches: gone through several times: a DataLoader or a list of dicts with "image" ``(N, 3, H, W)`` in
                [0, 1], "image_id" and, for reference "mos", "mos_normalised" or "mos" (higher = better); or of
                tensors. Batch size and order change the result by rounding only.
            seed: of all randomness.
            wanted: ids of the images to yield; all shape the plan. None for all.
            workspace: a folder for what is kept of every image between passes, where the attack keeps anything; None
                keeps it in memory.

        Raises:
            UserError: a set that has no ranking, see ``plan``, or batches that cannot be gone through again.
        """
        metric = as_metric(metric)
        found = self.survey(metric, batches, seed)
        opinions = check_mos(found.mos, len(found.scores)) if self.reference == "mos" else None
        targets = self.set_targets(metric, batches, found, opinions, seed)
        places = {name: place for place, name in enumerate(found.image_ids)}
        for images, names, _ in again(batches, device_of(metric), places):
            rows = [row for row, name in enumerate(names) if wanted is None or name in wanted]
            if not rows:
                continue
            chosen = [names[row] for row in rows]
            goals = torch.tensor([targets[places[name]] for name in chosen], dtype=torch.float64)
            result = super().craft(metric, images[rows], targets=goals, image_ids=chosen, seed=seed)
            found.charge(result)
            yield Share(chosen, images[rows], result, goals)

    def set_targets(
        self, metric: QualityMetric, batches: Iterable[Any], found: Survey, mos: Array | None, seed: int
    ) -> Array:
        """Return targets ``(n,)``, after another look at the images where the plan needs one."""
        return self.targets(found.scores, mos, self.set_span(metric, found.scores))

    def set_span(self, metric: QualityMetric, scores: Array) -> Range:
        """Return the least and greatest target for this metric."""
        return self.span(scores, self.score_range or metric.score_range or (float(scores.min()), float(scores.max())))

    def craft(
        self,
        metric: QualityMetric,
        images: Tensor,
        direction: Direction = "raise",
        *,
        targets: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
    ) -> AttackResult:
        """Attack images towards targets; without targets they are the whole set, see ``Attack``.

        Raises:
            UserError: a direction, targets that are not finite or outside the metric's range, or a set of images that
                has no ranking.
        """
        if not isinstance(direction, str | Number) or direction not in ("raise", 1):
            raise UserError(
                f"{self.name} has no direction: its plan decides which scores rise and which fall; leave "
                "attack.direction out, or give targets"
            )
        metric = as_metric(metric)
        if targets is None:
            ids = [str(row) for row in range(len(images))] if image_ids is None else list(image_ids)
            (share,) = self.craft_set(metric, [{"image": images, "image_id": ids}], seed=seed)
            return share.result
        check_targets(targets, len(images))
        asked = self.check_range(metric, images, targets, image_ids, seed)
        result = super().craft(metric, images, targets=targets, image_ids=image_ids, seed=seed)
        result.forward_calls += asked
        return result

    def check_range(
        self, metric: QualityMetric, images: Tensor, targets: Tensor, image_ids: Sequence[str] | None, seed: int
    ) -> int:
        """Raise UserError for targets that no plan of these images has, and return what telling it has cost.

        A plan widens the range where clean scores leave it, so where targets leave it these are looked at.
        """
        span = self.score_range or metric.score_range
        slack = NOISE_SLACK if metric.is_random else SLACK
        if span is None or not count_outside(targets, span, slack):
            return 0
        names = [str(row) for row in range(len(images))] if image_ids is None else image_ids
        judge = self.judge(metric, images, names, seed)
        low, high = self.span(judge.scores(images).double().cpu().numpy(), span)
        if outside := count_outside(targets, (low, high), slack):
            farthest = float(targets[(targets - (low + high) / 2).abs().argmax()])
            raise UserError(
                f"{outside} of {len(targets)} targets are outside the range {low:g} to {high:g} of metric "
                f"'{metric.name}' and these images, e.g. {farthest:g}; plan with score_range=({span[0]:g}, "
                f"{span[1]:g}), or give the attack the score_range of a plan that is of more images"
            )
        return judge.forward_calls

    # -- second stage --------------------------------------------------------------------------------------

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return for every image the iterate nearest to its target; of a random metric the last."""
        assert target.targets is not None
        attacked, near, far = images.clone(), images.clone(), images.clone()
        passed = torch.zeros(len(target), dtype=torch.bool, device=images.device)
        start = torch.zeros(len(target), device=images.device)  # the side of the target that the clean score is on
        keeper = Best(target, images)
        halve = self.halve and not target.metric.is_random
        for step in range(self.steps + 1):
            seen = self.seen(attacked, images)
            scores = torch.empty(len(target), dtype=target.targets.dtype, device=images.device)
            gradient = torch.zeros_like(images)
            ahead = [] if step == self.steps else torch.nonzero(~passed).flatten().tolist()
            rest = [row for row in range(len(target)) if row not in set(ahead)]
            if ahead:
                values, gradient[ahead] = target.score_gradient(seen[ahead], ahead)
                scores[ahead] = values.to(scores)
            if rest:
                scores[rest] = target.scores(seen[rest], rest).to(scores)
            target.failed |= ~scores.isfinite()
            side = torch.nan_to_num(scores - target.targets).sign()
            nearness = torch.nan_to_num(-(scores - target.targets).abs(), nan=-torch.inf)
            if step == 0 and self.norm == "l2":  # what is held against a certificate uses its radius, or is there
                nearness = nearness.where(nearness >= -SLACK * (target.metric.range_width or 1.0), -torch.inf)
            keeper.see(attacked, nearness)
            if step == self.steps:
                break
            start = side if step == 0 else start
            if halve:
                beyond = per_image(side != start, images)
                near, far = torch.where(beyond, near, attacked), torch.where(beyond, attacked, far)
                passed = passed | (side != start) | (side == 0)
            pushed = self.moved(attacked, -per_image(side, images) * gradient, images, self.step_size)
            attacked = torch.where(per_image(passed, images), (near + far) / 2, pushed)
        return keeper.images

    def moved(self, attacked: Tensor, gradient: Tensor, images: Tensor, step: float) -> Tensor:
        """Return images one step along a gradient, inside the ball; in l2 on its sphere."""
        if self.norm == "l2":
            return onto_sphere(attacked + step * UnitL2()(gradient), images, self.eps)
        return project_linf(attacked + step * Sign()(gradient), images, self.eps)

    def seen(self, attacked: Tensor, images: Tensor) -> Tensor:
        """Return the images that a step looks at: rounded, where the attack is to be scored on them."""
        return self.rounded(attacked, images) if self.dither else attacked

    def to_grid(self, attacked: Tensor) -> Tensor:
        """Return images on the 8-bit grid, by the dither pattern or to the nearest."""
        if not self.dither:
            return super().to_grid(attacked)
        return (attacked * 255 + thresholds(tuple(attacked.shape[1:])).to(attacked)).floor() / 255


@cache
def thresholds(shape: tuple[int, ...]) -> Tensor:
    """Return the dither pattern: the same for every image of a size, from .001 to .999."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(255)) * 0.998 + 0.001


def count_outside(targets: Tensor, span: Range, slack: float) -> int:
    """Return how many targets are outside a range by more than a share of it."""
    slack *= span[1] - span[0]
    return int(((targets < span[0] - slack) | (targets > span[1] + slack)).sum())
