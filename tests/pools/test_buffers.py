from __future__ import annotations

import ctypes
import functools
import gc
import pickle
import random
import re
import struct
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from interrupted import interrupted

from orchestra import BufferPool

KIB = 1024


class Clock:
    """Seconds that a test decides on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def address(view: memoryview) -> int:
    """Where the memory of a writable view is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@given(size=st.integers(0, 300 * KIB))
def test_a_view_has_exactly_the_size_asked_for(size: int) -> None:
    """A view is writable, flat, and exactly as long as was asked, whatever class it comes from."""
    pool = BufferPool(max_bytes=128 * KIB)
    for _ in range(2):
        with pool.lease(size) as view:
            assert (view.nbytes, view.readonly, view.format, view.ndim) == (size, False, "B", 1)
            view[:] = b"x" * size


@pytest.mark.parametrize(
    ("size", "held"),
    [
        (0, 1),
        (1, 1),
        (1 * KIB, 1),
        (1 * KIB + 1, 4),
        (4 * KIB, 4),
        (4 * KIB + 1, 16),
        (16 * KIB, 16),
        (16 * KIB + 1, 64),
        (64 * KIB, 64),
        (64 * KIB + 1, 128),
        (100_000, 128),
        (128 * KIB + 1, 256),
        (1 << 20, 1 << 10),
    ],
)
def test_size_classes(size: int, held: int) -> None:
    """The classes are 1, 4, 16 and 64 KiB and the powers of two above."""
    pool = BufferPool()
    with pool.lease(size):
        assert pool.statistics().held_bytes == held * KIB


def test_memory_is_used_again() -> None:
    """The next lease of the class gets the same memory, with what was left in it."""
    pool = BufferPool()
    with pool.lease(3000) as view:
        view[:5] = b"stale"
        where = address(view)
    with pool.lease(4096) as view:
        assert bytes(view[:5]) == b"stale"
        assert address(view) == where
    now = pool.statistics()
    assert (now.leases, now.misses, now.in_use, now.idle) == (2, 1, 0, 1)


@pytest.mark.parametrize("size", [0, 10, 1000, 1024, 70_000])
def test_zeroed_on_request(size: int) -> None:
    """With zero=True every byte of the view is 0, in used memory and in fresh."""
    pool = BufferPool()
    with pool.lease(size, zero=True) as view:
        assert bytes(view) == bytes(size)
        view[:] = b"\xff" * size
    with pool.lease(size, zero=True) as view:
        assert bytes(view) == bytes(size)


def ctypes_array(view: memoryview) -> object:
    """An array of C characters on the same memory."""
    return (ctypes.c_char * len(view)).from_buffer(view)


EXPORTS: dict[str, Callable[[memoryview], object]] = {
    "a slice": lambda view: view[10:20],
    "an empty slice": lambda view: view[:0],
    "a slice of a slice": lambda view: view[10:][:5][::2],
    "a copy of the view": memoryview,
    "a cast": lambda view: view[:64].cast("I"),
    "a read-only view": lambda view: view.toreadonly(),
    "a ctypes array": ctypes_array,
    "a pickle buffer": pickle.PickleBuffer,
    "a regular expression's scanner": lambda view: re.compile(b"a").finditer(view),
    "an iterator of records": lambda view: struct.iter_unpack("I", view),
    "a view of a pickle buffer": lambda view: memoryview(pickle.PickleBuffer(view)),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=list(EXPORTS))
def test_memory_in_use_is_not_lent(export: Callable[[memoryview], object]) -> None:
    """As long as anything made from a view is alive, its memory is lent to nobody else."""
    pool = BufferPool()
    view = pool.lease(1024)
    where = address(view)
    kept = export(view)
    try:
        view.release()
    except BufferError:
        view = memoryview(b"")  # what was made from it still uses the view: so drop ours
    now = pool.statistics()
    assert (now.in_use, now.idle) == (1, 0)
    others = [pool.lease(1024) for _ in range(5)]
    assert where not in map(address, others)
    del kept
    assert address(pool.lease(1024)) == where


def test_a_block_tells_what_still_uses_its_view() -> None:
    """A block cannot end while something other than a view uses the view, and no memory is lost."""
    pool = BufferPool()
    with pytest.raises(BufferError), pool.lease(100) as view:
        kept = pickle.PickleBuffer(view)
    assert pool.statistics().in_use == 1
    kept.release()
    view.release()
    assert pool.statistics().idle == 1


def test_a_view_cannot_be_used_after_its_block() -> None:
    """After the block the view is released: reading, writing and entering again are refused."""
    pool = BufferPool()
    with pool.lease(100) as view:
        pass
    for use in (lambda: view[0], view.__enter__, lambda: view[:1]):
        with pytest.raises(ValueError, match="released memoryview"):
            use()


def test_releasing_twice_returns_nothing_twice() -> None:
    """A second release of a view does nothing: the memory has one borrower at a time."""
    pool = BufferPool()
    view = pool.lease(100)
    view.release()
    other = pool.lease(100)
    view.release()
    third = pool.lease(100)
    assert address(other) != address(third)


def test_a_view_that_is_dropped_is_returned() -> None:
    """A borrower that never releases its views leaks nothing, and the pool holds no view."""
    pool = BufferPool()
    seen = []
    view = None
    for _ in range(1000):
        view = pool.lease(1024)
        seen.append(weakref.ref(view))
    del view
    assert not any(ref() for ref in seen)
    now = pool.statistics()
    assert now.in_use == 0
    assert now.held_bytes <= 2 * KIB


def test_a_view_outlives_its_pool() -> None:
    """A view stays good when the pool is gone."""
    view = BufferPool().lease(10)
    gc.collect()
    view[:] = b"0123456789"
    assert bytes(view) == b"0123456789"


def test_a_burst_is_served_from_the_shelf() -> None:
    """The second burst of many buffers needs no fresh memory, also beside a view held for long."""
    pool = BufferPool()
    held = pool.lease(64 * KIB)
    for _ in range(3):
        views = [pool.lease(64 * KIB) for _ in range(64)]
        assert len({*map(address, views), address(held)}) == 65
        for view in views:
            view.release()
    now = pool.statistics()
    assert (now.leases, now.misses) == (193, 65)
    assert (now.in_use, now.idle) == (1, 64)


def test_the_last_used_is_used_next() -> None:
    """One at a time, one buffer is used over and over, so that the others grow old."""
    pool = BufferPool()
    views = [pool.lease(1024) for _ in range(5)]
    for view in views:
        view.release()
    with pool.lease(1024) as view:
        where = address(view)
    for _ in range(10):
        with pool.lease(1024) as view:
            assert address(view) == where


def test_the_cap_holds() -> None:
    """No more than max_bytes stay on the shelves; what is beyond works, and is freed after use."""
    pool = BufferPool(max_bytes=10 * KIB)
    views = [pool.lease(4000) for _ in range(5)]
    for number, view in enumerate(views):
        view[:] = bytes([number]) * 4000
    assert [bytes(view) for view in views] == [bytes([n]) * 4000 for n in range(5)]
    for view in views:
        view.release()
    now = pool.statistics()
    assert (now.held_bytes, now.idle_bytes, now.unpooled) == (8 * KIB, 8 * KIB, 3)


@pytest.mark.parametrize("max_bytes", [0, 1000, 8 * KIB])
def test_what_is_larger_than_the_cap_is_never_kept(max_bytes: int) -> None:
    """A lease that no shelf could hold gets memory of its own."""
    pool = BufferPool(max_bytes=max_bytes)
    for _ in range(2):
        with pool.lease(10_000) as view:
            view[:] = b"x" * 10_000
    now = pool.statistics()
    assert (now.held_bytes, now.leases, now.misses, now.unpooled) == (0, 2, 2, 2)


def test_trim_frees_idle_memory() -> None:
    """trim() lets go of what is idle, says how much that is, and leaves what is lent."""
    pool = BufferPool()
    views = [pool.lease(64 * KIB) for _ in range(8)]
    for view in views[:6]:
        view.release()
    assert pool.trim() == 6 * 64 * KIB
    now = pool.statistics()
    assert (now.in_use, now.idle, now.held_bytes, now.trimmed) == (2, 0, 128 * KIB, 6)
    views[7].release()
    assert pool.trim() == 64 * KIB
    assert pool.trim() == 0


def test_the_memory_is_really_freed() -> None:
    """What trim() lets go of goes back to the allocator, byte for byte."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pool = BufferPool()
        views = [pool.lease(64 * KIB) for _ in range(32)]
        for view in views:
            view.release()
        del view, views
        held = tracemalloc.get_traced_memory()[0] - before
        assert held >= 32 * 64 * KIB
        pool.trim()
        assert tracemalloc.get_traced_memory()[0] - before < 64 * KIB
    finally:
        tracemalloc.stop()


def burst(pool: BufferPool, count: int, size: int = 1024) -> None:
    """Use some buffers together."""
    views = [pool.lease(size) for _ in range(count)]
    for view in views:
        view.release()


def test_idle_memory_grows_old() -> None:
    """After a burst, what is not needed any more is let go between one and two idle timeouts."""
    clock = Clock()
    pool = BufferPool(idle_timeout=10.0, clock=clock)
    burst(pool, 20)
    burst(pool, 5, size=64 * KIB)
    clock.now = 9.0
    for _ in range(200):
        burst(pool, 3)
    assert pool.statistics().trimmed == 0
    clock.now = 10.0
    for _ in range(200):
        burst(pool, 3)
    assert pool.statistics().idle > 20  # all of them were used since the beginning
    clock.now = 20.0
    for _ in range(200):
        burst(pool, 3)
    now = pool.statistics()
    assert 3 <= now.idle <= 3 + 8  # it uses a few more than it must
    assert now.held_bytes == now.idle_bytes == now.idle * KIB


def test_a_steady_burst_keeps_its_memory() -> None:
    """Buffers that every burst uses are never let go."""
    clock = Clock()
    pool = BufferPool(idle_timeout=10.0, clock=clock)
    for _ in range(50):
        clock.now += 4.0
        burst(pool, 63)
        burst(pool, 1)
    now = pool.statistics()
    assert (now.trimmed, now.misses) == (0, 63)


def test_what_was_used_lately_stays() -> None:
    """Buffers that were used since the last time, if only once, are not old."""
    clock = Clock()
    pool = BufferPool(idle_timeout=10.0, clock=clock)
    burst(pool, 10)
    clock.now = 10.0
    for _ in range(64):
        burst(pool, 1)
    burst(pool, 10)
    assert pool.statistics().idle == 10
    clock.now = 20.0
    for _ in range(64):
        burst(pool, 1)
    assert pool.statistics().idle == 10
    clock.now = 30.0
    for _ in range(64):
        burst(pool, 1)
    assert pool.statistics().idle == 1


def test_a_miss_makes_a_seldom_used_pool_look_at_its_age() -> None:
    """Fresh memory is a moment to let go of old memory, so a few leases are enough."""
    clock = Clock()
    pool = BufferPool(idle_timeout=10.0, clock=clock)
    burst(pool, 5, size=4096)
    for _ in range(2):
        clock.now += 10.0
        burst(pool, 1, size=1 << 20)
        pool.trim()
    assert pool.statistics().idle == 0


def test_memory_lent_for_long_is_no_longer_counted() -> None:
    """A view that is held for ages does not use up the pool's bytes."""
    clock = Clock()
    pool = BufferPool(max_bytes=4 * KIB, idle_timeout=10.0, clock=clock)
    held = [pool.lease(1024) for _ in range(4)]
    for _ in range(2):
        clock.now += 10.0
        pool.lease(1024).release()
    assert pool.statistics().held_bytes <= KIB
    assert len({*map(address, held)}) == 4


def used_pool(in_use: int, idle: int) -> tuple[BufferPool, list[memoryview]]:
    """A pool with so many buffers, and the views that use some of them."""
    pool = BufferPool()
    views = [pool.lease(KIB) for _ in range(in_use + idle)]
    for view in views[in_use:]:
        view.release()
    return pool, views[:in_use]


@pytest.mark.parametrize(("in_use", "idle"), [(0, 0), (0, 1), (0, 5), (1, 0), (3, 3)])
@pytest.mark.parametrize("other", ["lease", "trim", "statistics"])
def test_a_lease_may_be_interrupted_anywhere(in_use: int, idle: int, other: str) -> None:
    """Whatever another thread does between two instructions of a lease, memory is lent once."""
    for at in range(1000):
        pool, views = used_pool(in_use, idle)

        def intrude(pool: BufferPool = pool, views: list[memoryview] = views) -> None:
            if pool._lock._is_owned():  # type: ignore[attr-defined]  # another thread would wait
                return
            if other == "lease":
                views.append(pool.lease(KIB))
            elif other == "trim":
                pool.trim()
            else:
                pool.statistics()

        lease = functools.partial(pool.lease, KIB)
        mine, is_inside = interrupted(lease, intrude, at=at, within="/orchestra/pools/")
        views.append(mine)
        if not is_inside:
            break
        assert len({*map(address, views)}) == len(views)
        now = pool.statistics()
        assert now.in_use == len(views)
        assert now.held_bytes == (now.in_use + now.idle) * KIB
    assert at > 10


def test_threads_never_share_memory() -> None:
    """However threads interleave, also while one trims, nobody finds another's bytes in its view."""
    pool = BufferPool(max_bytes=64 * KIB, idle_timeout=1e-9)
    faults: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            views = [pool.lease(chance.choice((100, 1024, 3000))) for _ in range(3)]
            for view in views:
                view[:] = bytes([seed]) * len(view)
            if not chance.randrange(20):
                pool.trim()
                pool.statistics()
            for view in views:
                if bytes(view) != bytes([seed]) * len(view):
                    faults.append("shared")
                view.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    now = pool.statistics()
    assert now.in_use == 0
    assert now.held_bytes == now.idle_bytes <= 64 * KIB
    pool.trim()
    assert pool.statistics().held_bytes == 0


def test_a_view_may_be_released_by_another_thread() -> None:
    """Whoever releases a view, its memory is idle then."""
    pool = BufferPool()
    view = pool.lease(10)
    thread = threading.Thread(target=view.release)
    thread.start()
    thread.join()
    assert pool.statistics().idle == 1


@pytest.mark.parametrize(
    ("size", "error"),
    [(-1, ValueError), (-5000, ValueError), (1.5, TypeError), ("10", TypeError), (None, TypeError)],
)
def test_bad_sizes(size: Any, error: type[Exception]) -> None:
    """A size is an int of at least 0, and a refused one counts for nothing."""
    pool = BufferPool()
    with pytest.raises(error, match="size must be"):
        pool.lease(size)
    assert pool.statistics().leases == 0


def test_memory_that_is_not_there() -> None:
    """A size that cannot be had is a MemoryError, and is not counted as held."""
    pool = BufferPool(max_bytes=1 << 60)
    with pytest.raises(MemoryError):
        pool.lease(1 << 59)
    assert pool.statistics().held_bytes == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_bytes": -1}, ValueError, "max_bytes must be at least 0"),
        ({"max_bytes": 1e6}, TypeError, "max_bytes must be an int"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout must be above 0 seconds"),
        ({"idle_timeout": "60"}, TypeError, "idle_timeout must be a number"),
        ({"clock": 0.0}, TypeError, "clock must be callable"),
    ],
)
def test_bad_configuration(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """What cannot work is refused at construction, by the field's name."""
    with pytest.raises(error, match=message):
        BufferPool(**options)


def test_repr() -> None:
    """A pool shows what is lent, what is idle and how full it is."""
    pool = BufferPool(max_bytes=64 * KIB)
    burst(pool, 3)
    with pool.lease(1):
        assert repr(pool) == "<BufferPool 1 in use, 2 idle, 3/64 KiB>"


class BufferMachine(RuleBasedStateMachine):
    """Whatever is leased, sliced, released, dropped, trimmed and aged: memory is never shared."""

    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pool = BufferPool(max_bytes=24 * KIB, idle_timeout=10.0, clock=self.clock)
        self.stamps: dict[int, tuple[memoryview, int]] = {}
        self.leases = 0

    @rule(target=views, size=st.sampled_from([1, 100, 1024, 1025, 4096, 20_000, 40_000]))
    def lease(self, size: int) -> int:
        view = self.pool.lease(size)
        self.leases += 1
        view[:] = bytes([self.leases % 256]) * size
        self.stamps[self.leases] = view, self.leases % 256
        return self.leases

    @rule(name=consumes(views))
    def release(self, name: int) -> None:
        self.stamps.pop(name)[0].release()

    @rule(target=views, name=consumes(views))
    def keep_a_slice(self, name: int) -> int:
        view, stamp = self.stamps[name]
        self.stamps[name] = view[len(view) // 2 :], stamp
        view.release()
        return name

    @rule(name=consumes(views))
    def drop(self, name: int) -> None:
        del self.stamps[name]

    @rule(seconds=st.sampled_from([1.0, 10.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def trim(self) -> None:
        idle = self.pool.statistics().idle_bytes
        assert self.pool.trim() == idle
        assert self.pool.statistics().idle == 0

    @invariant()
    def nobody_wrote_into_another_s_memory(self) -> None:
        for view, stamp in self.stamps.values():
            assert bytes(view) == bytes([stamp]) * len(view)

    @invariant()
    def counts_agree(self) -> None:
        now = self.pool.statistics()
        assert now.leases == self.leases
        assert now.in_use <= len(self.stamps)
        assert now.idle_bytes <= now.held_bytes <= 24 * KIB
        shelves = self.pool._shelves
        assert now.held_bytes == sum((len(s.lent) + len(s.idle)) * s.capacity for s in shelves)
        assert now.misses - now.unpooled == now.trimmed + now.in_use + now.idle


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
