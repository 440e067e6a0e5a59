"""What black-box attacks share: they ask for scores alone, and every question is counted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from certiqa.attacks.base import Attack, image_generator
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.options import Budget, PositiveInt, Through


@dataclass
class Query:
    """Candidates that a search wants scored.

    Attributes:
        count: how many; each costs one query.
        build: ``build(start, stop)`` returns those from ``start`` to before ``stop``, ``(n, 3, H, W)``; made on demand,
            so that hundreds never lie in memory at once.
        kept: whether the best of them may be the attack's answer; probes that leave the budget may not.
    """

    count: int
    build: Callable[[int, int], Tensor]
    kept: bool = True


Search = Generator[Query, Tensor, None]


def single(candidate: Tensor) -> Query:
    """Return the query of one candidate ``(3, H, W)``."""
    return Query(1, lambda start, stop: candidate[None])


class BlackBox(Attack):
    """Base of all black-box attacks: queries of the score, never a gradient.

    A subclass writes the search on one image as its paper has it, as a generator that yields a ``Query`` and is
    sent the values J ``(count,)``, on the CPU. The searches of a batch go on side by side, and what they ask for is
    scored together; each goes as it would alone, as far as the metric rounds alike in batches of any size: a near tie
    that rounding decides can send a search another way. The best image seen is returned, the clean one included, so J
    never decreases.

    Args:
        eps: radius of the ball, in [0, 1] pixel units, where the attack has one.
        queries: scores asked per image, the first one, of the clean image, included; direction "away" needs that
            image's score too and pays for it. One score of a random metric is one query, whatever draws it takes.
        batch_size: images scored in one pass at most; changes no result beyond rounding.
        eot_samples: draws that one score of a random metric averages; None for as many as the score that it publishes,
            see ``published_draws``. The draws are the same for all queries, so that scores compare, and a search among
            few of them finds what suits these few and no others.
        through: "mean" of these draws, or "median", the score that a smoothed metric publishes.

    Raises:
        UserError: an option that is not allowed.
    """

    uses_gradient = False

    def __init__(
        self,
        eps: Budget | None = None,
        *,
        queries: Annotated[int, Ge(2)] = 10_000,
        batch_size: PositiveInt = 32,
        eot_samples: PositiveInt | None = None,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        self.queries = self.at_least("queries", queries, 2)
        self.batch_size = self.at_least("batch_size", batch_size, 1)

    def share(self, option: str, value: float) -> float:
        """Return a number in (0, 1]; raises UserError for others."""
        if not 0 < value <= 1:
            raise UserError(f"attack.{option} of {self.name} must be above 0 and at most 1, got {value}")
        return float(value)

    def search(self, image: Tensor, value: float, draws: torch.Generator) -> Search:
        """Search for a better image; closed when the queries are spent, and free to end before.

        Args:
            image: the clean image ``(3, H, W)``.
            value: its J.
            draws: all randomness, on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} must define search(image, value, draws)")

    def check_image(self, images: Tensor) -> None:
        """Raise UserError where the attack cannot work on images of this size."""

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the best images seen."""
        self.check_image(images)
        asked = target.forward_calls // (len(target) * target.draws)  # "away" has looked at the clean images
        left = self.queries - asked
        runs = []
        for row, image_id in enumerate(target.image_ids):
            draws = image_generator(target.seed, self.name, image_id)
            runs.append(_Run(row, images[row], left, partial(self.search, draws=draws)))
        while active := [run for run in runs if run.query is not None]:
            self._ask(target, active)
        return torch.stack([run.best for run in runs])

    def _ask(self, target: Target, runs: Sequence[_Run]) -> None:
        """Score what the searches wait for, in passes of at most ``batch_size`` images."""
        wanted = [(run, index) for run in runs for index in range(run.due)]
        answers: dict[int, list[Tensor]] = {run.row: [] for run in runs}
        for start in range(0, len(wanted), self.batch_size):
            ranges: dict[int, tuple[_Run, list[int]]] = {}
            for run, index in wanted[start : start + self.batch_size]:
                ranges.setdefault(run.row, (run, []))[1].append(index)
            pieces = [run.build(indices[0], indices[-1] + 1) for run, indices in ranges.values()]
            rows = [row for row, (_, indices) in ranges.items() for _ in indices]
            values = target.values(torch.cat(pieces), rows).detach()
            finite = values.isfinite()
            if not bool(finite.all()):
                failed = torch.tensor(rows, device=values.device)[~finite]
                target.failed[failed.to(target.failed.device)] = True
                values = values.where(finite, -torch.inf)
            parts = values.cpu().split([len(indices) for _, indices in ranges.values()])
            for row, part in zip(ranges, parts, strict=True):
                answers[row].append(part)
        for run in runs:
            run.take(torch.cat(answers[run.row]))


class _Run:
    """One image under search: what it waits for, what is left, and its best so far."""

    def __init__(self, row: int, image: Tensor, left: int, search: Callable[[Tensor, float], Search]) -> None:
        self.row = row
        self.best = image
        self.value: float | None = None
        self.left = left
        self.query: Query | None = single(image)
        self._begin = search
        self._search: Search | None = None

    @property
    def due(self) -> int:
        """Candidates that can still be paid for."""
        return 0 if self.query is None else min(self.query.count, self.left)

    def build(self, start: int, stop: int) -> Tensor:
        """Return candidates of the query under way."""
        assert self.query is not None
        return self.query.build(start, stop)

    def take(self, values: Tensor) -> None:
        """Keep the best candidate, and let the search go on with the values ``(due,)``."""
        assert self.query is not None
        self.left -= len(values)
        first, top = self.value is None, int(values.argmax())
        if self.query.kept and (self.value is None or float(values[top]) > self.value):
            self.best, self.value = self.build(top, top + 1)[0].clone(), float(values[top])
        if self.left == 0:
            self.query = None
            return
        if first:
            self._search = self._begin(self.best, float(values[0]))
        assert self._search is not None
        try:
            self.query = next(self._search) if first else self._search.send(values)
        except StopIteration:
            self.query = None
