"""Turn the order of a set round pair by pair: every step asks how each image's score weighs on the order of all."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from certiqa.attacks.base import AttackResult, per_image
from certiqa.attacks.planning import Array, check_mos
from certiqa.attacks.set_batches import Survey, again, device_of
from certiqa.attacks.sets import Range, SetAttack, Share
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, as_metric
from certiqa.options import Budget, Choices, Length, NonNegative, Positive

ROWS = 512  # of the matrix of pairs at a time: 8 MB for 2,000 images
WEIGHTS = ("pairs", "gaps")


class RankInversion(SetAttack):
    """Projected gradient descent on a smooth count of the pairs that still stand in their order.

    Minimises ``mean over pairs r_i > r_j of softplus((f_i - f_j + margin) / tau)`` over all images of the set jointly;
    r is the reference, f the scores. Each image enters it through one number, so a step is two passes: all scores,
    which give the coefficient dL/df_i of every image, then the gradient of every image by itself. The objective is
    named by Rasheed et al., Technologies 14(3):145, 2026; this form and its optimisation are this project's.

    A plan and targets are its first push alone: every image to the end of the range that its coefficient says.

    Args:
        weight: "pairs" counts each pair once, as KROCC does; "gaps" by how many ranks it is apart, as SROCC does.
        margin: by which a pair must stand in the reverse order, native units.
        tau: softness of the count, native units; None for a tenth of the standard deviation of the clean scores.
        options: see ``SetAttack``. ``steps`` are of both passes; ``step_size`` is the mean length of a step, which
            shrinks linearly from twice that, since images in the middle of the order are pushed one way and the other.
    """

    name = "rank_inversion"

    def __init__(
        self,
        eps: Budget = 4 / 255,
        *,
        weight: Annotated[str, Choices("pairs", "gaps")] = "pairs",
        margin: NonNegative = 0.0,
        tau: Positive | None = None,
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        if weight not in WEIGHTS or (tau is not None and not tau > 0):
            raise UserError(
                f"attack.weight must be one of {', '.join(WEIGHTS)} and tau above 0 or null, got '{weight}' and {tau}"
            )
        self.weight = weight
        self.margin = float(margin)
        self.tau = tau

    def targets(self, scores: Array, mos: Array | None, span: Range) -> Array:
        """Return the end of the range ``(n,)`` that every image is first pushed to; its own score where neither."""
        _, weights = self.loss(scores, scores if mos is None else mos, self.softness(scores))
        return np.where(weights > 0, span[0], np.where(weights < 0, span[1], scores))

    def softness(self, scores: Array) -> float:
        """Return tau for these clean scores."""
        return float(np.std(scores)) / 10 or 1.0 if self.tau is None else self.tau

    def loss(self, scores: Array, reference: Array, tau: float) -> tuple[float, Array]:
        """Return the loss and its derivative ``(n,)`` by the scores: above zero where a score is to fall."""
        ranks = rankdata(reference)
        total, pairs = 0.0, 0.0
        weights = np.zeros(len(scores))
        for start in range(0, len(scores), ROWS):
            rows = slice(start, start + ROWS)
            gaps = ranks[rows, None] - ranks[None, :]
            counts = np.maximum(gaps, 0) if self.weight == "gaps" else (gaps > 0).astype(float)
            excess = (scores[rows, None] - scores[None, :] + self.margin) / tau
            total += float((counts * np.logaddexp(0, excess)).sum())
            slopes = counts / (1 + np.exp(-np.clip(excess, -500, 500)))
            weights[rows] += slopes.sum(1)
            weights -= slopes.sum(0)
            pairs += float(counts.sum())
        return total / pairs, weights / (pairs * tau)

    def craft_set(
        self,
        metric: QualityMetric,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        wanted: Collection[str] | None = None,
        workspace: str | Path | None = None,
    ) -> Iterator[Share]:
        """Attack a set, and yield it batch by batch; see ``SetAttack.craft_set``.

        Kept of every image between passes are two perturbations in float32: the last, and that of the step with the
        least loss, which is the answer. In memory, or as two files per image in a folder made inside ``workspace``
        and removed at the end.
        """
        metric = as_metric(metric)
        found = self.survey(metric, batches, seed)
        opinions = check_mos(found.mos, len(found.scores)) if self.reference == "mos" else None
        reference = found.scores if opinions is None else opinions
        tau = self.softness(found.scores)
        if workspace is None:
            yield from self._descend(metric, batches, found, reference, tau, Perturbations(), seed, wanted)
            return
        with tempfile.TemporaryDirectory(prefix="perturbations-", dir=workspace) as folder:
            yield from self._descend(metric, batches, found, reference, tau, Perturbations(folder), seed, wanted)

    def _descend(
        self,
        metric: QualityMetric,
        batches: Iterable[Any],
        found: Survey,
        reference: Array,
        tau: float,
        state: Perturbations,
        seed: int,
        wanted: Collection[str] | None,
    ) -> Iterator[Share]:
        places = {name: place for place, name in enumerate(found.image_ids)}
        device = device_of(metric)
        bad = np.zeros((2, len(places)), dtype=bool)  # not finite, flat
        scores, best = found.scores, np.inf
        answer = "last"
        for step in range(self.steps + 1):
            if step:
                scores = scores.copy()
                for images, names, _ in again(batches, device, places):
                    seen = self.seen(state.applied(images, names, places), images)
                    judge = self.judge(metric, images, names, seed)
                    values = judge.scores(seen).double().cpu().numpy()
                    found.count(judge)
                    rows = [places[name] for name in names]
                    bad[0, rows] |= ~np.isfinite(values)
                    scores[rows] = np.where(np.isfinite(values), values, scores[rows])
            value, weights = self.loss(scores, reference, tau)
            # what is held against a certificate uses its radius: in l2 the clean set is no answer
            improved = value < best and (step > 0 or self.norm != "l2")
            best = value if improved else best
            if step == self.steps:
                answer = "last" if improved else "best"
                break
            for images, names, _ in again(batches, device, places):
                # a seed per step: fresh draws of a random metric
                target = Target(
                    *(metric, images),
                    image_ids=names,
                    seed=seed * 1_000_003 + step,
                    eot_samples=self.eot_samples,
                    through=self.through,
                )
                attacked = state.applied(images, names, places)
                if improved:
                    state.keep(attacked - images, names, places, "best")
                _, gradient = target.score_gradient(self.seen(attacked, images))
                found.count(target)
                rows = [places[name] for name in names]
                fall = per_image(torch.tensor(np.sign(weights[rows])).to(images), images)
                length = self.step_size * 2 * (1 - step / self.steps)
                attacked = self.moved(attacked, -fall * gradient, images, length)
                state.keep(attacked - images, names, places, "last")
                bad[0, rows] |= target.failed.cpu().numpy()
                bad[1, rows] |= target.flat.cpu().numpy()
        for images, names, _ in again(batches, device, places):
            rows = [row for row, name in enumerate(names) if wanted is None or name in wanted]
            if not rows:
                continue
            chosen, clean = [names[row] for row in rows], images[rows]
            unrounded = state.applied(clean, chosen, places, answer).clamp(0, 1)
            attacked = self.rounded(unrounded, clean) if self.rounds else unrounded
            failed, flat = torch.from_numpy(bad[:, [places[name] for name in chosen]]).to(device)
            result = AttackResult(attacked, unrounded, 0, 0, failed, flat)
            found.charge(result)
            summary = Target(metric, clean, image_ids=chosen)
            summary.failed, summary.flat = failed, flat
            result.notes = self.remarks(summary)
            yield Share(chosen, clean, result)


class Perturbations:
    """The perturbation of every image between two passes, in float32.

    Args:
        folder: where they are kept, a file per image; None for memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, Tensor] = {}

    def keep(self, changes: Tensor, names: list[str], places: dict[str, int], kind: str) -> None:
        """Keep what images were changed by ``(N, 3, H, W)``."""
        for name, change in zip(names, changes.detach().float().cpu(), strict=True):
            key = f"{places[name]}-{kind}"
            if self.folder is None:
                self._held[key] = change.clone()
            else:
                try:
                    np.save(self.folder / f"{key}.npy", change.numpy())
                except OSError as error:
                    raise UserError(f"cannot keep perturbations in '{self.folder}': {error}; free space") from error

    def applied(self, images: Tensor, names: list[str], places: dict[str, int], kind: str = "last") -> Tensor:
        """Return images with what was kept of them; as they are before anything was."""
        result = images.clone()
        for row, name in enumerate(names):
            key = f"{places[name]}-{kind}"
            change = self._held.get(key)
            if self.folder is not None and (self.folder / f"{key}.npy").is_file():
                change = torch.from_numpy(np.load(self.folder / f"{key}.npy"))
            if change is not None:
                result[row] += change.to(images)
        return result


class RankInversionL2(RankInversion):
    """Rank inversion in an l2 ball, for certified radii: not rounded, every image at the whole radius."""

    name = "rank_inversion_l2"
    norm = "l2"
    rounds = False

    def __init__(self, eps: Length = 0.06, **options: Any) -> None:
        super().__init__(eps, **options)
