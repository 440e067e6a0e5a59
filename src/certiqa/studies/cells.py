"""The cells of a study: every purifier at each of its strengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certiqa.errors import UserError

WEIGHTS = "weights"


@dataclass(frozen=True)
class Cell:
    """One purifier at one strength.

    Attributes:
        purifier: its name.
        option: what makes it stronger or weaker; None where it has one strength.
        value: of that option.
        options: all its options.
    """

    purifier: str
    option: str | None = None
    value: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def strength(self) -> str:
        """The strength as tables show it."""
        return "" if self.option is None else f"{self.option} {self.value}"

    @property
    def label(self) -> str:
        """The cell as messages name it."""
        return f"{self.purifier} {self.strength}".strip()

    @property
    def slug(self) -> str:
        """The cell as a folder's name."""
        return re.sub(r"[^\w.-]+", "_", "-".join([self.purifier, *filter(None, [self.strength])]))

    @property
    def available(self) -> bool:
        """Whether it can be built: a network whose weights are not given cannot, and is never run with random ones."""
        return WEIGHTS not in self.options or self.options[WEIGHTS] is not None


def grid(purifiers: Mapping[str, Mapping[str, Any] | None]) -> list[Cell]:
    """Return the cells of purifiers given as ``{name: {option: value, strength: [values]}}``.

    Args:
        purifiers: options by name; at most one of a purifier's options is a list, its strengths. ``weights: null``
            lists a network whose weights are not at hand; None in place of options takes a purifier out.

    Raises:
        UserError: no purifier, two options with lists, or an empty list.
    """
    if all(given is None for given in purifiers.values()):
        raise UserError("a purification study needs purifiers, e.g. study.purifiers.jpeg.quality=[10,50,90]")
    cells = []
    for name, given in purifiers.items():
        if given is None:  # taken out
            continue
        options = dict(given)
        lists = [key for key, value in options.items() if isinstance(value, list | tuple)]
        if len(lists) > 1:
            raise UserError(
                f"study.purifiers.{name} has lists for {' and '.join(lists)}; one option has the strengths, the others "
                "one value each"
            )
        if not lists:
            cells.append(Cell(name, options=options))
            continue
        (strength,) = lists
        if not options[strength]:
            raise UserError(f"study.purifiers.{name}.{strength} is empty; give its strengths, or leave {name} out")
        cells += [Cell(name, strength, value, {**options, strength: value}) for value in options[strength]]
    return cells
