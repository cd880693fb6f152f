"""Records of settings in a plain form, and back; what a store cannot hold is left out.

A field that is missing in the plain form has its default, and one that nobody knows is ignored, so
that records of other versions can be read. Functions and other objects without a plain form (a
redactor, a callback) are not written: who goes on with a mission gives them anew.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from attrs import AttrsInstance, fields, has

__all__ = ("from_plain", "to_plain")

A = TypeVar("A", bound=AttrsInstance)

_MISSING = object()


def to_plain(record: AttrsInstance) -> dict[str, Any]:
    """Return a record as texts, numbers, lists and dicts, without the fields that have no such form.

    Args:
        record: Fields are such values, enums, paths, and further records.
    """
    pairs = ((each.name, _to_plain(getattr(record, each.name))) for each in fields(type(record)))
    return {name: plain for name, plain in pairs if plain is not _MISSING}


def _to_plain(value: Any) -> Any:
    """Return a value's plain form, which is the whole of it or none."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        mapped = {_to_plain(key): _to_plain(item) for key, item in value.items()}
        return _MISSING if any(item is _MISSING for item in mapped.values()) else mapped
    if isinstance(value, tuple | list | frozenset | set):
        items = [_to_plain(item) for item in value]
        return _MISSING if any(item is _MISSING for item in items) else items
    if has(type(value)):
        return _to_plain({each.name: getattr(value, each.name) for each in fields(type(value))})
    return _MISSING


def from_plain(shape: type[A], plain: Mapping[str, Any]) -> A:
    """Return the record of a plain form.

    Args:
        shape: Its class.
        plain: What `to_plain` returned, perhaps in another version.

    Raises:
        ValueError: A value does not fit.
        TypeError: A value does not fit, or a field that has no default is missing.
    """
    hints = get_type_hints(shape)
    return shape(
        **{
            each.alias: _from_plain(hints[each.name], plain[each.name])
            for each in fields(shape)
            if each.init and each.name in plain
        }
    )


def _from_plain(hint: Any, plain: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        if plain is None:
            return None
        (hint, *_) = [each for each in arguments if each is not type(None)]
        return _from_plain(hint, plain)
    if origin is tuple:
        inner = arguments[0] if arguments[-1] is Ellipsis else None
        hints = [inner] * len(plain) if inner is not None else list(arguments)
        return tuple(_from_plain(each, item) for each, item in zip(hints, plain, strict=True))
    if origin in {frozenset, set, list}:
        return origin(_from_plain(arguments[0], item) for item in plain)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, item = arguments
        return {_from_plain(key, k): _from_plain(item, v) for k, v in plain.items()}
    if isinstance(hint, type) and has(hint):
        return from_plain(hint, plain)
    if isinstance(hint, type) and issubclass(hint, Enum | Path):
        return hint(plain)
    return plain
