"""What a class or function takes, read from its signature and from those that it hands its options on to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


CONSTRAINTS: dict[str, Mapping[str, Any]] = {}
"""What options of other projects' classes may be beyond what their own annotations say, by the class's full name."""
NOTHING_MORE = "**"
"""Among them, says that the class takes no further ones, whatever its ``**kwargs`` say."""


class Required:
    """The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """One option of a class or function.

    Attributes:
        annotation: what it may be, ``Any`` where that is not said.
        default: its value where none is given, ``Required`` without one.
    """

    annotation: Any = Any
    default: Any = Required


@dataclass(frozen=True)
class Options:
    """What a class or function takes.

    Attributes:
        named: its options by name.
        rest: the annotation of further ones, None where there can be none.
    """

    named: dict[str, Option]
    rest: Any = None


def hands_on(choose: Callable[[Mapping[str, Any]], Any]) -> Callable[[T], T]:
    """Mark a class or function whose ``**options`` go to another one.

    Args:
        choose: of the options given, returns what takes the rest: a class or function, or annotations by name; None
            where the options do not say.
    """

    def mark(target: T) -> T:
        target.__hands_on__ = choose  # type: ignore[attr-defined]
        return target

    return mark


def options_of(target: Callable[..., Any], given: Mapping[str, Any] | None = None) -> Options:
    """Return what a class or function takes, with the options that it hands on to its bases or to another one.

    >>> def shrink(image, *, scale: float = 0.5): ...
    >>> list(options_of(shrink).named)
    ['image', 'scale']
    """
    named: dict[str, Option] = {}
    rest = None
    for owner, function in _signatures(target):
        own, rest = _own(function, is_method=owner is not None)
        named = {**own, **named}
        if rest is None:
            break
    choose = getattr(target, "__hands_on__", None)
    if choose is not None:
        further = choose(given or {})
        if isinstance(further, Mapping):
            return Options({**{key: Option(annotation, None) for key, annotation in further.items()}, **named})
        if further is None:
            return Options(named, rest)
        taken = options_of(further, given)
        return Options({**taken.named, **named}, taken.rest)
    for base in getattr(target, "__mro__", ()):
        for key, annotation in CONSTRAINTS.get(f"{base.__module__}.{base.__qualname__}", {}).items():
            if key == NOTHING_MORE:
                rest = None
            else:
                named[key] = Option(annotation, named[key].default if key in named else Required)
    return Options(named, rest)


def _signatures(target: Callable[..., Any]) -> Iterator[tuple[type | None, Any]]:
    """Yield what is called in turn: the function, or the constructors of a class and of the bases it hands on to."""
    if not isinstance(target, type):
        yield None, target
        return
    for owner in target.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            if owner.__module__.startswith("torch.nn.modules"):
                return  # its **kwargs are there to be refused
            yield owner, vars(owner)["__init__"]
            if not owner.__module__.startswith("certiqa."):
                return  # what others do with **kwargs is not known


@cache
def _own(function: Callable[..., Any], *, is_method: bool) -> tuple[dict[str, Option], Any]:
    """Return the options of one function, and the annotation of further ones."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[is_method:]
    except (TypeError, ValueError):
        return {}, Any  # written in C
    named, rest = {}, None
    for each in parameters:
        annotation = _evaluated(each.annotation, function)
        if each.kind is each.VAR_KEYWORD:
            rest = annotation
        elif each.kind is not each.VAR_POSITIONAL:
            default = Required if each.default is each.empty else each.default
            named[each.name] = Option(annotation, default)
    return named, rest


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return an annotation that may be written as text; ``Any`` for none, or one that means nothing at run time."""
    if annotation is inspect.Parameter.empty or annotation is object:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(inspect.unwrap(function).__globals__))
    except Exception:
        return Any
