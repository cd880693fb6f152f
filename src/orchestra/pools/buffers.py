"""Reuse memory that comes and goes in bursts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, final

import attrs

from orchestra._core.checks import check_at_least, check_callable, finite

__all__ = ("BufferPool", "BufferPoolStatistics")

_KIB: Final = 1024
_SMALL: Final = (10, 12, 14, 16)
"""The exponents of the small sizes: 1, 4, 16 and 64 KiB. Above come all powers of two."""

_LOOK_AGE: Final = 64
"""After so many leases of one size the clock is read."""

_LOOK_LENT: Final = 8
"""After so many leases of one size at the latest the lent buffers are looked at, and"""

_PATIENCE: Final = 2
"""so many that are found in use end the look."""


@attrs.frozen(kw_only=True)
class BufferPoolStatistics:
    """What a `BufferPool` has and has done.

    Attributes:
        leases: Views given.
        misses: How many of them needed fresh memory.
        unpooled: How many of these did not fit below ``max_bytes``, and will not be used again.
        in_use: Buffers on the shelves that a view still uses.
        idle: Buffers on the shelves that nothing uses.
        idle_bytes: Their memory.
        held_bytes: The memory of all buffers on the shelves.
        trimmed: Buffers taken from the shelves, by age or by ``trim``.
    """

    leases: int
    misses: int
    unpooled: int
    in_use: int
    idle: int
    idle_bytes: int
    held_bytes: int
    trimmed: int


@final
class _Shelf:
    """The buffers of one size. Each step is atomic, and a buffer that is looked at is off the shelf."""

    __slots__ = ("capacity", "collected", "idle", "is_crowded", "leases", "lent", "resting")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.leases = 0
        self.lent: deque[bytearray] = deque()  # in use when last looked at; lent last at the right
        self.idle: deque[bytearray] = deque()  # nothing uses them; used last at the right
        self.resting = 0  # how many idle ones, from the left, were not touched since aging
        self.collected = 0  # the leases when `lent` was last looked at
        self.is_crowded = False  # whether several are in use at a time

    def take(self) -> bytearray | None:
        """Take an idle buffer off the shelf, one that was used lately, while others are in use."""
        if not self.idle or self.leases - self.collected > _LOOK_LENT:
            self.collect(_PATIENCE)
        try:
            buffer = self.idle.pop()
        except IndexError:
            return None
        self.resting = min(self.resting, len(self.idle))
        return buffer

    def collect(self, patience: int) -> None:
        """Find lent buffers that are idle again, beginning with the one that was lent first.

        Args:
            patience: After so many that are in use it gives up; they are looked at last next time.
        """
        self.collected = self.leases
        self.is_crowded = False
        for _ in range(len(self.lent)):
            try:
                buffer = self.lent.popleft()
            except IndexError:  # the last ones are in other threads' hands
                break
            try:
                buffer.pop()  # refused as long as anything looks at the memory
            except BufferError:
                self.lent.append(buffer)
                self.is_crowded = True
                patience -= 1
                if not patience:
                    break
            else:
                buffer.append(0)
                self.idle.append(buffer)

    def collect_all(self) -> None:
        """Find all lent buffers that are idle again."""
        self.collect(len(self.lent) + 1)


@final
class BufferPool:
    """Lends memory as writable views, and uses it again when nothing looks at it any more.

    ::

        buffers = BufferPool()

        with buffers.lease(n) as view:          # exactly n bytes
            file.readinto(view)

    It pays where tens of buffers of 16 KiB and more come and go together: the C library gives such
    memory back to the system, and every new page is a page fault. Below 16 KiB, one at a time,
    ``bytearray(n)`` is faster.

    The lease is the view, and ending it is CPython's own count of who uses the memory: a buffer is
    lent again only when its view is released *and* no slice, cast, array or iterator made from it is
    left. So there is nothing that could be returned twice or to the wrong pool, and a borrower that
    never releases its view has only kept it: when the view dies, the memory is idle. The pool
    refers to memory, up to ``max_bytes`` of it, and never to a view; memory that is lent for long it
    lets go. If something other than another
    view uses the view when the block ends, such as an array of another library, Python raises
    ``BufferError`` there; the memory is lent again when that is gone.

    The memory comes in sizes of 1, 4, 16 and 64 KiB and the powers of two above. It holds whatever
    the last borrower has left there, unless ``zero`` is asked for.

    May be used from any thread without further care: a buffer is off the shelf while it is looked
    at, so two threads never get the same one. Counts that threads change at the same moment may
    miss one.

    Args:
        max_bytes: What stays on the shelves at most, idle or lent. Beyond that, views get memory
            that is freed after use.
        idle_timeout: Seconds. Buffers that were not lent for so long are let go when the pool is
            next used, at the latest after twice the time, and so is what is lent at that moment.
            There is no timer: a pool that is not used at all keeps its memory until ``trim``.
        clock: Gives monotonic seconds.

    Raises:
        TypeError: A field is no number, or the clock no function.
        ValueError: A field is out of range.
    """

    __slots__ = (
        "_aged",
        "_clock",
        "_held",
        "_idle_timeout",
        "_lock",
        "_max_bytes",
        "_misses",
        "_oversized",
        "_shelf_for",
        "_shelves",
        "_trimmed",
        "_unpooled",
    )

    def __init__(
        self,
        *,
        max_bytes: int = 16 * _KIB * _KIB,
        idle_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_at_least("max_bytes", max_bytes, 0)
        if finite("idle_timeout", idle_timeout) <= 0:
            raise ValueError(f"idle_timeout must be above 0 seconds, not {idle_timeout!r}")
        check_callable("clock", clock)
        self._max_bytes = max_bytes
        self._idle_timeout = idle_timeout
        self._clock = clock
        exponents = (*_SMALL, *range(_SMALL[-1] + 1, max_bytes.bit_length()))
        self._shelves = [_Shelf(1 << bits) for bits in exponents if 1 << bits <= max_bytes]
        # By the bits of the largest index into the memory.
        self._shelf_for = [
            next(shelf for shelf in self._shelves if shelf.capacity >= 1 << bits)
            for bits in range(self._shelves[-1].capacity.bit_length() if self._shelves else 0)
        ]
        # What follows changes under the lock only.
        self._lock = threading.RLock()  # a finalizer may use the pool at any moment
        self._aged = clock()
        self._held = 0
        self._misses = 0
        self._unpooled = 0
        self._oversized = 0
        self._trimmed = 0

    def lease(self, size: int, *, zero: bool = False) -> memoryview:  # noqa: C901 - calls are dear
        """Lend memory, as a view to be used in a ``with`` block.

        Args:
            size: How many bytes the view has.
            zero: Whether they shall all be 0. It costs more than fresh memory does, which is 0.

        Raises:
            TypeError: The size is no int.
            ValueError: It is negative.
            MemoryError: There is no memory.
        """
        try:
            shelf = self._shelf_for[(size - 1).bit_length()]
        except (IndexError, AttributeError, TypeError):
            return self._without_shelf(size)
        if size < 0:
            raise ValueError(f"size must be at least 0, not {size!r}")
        shelf.leases = leases = shelf.leases + 1
        if not leases % _LOOK_AGE:
            self._age()
        lent = shelf.lent
        found: bytearray | None = None
        if not shelf.is_crowded:
            try:
                buffer = lent.pop()
            except IndexError:
                pass
            else:
                try:
                    buffer.pop()  # as in `collect`: a call costs here
                except BufferError:
                    lent.append(buffer)
                    shelf.is_crowded = True
                else:
                    buffer.append(0)
                    found = buffer
        if found is None and (found := shelf.take()) is None:
            return self._fresh(shelf, size)
        view = memoryview(found)
        if size != shelf.capacity:
            view = view[:size]
        lent.append(found)  # only now that it counts as used: other threads look there
        if zero:
            view[:] = bytes(size)
        return view

    def trim(self) -> int:
        """Let go of all idle memory.

        Returns:
            How many bytes that is.
        """
        with self._lock:
            held = self._held
            for shelf in self._shelves:
                shelf.collect_all()
                self._let_go(shelf, shelf.idle, len(shelf.idle))
            return held - self._held

    def statistics(self) -> BufferPoolStatistics:
        """Count what it has and has done; looks at every buffer."""
        with self._lock:
            for shelf in self._shelves:
                shelf.collect_all()
            return BufferPoolStatistics(
                leases=self._oversized + sum(shelf.leases for shelf in self._shelves),
                misses=self._misses,
                unpooled=self._unpooled,
                in_use=sum(len(shelf.lent) for shelf in self._shelves),
                idle=sum(len(shelf.idle) for shelf in self._shelves),
                idle_bytes=sum(len(shelf.idle) * shelf.capacity for shelf in self._shelves),
                held_bytes=self._held,
                trimmed=self._trimmed,
            )

    def _fresh(self, shelf: _Shelf, size: int) -> memoryview:
        self._age()
        with self._lock:
            self._misses += 1
            if self._held + shelf.capacity > self._max_bytes:
                self._unpooled += 1
                return memoryview(bytearray(size))
            self._held += shelf.capacity
        try:
            buffer = bytearray(shelf.capacity)
        except MemoryError:
            with self._lock:
                self._held -= shelf.capacity
            raise
        view = memoryview(buffer)[:size]
        shelf.lent.append(buffer)
        return view

    def _without_shelf(self, size: int) -> memoryview:
        check_at_least("size", size, 0)
        with self._lock:
            self._oversized += 1
            self._misses += 1
            self._unpooled += 1
        return memoryview(bytearray(size))

    def _age(self) -> None:
        """Once per idle timeout: let go of what was not touched since the last time."""
        now = self._clock()
        if now - self._aged < self._idle_timeout:
            return
        with self._lock:
            if now - self._aged < self._idle_timeout:
                return  # another thread was quicker
            self._aged = now
            for shelf in self._shelves:
                self._let_go(shelf, shelf.idle, shelf.resting)
                shelf.collect_all()
                self._let_go(shelf, shelf.lent, len(shelf.lent))  # who needs it has it
                shelf.resting = len(shelf.idle)

    def _let_go(self, shelf: _Shelf, buffers: deque[bytearray], number: int) -> None:
        for _ in range(number):
            try:
                buffers.popleft()
            except IndexError:  # another thread has taken it
                return
            self._held -= shelf.capacity
            self._trimmed += 1

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<BufferPool {now.in_use} in use, {now.idle} idle, "
            f"{now.held_bytes // _KIB}/{self._max_bytes // _KIB} KiB>"
        )
