"""What the terminal shows at a run's end."""

from __future__ import annotations

from rich.console import Console

from certiqa.console import plain_console
from certiqa.reports.attacks import attack_table
from certiqa.reports.tables import Summary, comparison_table


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print undefended beside defended, and what attacks did, to ``console`` (by default the terminal)."""
    console = console or plain_console()
    console.print(comparison_table(summary))
    if (attacks := attack_table(summary)) is not None:
        console.print(attacks)
