"""The source files behind somebody's own classes and functions: what of their code decides a result."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from certiqa.storage.digests import content_digest


def sources_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the digest of the file of every module that these import, themselves included, by module.

    Followed are ``import`` statements anywhere in a file, also inside functions. Python's own library, installed
    packages and certiqa are left out: those are told apart by their versions.

    Args:
        modules: dotted names of modules that can be imported.

    >>> sources_of(["json", "torch.nn", "certiqa.metrics"])
    {}
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        parts = waiting.pop().split(".")
        for length in range(1, len(parts) + 1):  # a package's __init__ is run before what is in it
            name = ".".join(parts[:length])
            if name in found:
                continue
            path = _place_of(name)
            if path is None or _is_installed(path):
                break
            if path.is_file():  # a folder is a package without __init__
                found[name] = content_digest(path)
                waiting += _imported(path, name)
    return dict(sorted(found.items()))


def _place_of(name: str) -> Path | None:
    """Return the file of a module, or the folder of a package without ``__init__``; None where there is neither."""
    try:
        module = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if module is None else module.__spec__
    except Exception:  # what a parent package raises when it is imported
        return None
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    return next((Path(place).resolve() for place in places if place and Path(place).exists()), None)


def _is_installed(path: Path) -> bool:
    own = Path(__file__).resolve().parents[1]
    places = [own, own.parent / "hydra_plugins", *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    inside = any(path.is_relative_to(place.resolve()) for place in places)
    return inside or bool({"site-packages", "dist-packages"} & {*path.parts})


def _imported(path: Path, name: str) -> Iterator[str]:
    """Yield the modules that a file imports; of ``from a import b`` both ``a`` and ``a.b``, which may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
