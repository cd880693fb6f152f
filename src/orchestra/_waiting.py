"""The one place where tasks are parked and woken; the one audited wait queue of the package.

Only this module (and `orchestra.testing`) may name asyncio or trio: a waiter is the loop's own,
because an ``anyio.Event`` for each would cost half as much again. Trio is looked at only when it
is running.

The rules that every use relies on:

* The slot is handed over *before* the wake-up: whoever is woken owns what it was woken for, so a
  newcomer cannot slip in between (no barging) and no wake-up can be lost.
* A task that is cancelled while it is parked leaves the queue (or queues) at once.
* A task that is cancelled after the grant and before it runs again gives the slots to the next.
"""

from __future__ import annotations

import sys
from asyncio import Future, get_running_loop
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import cache
from types import coroutine
from typing import Any, Final, Generic, TypeAlias, TypeVar, final

from orchestra._core.waiters import Priority, WaitOrder

__all__ = ("WaitQueue", "checkpoint", "loop_clock", "park")

N = TypeVar("N")

Order: TypeAlias = WaitOrder[Any, N]
"""The waiters are asyncio futures or trio tasks."""


def _is_trio() -> bool:
    # What ``sniffio.current_async_library()`` looks at first, for a tenth of its price. It is right
    # also where trio is a guest of asyncio, and then a running asyncio loop means nothing.
    sniffio = sys.modules.get("sniffio")
    return sniffio is not None and sniffio.thread_local.name == "trio"


@cache
def _trio() -> tuple[Any, Any]:
    """What we need of trio and of outcome; called only where trio is running."""
    return sys.modules["trio"].lowlevel, sys.modules["outcome"].Value


@coroutine
def _yield_once() -> Generator[None, None, None]:
    yield  # to asyncio: run me again in the next iteration


async def checkpoint() -> None:
    """Let other tasks run and take in a cancellation, like ``anyio.lowlevel.checkpoint``."""
    if _is_trio():
        await _trio()[0].checkpoint()
    else:
        await _yield_once()


def loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop, for who reads it often.

    It tells what ``anyio.current_time()`` tells, for a tenth of its price.
    """
    if _is_trio():
        now: Callable[[], float] = _trio()[0].current_clock().current_time
        return now
    return get_running_loop().time


def park(
    orders: Sequence[Order[N]], need: N, priority: Priority, returned: Callable[[bool], object]
) -> Coroutine[Any, Any, bool]:
    """Wait in one or more queues until somebody wakes this task. Awaiting it is a checkpoint.

    Who wakes it takes it out of all queues in the same step.

    Args:
        orders: Where to wait.
        need: What is waited for.
        priority: How urgent it is.
        returned: Called when the task is cancelled, after it has left the queues: with True if it
            was granted already what it waited for, which is to be given to others; with False if
            only those behind it may move up.

    Returns:
        To be awaited: True when it was granted, False when it was refused.
    """
    native = _park_in_trio if _is_trio() else _park_in_asyncio
    return native(orders, need, priority, returned)


async def _park_in_asyncio(
    orders: Sequence[Order[N]], need: N, priority: Priority, returned: Callable[[bool], object]
) -> bool:
    future: Future[bool] = Future()
    for order in orders:
        order.add(future, priority, need)
    try:
        return await future
    except BaseException:
        for order in orders:
            order.discard(future)
        returned(future.done() and not future.cancelled() and future.result())
        raise


async def _park_in_trio(
    orders: Sequence[Order[N]], need: N, priority: Priority, returned: Callable[[bool], object]
) -> bool:
    trio, _ = _trio()
    task = trio.current_task()

    def abort(raise_cancel: object) -> object:  # noqa: ARG001 - trio raises it for us
        for order in orders:
            order.discard(task)
        returned(False)
        return trio.Abort.SUCCEEDED

    for order in orders:
        order.add(task, priority, need)
    try:
        # Trio cancels nobody who was rescheduled, so there is no cancellation after the grant.
        granted: bool = await trio.wait_task_rescheduled(abort)
    except GeneratorExit:  # the coroutine was thrown away without its loop
        for order in orders:
            order.discard(task)
        raise
    return granted


@final
class WaitQueue(Generic[N]):
    """Parked tasks, to be woken one after the other.

    Attributes:
        order: Who waits, and for what.
    """

    __slots__ = ("order",)

    def __init__(self) -> None:
        self.order: Final[Order[N]] = WaitOrder()

    def next(self) -> N | None:
        """Return what the next waiter needs; None when nobody waits."""
        order = self.order
        while (head := order.next()) is not None:
            waiter, need = head
            if not (isinstance(waiter, Future) and waiter.done()):
                return need
            # Cancelled, but its task has not run since: it must not take a place, nor a slot.
            order.discard(waiter)
        return None

    def wake_next(self, *, granted: bool = True) -> Any:
        """Wake the waiter that `next` spoke of; what it is granted must be counted before.

        Args:
            granted: Whether it gets what it needs.

        Returns:
            The waiter, which must be discarded from the other queues in which it waits.
        """
        waiter = self.order.pop()
        if isinstance(waiter, Future):
            waiter.set_result(granted)
        else:
            trio, value = _trio()
            trio.reschedule(waiter, value(granted))
        return waiter

    def lets_pass(self, priority: Priority, need: N) -> bool:
        """Whether a newcomer would be next."""
        self.next()  # drops the dead
        newcomer = object()
        self.order.add(newcomer, priority, need)
        head = self.order.next()
        self.order.discard(newcomer)
        return head is not None and head[0] is newcomer

    def let_pass(self, priority: Priority, need: N) -> None:
        """Count a newcomer, of whom `lets_pass` is true, as served."""
        self.order.add(object(), priority, need)
        self.order.pop()
