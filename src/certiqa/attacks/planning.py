"""Which score every image of a set is to get: the first stage of a set attack, on scores alone.

Sources: Yang et al., "Beyond Score Changes: Adversarial Attack on No-Reference Image Quality Assessment from Two
Perspectives", arXiv 2404.13277 (``descend``); ``reverse`` and ``within_reach`` are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from certiqa.attacks.permutahedron import project_to_ranks
from certiqa.errors import UserError

Array = NDArray[np.float64]
LOOK = 5  # steps between two looks at the objective with true ranks
FEWEST = 3  # images that have a ranking worth the name


def check_scores(scores: ArrayLike, name: str = "scores", *, ranked: bool = True) -> Array:
    """Return scores of a set ``(n,)`` in float64.

    Raises:
        UserError: another shape, fewer than three, NaN or infinity, or with ``ranked`` all the same.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < FEWEST:
        raise UserError(
            f"a set attack moves the ranking of at least {FEWEST} images; the {name} are of shape {values.shape}, give "
            "(n,), all images of the set at once"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(values)} {name} are not finite, the first in row {bad[0]}: {values[bad[0]]}; leave "
            "those images out of the set"
        )
    if ranked and np.ptp(values) == 0:
        raise UserError(f"all {len(values)} {name} are {values[0]:g}: there is no ranking to attack")
    return values


def check_mos(mos: ArrayLike | None, count: int) -> Array:
    """Return opinion scores ``(count,)``; raises UserError where they are missing or of another length."""
    if mos is None or np.isnan(np.asarray(mos, dtype=np.float64)).any():
        missing = "none were given" if mos is None else "some are missing (NaN)"
        raise UserError(
            f"attack.reference=mos needs an opinion score of every image, but {missing}; use attack.reference=scores, "
            "or a data set with opinion scores"
        )
    values = check_scores(mos, "opinion scores")
    if len(values) != count:
        raise UserError(f"{count} scores but {len(values)} opinion scores; give one of each per image, in one order")
    return values


def reverse(scores: Array, reference: Array) -> Array:
    """Return the scores themselves ``(n,)``, dealt out in the reverse order of the reference.

    SROCC with the reference is exactly -1 where neither has ties.
    """
    targets = np.empty_like(scores)
    targets[np.argsort(reference, kind="stable")] = np.sort(scores)[::-1]
    return targets


@dataclass(frozen=True)
class Descent:
    """How ``descend`` goes down; with 100,000 steps of 0.005 and ``keep="last"`` as the authors do.

    Their step is a sign's, so a hundred times fewer steps that are a hundred times longer end in the same place.

    Attributes:
        steps: how many.
        lr: of Adam, in points of a scale of 100.
        beta: strength of the soft ranks, in the same points; None for 1, or 250 / n for sets of fewer than 250 images:
            where all scores are further apart than beta, ranks have no gradient at all.
        variance_weight: of the spread of the targets, which is raised.
        mse_weight: of their distance to the scores, which is raised.
        keep: "best" keeps the step with the least objective by true ranks, of every fifth and the last; "last" the last
            one, whose targets are all at the two ends of the scale, with many ties.
        seed: of the small disorder that it starts with.
    """

    steps: int = 1000
    lr: float = 0.5
    beta: float | None = None
    variance_weight: float = 1e-4
    mse_weight: float = 1e-4
    keep: str = "best"
    seed: int = 919

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or (self.beta is not None and not self.beta > 0):
            raise UserError(
                f"attack.plan_steps must be at least 1, plan_lr and beta above 0, got {self.steps}, {self.lr} and "
                f"{self.beta}"
            )
        if self.variance_weight < 0 or self.mse_weight < 0:
            raise UserError(
                f"attack.variance_weight and mse_weight must not be below 0, got {self.variance_weight} and "
                f"{self.mse_weight}"
            )
        if self.keep not in ("best", "last"):
            raise UserError(f"attack.keep must be best or last, got '{self.keep}'")


def descend(
    scores: Array, span: tuple[float, float], mos: Array | None = None, descent: Descent | None = None
) -> Array:
    """Return targets ``(n,)`` inside ``span`` by the first stage of SMA.

    Minimises SROCC(r, t) - variance_weight * Var(t) - mse_weight * MSE(t, scores), where r is the reference, SROCC
    is Pearson's correlation of soft ranks, and all scores are on a scale of 100 over ``span``; by Adam on the
    gradient's sign, kept inside the scale.

    Args:
        scores: clean scores ``(n,)``.
        span: least and greatest target, native units.
        mos: ``(n,)``, what the targets are to disagree with, higher for higher scores; None for the scores themselves,
            which is the paper's reference.
        descent: its settings.
    """
    chosen = descent or Descent()
    low, width = span[0], span[1] - span[0]
    clean = (scores - low) * 100 / width
    beta = max(1.0, 250 / len(scores)) if chosen.beta is None else chosen.beta
    true_normal = _normalised(rankdata(scores if mos is None else mos))
    normal = _normalised(project_to_ranks(clean, beta).ranks) if mos is None else true_normal
    count = len(clean)
    generator = np.random.default_rng(chosen.seed)
    targets = np.clip(clean - 0.01 * (generator.random(count) < 0.5), 0, 100)
    momentum, second = np.zeros(count), np.zeros(count)
    best, kept = np.inf, targets
    for step in range(1, chosen.steps + 1):
        found = project_to_ranks(targets, beta)
        centred = found.ranks - found.ranks.mean()
        length = np.linalg.norm(centred) or 1.0
        gradient = found.pull_back((normal - (normal @ centred) * centred / length**2) / length)
        gradient -= chosen.variance_weight * 2 * (targets - targets.mean()) / (count - 1)
        gradient -= chosen.mse_weight * 2 * (targets - clean) / count
        gradient = np.sign(np.nan_to_num(gradient))
        momentum = 0.9 * momentum + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = (momentum / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        targets = np.clip(targets - chosen.lr * change, 0, 100)
        if chosen.keep == "best" and (step % LOOK == 0 or step == chosen.steps):
            value = float(true_normal @ _normalised(rankdata(targets)))
            value -= chosen.variance_weight * targets.var(ddof=1) + chosen.mse_weight * np.mean((targets - clean) ** 2)
            if value < best:
                best, kept = value, targets
    return low + (kept if chosen.keep == "best" else targets) * width / 100


def _normalised(ranks: Array) -> Array:
    """Return ranks less their mean, of length 1; zero where all are equal."""
    centred = ranks - ranks.mean()
    return centred / (np.linalg.norm(centred) or 1.0)


def within_reach(reference: Array, low: Array, high: Array, starts: list[Array]) -> Array:
    """Return targets ``(n,)`` that every image can reach, low_i <= t_i <= high_i, with as low an SROCC as is found.

    Only the order of the targets counts for SROCC, and an order can be had exactly where no image stands after one
    that must score above it (high_i < low_j). From each start, clipped to what can be reached, images are moved one
    at a time to the place among the others that lowers sum(reference rank * place) most, until no move does. So the
    result is nowhere worse than the clipped starts. Then the targets are spread as evenly as the limits allow.

    Args:
        reference: ``(n,)``, what the targets are to disagree with.
        low: least score ``(n,)`` that each image can reach.
        high: greatest score ``(n,)``.
        starts: targets ``(n,)`` of other plans.
    """
    ranks = rankdata(reference)
    best, chosen = np.inf, np.arange(len(ranks))
    for start in starts:
        clipped = np.clip(start, low, high)
        order = _improved(np.lexsort((-ranks, clipped)), ranks, low, high)  # ties: the best image lowest
        value = float(ranks[order] @ np.arange(len(order)))
        if value < best:
            best, chosen = value, order
    floor = np.maximum.accumulate(low[chosen])
    ceiling = np.minimum.accumulate(high[chosen][::-1])[::-1]
    share = (np.arange(len(chosen)) + 0.5) / len(chosen)
    targets = np.empty_like(low)
    targets[chosen] = floor + share * (ceiling - floor)
    return targets


def _improved(order: NDArray[np.intp], ranks: Array, low: Array, high: Array, sweeps: int = 20) -> NDArray[np.intp]:
    """Return an order, from the least target up, that no move of one image makes better."""
    order = order.copy()
    for _ in range(sweeps):
        moved = False
        for image in order.copy():
            place = int(np.flatnonzero(order == image)[0])
            before = np.flatnonzero(high[order[:place]] < low[image])
            after = np.flatnonzero(low[order[place + 1 :]] > high[image])
            first = int(before[-1]) + 1 if before.size else 0
            last = place + int(after[0]) if after.size else len(order) - 1
            passed = np.concatenate([[0.0], np.cumsum(ranks[order])])
            places = np.arange(first, last + 1)
            shift = np.where(places < place, passed[place] - passed[places], passed[place + 1] - passed[places + 1])
            change = ranks[image] * (places - place) + shift
            least = int(np.argmin(change))
            if change[least] < -1e-9:
                order = np.insert(np.delete(order, place), places[least], image)
                moved = True
        if not moved:
            break
    return order
