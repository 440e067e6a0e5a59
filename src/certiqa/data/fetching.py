"""Downloads a data set: whole into its folder, or nothing of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certiqa.data.published import Part, PublishedSet
from certiqa.errors import UserError
from certiqa.storage.archives import RefusedError, extract
from certiqa.storage.cache import cache_root
from certiqa.storage.fetch import fetch
from certiqa.storage.files import DamagedFileError, read_json, sha256, write_json

MEMORY = ".certiqa-fetched.json"
"""Beside the data: which file each part came from, its digest, and the bytes of what it brought."""


def fetch_dataset(
    published: PublishedSet,
    root: str | Path | None = None,
    parts: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    keep: bool = False,
) -> list[str]:
    """Download the parts of a data set that are not there; an interrupted call is continued by the next.

    Args:
        published: the data set.
        root: its folder, made if need be; None for the one in ``$CERTIQA_DATA``.
        parts: names; empty for all that are not optional.
        cache: where downloads go until they are unpacked; None for the default cache.
        keep: keep the archives there.

    Returns:
        what was done, a line for each part.

    Raises:
        UserError: if there is nothing to download, with instructions; or if it cannot be had, is not what was fetched
            before, or is refused: nothing is left behind then but a part that can be continued.
    """
    if not published.parts:
        raise UserError(f"{published.title} cannot be downloaded by a program. {published.advice()}")
    known = {part.name: part for part in published.parts}
    for name in parts:
        if name not in known:
            raise UserError(f"{published.title} has no part '{name}'; there are: {', '.join(known)}")
    wanted = [known[name] for name in parts] or [part for part in published.parts if not part.optional]
    folder, downloads = published.destination(root), cache_root(cache) / "downloads" / published.name
    return [_fetch_part(part, folder, downloads, keep=keep) for part in wanted]


def remembered(root: Path) -> dict[str, dict[str, Any]]:
    """Return what is remembered of the parts fetched to a folder; empty if nothing is."""
    try:
        found = read_json(root / MEMORY, dict) or {}
    except DamagedFileError:
        return {}
    return {name: facts for name, facts in found.items() if _is_memory(facts)}


def _is_memory(facts: Any) -> bool:
    return isinstance(facts, dict) and isinstance(facts.get("files"), dict)


def _fetch_part(part: Part, root: Path, downloads: Path, *, keep: bool) -> str:
    if all((root / name).exists() for name in part.lands):
        return f"{part.name}: is there already, {root}"
    before = remembered(root).get(part.name, {})
    same_file = before.get("sha256") if before.get("url") == part.url else None
    file = fetch(part.url, downloads / part.url.rpartition("/")[2], sha256=same_file)
    digest = sha256(file)
    try:
        root.mkdir(parents=True, exist_ok=True)
        found = _bring(part, file, root)
        memory = remembered(root) | {part.name: {"url": part.url, "sha256": digest, "files": found}}
        write_json(root / MEMORY, memory)
        if not keep:
            file.unlink()
    except OSError as error:
        raise UserError(
            f"cannot put {part.name} into '{root}': {error}; free space there or choose another folder with --root"
        ) from error
    return f"{part.name}: {len(found)} files, SHA-256 {digest}"


def _bring(part: Part, file: Path, root: Path) -> dict[str, int]:
    """Put what a downloaded file holds into the root; returns the bytes of each file brought."""
    unpacked = root / f".fetching-{part.name}"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    try:
        if part.max_bytes is None:
            unpacked.mkdir()
            shutil.copyfile(file, unpacked / part.lands[0])
        else:
            extract(file, unpacked, max_bytes=part.max_bytes, max_files=part.max_files)
        inside = _folder_with(part, unpacked)
        for name in part.lands:
            goal = root / name
            if not goal.exists():
                goal.parent.mkdir(parents=True, exist_ok=True)
                (inside / name).rename(goal)
    except RefusedError:
        file.unlink(missing_ok=True)  # the next call must not find it
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return {
        path.relative_to(root).as_posix(): path.stat().st_size
        for name in part.lands
        for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))
        if path.is_file()
    }


def _folder_with(part: Part, unpacked: Path) -> Path:
    folders = [unpacked, *sorted(path for path in unpacked.iterdir() if path.is_dir())]
    for folder in folders:
        if all((folder / name).exists() for name in part.lands):
            return folder
    raise RefusedError(
        f"what came from '{part.url}' has no {' and '.join(part.lands)}: it is another file than expected; it was "
        "deleted. See in a browser what the address gives, and put the right files into the data set's folder yourself"
    )
