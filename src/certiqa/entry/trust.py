"""What a config must not do though it may name any class: run code that a file brings, or a command.

Configs are trusted input, as programs are: whoever may write one may name a class of their own. But weights and data
come from elsewhere, and a ``_target_`` that unpickles a file runs what its maker wrote into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra.utils import get_object

from certiqa.errors import UserError

REFUSED = {
    "loads files that can bring code": (
        *("torch.load", "torch.serialization.load", "torch.hub.*", "torch.package.*"),
        *("pickle.*", "_pickle.*", "dill.*", "cloudpickle.*", "joblib.*", "shelve.*", "marshal.*"),
        *("numpy.load", "pandas.read_pickle", "pandas.io.pickle.*", "yaml.unsafe_load*"),
    ),
    "runs commands or code": (
        *("os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "posix.*", "nt.*"),
        *("subprocess.*", "pty.*", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
        *("runpy.*", "importlib.*", "code.*"),
    ),
    "calls whatever a text names": ("hydra.utils.*", "hydra._internal.*"),
}
"""Why a function or class is no ``_target_``, and the names of those it holds for."""
HARMLESS: dict[str, Callable[[Mapping[Any, Any]], bool]] = {
    "torch.serialization.load": lambda node: node.get("weights_only") is True,
    "numpy.load": lambda node: node.get("allow_pickle", False) is False,
}
"""Whether the options of a loader let it take nothing but numbers."""


def refuse_loaders(content: Any) -> None:
    """Raise UserError for a ``_target_``, however deep in a resolved config, that runs what a file or a text brings."""
    for node in _nodes(content):
        target = node.get("_target_")
        if not isinstance(target, str):
            continue
        home = _home(target)
        reason = next((why for why, known in REFUSED.items() if _is_among(known, target, home)), None)
        if reason is None or (home in HARMLESS and HARMLESS[home](node)):
            continue
        raise UserError(
            f"_target_={target} is refused, as it {reason}; name a class or function of your own, and keep weights as "
            "safetensors, or have torch.load read them with weights_only=true"
        )


def _nodes(content: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(content, Mapping):
        yield content
        content = list(content.values())
    if isinstance(content, list | tuple):
        for part in content:
            yield from _nodes(part)


def _is_among(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _home(target: str) -> str:
    """Return the name under which what a ``_target_`` names was defined: another module may have imported it."""
    try:
        found = get_object(target)
    except Exception:  # importing a module raises anything, and building what it holds will say so
        return target
    home, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{home}.{name}" if home and name else target
