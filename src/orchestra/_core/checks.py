"""Checks of configuration: an error is one sentence that names the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import NoneType
from typing import Any

import attrs

__all__ = (
    "check_at_least",
    "check_callable",
    "count",
    "exception_types",
    "finite",
    "function",
    "not_negative",
    "of_type",
    "optional_seconds",
    "seconds",
    "share",
)


def count(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is an int of at least 1.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is no int.
        ValueError: It is below 1.
    """
    check_at_least(attribute.name, value, 1)


def check_at_least(name: str, value: object, least: int) -> None:
    """Check that a value is an int that is large enough.

    Args:
        name: What to call it.
        value: What it is.
        least: The smallest that will do.

    Raises:
        TypeError: It is no int.
        ValueError: It is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def finite(name: str, value: object) -> float:
    """Check that a value is a finite number.

    Args:
        name: What to call it.
        value: What it is.

    Raises:
        TypeError: It is no number.
        ValueError: It is infinite or not a number.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return value


def seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is a positive, finite number of seconds.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, or not finite.
    """
    if finite(attribute.name, value) <= 0:
        raise ValueError(f"{attribute.name} must be above 0 seconds, not {value!r}")


def optional_seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is None or satisfies `seconds`.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is neither None nor a number.
        ValueError: It is not above 0, or not finite.
    """
    if value is not None:
        seconds(_instance, attribute, value)


def not_negative(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is a finite number and not negative.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is below 0, or not finite.
    """
    if finite(attribute.name, value) < 0:
        raise ValueError(f"{attribute.name} must be at least 0, not {value!r}")


def function(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field can be called.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It cannot.
    """
    check_callable(attribute.name, value)


def check_callable(name: str, value: object) -> None:
    """Check that a value can be called.

    Args:
        name: What to call it.
        value: What it is.

    Raises:
        TypeError: It cannot.
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")


def of_type(*types: type) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """Make a check that a field is an instance of one of some types.

    Args:
        *types: The types; ``NoneType`` makes the field optional.

    Returns:
        A validator, which raises TypeError.
    """

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, types):
            names = " or ".join("None" if t is NoneType else t.__name__ for t in types)
            raise TypeError(f"{attribute.name} must be of type {names}, not {value!r}")

    return check


def share(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is above 0 and at most 1.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is outside the range.
    """
    if not 0 < finite(attribute.name, value) <= 1:
        raise ValueError(f"{attribute.name} must be above 0 and at most 1, not {value!r}")


def exception_types(name: str, value: object) -> tuple[type[Exception], ...]:
    """Check that a value is a subclass of Exception, or a tuple of some.

    ``BaseException`` and what derives from it directly is refused: cancellation, an interrupt and
    the end of a generator are never failures.

    Args:
        name: What to call it.
        value: What it is.

    Returns:
        Always a tuple.

    Raises:
        TypeError: It is something else.
    """
    types = value if isinstance(value, tuple) else (value,)
    if not types or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
        raise TypeError(f"{name} must be a subclass of Exception or a tuple of some, not {value!r}")
    return types
