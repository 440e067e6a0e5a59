"""SMA: plan a score for every image of a set, then drive every image there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from certiqa.attacks.planning import Array, Descent, descend, reverse, within_reach
from certiqa.attacks.set_batches import Survey, again, device_of
from certiqa.attacks.sets import Range, SetAttack
from certiqa.attacks.target import Target
from certiqa.errors import UserError, suggest
from certiqa.metrics import QualityMetric
from certiqa.options import Budget, Choices, Count, Length, NonNegative, Positive, PositiveInt

PLANS = ("paper", "reverse", "reachable")


class SMA(SetAttack):
    """Score changes and correlation at once (Yang et al., "Beyond Score Changes", arXiv 2404.13277).

    Args:
        plan: "paper" minimises SROCC less the spread and the change of the scores, whatever an image can reach;
            "reverse" deals out the clean scores in reverse order; "reachable" first tries how far each image goes in
            either direction, and plans within that.
        probe_steps: gradients of each of those two tries.
        plan_steps: of the paper's plan; the authors' are 100,000.
        plan_lr: of Adam in the paper's plan, in points of a scale of 100; the authors' is 0.005.
        beta: strength of the soft ranks in the same points; None for 1, or 250 / n for fewer than 250 images.
        variance_weight: of the spread of the targets, which the paper's plan raises.
        mse_weight: of their distance to the scores, which it raises.
        keep: "best" of every fifth step of the plan by true ranks, or the "last" as the authors do.
        plan_seed: of the small disorder that the plan starts with.
        options: see ``SetAttack``; the authors' second stage has eps 0.005, halve=False and
            dither=False.
    """

    name = "sma"

    def __init__(
        self,
        eps: Budget = 4 / 255,
        *,
        plan: Annotated[str, Choices(*PLANS)] = "paper",
        probe_steps: PositiveInt = 5,
        plan_steps: PositiveInt = 1000,
        plan_lr: Positive = 0.5,
        beta: Positive | None = None,
        variance_weight: NonNegative = 1e-4,
        mse_weight: NonNegative = 1e-4,
        keep: Annotated[str, Choices("best", "last")] = "best",
        plan_seed: Count = 919,
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        if plan not in PLANS:
            raise UserError(f"attack.plan must be one of {', '.join(PLANS)}, got '{plan}'.{suggest(str(plan), PLANS)}")
        self.plan_name = plan
        self.probe_steps = self.at_least("probe_steps", probe_steps, 1)
        plan_steps, plan_seed = self.at_least("plan_steps", plan_steps, 1), self.at_least("plan_seed", plan_seed, 0)
        self.descent = Descent(plan_steps, plan_lr, beta, variance_weight, mse_weight, keep, plan_seed)

    def targets(self, scores: Array, mos: Array | None, span: Range, reach: tuple[Array, Array] | None = None) -> Array:
        """Return targets ``(n,)`` by the plan."""
        reference = scores if mos is None else mos
        if self.plan_name == "reverse":
            return reverse(scores, reference)
        paper = descend(scores, span, mos, self.descent)
        if self.plan_name == "paper":
            return paper
        if reach is None:
            raise UserError(
                "attack.plan=reachable tries what each image can reach, so scores alone do not do: use "
                "craft_set(metric, batches), or attack.plan=paper"
            )
        low, high = reach
        pushed = np.where(reference > np.median(reference), low, high)
        return within_reach(reference, low, high, [paper, reverse(scores, reference), pushed])

    def set_targets(
        self, metric: QualityMetric, batches: Iterable[Any], found: Survey, mos: Array | None, seed: int
    ) -> Array:
        """Return targets ``(n,)``, for the reachable plan after trying what each image can reach."""
        reach = self.reach(metric, batches, found, seed) if self.plan_name == "reachable" else None
        return self.targets(found.scores, mos, self.set_span(metric, found.scores), reach)

    def reach(self, metric: QualityMetric, batches: Iterable[Any], found: Survey, seed: int = 0) -> tuple[Array, Array]:
        """Return the least and greatest score ``(n,)`` that a short push of every image met, the clean one included."""
        low, high = found.scores.copy(), found.scores.copy()
        places = {name: place for place, name in enumerate(found.image_ids)}
        for images, names, _ in again(batches, device_of(metric), places):
            rows = [places[name] for name in names]
            for sign, ends, better in ((-1, low, np.fmin), (1, high, np.fmax)):
                target = Target(
                    *(metric, images), image_ids=names, seed=seed, eot_samples=self.eot_samples, through=self.through
                )
                judge = self.judge(metric, images, names, seed)
                for scores in self.push(target, judge, images, sign):
                    ends[rows] = better(ends[rows], scores.double().cpu().numpy())  # NaN counts for nothing
                found.count(target)
                found.count(judge)
        return low, high

    def push(self, target: Target, judge: Target, images: Tensor, sign: int) -> list[Tensor]:
        """Return the scores ``(N,)`` met on the way up or down; of a random metric only the last, which is averaged."""
        attacked, met = images, []
        step = min(self.eps, 2.5 * self.eps / self.probe_steps)
        for _ in range(self.probe_steps):
            scores, gradient = target.score_gradient(self.seen(attacked, images))
            met.append(scores)
            attacked = self.moved(attacked, sign * gradient, images, step)
        last = judge.scores(self.seen(attacked, images))
        return [last] if target.metric.is_random else [*met, last]


class SMAL2(SMA):
    """SMA in an l2 ball, for certified radii: not rounded, and the whole radius is used where no target is reached."""

    name = "sma_l2"
    norm = "l2"
    rounds = False

    def __init__(self, eps: Length = 0.06, **options: Any) -> None:
        super().__init__(eps, **options)
