"""``certiqa-weights``: what each metric needs, where it comes from, whether it is there and whether it is right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certiqa.console import accept_any_text
from certiqa.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from certiqa.metrics.sources import WeightFile

PROBES = ("scikit_coffee.png", "palapeli_citrus-fruits.png")
DEMO = "1000.JPG"  # of Linearity's authors; compared with the score they print, where somebody put it into the cache
COLUMNS = ("metric", "file", "MB", "licence", "source")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run one of the commands; exits with 1 where something is wrong or missing."""
    accept_any_text()
    parser = argparse.ArgumentParser(prog="certiqa-weights", description="The weights of published metrics.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what each metric needs, and whether it is there")
    listing.add_argument("--markdown", action="store_true", help="as the table of docs/metrics.md")
    for command, text in (
        ("fetch", "download what can be downloaded, say where to get the rest"),
        ("verify", "check digests, strict loading, known scores, and pyiqa's own models"),
    ):
        sub = commands.add_parser(command, help=text)
        sub.add_argument("metrics", nargs="*", metavar="METRIC", help="default: all")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "list":
            print_markdown() if chosen.markdown else print_list()
        elif chosen.command == "fetch":
            fetch(known(chosen.metrics))
        else:
            verify(known(chosen.metrics))
    except UserError as error:
        print(f"certiqa-weights: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("certiqa-weights: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def known(names: Sequence[str]) -> list[str]:
    """Return the metrics meant; raises UserError for one that does not exist."""
    from certiqa.metrics import METRICS

    for name in names:
        if name not in METRICS:
            raise UserError(
                f"no metric '{name}'; there are: {', '.join(METRICS)}.{suggest(name, METRICS)} (what other metrics of "
                "pyiqa need, pyiqa downloads at their first use)"
            )
    return list(names) or list(METRICS)


def row(file: WeightFile) -> tuple[str, ...]:
    """Return one file's line of the table."""
    return file.metric, file.filename, f"{file.megabytes:g}", file.licence, file.source


def print_list() -> None:
    """Print the table for a terminal, with what is there."""
    from rich.table import Table

    from certiqa.console import plain_console
    from certiqa.metrics.sources import WEIGHT_FILES

    table = Table(title="Weights of published metrics (mini ships its own)", show_lines=True)
    for column in (*COLUMNS, "here"):
        table.add_column(column, overflow="fold")
    for file in WEIGHT_FILES:
        found = file.present()
        table.add_row(*row(file), str(found) if found else "no")
    console = plain_console()
    console.print(table)
    console.print(f"cache: {WEIGHT_FILES[0].path.parent} (CERTIQA_CACHE moves it)", soft_wrap=True)


def print_markdown() -> None:
    """Print the table as docs/metrics.md shows it."""
    from certiqa.metrics.sources import WEIGHT_FILES

    for cells in (COLUMNS, ("---",) * len(COLUMNS), *map(row, WEIGHT_FILES)):
        print(f"| {' | '.join(cells)} |")


def fetch(names: Sequence[str]) -> None:
    """Download the files of these metrics; raises UserError, after all others, for what could not be had."""
    from certiqa.metrics.sources import files_of

    failures = []
    for file in (file for name in names for file in files_of(name)):
        try:
            print(file.locate())
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("\n".join(failures))


def verify(names: Sequence[str]) -> None:
    """Print what was found of these metrics; raises UserError where one is wrong or not here."""
    from rich.table import Table

    from certiqa.console import plain_console
    from certiqa.metrics.calibration import verify_metric

    table = Table("metric", "state", "notes", "scores of the probe images", show_lines=True)
    verdicts = [verify_metric(name, probes(name)) for name in names]
    for verdict in verdicts:
        scores = "\n".join(f"{image} {score:.6g}" for image, score in verdict.scores.items())
        table.add_row(verdict.metric, verdict.state, "\n".join(verdict.notes), scores)
    plain_console().print(table)
    wrong = [verdict.metric for verdict in verdicts if verdict.state == "wrong"]
    absent = [verdict.metric for verdict in verdicts if verdict.state == "not here"]
    problems = [f"not as published: {', '.join(wrong)}"] if wrong else []
    problems += [f"files are missing: {', '.join(absent)}"] if absent else []
    if problems:
        raise UserError(f"{'; '.join(problems)}; the table says what is wrong")


def probes(metric: str) -> dict[str, Tensor]:
    """Return the probe images by name: two embedded photographs, and the demo image of Linearity if it is there."""
    from certiqa.data import read_image, to_tensor
    from certiqa.data.mini import ASSETS
    from certiqa.storage.cache import cache_root

    paths = [ASSETS / "photos" / name for name in PROBES]
    demo = Path(cache_root()) / "weights" / DEMO
    if metric == "linearity" and demo.is_file():
        paths.append(demo)
    return {path.name: to_tensor(read_image(path)) for path in paths}


if __name__ == "__main__":
    main()
