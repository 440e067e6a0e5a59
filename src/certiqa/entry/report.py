"""``certiqa-report``: write a run's report again, or gather many runs into a comparison."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from certiqa.console import accept_any_text
from certiqa.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Write ``report.html`` of one run, or the comparison of several runs or of all runs below a folder."""
    accept_any_text()
    parser = argparse.ArgumentParser(
        prog="certiqa-report",
        description="One run: write its HTML report again. Several runs, or a folder of runs: gather them, finished or "
        "not, into a static site with tables, plots and exports.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="a run, e.g. outputs/train/<name>, or a folder of runs"
    )
    parser.add_argument("--into", type=Path, help="where the comparison goes (default: comparison/ in the folder)")
    parser.add_argument("--radius", type=float, help="of the certified figures (default: the primary one of most runs)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the paired bootstrap (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the paired bootstrap (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="link to the runs' reports instead of copying them")
    chosen = parser.parse_args(arguments)
    from certiqa.reports import write_comparison, write_report
    from certiqa.reports.comparison.gather import is_run
    from certiqa.reports.study import write_study_report

    only = chosen.folders[0] if len(chosen.folders) == 1 else None
    try:
        if only is not None and chosen.into is None and (is_run(only) or not only.is_dir()):
            print(write_study_report(only) if (only / "study.json").is_file() else write_report(only))
            return
        site = write_comparison(
            chosen.folders,
            chosen.into,
            radius=chosen.radius,
            resamples=chosen.resamples,
            seed=chosen.seed,
            link=chosen.link,
        )
    except UserError as error:
        print(f"certiqa-report: {error}", file=sys.stderr)
        sys.exit(1)
    for note in site.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{len(site.runs)} run{'' if len(site.runs) == 1 else 's'}: {site.index}")


if __name__ == "__main__":
    main()
