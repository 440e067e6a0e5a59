"""Overrides that Hydra's grammar does not take as they were typed, and how to type them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException


def advice_on(error: OverrideParseException, arguments: Sequence[str]) -> str:
    """Return one sentence on an override that cannot be read, with what to type instead.

    Args:
        error: Hydra's.
        arguments: the command line.
    """
    typed = error.override
    key, mark, value = typed.partition("=")
    if not mark:
        before = arguments[arguments.index(typed) - 1] if typed in arguments[1:] else ""
        advice = f"type {quoted(before[:-1], typed)}" if before.endswith("=") else "write key=value"
        return f"'{typed}' is no option: there must be no blank around the = of an option; {advice}"
    if not _reads(f"{key}=1"):
        return f"cannot read the option '{typed}': '{key}' is no key; `--cfg job` shows all keys"
    as_one_text = quoted(key, value)
    if value[:1] in ("[", "{") or not _reads(as_one_text):
        example = quoted(key, "a b").replace('"a b"', '["a b","c"]')
        return (
            f"cannot read the value of '{typed}': brackets must be closed, and texts with special characters quoted, "
            f"as in {example}"
        )
    return f"cannot read the value of '{typed}': a text with special characters must be quoted; type {as_one_text}"


def advice_on_several(typed: str) -> str:
    """Return one sentence on an override of several values where one is wanted, without ``-m``.

    >>> print(advice_on_several("seed=0,1"))
    'seed=0,1' gives several values: -m runs each of them, 'seed=[0,1]' is a list of them, and 'seed="0,1"' is one text
    """
    key, _, value = typed.partition("=")
    if value.endswith(")"):  # range(0,3), choice(a,b)
        return f"'{typed}' gives several values: -m runs each of them"
    as_list = shlex.quote(f"{key}=[{value}]")
    return (
        f"'{typed}' gives several values: -m runs each of them, {as_list} is a list of them, and {quoted(key, value)} "
        "is one text"
    )


def quoted(key: str, value: str) -> str:
    """Return an override with a text as its value, as one types it in a shell.

    >>> print(quoted("data.root", "/data/my photos (1)"))
    'data.root="/data/my photos (1)"'
    """
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return shlex.quote(as_text(key, bare))


def as_text(key: str, value: str) -> str:
    """Return an override that gives a text, whatever its characters."""
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def _reads(command: str) -> bool:
    """Return whether Hydra reads an override that is written for a shell."""
    try:
        OverridesParser.create().parse_overrides(shlex.split(command))
    except HydraException:
        return False
    return True
