"""Values to plain JSON data and back, led by a type.

The forms are those of msgspec's JSON, so that both read what the other wrote: enums by value,
bytes in base64, dates in ISO 8601, attrs classes as objects, every collection as a list.
"""

from __future__ import annotations

import types
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

__all__ = ("from_plain", "to_plain")

_SCALARS = (str, int, float, bool, type(None))


def to_plain(value: Any, type_: Any = None) -> Any:
    """Return plain data for a value.

    Args:
        value: The value.
        type_: None refuses all that JSON does not have; otherwise what `from_plain` will be asked
            for, whose outermost class is checked.

    Raises:
        TypeError: The value cannot be written so that it is read back the same.
    """
    if type_ is None:
        return _checked(value)
    if isinstance(type_, type) and not isinstance(value, type_):
        raise TypeError(f"the codec takes {type_.__name__}, not {type(value).__name__}")
    return _plain(value)


def _checked(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        for item in value:
            _checked(item)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r} is not text: give the prefix a typed codec")
            _checked(item)
    else:
        raise TypeError(
            f"{kind.__name__} is not a plain JSON value: give the prefix a codec, "
            f"such as JSONCodec({kind.__name__})"
        )
    return value


def _plain(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if attrs.has(type(value)):
        return {
            field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))
        }
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, str):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {value!r}")


def _plain_key(key: Any) -> str:
    plain = _plain(key)
    if isinstance(plain, str):
        return plain
    if type(plain) is int:
        return str(plain)
    raise TypeError(f"the key {key!r} is neither text nor a whole number")


def from_plain(plain: Any, type_: Any) -> Any:
    """Return the value of a type for plain data.

    Args:
        plain: What `to_plain` returned, after a passage through JSON.
        type_: An attrs class, a scalar, an enum, ``list[...]``, ``X | None`` and so on.

    Raises:
        TypeError: The data does not fit, or the type is not supported.
        ValueError: The same.
    """
    origin = get_origin(type_)
    if origin is not None:
        return _from_generic(plain, type_, origin)
    if type_ is Any or type_ is object:
        return plain
    if type_ is float and type(plain) is int:
        return float(plain)
    if type_ is None or type_ in _SCALARS:
        return _exact(plain, type_ or type(None))
    return _from_class(plain, type_)


def _from_class(plain: Any, type_: Any) -> Any:
    if not isinstance(type_, type):
        raise TypeError(f"{type_!r} is not supported: use MsgspecCodec")
    if issubclass(type_, Enum):
        return type_(plain)
    if attrs.has(type_):
        return _from_fields(plain, type_)
    if type_ is bytes:
        return b64decode(_exact(plain, str), validate=True)
    if type_ is datetime:
        return datetime.fromisoformat(_exact(plain, str))
    if type_ in {list, dict}:
        return _exact(plain, type_)
    if type_ in {tuple, set, frozenset}:
        return type_(_exact(plain, list))
    raise TypeError(f"{type_.__name__} is not supported: use MsgspecCodec")


def _exact(plain: Any, type_: type) -> Any:
    if type(plain) is not type_:
        raise TypeError(f"{plain!r} is no {type_.__name__}")
    return plain


def _from_fields(plain: Any, type_: type) -> Any:
    _exact(plain, dict)
    hints = _hints(type_)
    values = {}
    for field in attrs.fields(type_):
        if field.name in plain:
            values[field.alias] = from_plain(plain[field.name], hints[field.name])
    return type_(**values)


@cache
def _hints(type_: type) -> dict[str, Any]:
    return get_type_hints(type_)


def _from_generic(plain: Any, type_: Any, origin: Any) -> Any:
    arguments = get_args(type_)
    if origin is Literal:
        if plain not in arguments:
            raise ValueError(f"{plain!r} is none of {arguments!r}")
        return plain
    if origin is Union or origin is types.UnionType:
        return _from_union(plain, arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        _exact(plain, list)
        return tuple(from_plain(p, t) for p, t in zip(plain, arguments, strict=True))
    if issubclass(origin, Mapping):
        _exact(plain, dict)
        key, item = arguments
        return {
            (int(k) if key is int else from_plain(k, key)): from_plain(v, item)
            for k, v in plain.items()
        }
    if issubclass(origin, Sequence | AbstractSet):
        items = [from_plain(item, arguments[0]) for item in _exact(plain, list)]
        if issubclass(origin, tuple | frozenset | set):
            return origin(items)
        return items if not issubclass(origin, AbstractSet) else frozenset(items)
    raise TypeError(f"{type_!r} is not supported: use MsgspecCodec")


def _from_union(plain: Any, arguments: tuple[Any, ...]) -> Any:
    for type_ in arguments:
        if type_ in _SCALARS and type(plain) is type_:
            return plain
    for type_ in arguments:
        try:
            return from_plain(plain, type_)
        except (TypeError, ValueError, KeyError):
            continue
    raise TypeError(f"{plain!r} is none of {arguments!r}")
