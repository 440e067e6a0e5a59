"""``certiqa-data``: look at the data certiqa makes. ``certiqa-data sheet`` draws the distortions for the eye."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from certiqa.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(prog="certiqa-data", description="Make, check and look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="draw all distortion types by levels as one picture")
    sheet.add_argument("--image", type=Path, help="a photograph; default: one of the embedded ones")
    sheet.add_argument(
        "--types", nargs="*", metavar="NAME", help="distortions to draw, by name or KADID number; default all"
    )
    sheet.add_argument("--seed", type=int, default=0, help="of the random distortions (default 0)")
    sheet.add_argument(
        "--out", type=Path, default=Path("outputs/distortions.png"), help="default outputs/distortions.png"
    )
    prepare = commands.add_parser("prepare", help="make a data set's images now instead of at the first run")
    prepare.add_argument("name", choices=["mini"])
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "sheet":
            _sheet(chosen.image, chosen.types, chosen.seed, chosen.out)
        else:
            from certiqa.data.mini import prepare_mini

            print(prepare_mini())
    except UserError as error:
        print(f"certiqa-data: {error}", file=sys.stderr)
        sys.exit(1)


def _sheet(image: Path | None, types: list[str] | None, seed: int, out: Path) -> None:
    from certiqa.data.sheet import contact_sheet

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(image, types, seed).save(out)
    except OSError as error:
        raise UserError(f"cannot write '{out}': {error}; choose another place with --out") from error
    print(out)


if __name__ == "__main__":
    main()
