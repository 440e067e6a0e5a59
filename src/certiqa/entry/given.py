"""The files that a command gives by path, which a run is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from omegaconf import DictConfig

from certiqa.data.listing import list_images, tables_in
from certiqa.entry.identity import flat_identity
from certiqa.errors import UserError
from certiqa.storage.files import sha256

GIVEN_FILES = "given_files"  # of a summary


def given_files(config: DictConfig) -> dict[str, str]:
    """Return a digest of every file or folder that the config gives by path and that is there, by dotted key.

    What it gives by name (published data sets and weights, which are checked where they are fetched) is not among them.
    """
    paths = {
        key: Path(value).expanduser()
        for key, value in flat_identity(config, environment=True).items()
        if isinstance(value, str) and _names_a_path(key, value)
    }
    return {key: _digest(key, path) for key, path in paths.items() if path.exists()}


def _names_a_path(key: str, value: str) -> bool:
    """Return whether a value is written as a path, or stands where one is expected; a bare word is else a name."""
    in_run = key.startswith("callbacks.")  # where the run itself writes
    return bool(value) and not in_run and ("/" in value or "." in value or key.endswith((".weights", ".root")))


def _digest(key: str, path: Path) -> str:
    """Return what tells a file or folder from another of its name; raises UserError where it cannot be read."""
    try:
        if path.is_file():
            return sha256(path)[:16]
        if key == "data.root":  # names and sizes; what is in the images that a run uses is looked at apart
            contents = [f"{name} {size}" for name, size in list_images(path).items()]
            contents += [f"{table.name} {sha256(table)}" for table in tables_in(path) if table.suffix.lower() != ".txt"]
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            contents = [f"{file.relative_to(path).as_posix()} {sha256(file)}" for file in files]
    except OSError as error:
        raise UserError(f"cannot read {key}={path}: {error.strerror or error}; give a path that can be read") from error
    return hashlib.blake2b("\n".join(contents).encode(errors="surrogateescape"), digest_size=8).hexdigest()
