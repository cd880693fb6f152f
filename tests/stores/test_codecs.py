"""Values that become bytes, and bytes that become values."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestra import Codec, JSONCodec, MemoryStore, MsgspecCodec, RawCodec
from orchestra.errors import SchemaError


class Colour(Enum):
    """An enum by value."""

    RED = "red"
    BLUE = "blue"


@frozen(kw_only=True)
class Part:
    """An inner class."""

    name: str
    weight: float = 0.0


@frozen
class Thing:
    """All that a typed codec takes."""

    title: str
    colour: Colour = Colour.RED
    parts: tuple[Part, ...] = ()
    pair: tuple[int, str] = (0, "")
    tags: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(factory=dict)
    by_number: dict[int, Part] = field(factory=dict)
    names: Sequence[str] = field(factory=list)
    when: datetime | None = None
    blob: bytes = b""
    kind: Literal["a", "b"] = "a"
    choice: int | str | None = None
    anything: Any = None


PARTS = st.builds(Part, name=st.text(max_size=5), weight=st.floats(0, 9))
TEXT = st.text(max_size=5)
THINGS = st.builds(
    Thing,
    title=TEXT,
    colour=st.sampled_from(Colour),
    parts=st.lists(PARTS, max_size=2).map(tuple),
    pair=st.tuples(st.integers(), TEXT),
    tags=st.frozensets(TEXT, max_size=3),
    sizes=st.dictionaries(TEXT, st.integers(-(2**53), 2**53), max_size=2),
    by_number=st.dictionaries(st.integers(0, 99), PARTS, max_size=2),
    names=st.lists(TEXT, max_size=2),
    when=st.none() | st.datetimes(timezones=st.just(UTC)),
    blob=st.binary(max_size=9),
    kind=st.sampled_from(["a", "b"]),
    choice=st.none() | st.integers(0, 9) | TEXT,
    anything=st.none() | st.lists(st.integers(0, 9), max_size=2),
).filter(lambda thing: -(2**63) <= thing.pair[0] < 2**63)


@given(THINGS)
def test_typed_values_come_back_equal(thing: Thing) -> None:
    """Each codec reads what each codec wrote, as the value that was stored."""
    codecs: list[Codec] = [JSONCodec(Thing), MsgspecCodec(Thing)]
    for writer in codecs:
        data = writer.encode(thing)
        for reader in codecs:
            assert reader.decode(data, 1) == thing


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(PLAIN)
def test_plain_values_come_back_equal(value: object) -> None:
    """What JSON has comes back the same without a type."""
    codec = JSONCodec()
    assert codec.decode(codec.encode(value), 1) == value


@pytest.mark.parametrize(
    "value", [(1,), {1: 2}, {"x": {2: 1}}, [b"x"], {1}, float("inf"), Part(name="x"), Colour.RED]
)
def test_what_would_come_back_different_is_refused(value: object) -> None:
    """The plain codec stores nothing that JSON would turn into something else."""
    with pytest.raises(TypeError):
        JSONCodec().encode(value)


@pytest.mark.parametrize("make", [JSONCodec, MsgspecCodec])
def test_a_typed_codec_takes_its_type_only(make: Any) -> None:
    """A value of another class is refused when it is stored, not when it is read."""
    with pytest.raises(TypeError, match="takes Part, not Thing"):
        make(Part).encode(Thing("x"))


@pytest.mark.parametrize("make", [JSONCodec, MsgspecCodec])
@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"name": 5}', b'{"weight": 1.0}', b'{"name": "x", "weight": "y"}', b"\xff"],
)
def test_bytes_of_another_form_are_a_typed_error(make: Any, data: bytes) -> None:
    """What is not of the codec's form is refused, with what to do."""
    with pytest.raises(SchemaError, match="add a version and an upgrade"):
        make(Part).decode(data, 1)


@pytest.mark.parametrize("make", [JSONCodec, MsgspecCodec])
async def test_values_of_older_versions_are_upgraded(make: Any) -> None:
    """Each value is stored with its version, upgraded step by step, and never read if newer."""

    def named(plain: Any) -> Any:
        return {"name": plain}

    def weighed(plain: Any) -> Any:
        return {**plain, "weight": 1.5}

    first: Mapping[str, Codec] = {"": JSONCodec()}
    upgrades = {1: named, 2: weighed}
    third: Mapping[str, Codec] = {"part/": make(Part, version=3, upgrades=upgrades)}
    async with MemoryStore(codecs=first) as store:
        await store.put("part/1", "wheel")
        newer = MemoryStore(codecs=third)
        # The same engine, as a later version of the program would open the same file.
        newer._shared.engine = newer._engine = store._engine
        async with newer:
            assert await newer.get("part/1") == Part(name="wheel", weight=1.5)
            await newer.put("part/2", Part(name="door"))
            assert await newer.get("part/2") == Part(name="door")
        with pytest.raises(
            SchemaError, match="version 3 of its form and this program knows version 1"
        ):
            await store.get("part/2")
    with pytest.raises(SchemaError, match="no upgrade from that to 2"):
        make(Part, version=2).decode(b'"wheel"', 1)


async def test_the_longest_prefix_chooses_the_codec() -> None:
    """A key's codec is that of its longest prefix; other keys hold plain JSON."""
    codecs: dict[str, Codec] = {"raw/": RawCodec(), "raw/part/": JSONCodec(Part)}
    async with MemoryStore(codecs=codecs) as store:
        await store.put("raw/a", b"\xff\x00")
        await store.put("raw/part/a", Part(name="a"))
        await store.put("plain", [1])
        async with store.snapshot() as snap:
            assert await snap.range() == {
                "plain": [1],
                "raw/a": b"\xff\x00",
                "raw/part/a": Part(name="a"),
            }
        for key, value in (("raw/a", "text"), ("raw/part/a", b""), ("plain", b"")):
            with pytest.raises(TypeError):
                await store.put(key, value)


def test_without_msgspec_the_codec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is named, with the way without it."""
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"orchestra\[opencode\]'\, or use JSONCodec"):
        MsgspecCodec(Part)


@pytest.mark.parametrize(
    "codec", [RawCodec(), JSONCodec(), JSONCodec(Part, version=2), MsgspecCodec(Part)]
)
def test_a_codec_shows_what_it_is(codec: Codec) -> None:
    """The repr names the class, the type and the version."""
    assert type(codec).__name__ in repr(codec)
    assert "Part" in repr(codec) or not getattr(codec, "_type", None)
