"""Pools of objects, strings and buffers: where they pay, and where they do not."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import BufferPool, ObjectPool, StringPool

PEERS = ()

KIB = 1024
seeds = st.integers(0, 2**32 - 1)


# Objects


class Record:
    """Nineteen fields, three of which change each time; refers to nothing that refers back."""

    __slots__ = (
        "__weakref__",
        "agent",
        "attempt",
        "cost",
        "created",
        "deadline",
        "error",
        "goal",
        "group",
        "key",
        "limit",
        "model",
        "name",
        "output",
        "parent",
        "priority",
        "result",
        "session",
        "state",
        "tokens",
    )

    def __init__(self, key: int, name: int, goal: int) -> None:
        self.key = key
        self.name = name
        self.goal = goal
        self.agent = self.model = self.session = self.group = self.parent = None
        self.state = self.result = self.error = self.output = None
        self.created = self.deadline = self.cost = 0.0
        self.attempt = self.limit = self.priority = self.tokens = 0


@frozen
class Churn:
    """A number of records that are made, used and dropped, one after the other."""

    count: int


churns = st.builds(Churn, count=st.integers(5000, 10_000))


def make_records(churn: Churn, measure: Measure) -> None:
    """A new record each time."""
    total = 0
    with measure(churn.count):
        for number in range(churn.count):
            record = Record(number, number, number)
            total += record.key
    assert total == churn.count * (churn.count - 1) // 2


def acquire_records(churn: Churn, measure: Measure) -> None:
    """Records from a pool, given back one by one."""
    pool = ObjectPool(lambda: Record(0, 0, 0))
    total = 0
    with measure(churn.count):
        for number in range(churn.count):
            record = pool.acquire()
            record.key = record.name = record.goal = number
            total += record.key
            pool.release(record)
    assert total == churn.count * (churn.count - 1) // 2
    assert (pool.statistics().created, pool.statistics().in_use) == (50, 0)


def lease_records(churn: Churn, measure: Measure) -> None:
    """Records from a pool, in `with` blocks."""
    pool = ObjectPool(lambda: Record(0, 0, 0))
    total = 0
    with measure(churn.count):
        for number in range(churn.count):
            with pool.lease() as record:
                record.key = record.name = record.goal = number
                total += record.key
    assert total == churn.count * (churn.count - 1) // 2
    assert (pool.statistics().created, pool.statistics().in_use) == (50, 0)


class Parent:
    """Refers to a child that refers back: only the garbage collector can free the two."""

    __slots__ = ("__weakref__", "child", "key")

    def __init__(self) -> None:
        self.key = 0
        self.child = Child(self)


class Child:
    """The other half of the cycle."""

    __slots__ = ("parent",)

    def __init__(self, parent: Parent) -> None:
        self.parent = parent


class WeakParent:
    """The same without a cycle: the way back is weak."""

    __slots__ = ("__weakref__", "child", "key")

    def __init__(self) -> None:
        self.key = 0
        self.child = WeakChild(self)


class WeakChild:
    """The other half, which does not keep the first one alive."""

    __slots__ = ("parent",)

    def __init__(self, parent: WeakParent) -> None:
        self.parent = weakref.ref(parent)


@frozen
class Fleet:
    """Records in use together, each replaced many times, while a million other objects live."""

    outstanding: int
    count: int
    others: int = 1_000_000


fleets = st.builds(Fleet, outstanding=st.just(5000), count=st.integers(300_000, 400_000))


@contextmanager
def longest_pause(measure: Measure) -> Iterator[None]:
    """Report the longest run of the garbage collector."""
    longest = 0.0
    began = 0.0

    def note(phase: str, _info: dict[str, int]) -> None:
        nonlocal longest, began
        if phase == "start":
            began = time.process_time()
        else:
            longest = max(longest, time.process_time() - began)

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)
    measure.report(longest)


def live(fleet: Fleet) -> list[list[int]]:
    """Many objects that live long, known to the collector as old."""
    gc.disable()
    try:
        objects: list[list[int]] = [[] for _ in range(fleet.others)]
        gc.collect()
    finally:
        gc.enable()
    return objects


def pause_of(make: Callable[[], Any]) -> Callable[[Fleet, Measure], None]:
    """Make a row that drops each record when it is done."""

    def run(fleet: Fleet, measure: Measure) -> None:
        objects = live(fleet)
        window: deque[Any] = deque()
        with longest_pause(measure):
            for number in range(fleet.count):
                if len(window) == fleet.outstanding:
                    assert window.popleft().key == number - fleet.outstanding
                record = make()
                record.key = number
                window.append(record)
        assert len(objects) == fleet.others

    return run


def pause_of_pool(fleet: Fleet, measure: Measure) -> None:
    """Cyclic records from a pool, given back when they are done."""
    objects = live(fleet)
    window: deque[Parent] = deque()
    with longest_pause(measure):
        pool = ObjectPool(Parent, max_idle=fleet.outstanding)
        for number in range(fleet.count):
            if len(window) == fleet.outstanding:
                done = window.popleft()
                assert done.key == number - fleet.outstanding
                pool.release(done)
            record = pool.acquire()
            record.key = number
            window.append(record)
    assert len(objects) == fleet.others
    assert pool.statistics().created == fleet.outstanding


# Strings


@frozen
class Texts:
    """Copies of a few strings, as a decoder makes them."""

    count: int
    kinds: int
    seed: int
    texts: list[str] = field(init=False, repr=False, eq=False)

    @texts.default
    def _draw(self) -> list[str]:
        random = Random(self.seed)
        return [
            b"worker/%d/state".decode() % random.randrange(self.kinds) for _ in range(self.count)
        ]


texts = st.builds(Texts, count=st.integers(3000, 6000), kinds=st.integers(20, 500), seed=seeds)


def intern_with(make: Callable[[], Callable[[str], str]]) -> Callable[[Texts, Measure], None]:
    """Make a row that gives each string to a function of which it gets the one copy."""

    def run(drawn: Texts, measure: Measure) -> None:
        intern = make()
        for text in drawn.texts:
            intern(text)
        with measure(drawn.count):
            found = [intern(text) for text in drawn.texts]
        assert found == drawn.texts
        assert len({id(text) for text in found}) == len(set(drawn.texts))

    return run


def by_dict() -> Callable[[str], str]:
    """A dictionary that grows for ever."""
    known: dict[str, str] = {}
    return lambda text: known.setdefault(text, text)


# Buffers


@frozen
class Burst:
    """Buffers that are in use together, filled and given back, again and again."""

    size: int
    together: int
    repeat: int
    history: int


def bursts(size: int, repeat: int, *, history: int = 0) -> st.SearchStrategy[Burst]:
    """Bursts of about 64 buffers of up to a size."""
    return st.builds(
        Burst,
        size=st.integers(size * 15 // 16, size),
        together=st.just(64),
        repeat=st.just(repeat),
        history=st.just(history),
    )


def burst_from(source: str) -> Callable[[Burst, Measure], None]:
    """Make a row that runs in a process of its own."""

    def run(burst: Burst, measure: Measure) -> None:
        arguments = map(str, (burst.size, burst.together, burst.repeat, burst.history))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bursts", source, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        measure.report(float(done.stdout))

    return run


def burst_rows(*, at_most: float | None = None) -> tuple[Row[Burst], ...]:
    """The pool and what it stands for."""
    return (
        Row(name="BufferPool", run=burst_from("pool")),
        Row(name="fresh memory", run=burst_from("fresh"), at_most=at_most),
    )


@frozen
class Block:
    """One buffer at a time, filled and given back."""

    size: int
    repeat: int
    seed: int


def lease_one(block: Block, measure: Measure) -> None:
    """One view after the other, from a pool."""
    pool = BufferPool()
    data = Random(block.seed).randbytes(block.size)
    for _ in range(2):
        with measure(block.repeat):
            for _ in range(block.repeat):
                with pool.lease(block.size) as view:
                    view[:] = data
    assert pool.statistics().misses == 1


def fresh_one(block: Block, measure: Measure) -> None:
    """One view after the other, of fresh memory."""
    data = Random(block.seed).randbytes(block.size)
    for _ in range(2):
        with measure(block.repeat):
            for _ in range(block.repeat):
                with memoryview(bytearray(block.size)) as view:
                    view[:] = data


def lease_one_zeroed(block: Block, measure: Measure) -> None:
    """One view after the other, from a pool, zeroed before use."""
    pool = BufferPool()
    data = Random(block.seed).randbytes(block.size)
    for _ in range(2):
        with measure(block.repeat):
            for _ in range(block.repeat):
                with pool.lease(block.size, zero=True) as view:
                    view[:] = data


def one_at_a_time(name: str, size: int, repeat: int, *, note: str = "") -> Benchmark[Block]:
    """One buffer after the other, of up to a size."""
    return Benchmark(
        name=f"buffers-one-{name.replace(' ', '').lower()}",
        title=f"Buffers: one of {name} at a time",
        workload=st.builds(
            Block, size=st.integers(size * 15 // 16, size), repeat=st.just(repeat), seed=seeds
        ),
        rows=(
            Row(name="BufferPool", run=lease_one),
            Row(name="fresh memory", run=fresh_one, at_most=1.1),
            Row(name="BufferPool, zeroed", run=lease_one_zeroed),
        ),
        note=note,
    )


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="objects-cyclic-pause",
        title="Objects: longest garbage collection, cyclic records beside 1,000,000 live objects",
        workload=fleets,
        rows=(
            Row(name="ObjectPool", run=pause_of_pool),
            Row(name="made and dropped", run=pause_of(Parent), at_most=0.05),
            Row(name="made and dropped, weak way back", run=pause_of(WeakParent)),
        ),
        max_rounds=7,
        note=(
            "A record whose way back is a weak reference needs no garbage collector and no pool; "
            "where the class is yours, that is the better cure."
        ),
    ),
    Benchmark(
        name="objects-plain",
        title="Objects: a plain record of 19 fields",
        workload=churns,
        rows=(
            Row(name="ObjectPool, lease", run=lease_records),
            Row(name="ObjectPool, acquire and release", run=acquire_records),
            Row(name="made and dropped", run=make_records),
        ),
        note=(
            "Here we lose: CPython makes a plain record faster than a ``with`` block is entered and "
            "left, and frees it without the garbage collector. Do not pool such records."
        ),
    ),
    Benchmark(
        name="strings",
        title="Strings: one copy of a string that is known",
        workload=texts,
        rows=(
            Row(name="StringPool", run=intern_with(lambda: StringPool().intern)),
            Row(name="sys.intern", run=intern_with(lambda: sys.intern)),
            Row(name="dict.setdefault, unbounded", run=intern_with(by_dict)),
        ),
        note=(
            "Here we lose: what the pool adds to ``sys.intern`` is a bound and statistics, for the "
            "price of a Python call."
        ),
    ),
    Benchmark(
        name="buffers-burst",
        title="Buffers: 64 of 64 KiB together",
        workload=bursts(64 * KIB, 50),
        rows=burst_rows(at_most=0.2),
        note=(
            "What is saved are page faults: the C library gives such memory back to the system "
            "after each burst. Their price differs between machines."
        ),
    ),
    Benchmark(
        name="buffers-burst-history",
        title="Buffers: 64 of 64 KiB together, after 16 MiB were freed",
        workload=bursts(64 * KIB, 50, history=16 * KIB * KIB),
        rows=burst_rows(),
        note=(
            "Once a process has freed a large block, the GNU C library keeps that much memory for "
            "itself, and there are no page faults to save: then fresh memory is nearly as good."
        ),
    ),
    Benchmark(
        name="buffers-burst-16kib",
        title="Buffers: 64 of 16 KiB together",
        workload=bursts(16 * KIB, 150),
        rows=burst_rows(),
    ),
    Benchmark(
        name="buffers-burst-4kib",
        title="Buffers: 64 of 4 KiB together",
        workload=bursts(4 * KIB, 300),
        rows=burst_rows(),
        note=(
            "Here we lose: so little memory stays in the process between two bursts, so there are "
            "no page faults to save."
        ),
    ),
    one_at_a_time("1 MiB", 1024 * KIB, 60),
    one_at_a_time("64 KiB", 64 * KIB, 1000),
    one_at_a_time("16 KiB", 16 * KIB, 3000),
    one_at_a_time(
        "4 KiB",
        4 * KIB,
        5000,
        note=(
            "Here we lose: so little fresh memory costs less than calling any function written in "
            "Python. Take ``bytearray`` for it."
        ),
    ),
    one_at_a_time("1 KiB", 1 * KIB, 5000, note="Here we lose by the same call."),
)
