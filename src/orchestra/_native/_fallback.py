"""The deque and the eventcount without C: the same behaviour on `collections.deque` and locks.

The docstrings here are the reference; the native types get theirs from this file (see
`orchestra._native.generate`), and the tests run on both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from operator import index
from threading import Condition, get_ident
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

from orchestra._native._statistics import DequeStatistics

T = TypeVar("T")
D = TypeVar("D")

MAX_BATCH = 32
MIN_CAPACITY = 2
MAX_CAPACITY = 1 << 40


def _count(value: int) -> int:
    number = index(value)
    if number < 0:
        raise ValueError(f"cannot take {number} items; give a count of 0 or more")
    return number


@final
class WorkStealingDeque(Generic[T]):
    """A deque whose owner works at one end while other threads steal from the other.

    One thread, the *owner*, pushes and pops the newest items; every other thread takes the oldest
    ones through a `Stealer`, which cannot push or pop. No call waits, none is a checkpoint, and
    none takes a lock: on an empty deque ``pop`` and ``steal`` return a default. Every item pushed
    is taken exactly once. ::

        jobs = WorkStealingDeque[Job]()
        thief = jobs.stealer  # hand this to other threads
        jobs.push(job)
        job = jobs.pop(None)

    The thread that creates the deque owns it; `adopt` moves it. This is for CPU work in threads.
    Tasks of one event loop share one thread and need no stealing: a plain queue serves them better.

    The algorithm is Chase & Lev (SPAA 2005) with the memory orders of Le et al. (PPoPP 2013);
    without the native extension it is a ``collections.deque`` with the same behaviour.

    Args:
        items: Pushed in order; the last one is popped first.
        capacity: Room for this many items to begin with; it doubles as needed and never shrinks.

    Raises:
        ValueError: The capacity is below 1 or above 2**40.
    """

    if not TYPE_CHECKING:
        __module__ = "orchestra.stealing"
        __slots__ = ("__weakref__", "_items", "_owner")

        def __new__(cls, items: Iterable[T] = (), /, *, capacity: int = 64) -> WorkStealingDeque[T]:
            capacity = index(capacity)
            if not 1 <= capacity <= MAX_CAPACITY:
                raise ValueError(
                    f"a capacity of {capacity} is out of range; choose one from 1 to {MAX_CAPACITY}"
                )
            self = super().__new__(cls)
            self._items = deque()
            self._owner = get_ident()
            self.push_many(items)
            return self

        __class_getitem__ = classmethod(GenericAlias)

        def __init_subclass__(cls) -> None:
            raise TypeError("WorkStealingDeque is final; wrap it instead of deriving from it")
    else:
        _items: deque[T]
        _owner: int

        def __init__(self, items: Iterable[T] = (), /, *, capacity: int = 64) -> None: ...

    def _check_owner(self, call: str) -> None:
        if get_ident() != self._owner:
            raise RuntimeError(
                f"{call}() was called from thread {get_ident()}, but thread {self._owner} owns "
                "this deque; steal through its stealer, or call adopt() first"
            )

    def push(self, item: T, /) -> None:
        """Add an item at the owner's end.

        Args:
            item: Any object, None included.

        Raises:
            RuntimeError: The calling thread does not own the deque.
        """
        self._check_owner("push")
        self._items.append(item)

    def push_many(self, items: Iterable[T], /) -> None:
        """Add items in order; the last one is popped first.

        The iterable is exhausted first: if it raises, nothing has been pushed.

        Args:
            items: Any finite iterable.

        Raises:
            RuntimeError: The calling thread does not own the deque.
        """
        self._check_owner("push_many")
        self._items.extend(tuple(items))

    @overload
    def pop(self, /) -> T | None: ...

    @overload
    def pop(self, default: D, /) -> T | D: ...

    def pop(self, default: object = None, /) -> object:
        """Take the newest item.

        Args:
            default: What to return when the deque is empty.

        Raises:
            RuntimeError: The calling thread does not own the deque.
        """
        self._check_owner("pop")
        try:
            return self._items.pop()
        except IndexError:
            return default

    def pop_many(self, count: int, /) -> list[T]:
        """Take up to this many of the newest items, newest first.

        Args:
            count: 0 or more; a huge number takes all.

        Raises:
            RuntimeError: The calling thread does not own the deque.
            ValueError: The count is negative.
        """
        self._check_owner("pop_many")
        taken: list[T] = []
        try:
            for _ in range(min(_count(count), len(self._items))):
                taken.append(self._items.pop())  # noqa: PERF401 - keeps what it has when it ends early
        except IndexError:  # thieves were faster
            pass
        return taken

    def clear(self) -> None:
        """Drop all items.

        Raises:
            RuntimeError: The calling thread does not own the deque.
        """
        self._check_owner("clear")
        self._items.clear()

    def adopt(self) -> None:
        """Make the calling thread the owner.

        The caller sees to it that the former owner has stopped using the deque, for example by
        joining that thread.
        """
        self._owner = get_ident()

    @property
    def stealer(self) -> Stealer[T]:
        """A handle that can only steal; keeps the deque alive."""
        return Stealer._of(self)  # noqa: SLF001 - Stealer has no public constructor

    @property
    def owner(self) -> int:
        """The identity of the owning thread, as from ``threading.get_ident()``."""
        return self._owner

    def statistics(self) -> DequeStatistics:
        """Count what the deque holds now; a guess while other threads work on it."""
        return DequeStatistics(
            implementation="fallback",
            size=len(self._items),
            capacity=None,
            arrays=None,
            owner=self._owner,
        )

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<WorkStealingDeque fallback: {len(self)} items, owned by thread {self._owner}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a WorkStealingDeque belongs to its threads and cannot be copied or pickled"
        )


@final
class Stealer(Generic[T]):
    """The thieves' end of a `WorkStealingDeque`: any thread may use it, it can only take.

    From `WorkStealingDeque.stealer` only. No call waits.
    """

    if not TYPE_CHECKING:
        __module__ = "orchestra.stealing"
        __slots__ = ("__weakref__", "_deque")

        def __new__(cls) -> Stealer[T]:
            raise TypeError("cannot create 'orchestra.stealing.Stealer' instances")

        __class_getitem__ = classmethod(GenericAlias)

        def __init_subclass__(cls) -> None:
            raise TypeError("Stealer is final; wrap it instead of deriving from it")
    else:
        _deque: WorkStealingDeque[T]

    @classmethod
    def _of(cls, victim: WorkStealingDeque[T]) -> Stealer[T]:
        self = object.__new__(cls)
        self._deque = victim
        return self

    @overload
    def steal(self, /) -> T | None: ...

    @overload
    def steal(self, default: D, /) -> T | D: ...

    def steal(self, default: object = None, /) -> object:
        """Take the oldest item.

        Args:
            default: What to return when the deque is empty.
        """
        try:
            return self._deque._items.popleft()  # noqa: SLF001 - the two classes are one concept
        except IndexError:
            return default

    def steal_many(self, count: int, /) -> list[T]:
        """Take up to this many of the oldest items, oldest first: at most half, and at most 32.

        Args:
            count: 0 or more.

        Raises:
            ValueError: The count is negative.
        """
        items = self._deque._items  # noqa: SLF001 - the two classes are one concept
        taken: list[T] = []
        try:
            for _ in range(min(_count(count), (len(items) + 1) // 2, MAX_BATCH)):
                taken.append(items.popleft())  # noqa: PERF401 - keeps what it has when it ends early
        except IndexError:  # another thief was faster
            pass
        return taken

    def steal_into(self, target: WorkStealingDeque[T], /, limit: int = MAX_BATCH) -> int:
        """Move up to ``limit`` of the oldest items to a deque that the calling thread owns.

        At most half of the items and at most 32 are moved, in order: the youngest of them will be
        popped first.

        Args:
            target: Another deque, owned by the calling thread.
            limit: 0 or more.

        Returns:
            How many items were moved.

        Raises:
            RuntimeError: The calling thread does not own the target.
            ValueError: The limit is negative, or the target is the deque stolen from.
        """
        if not isinstance(target, WorkStealingDeque):
            raise TypeError(
                f"steal_into() moves items to a WorkStealingDeque, not to {type(target).__name__!r}"
            )
        target._check_owner("steal_into")  # noqa: SLF001 - the two classes are one concept
        if target is self._deque:
            raise ValueError("a deque cannot steal from itself; give another one as the target")
        taken = self.steal_many(limit)
        target._items.extend(taken)  # noqa: SLF001 - the two classes are one concept
        return len(taken)

    def statistics(self) -> DequeStatistics:
        """Count what the deque holds now; a guess while other threads work on it."""
        return self._deque.statistics()

    def __len__(self) -> int:
        return len(self._deque)

    def __repr__(self) -> str:
        return f"<Stealer fallback: {len(self)} items, owned by thread {self._deque.owner}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Stealer belongs to its threads and cannot be copied or pickled")


class EventCount:
    """Lets workers that found nothing to do sleep without missing what comes next.

    The waiter calls `prepare`, looks for work once more, and then `cancel` or `wait`; the notifier
    publishes its work and then calls `notify`. While a searcher is awake `notify` wakes nobody.
    """

    __slots__ = ("_changed", "_epoch", "_searching", "_waiters")

    def __init__(self) -> None:
        self._changed = Condition()
        self._epoch = 0
        self._waiters = 0
        self._searching = 0

    def prepare(self) -> int:
        """Announce the wish to sleep; returns the key for `wait`."""
        with self._changed:
            self._waiters += 1
            return self._epoch

    def cancel(self) -> None:
        """Take the announcement back."""
        with self._changed:
            self._waiters -= 1

    def wait(self, key: int, timeout: float | None = None) -> bool:
        """Sleep until something was notified since `prepare`.

        Args:
            key: What `prepare` returned.
            timeout: Seconds; None waits for ever.

        Returns:
            False on timeout.
        """
        with self._changed:
            woken = self._changed.wait_for(lambda: self._epoch != key, timeout)
            self._waiters -= 1
        return woken

    def notify(self) -> bool:
        """Wake one waiter, unless a searcher is awake; returns whether one was woken."""
        with self._changed:
            if self._searching or not self._waiters:
                return False
            self._epoch += 1
            self._changed.notify()
        return True

    def notify_all(self) -> None:
        """Wake every waiter."""
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()

    def begin_search(self) -> None:
        """Count the caller as awake and looking."""
        with self._changed:
            self._searching += 1

    def end_search(self) -> bool:
        """Stop counting the caller; True for the last one, who calls `notify` if it found work."""
        with self._changed:
            self._searching -= 1
            return self._searching == 0

    @property
    def waiting(self) -> int:
        """How many have announced themselves or sleep."""
        return self._waiters
