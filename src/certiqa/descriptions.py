"""What a message says of an annotation: ``a number from 0 to 1, or null``."""

from __future__ import annotations

import types
from collections.abc import Callable as AnyCallable
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen

from certiqa.options import Choices, Node, OptionsOf, Says

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", Any: "anything"}


def described(annotation: Any) -> str:
    """Return what is allowed, in words.

    >>> described(Annotated[float, Interval(ge=0, le=1)] | None)
    'a number from 0 to 1 or null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        parts = list(dict.fromkeys(described(each) for each in arguments if each is not type(None) and is_data(each)))
        if Path in arguments and str in arguments:
            parts.remove("text")
        return _joined([*parts, "null"] if type(None) in arguments else parts)
    if origin is Literal:
        return _joined([shown(each) for each in arguments])
    if annotation is None or annotation is type(None):
        return "null"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values, each {described(arguments[0])}"
    kind = origin or annotation
    if kind in WORDS:
        return WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping, e.g. {key: value}"
    if kind in (Sequence, Collection, Iterable) or (isinstance(kind, type) and issubclass(kind, list | tuple | set)):
        return f"a list, each entry {described(arguments[0])}" if arguments and arguments[0] is not Any else "a list"
    return f"a {getattr(kind, '__name__', kind)}, given by its _target_"


def _annotated(kind: Any, marks: tuple[Any, ...]) -> str:
    for mark in marks:
        if isinstance(mark, Says):
            return mark.text
        if isinstance(mark, Choices):
            return _joined(list(mark.known))
        if isinstance(mark, Node | OptionsOf):
            return "an option of its group, or a mapping of keys and values"
    bounds: dict[str, Any] = {}
    for mark in marks:
        if isinstance(mark, Interval | Gt | Ge | Lt | Le | Len | MinLen):
            bounds |= {key: value for key, value in vars_of(mark).items() if value is not None}
    return described(kind) + _bounded(bounds)


def vars_of(mark: Any) -> dict[str, Any]:
    """Return the fields of a constraint."""
    return {
        key: getattr(mark, key) for key in ("gt", "ge", "lt", "le", "min_length", "max_length") if hasattr(mark, key)
    }


def _bounded(bounds: Mapping[str, Any]) -> str:
    if "ge" in bounds and ("le" in bounds or "lt" in bounds):
        return f" from {bounds['ge']} to {_top(bounds)}"
    parts = [f"above {bounds['gt']:g}"] if "gt" in bounds else []
    parts += [f"of at least {bounds['ge']:g}"] if "ge" in bounds else []
    parts += [f"below {bounds['lt']:g}"] if "lt" in bounds else []
    parts += [f"at most {bounds['le']:g}"] if "le" in bounds else []
    if least := bounds.get("min_length"):
        most = bounds.get("max_length")
        parts.append(f"of length {least}" if least == most else "not empty" if least == 1 else f"of at least {least}")
    return f", {' and '.join(parts)}" if "min_length" in bounds else f" {' and '.join(parts)}" if parts else ""


def _top(bounds: Mapping[str, Any]) -> str:
    if "le" in bounds:
        return str(bounds["le"])
    return str(bounds["lt"] - 1) if isinstance(bounds["lt"], int) else f"below {bounds['lt']:g}"


def _joined(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    mark = ", or " if any("," in part or " or " in part for part in parts) else " or "
    return ", ".join(parts[:-1]) + mark + parts[-1]


def is_data(annotation: Any) -> bool:
    """Return whether values of an annotation can be written in a config."""
    kind = get_origin(annotation) or annotation
    if kind in (Annotated, Literal, Union, types.UnionType) or kind in WORDS or kind is type(None):
        return True
    if kind is AnyCallable or not isinstance(kind, type):
        return False
    return issubclass(kind, list | tuple | set | Mapping) or kind.__module__ == "collections.abc"


def mark_of(annotation: Any) -> Node | OptionsOf | None:
    """Return the mark by which an annotation says that its value is a mapping of options."""
    if get_origin(annotation) is Annotated:
        return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Node | OptionsOf)), None)
    if get_origin(annotation) in (Union, types.UnionType):
        return next((mark for each in get_args(annotation) if (mark := mark_of(each))), None)
    return None


def alternatives(annotation: Any) -> list[str]:
    """Return the texts that an annotation names."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    named = [mark.known for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Choices)]
    further = [each for part in get_args(annotation) if not isinstance(part, str) for each in alternatives(part)]
    return [each for known in named for each in known] + further


def advice(annotation: Any, value: Any) -> str:
    """Return what to write in place of a number in other units, where the annotation knows."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value <= 255:
        return ""
    for each in (annotation, *get_args(annotation)):
        for mark in getattr(each, "__metadata__", ()):
            if isinstance(mark, Says) and mark.above_one:
                return f"; {mark.above_one.format(value=f'{value:g}')}"
    return ""


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    return f"'{value}'" if isinstance(value, str) and (not value or " " in value) else str(value)
