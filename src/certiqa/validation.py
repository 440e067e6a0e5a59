"""The check of values against what a class or function takes: unknown options, kinds, ranges, choices and null."""

from __future__ import annotations

import json
import math
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Union, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from certiqa.descriptions import advice, alternatives, described, mark_of, shown
from certiqa.errors import UserError, suggest
from certiqa.options import Node, OptionsOf
from certiqa.signatures import Option, Options, Required, options_of

HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
MISSING = "???"
WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def check_options(target: Callable[..., Any], values: Mapping[str, Any], name: str, **how: Any) -> dict[str, Any]:
    """Return options as they are to be handed over; raises UserError for what ``target`` does not take.

    Words for booleans (yes, no, on, off) become booleans, and numbers written as ``8/255`` numbers, where the
    annotation says so. A mapping with a ``_target_`` is checked as what that takes.

    Args:
        target: a class or function; the annotations of its signature say what is allowed.
        values: its options by name, as they come from a file or the command line.
        name: where they stand, for messages, e.g. ``attack``; empty at the top.
        how: see ``Check``.

    >>> def shrink(image, *, scale: float = 0.5, smooth: bool = True): ...
    >>> check_options(shrink, {"smooth": "no"}, "defense")
    {'smooth': False}
    """
    return Check(**how).options(target, values, name)


@dataclass(frozen=True)
class Check:
    """How values are checked.

    Args:
        typed: dotted names that were typed on the command line; the others may be null as the configs have them,
            whatever a class of the user's own says.
        added: those of them that no config has. Such a class need not know the others where they are null.
        used: names that other values refer to, which may stand at the top though nothing takes them.
    """

    typed: Collection[str] = ()
    added: Collection[str] = ()
    used: Collection[str] = ()

    def options(self, target: Callable[..., Any], values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """See ``check_options``."""
        return self._taken(options_of(target, values), values, name, ours=is_ours(target), whose=_name_of(target))

    def _taken(self, taken: Options, values: Mapping[str, Any], name: str, *, ours: bool, whose: str) -> dict[str, Any]:
        checked = {key: value for key, value in values.items() if key in HYDRA_KEYS}
        unknown = []
        # in the order of the signature: what others repeat by ${...} is named first
        for key in [*(key for key in taken.named if key in values), *(key for key in values if key not in taken.named)]:
            value = values[key]
            if key in HYDRA_KEYS:
                continue
            dotted = f"{name}.{key}" if name else str(key)
            is_null = value is None and not ours
            if key in taken.named:
                option = taken.named[key]
                checked[key] = value if is_null and dotted not in self.typed else self.value(option, value, dotted)
            elif taken.rest is not None:
                checked[key] = self.value(Option(taken.rest), value, dotted)
            elif not (is_null and dotted not in self.added) and not (not name and key in self.used):
                unknown.append(str(key))
        if unknown:
            raise UserError(unknown_key(unknown[0], name, [*taken.named], whose))
        return checked

    def value(self, option: Option, value: Any, name: str) -> Any:
        """Return one value as it is to be handed over; raises UserError where it is not allowed."""
        annotation = option.annotation
        if isinstance(value, str) and value == MISSING:
            return value
        mark = mark_of(annotation)
        if value is None:
            if allows_none(option):
                return None
            raise refusal(name, value, annotation)
        if isinstance(mark, Node) or (isinstance(value, Mapping) and "_target_" in value):
            return self.node(mark if isinstance(mark, Node) else Node(), value, name)
        if isinstance(mark, OptionsOf):
            if not isinstance(value, Mapping):
                raise refusal(name, value, annotation)
            taken = options_of(mark.target, value)
            if mark.several:
                taken = Options({key: or_several(each) for key, each in taken.named.items()}, taken.rest)
            checked = self._taken(taken, value, name, ours=is_ours(mark.target), whose=name)
            for key, each in taken.named.items():
                if each.default is Required and key not in value:
                    raise UserError(f"{name}.{key} must be given: {name}.{key}=...")
            return checked
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) and "_target_" in v for v in value.values()):
            return {key: self.value(Option(), each, f"{name}.{key}") for key, each in value.items()}
        value = read(annotation, value)
        if not fits(annotation, value):
            raise refusal(name, value, annotation)
        return value

    def node(self, mark: Node, value: Any, name: str) -> dict[str, Any]:
        """Return a mapping with a ``_target_`` as it is to be built."""
        if not isinstance(value, Mapping):
            raise UserError(f"{name}={shown(value)} is no option of {name}; choose one that `--help` lists")
        own = {str(key): each for key, each in value.items()}
        target = own.get("_target_")
        if target is not None and not isinstance(target, str):
            raise UserError(f"{name}._target_={shown(target)} must name a class or function, e.g. my_package.MyMetric")
        also = options_of(mark.also, own) if mark.also else Options({})
        beside = {key: own.pop(key) for key in list(own) if key in also.named}
        taker = found(target, name) if target else mark.without
        if taker is None:
            if own.keys() - set(HYDRA_KEYS):
                raise UserError(unknown_key(next(iter(own)), name, [*also.named], name))
            checked = own
        else:
            taken = options_of(taker, own)
            both = Options({**taken.named, **also.named}, taken.rest)
            checked = self._taken(both, own, name, ours=is_ours(taker), whose=target or name)
        return {**checked, **self._taken(also, beside, name, ours=True, whose=name)}


def or_several(option: Option) -> Option:
    """Return an option that may also be a list of its values."""
    kind: Any = option.annotation
    return option if kind is Any else replace(option, annotation=Union.__getitem__((kind, list[kind])))


def found(target: str, name: str) -> Callable[..., Any]:
    """Return the class or function that a ``_target_`` names; raises UserError where there is none."""
    try:
        taker = pkgutil.resolve_name(target)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"cannot find '{target}', which {name}._target_ names: {reason[0] if reason else type(error).__name__}"
        ) from error
    if not callable(taker):
        raise UserError(f"{name}._target_={target} must name a class or function, which '{target}' is not")
    result: Callable[..., Any] = taker
    return result


def is_ours(target: Callable[..., Any]) -> bool:
    """Return whether a class or function is certiqa's, which says all that it takes."""
    return str(getattr(target, "__module__", "")).startswith(("certiqa.", "hydra_plugins.certiqa"))


def _name_of(target: Callable[..., Any]) -> str:
    return str(getattr(target, "__name__", target))


def unknown_key(key: str, name: str, known: Collection[str], whose: str) -> str:
    """Return the message for an option that there is not, with the nearest that there is."""
    dotted = f"{name}.{key}" if name else key
    listed = f"it has: {', '.join(known)}" if known else "it has no options"
    place = f"{whose} has no option '{key}'; {listed}" if name else f"there are: {', '.join(known)}"
    return f"unknown key '{dotted}': {place}.{suggest(key, known)}"


def refusal(name: str, value: Any, annotation: Any) -> UserError:
    """Return the error for a value that is not allowed."""
    hint = advice(annotation, value)
    near = suggest(value, alternatives(annotation)) if isinstance(value, str) else ""
    return UserError(f"{name} must be {described(annotation)}, got {shown(value)}{hint}{near and '.' + near}")


def allows_none(option: Option) -> bool:
    """Return whether None means something to an option, as far as its signature says."""
    if option.default is None or option.annotation is Any:
        return True
    if mark_of(option.annotation):
        return type(None) in get_args(option.annotation)
    return fits(option.annotation, None)


def read(annotation: Any, value: Any) -> Any:
    """Return a word as the boolean, and a whole number as the int or text, that an annotation takes in its place."""
    checker = adapter(annotation)
    if checker is None:
        return value
    if fits(annotation, value):
        converted = checker.validate_json(json.dumps(value, default=str), strict=True)
        if isinstance(value, list) and any(isinstance(each, str) for each in value):
            return list(converted) if all(isinstance(each, int | float) for each in converted) else value
        return converted if isinstance(value, str) and isinstance(converted, int | float) else value
    candidates: list[Any] = []
    if isinstance(value, str) and value.lower() in WORDS:
        candidates.append(WORDS[value.lower()])
    elif isinstance(value, float) and math.isfinite(value) and value == int(value):
        candidates.append(int(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        candidates.append(str(value))
    return next((each for each in candidates if fits(annotation, each)), value)


def fits(annotation: Any, value: Any) -> bool:
    """Return whether a value is what an annotation allows; true where the annotation says nothing of such data."""
    checker = adapter(annotation)
    if checker is None:
        return True
    try:
        checker.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        return False
    return True


@cache
def adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Return what checks values against an annotation; None where it is of no use for that."""
    if annotation is Any:
        return None
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except Exception:  # annotations of others are not written for this
        return None
