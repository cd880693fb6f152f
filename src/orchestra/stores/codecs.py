"""Codecs: how values become bytes, and bytes values of the right type.

`JSONCodec` needs nothing but the standard library. `MsgspecCodec` writes and reads the same bytes
several times faster and takes every type that msgspec takes, but msgspec is an extra; a file may be
written with one and read with the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, final

from orchestra.errors import SchemaError
from orchestra.storage import Codec
from orchestra.stores._plain import from_plain, to_plain

__all__ = ("JSONCodec", "MsgspecCodec", "RawCodec")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

Upgrades = Mapping[int, Callable[[Any], Any]]


def _upgraded(plain: object, version: int, upgrades: Upgrades, current: int) -> object:
    """Bring plain data of an older form up to date, one version at a time."""
    for step in range(version, current):
        upgrade = upgrades.get(step)
        if upgrade is None:
            raise SchemaError(
                f"the stored value has version {step}, and its codec has no upgrade from that "
                f"to {step + 1}; add one"
            )
        plain = upgrade(plain)
    return plain


@final
class RawCodec(Codec):
    """Takes bytes and stores them as they are."""

    def encode(self, value: Any) -> bytes:
        if type(value) is not bytes:
            raise TypeError(f"a raw value is bytes, not {type(value).__name__}")
        return value

    def decode(self, data: bytes, version: int) -> Any:  # noqa: ARG002  (part of the contract)
        return data

    def __repr__(self) -> str:
        return "RawCodec()"


@final
class JSONCodec(Codec):
    """JSON, with the standard library.

    Without a type it takes what JSON has (None, bool, int, float, str, list, dict with text keys)
    and refuses everything else, so that no value comes back as something different from what was
    stored. With a type it takes that: attrs classes, enums, tuples, sets, dates, bytes and their
    nesting, and checks what it reads.

    Args:
        type: The values' type; None: plain JSON values.
        version: The version of their form, stored beside each value.
        upgrades: For each older version the function that turns plain data of that version into
            plain data of the next one.
    """

    def __init__(
        self,
        type: Any = None,  # noqa: A002  (what msgspec and the standard library call it)
        *,
        version: int = 1,
        upgrades: Upgrades | None = None,
    ) -> None:
        self._type = type
        self._version = version
        self._upgrades = dict(upgrades or {})

    @property
    def version(self) -> int:
        return self._version

    def encode(self, value: Any) -> bytes:
        try:
            return _encode(to_plain(value, self._type)).encode()
        except UnicodeEncodeError as exc:
            raise TypeError("text with lone surrogates cannot be stored") from exc
        except ValueError as exc:
            raise TypeError(f"the value cannot be stored as JSON: {exc}") from exc

    def decode(self, data: bytes, version: int) -> Any:
        try:
            plain = _upgraded(json.loads(data), version, self._upgrades, self._version)
            return plain if self._type is None else from_plain(plain, self._type)
        except (TypeError, ValueError, KeyError) as exc:
            raise SchemaError(
                f"a stored value is no {_name(self._type)}: {exc}; add a version and an upgrade "
                "to its codec"
            ) from exc

    def __repr__(self) -> str:
        return f"JSONCodec({_name(self._type)}, version={self._version})"


@final
class MsgspecCodec(Codec):
    """JSON, with msgspec (``pip install 'orchestra[opencode]'``); for attrs classes and Structs.

    Args:
        type: The values' type.
        version: The version of their form, stored beside each value.
        upgrades: As for `JSONCodec`.

    Raises:
        ImportError: msgspec is not installed.
    """

    def __init__(
        self,
        type: Any,  # noqa: A002  (what msgspec calls it)
        *,
        version: int = 1,
        upgrades: Upgrades | None = None,
    ) -> None:
        try:
            import msgspec  # noqa: PLC0415  (an extra, needed by this class alone)
        except ImportError as exc:
            raise ImportError(
                "MsgspecCodec needs msgspec: pip install 'orchestra[opencode]', or use JSONCodec"
            ) from exc
        self._type = type
        self._version = version
        self._upgrades = dict(upgrades or {})
        self._encoder = msgspec.json.Encoder()
        self._decoder: Any = msgspec.json.Decoder(type)
        self._convert: Any = msgspec.convert
        self._error = msgspec.MsgspecError

    @property
    def version(self) -> int:
        return self._version

    def encode(self, value: Any) -> bytes:
        if isinstance(self._type, type) and not isinstance(value, self._type):
            raise TypeError(f"the codec takes {_name(self._type)}, not {type(value).__name__}")
        return self._encoder.encode(value)

    def decode(self, data: bytes, version: int) -> Any:
        try:
            if version == self._version:
                return self._decoder.decode(data)
            plain = _upgraded(json.loads(data), version, self._upgrades, self._version)
            return self._convert(plain, self._type, str_keys=True)
        except (self._error, TypeError, ValueError, KeyError) as exc:
            raise SchemaError(
                f"a stored value is no {_name(self._type)}: {exc}; add a version and an upgrade "
                "to its codec"
            ) from exc

    def __repr__(self) -> str:
        return f"MsgspecCodec({_name(self._type)}, version={self._version})"


def _name(type_: Any) -> str:
    return "plain JSON" if type_ is None else getattr(type_, "__name__", repr(type_))
