"""What the fields of a frozen value may be. Knows attrs; nothing of what is validated."""

import math
import numbers
from collections.abc import Callable
from typing import Any

from attrs import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], Any]


def checked_number(name: str, value: Any, low: float = 0, below: float = math.inf) -> float:
    """`value`, if it is a number in [low, below).

    Raises
    ------
    TypeError, ValueError
        If it is none, or lies elsewhere; the message begins with `name`.

    >>> checked_number("momentum", 0.9, below=1)
    0.9
    """
    wanted = f"at least {low:g}" if below == math.inf else f"in [{low:g}, {below:g})"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number {wanted}, got {value!r}")
    if not low <= (found := float(value)) < below:
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}")
    return found


def checked_whole(name: str, value: Any, low: int = 1, high: float = math.inf) -> int:
    """`value`, if it is a whole number from `low` to `high`; errors as for `checked_number`.

    >>> checked_whole("epochs", 40)
    40
    """
    wanted = f"of at least {low}" if high == math.inf else f"from {low} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number {wanted}, got {value!r}")
    if not low <= (found := int(value)) <= high:
        raise ValueError(f"{name} must be a whole number {wanted}, got {value!r}")
    return found


def checked_word(name: str, value: Any, options: tuple[str, ...]) -> str:
    """`value`, if it is one of some words; errors as for `checked_number`.

    >>> checked_word("norm", "batch", ("batch", "layer"))
    'batch'
    """
    if not isinstance(value, str) or value not in options:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(options)}; got {value!r}")
    return value


def checked_kind(name: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a TypeError if `value` is not an instance of a class; the message says what is wanted.

    >>> checked_kind("flip", True, bool, "True or False")
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")


def number(low: float = 0, below: float = math.inf) -> Validator:
    """Of a field: a number in [low, below)."""
    return lambda _, field, value: checked_number(field.name, value, low, below)


def whole_number(low: int = 1) -> Validator:
    """Of a field: a whole number of at least `low`."""
    return lambda _, field, value: checked_whole(field.name, value, low)


def one_of(*options: str) -> Validator:
    """Of a field: one of some words."""
    return lambda _, field, value: checked_word(field.name, value, options)


def kind(cls: type | tuple[type, ...], wanted: str) -> Validator:
    """Of a field: an instance of a class."""
    return lambda _, field, value: checked_kind(field.name, value, cls, wanted)
