"""Cells of csv files that people open: a spreadsheet must not take a name or a note for a formula and run it."""

from __future__ import annotations

import re
from typing import Any

FORMULA = re.compile(r"'*[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def safe_cell(value: Any) -> Any:
    """Return a cell as it is, but a text that a spreadsheet would run with an apostrophe before it.

    >>> [safe_cell(cell) for cell in ("=1+1", "-inf", "-photo.png", -1.5, "ms", None)]
    ["'=1+1", '-inf', "'-photo.png", -1.5, 'ms', None]
    """
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def plain_cell(text: Any) -> Any:
    """Return what ``safe_cell`` was given.

    >>> plain_cell("'=1+1"), plain_cell("'tis"), plain_cell(2.0)
    ('=1+1', "'tis", 2.0)
    """
    return text[1:] if isinstance(text, str) and text.startswith("'") and FORMULA.match(text) else text
