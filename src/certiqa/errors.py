"""Errors meant for the person at the keyboard, and the sentence that suggests what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral


class UserError(Exception):
    """A mistake in what the user asked for or gave; the entry points print its text without a traceback.

    The text names the value, what is allowed, and what to do next.
    """


def suggest(given: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to ``given``, or an empty string."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def headline(message: str) -> str:
    """Return the first line of a message, with the next one where the first announces it.

    >>> headline("the metric breaks its contract:\\n  finite: scores are NaN\\n  frozen: it is not")
    'the metric breaks its contract: finite: scores are NaN'
    """
    lines = message.strip().splitlines() or [""]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise UserError unless an option is a whole number of at least ``least``, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
        raise UserError(f"{name} must be a whole number of at least {least}, or null, got {value!r}")
