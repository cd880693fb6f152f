from __future__ import annotations

import enum
import functools
import json
import sys
import threading
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupted import interrupted

from orchestra import StringPool


def copy_of(text: str) -> str:
    """An equal string that is another object, as a decoder makes them."""
    decoded: str = json.loads(json.dumps({"": text}))[""]
    return decoded


def test_equal_strings_become_one() -> None:
    """Equal strings give one object, which is the one that the interpreter interns."""
    pool = StringPool()
    first = pool.intern(copy_of("worker/parser"))
    assert pool.intern(copy_of("worker/parser")) is first
    assert sys.intern(copy_of("worker/parser")) is first
    now = pool.statistics()
    assert (now.hits, now.misses, now.size) == (1, 1, 1)


def test_the_empty_string_is_a_string() -> None:
    """The empty string is a hit the second time."""
    pool = StringPool()
    assert [pool.intern(""), pool.intern("")] == ["", ""]
    assert pool.statistics().hits == 1


def test_long_strings_pass_through() -> None:
    """A string above the bound is given back as it is and not kept."""
    pool = StringPool(max_length=5)
    at_bound, above = copy_of("äöüßé"), copy_of("äöüßéx")
    assert pool.intern(above) is above
    assert pool.intern(copy_of("äöüßéx")) is not above
    pool.intern(at_bound)
    now = pool.statistics()
    assert (now.skipped, now.size, now.misses) == (2, 1, 1)


def test_a_subclass_s_string_becomes_plain() -> None:
    """A member of a string enumeration gives a plain string, on the first use and later."""

    class Role(enum.StrEnum):
        WORKER = "worker-role"

    pool = StringPool()
    for _ in range(2):
        text = pool.intern(Role.WORKER)
        assert type(text) is str
        assert text == "worker-role"


@given(
    texts=st.lists(st.sampled_from([f"text {n}" for n in range(8)]), max_size=60),
    size=st.integers(1, 6),
)
def test_the_most_recently_used_stay(texts: list[str], size: int) -> None:
    """It keeps what was used last, and counts hits, misses and evictions as a plain LRU list does."""
    pool = StringPool(max_size=size)
    model: OrderedDict[str, None] = OrderedDict()
    hits = evictions = 0
    for text in texts:
        assert pool.intern(text) == text
        hits += text in model
        model[text] = None
        model.move_to_end(text)
        if len(model) > size:
            model.popitem(last=False)
            evictions += 1
    assert list(pool._strings) == list(model)
    now = pool.statistics()
    assert (now.hits, now.misses, now.evictions) == (hits, len(texts) - hits, evictions)
    assert now.size == len(model)


def test_clear() -> None:
    """After clear() nothing is kept, and the counts go on."""
    pool = StringPool()
    pool.intern("a")
    pool.clear()
    pool.intern("a")
    now = pool.statistics()
    assert (now.size, now.misses, now.hits) == (1, 2, 0)


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="Python 3.12 keeps every interned string for ever"
)
def test_memory_is_bounded() -> None:
    """Strings of unbounded variety leave no more than the bound behind."""
    pool = StringPool(max_size=100)
    for n in range(200):
        pool.intern(f"some rather unusual string {n}")
    before = sys.getallocatedblocks()
    for n in range(5000):
        pool.intern(f"some quite unusual string {n}")
    assert pool.statistics().size == 100
    assert sys.getallocatedblocks() - before < 1000


@pytest.mark.parametrize("is_known", [False, True])
def test_intern_may_be_interrupted_anywhere(is_known: bool) -> None:  # noqa: FBT001 - a parameter
    """Whatever another thread evicts between two instructions, the string comes and the bound holds."""
    for at in range(1000):
        pool = StringPool(max_size=1)
        if is_known:
            pool.intern("mine")

        def intrude(pool: StringPool = pool, at: int = at) -> None:
            pool.intern("other")
            if at % 2:
                pool.clear()

        intern = functools.partial(pool.intern, "mine")
        text, is_inside = interrupted(intern, intrude, at=at, within="/orchestra/pools/")
        assert text == "mine"
        assert pool.statistics().size <= 1
        if not is_inside:
            break
    assert at > 10


def test_threads() -> None:
    """Threads that evict each other's strings get equal strings, and the bound holds."""
    pool = StringPool(max_size=3)
    wrong: list[str] = []

    def work() -> None:
        for n in range(2000):
            text = f"text {n % 7}"
            if pool.intern(text) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.statistics().size == 3


@pytest.mark.parametrize("value", [None, b"bytes", ["list"], 3])
def test_only_strings(value: object) -> None:
    """What is no string is refused."""
    with pytest.raises(TypeError):
        StringPool().intern(value)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("field", ["max_size", "max_length"])
def test_bad_configuration(field: str) -> None:
    """A bound is an int of at least 1."""
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        StringPool(**{field: 0})
    with pytest.raises(TypeError, match=f"{field} must be an int"):
        StringPool(**{field: "many"})  # type: ignore[arg-type]  # what is tested


def test_repr() -> None:
    """A pool shows how full it is."""
    pool = StringPool(max_size=10)
    pool.intern("a")
    assert repr(pool) == "<StringPool 1/10>"
