"""The terminal: text is printed as it stands, on whatever stream and in whatever encoding there is."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import TextColumn


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that takes no text for markup: paths and names may hold ``[bold]``, ``[/x]`` or ``:smile:``.

    Args:
        stderr: write to the error stream instead of the output.
    """
    return Console(stderr=stderr, markup=False, emoji=False)


def plain_column() -> TextColumn:
    """Return the column of a progress bar that says what is under way, no text of it taken for markup."""
    return TextColumn("{task.description}", markup=False)


def accept_any_text() -> None:
    """Let the output stream print a ``?`` for what its encoding lacks, where it would raise.

    The error stream never raises. Box characters need nothing: rich draws boxes in ASCII on what is not UTF-8.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream takes any text as it is
        sys.stdout.reconfigure(errors="replace")
