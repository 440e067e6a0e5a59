"""Purifiers by name."""

from __future__ import annotations

import inspect
from typing import Any

from certiqa.defenses.purified import Purifier
from certiqa.defenses.purifiers.compression import Jpeg
from certiqa.defenses.purifiers.geometric import RandomRotate
from certiqa.errors import UserError, suggest

PURIFIERS: dict[str, type[Purifier]] = {
    purifier.name: purifier
    for purifier in (
        RandomRotate,
        Jpeg,
    )
}


def load_purifier(name: str, **options: Any) -> Purifier:
    """Build a purifier by name, e.g. ``load_purifier("jpeg", quality=50)``.

    Args:
        name: one of ``PURIFIERS``.
        options: of that purifier.

    Raises:
        UserError: unknown name or option, or a value that is not allowed.
    """
    if name not in PURIFIERS:
        raise UserError(f"no purifier '{name}'; there are: {', '.join(PURIFIERS)}.{suggest(name, PURIFIERS)}")
    purifier = PURIFIERS[name]
    known = [key for key in inspect.signature(purifier).parameters if key != "self"]
    for key in options:
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise UserError(f"purifier '{name}' has no option '{key}'; {has}.{suggest(key, known)}")
    return purifier(**options)
