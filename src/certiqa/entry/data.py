"""``certiqa-data``: get, check, prepare and look at data sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from certiqa.console import accept_any_text
from certiqa.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run one of the commands."""
    accept_any_text()
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
    fetch = commands.add_parser("fetch", help="download a data set, or say how to get it")
    verify = commands.add_parser("verify", help="check counts, tables and images; exits with 1 if one is wrong")
    prepare = commands.add_parser("prepare", help="make a data set's images, or resized copies, before the first run")
    for command in (fetch, verify, prepare):
        # not a list of them: it would take the seconds in which torch is imported
        command.add_argument("name", metavar="NAME", help="what data= calls it, e.g. koniq; to prepare also mini")
        command.add_argument("--root", type=Path, help="its folder; default the one in $CERTIQA_DATA")
    fetch.add_argument("--parts", nargs="*", default=[], metavar="PART", help="default: all that are not optional")
    fetch.add_argument("--keep", action="store_true", help="keep the archives in the cache")
    verify.add_argument("--all", action="store_true", help="decode every image instead of a sample")
    prepare.add_argument("--resize", type=int, default=512, help="length of the shorter side (default 512)")
    prepare.add_argument("--filter", default="bilinear", help="bilinear (default), bicubic or lanczos")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "sheet":
            _sheet(chosen.image, chosen.types, chosen.seed, chosen.out)
        elif chosen.command == "fetch":
            _fetch(chosen.name, chosen.root, chosen.parts, keep=chosen.keep)
        elif chosen.command == "verify":
            _verify(chosen.name, chosen.root, all_images=chosen.all)
        else:
            _prepare(chosen.name, chosen.root, chosen.resize, chosen.filter)
    except UserError as error:
        print(f"certiqa-data: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("certiqa-data: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _fetch(name: str, root: Path | None, parts: list[str], *, keep: bool) -> None:
    from certiqa.data.fetching import fetch_dataset
    from certiqa.data.registry import published_set

    published = published_set(name)
    for line in fetch_dataset(published, root, parts, keep=keep):
        print(line)
    print(f"{published.title} is in {published.destination(root)}; check it with: certiqa-data verify {name}")


def _verify(name: str, root: Path | None, *, all_images: bool) -> None:
    from certiqa.data.registry import published_set
    from certiqa.data.verifying import images_of, verify_dataset

    published = published_set(name)
    folder = published.find(root)
    faults = verify_dataset(published, folder, all_images=all_images)
    if faults:
        raise UserError("\n  ".join([f"{published.title} in '{folder}' is not as published:", *faults]))
    counts = ", ".join(f"{len(paths)} in {group}" for group, paths in images_of(published, folder).items())
    print(f"{published.title} in {folder} is as published: {counts}")


def _prepare(name: str, root: Path | None, resize: int, resize_filter: str) -> None:
    if name == "mini":
        from certiqa.data.mini import prepare_mini

        print(prepare_mini())
        return
    from certiqa.data.registry import published_set
    from certiqa.data.shrunk import copies_folder, prepare_shrunk
    from certiqa.data.verifying import images_of

    published = published_set(name)
    folder = published.find(root)
    paths = [path for group in images_of(published, folder).values() for path in group]
    if not paths:
        raise UserError(f"no images of {published.title} in '{folder}'. {published.advice()}")
    failures = prepare_shrunk(paths, copies_folder(), resize, resize_filter)
    print(f"{len(paths) - len(failures)} images prepared in {copies_folder()}")
    print(f"used with: data={name} data.resize={resize} data.resize_filter={resize_filter}")
    if failures:
        listed = "\n  ".join(list(failures.values())[:5])
        raise UserError(f"{len(failures)} images cannot be read, the first:\n  {listed}")


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
