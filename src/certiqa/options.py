"""What options may be, as annotations: a constructor says ``steps: PositiveInt = 10``, and ``check_options`` reads it.

Nothing here imports torch.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Len, MinLen, Predicate
from pydantic import BeforeValidator

from certiqa.errors import UserError


@dataclass(frozen=True)
class Says:
    """What a message calls the values of an annotation: ``must be <text>``, and what to add for a number too large."""

    text: str
    above_one: str = ""


@dataclass(frozen=True, init=False, eq=False)
class Choices(GroupedMetadata):
    """The texts that an option may be: ``Annotated[str, Choices("raise", "lower")]``.

    Args:
        known: the texts.
        of: in place of them a registry, to which names may be added later.
    """

    known: Collection[str]

    def __init__(self, *known: str, of: Collection[str] | None = None) -> None:
        object.__setattr__(self, "known", known if of is None else of)

    def __iter__(self) -> Iterator[object]:
        yield Predicate(self.known.__contains__)


@dataclass(frozen=True)
class OptionsOf:
    """An annotation's mark: the value is a mapping of what ``target`` takes.

    Args:
        target: a class or function.
        several: whether each option may be a list of its values.
    """

    target: Callable[..., Any]
    several: bool = False


@dataclass(frozen=True)
class Node:
    """An annotation's mark: the value is a mapping with a ``_target_`` of its own.

    Args:
        also: a function whose options stand in the same mapping and are not the target's.
        without: what takes the options where there is no ``_target_``; None: an empty mapping or null.
    """

    also: Callable[..., Any] | None = None
    without: Callable[..., Any] | None = None


def fraction(text: str | float) -> float:
    """Evaluate a number such as ``8/255``; raises UserError for anything but arithmetic on numbers."""
    operators: dict[type, Callable[[float, float], float]] = {
        ast.Div: operator.truediv,
        ast.Mult: operator.mul,
        ast.Add: operator.add,
        ast.Sub: operator.sub,
    }

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            return operators[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise UserError(f"'{text}' is not a number; write e.g. 0.03 or 8/255")

    try:
        return value(ast.parse(str(text), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"'{text}' is not a number; write e.g. 0.03 or 8/255") from error


def _written_out(value: Any) -> Any:
    """Return a number for a text such as ``8/255``, anything else as it is."""
    try:
        return fraction(value) if isinstance(value, str) else value
    except UserError:
        return value


Fraction = BeforeValidator(_written_out)
_UNITS = "in [0, 1] pixel units, e.g. 0.03 or 8/255"
_EIGHT_BITS = "for {value} steps of 8 bits write {value}/255"

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
Probability = Annotated[float, Interval(gt=0, lt=1)]
Confidence = Annotated[float, Interval(gt=0.5, lt=1)]
PositiveInt = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
OddInt = Annotated[int, Ge(1), Predicate(lambda size: size % 2 == 1), Says("an odd whole number, at least 1")]
Through = Annotated[str, Choices("mean", "median")]
Text = Annotated[str, MinLen(1)]
Side = Annotated[int, Interval(ge=1, le=16384)]
"""A length in pixels."""
Sides = Side | Annotated[Sequence[Side], Len(2, 2), Says("[height, width], both from 1 to 16384 pixels")]
"""A side in pixels, or [height, width]."""
Range = Annotated[
    tuple[float, float], Predicate(lambda ends: ends[0] < ends[1]), Says("[low, high], both numbers and low < high")
]
Budget = Annotated[
    float, Fraction, Interval(gt=0, le=1), Says(f"a number above 0 and at most 1, {_UNITS}", _EIGHT_BITS)
]
"""A change of every pixel, or the standard deviation of noise."""
Noise = Annotated[float, Fraction, Interval(ge=0, le=1), Says(f"a number from 0 to 1, {_UNITS}", _EIGHT_BITS)]
"""The standard deviation of noise that may be none."""
Step = Annotated[float, Fraction, Gt(0), Says("a number above 0, e.g. 0.01 or 1/255")]
"""A step or learning rate."""
Length = Annotated[float, Fraction, Gt(0), Says(f"a number above 0, {_UNITS}")]
"""An l2 length, which grows with the number of pixels."""
Radius = Annotated[float, Fraction, Ge(0), Says(f"a number of at least 0, {_UNITS}")]
"""An l2 length within which scores are certified."""
