"""The median score over several purifiers: ``defense=ensemble defense.purifiers=[flip,random_rotate,jpeg]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from certiqa.defenses.base import Defense
from certiqa.defenses.purified import PurifiedMetric, Purifier
from certiqa.defenses.purifiers.registry import check_step_names, load_step, options_by_step
from certiqa.defenses.smoothing import sample_median
from certiqa.errors import UserError
from certiqa.metrics.base import as_metric
from certiqa.options import Choices, PositiveInt, Seed
from certiqa.signatures import hands_on


@hands_on(options_by_step)
class PurifierEnsemble(Defense):
    """A metric whose score is the median of the scores behind several purifiers; it has no certificate.

    Args:
        metric: the metric to defend; stays frozen.
        purifiers: purifiers, or their names.
        draws: how often a random purifier counts, each time with other randomness; the others count once.
        backward: see ``PurifiedMetric``; None for what suits each purifier.
        seed: of what is random, a function of (seed, member, image id).
        name: what tables call it.
        options: options of the purifiers that are given by name, by name.

    Raises:
        UserError: no member, an unknown purifier or option, or options of a name that is no purifier's.
    """

    kind = "ensemble"
    members: tuple[PurifiedMetric, ...]
    purifiers: nn.ModuleList

    def __init__(
        self,
        metric: nn.Module,
        purifiers: Sequence[str | Purifier],
        *,
        draws: PositiveInt = 1,
        backward: Annotated[str, Choices("native", "identity", "none")] | None = None,
        seed: Seed = 0,
        name: str = "ensemble",
        **options: Mapping[str, Any] | None,
    ) -> None:
        if not purifiers or draws < 1:
            raise UserError(
                f"an ensemble needs at least one purifier and one draw, got purifiers={list(purifiers)} and "
                f"draws={draws}"
            )
        check_step_names(options, ())
        inner = as_metric(metric)
        members: list[PurifiedMetric] = []
        for given in purifiers:
            purifier = load_step(given, options.get(given), metric) if isinstance(given, str) else given
            for _ in range(draws if purifier.is_random else 1):
                members.append(PurifiedMetric(inner, purifier, backward=backward, seed=seed, place=len(members)))
        own = nn.ModuleList({id(member.purifier): member.purifier for member in members}.values())
        # members are a tuple, so that the metric that they share is registered once
        super().__init__(inner, name, members=tuple(members), purifiers=own)
        self.is_random = any(member.is_random for member in members)
        self.thread_safe = all(member.thread_safe for member in members)

    @property
    def min_sides(self) -> tuple[int, int]:
        """What the members need, on each side the largest."""
        heights, widths = zip(*(member.min_sides for member in self.members), strict=True)
        return max(heights), max(widths)

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the median ``(N,)`` of the members' scores, the mean of the two middle ones where they are even."""
        scores = [member(images, image_ids=image_ids, generator=generator) for member in self.members]
        return sample_median(torch.stack(scores, dim=1))

    def stops_gradient(self) -> str | None:
        """Return the step that lets no gradient through where no member does."""
        stops = [member.stops_gradient() for member in self.members]
        return stops[0] if all(stops) else None
