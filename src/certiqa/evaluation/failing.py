"""Images on which a metric raises: told from those of their batch that it scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from certiqa.errors import UserError, first_line

Found = TypeVar("Found")
Work = Callable[[list[int]], Iterable[tuple[int, Found]]]
"""From places in a batch to (place, what was found there)."""


def one_by_one(work: Work[Found], places: Sequence[int]) -> Iterator[tuple[int, Found | Exception]]:
    """Yield (place, what was found there); where the batch raises, the rest of it is worked on place by place.

    In the place of a finding stands the exception where that place raises by itself too.

    >>> def inverse(places):
    ...     return [(place, 1 / place) for place in places]
    >>> [(place, str(found)) for place, found in one_by_one(inverse, [4, 0, 2])]
    [(4, '0.25'), (0, 'division by zero'), (2, '0.5')]

    Args:
        work: finds something for each of several places; may yield some before it raises.
        places: where.

    Raises:
        UserError: what ``work`` raises as such, which does not speak of one image.
    """
    left = list(places)
    try:
        for place, found in work(left.copy()):
            left.remove(place)
            yield place, found
        return
    except UserError:
        raise
    except Exception as error:
        if len(left) == 1:
            yield left[0], error
            return
    for place in left:
        yield from one_by_one(work, [place])


def why(what: str, image_id: str, error: Exception) -> str:
    """Return the sentence of what raises on an image, e.g. ``metric 'niqe'``."""
    return f"{what} fails on image '{image_id}': {type(error).__name__}: {first_line(error)}"


def refused(what: str, image_id: str, error: Exception) -> UserError:
    """Return the error of what raises on an image, and what to do."""
    return UserError(
        f"{why(what, image_id, error)}. Leave the image out, mend the metric, or record such images as failed with "
        "data.on_error=skip"
    )
