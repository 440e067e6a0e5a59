"""``certiqa-report``: write a run's report again, from its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from certiqa.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Write ``report.html`` into each run folder given."""
    parser = argparse.ArgumentParser(prog="certiqa-report", description="Write the HTML report of runs again.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, e.g. outputs/train/<name>")
    chosen = parser.parse_args(arguments)
    from certiqa.reports import write_report

    failed = False
    for folder in chosen.folders:
        try:
            print(write_report(folder))
        except UserError as error:
            print(f"certiqa-report: {error}", file=sys.stderr)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
