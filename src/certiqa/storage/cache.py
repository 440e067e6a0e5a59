"""Where certiqa keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from certiqa.errors import UserError


def cache_root(folder: str | Path | None = None) -> Path:
    """Return the cache folder, made if need be: ``folder``, else ``$CERTIQA_CACHE``, else the platform's.

    Raises:
        UserError: if it cannot be made or written.
    """
    chosen = folder or os.environ.get("CERTIQA_CACHE") or platformdirs.user_cache_dir("certiqa", appauthor=False)
    root = Path(chosen).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_unwritable(root, error)) from error
    if not os.access(root, os.W_OK):
        raise UserError(_unwritable(root, "permission denied"))
    return root


def _unwritable(root: Path, reason: object) -> str:
    return (
        f"cannot write the cache '{root}': {reason}; set CERTIQA_CACHE (or, for images, data.cache) to a folder that "
        "can be written"
    )
