"""Reuse objects that are dearer to make than to clean."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, final
from weakref import WeakMethod, ref

import attrs

from orchestra._core.checks import check_at_least, check_callable
from orchestra._functions import is_async

__all__ = ("ObjectPool", "ObjectPoolStatistics")

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class ObjectPoolStatistics:
    """What an `ObjectPool` has and has done.

    Attributes:
        created: Objects that the factory has made.
        reused: How often an idle object was lent again.
        in_use: Objects that are lent.
        idle: Objects that wait to be lent.
        discarded: Objects that it gave up: too many were idle, or their reset failed.
        lost: Objects that their borrowers have dropped instead of returning them.
    """

    created: int
    reused: int
    in_use: int
    idle: int
    discarded: int
    lost: int


class _Mark(ref[Any]):
    """A weak reference that still knows the address when the object is gone."""

    __slots__ = ("key",)

    key: int


@final
class ObjectPool(Generic[T]):
    """Lends objects and takes them back, to lend them again.

    It never waits: if none is idle, it makes one.

    ::

        validators = ObjectPool(lambda: Validator(schema), prewarm=1)

        with validators.lease() as validator:
            validator.check(document)

    Few objects are worth it. CPython makes a plain record faster than any pool written in Python
    hands one out, and frees it without the garbage collector. A pool pays for objects that are
    expensive to make, and for graphs with cycles, which only the garbage collector can free.

    The pool refers to idle objects only. What it lent it knows by address, together with a weak
    reference that strikes the address out when the object dies, so that no other object there can
    be mistaken for it. Objects that cannot be referenced weakly, such as lists and those of classes
    with ``__slots__`` but without ``__weakref__``, it knows by address alone: if the borrower of one
    drops it, and then returns a stranger that has come to lie at the same address, the pool does not
    notice. `lease` leaves no room for that.

    An object is lent to one borrower at a time and taken back once, whatever the threads, in which
    the factory and the reset then run; no lock is needed for that. Only counts that threads change
    at the same moment may miss one.

    Args:
        factory: Makes an object, a new one each time.
        reset: Cleans an object when it comes back, so that it does not keep alive what it refers
            to. If it raises, the object is given up and the error is raised to who returned it.
        max_idle: So many objects are kept for later; the one longest idle is given up for a newer.
        prewarm: So many are made at once, but no more than ``max_idle``.

    Raises:
        TypeError: A function is none or is async, or a number is none.
        ValueError: A number is negative.
    """

    __slots__ = (
        "__weakref__",
        "_created",
        "_factory",
        "_forget",
        "_idle",
        "_lent",
        "_lost",
        "_marks",
        "_max_idle",
        "_reset",
        "_reused",
    )

    def __init__(
        self,
        factory: Callable[[], T],
        *,
        reset: Callable[[T], object] | None = None,
        max_idle: int = 200,
        prewarm: int = 50,
    ) -> None:
        _check_function("factory", factory)
        if reset is not None:
            _check_function("reset", reset)
        check_at_least("max_idle", max_idle, 0)
        check_at_least("prewarm", prewarm, 0)
        self._factory = factory
        self._reset = reset
        self._max_idle = max_idle
        # The most recently returned is lent first: it is the one that the caches still have.
        self._idle: deque[T] = deque(maxlen=max_idle)
        self._lent: set[int] = set()
        self._marks: dict[int, _Mark] = {}
        self._created = 0
        self._reused = 0
        self._lost = 0

        bury = WeakMethod(self._bury)  # marks do not keep the pool alive

        def forget(mark: _Mark) -> None:
            if (method := bury()) is not None:
                method(mark.key)

        self._forget = forget
        for _ in range(min(prewarm, max_idle)):
            self._idle.append(self._make())

    def lease(self) -> AbstractContextManager[T]:
        """Lend an object for the length of a ``with`` block.

        It is taken at the beginning of the block and returned at its end, also when the block
        raises: the reset must cope with whatever state the block leaves.
        """
        return _ObjectLease(self)

    def acquire(self) -> T:
        """Lend an object, which must come back by `release`; `lease` sees to that by itself.

        Raises:
            RuntimeError: The factory gave an object that it has given before.
        """
        try:
            lent = self._idle.pop()
        except IndexError:
            lent = self._make()
        else:
            self._reused += 1
        self._lent.add(id(lent))
        return lent

    def release(self, lent: T) -> None:
        """Take an object back.

        Args:
            lent: What `acquire` gave; from now on it is somebody else's.

        Raises:
            RuntimeError: It is not lent by this pool, or is back already.
        """
        try:
            self._lent.remove(id(lent))
        except KeyError:
            raise RuntimeError(
                f"the {type(lent).__name__} at {id(lent):#x} is not lent by this pool; return each "
                "object once, to the pool that it came from"
            ) from None
        if self._reset is not None:
            self._reset(lent)
        self._idle.append(lent)

    def clear(self) -> None:
        """Give up the idle objects; what is lent may still be returned."""
        self._idle.clear()

    def statistics(self) -> ObjectPoolStatistics:
        """Count what it has and has done."""
        idle, in_use = len(self._idle), len(self._lent)
        return ObjectPoolStatistics(
            created=self._created,
            reused=self._reused,
            in_use=in_use,
            idle=idle,
            discarded=max(0, self._created - idle - in_use - self._lost),
            lost=self._lost,
        )

    def _make(self) -> T:
        made = self._factory()
        key = id(made)
        mark = self._marks.get(key)
        if mark is not None and mark() is made:
            raise RuntimeError(
                f"the factory gave the {type(made).__name__} at {key:#x} again; make it return a "
                "new object each time"
            )
        if key in self._lent:
            self._lost += 1  # what was lent under this address has died, or this could not be there
        try:
            mark = _Mark(made, self._forget)
        except TypeError:
            pass  # known by address alone
        else:
            mark.key = key
            self._marks[key] = mark
        self._created += 1
        return made

    def _bury(self, key: int) -> None:
        """Strike out an object that has died; runs wherever that happens, so it takes no lock."""
        self._marks.pop(key, None)
        if key in self._lent:
            self._lent.discard(key)
            self._lost += 1

    def __repr__(self) -> str:
        return f"<ObjectPool {len(self._lent)} in use, {len(self._idle)}/{self._max_idle} idle>"


@final
class _ObjectLease(Generic[T]):
    """An object for the length of one block."""

    __slots__ = ("_held", "_pool")

    def __init__(self, pool: ObjectPool[T]) -> None:
        self._pool: ObjectPool[T] | None = pool
        self._held: tuple[ObjectPool[T], T] | None = None

    def __enter__(self) -> T:
        pool = self._pool
        if pool is None:
            raise RuntimeError("this lease was entered before; call lease() for each block")
        self._pool = None
        lent = pool.acquire()
        self._held = pool, lent
        return lent

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self._held
        if held is None:
            raise RuntimeError("this lease holds nothing; use it in one `with` block only")
        self._held = None  # whoever keeps the lease does not keep the object
        pool, lent = held
        pool.release(lent)


def _check_function(name: str, value: object) -> None:
    check_callable(name, value)
    if is_async(value):
        raise TypeError(f"{name} must not be async: {value!r}; use ResourcePool for such objects")
