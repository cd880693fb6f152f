"""The one place where tasks are parked and woken; the one audited wait queue of the package.

Only this module (and `orchestra.testing`) may name asyncio or trio: a waiter is the loop's own,
because an ``anyio.Event`` for each would cost half as much again. Trio is looked at only when it
is running.

The rules that every use relies on:

* The slot is handed over *before* the wake-up: whoever is woken owns what it was woken for, so a
  newcomer cannot slip in between (no barging) and no wake-up can be lost.
* A task that is cancelled while it is parked leaves the queue at once.
* A task that is cancelled after the grant and before it runs again gives the slots to the next.
"""

from __future__ import annotations

import sys
from asyncio import Future, get_running_loop
from collections.abc import Callable, Generator
from types import coroutine
from typing import Any, Final, final

from orchestra._core.waiters import Priority, WaitOrder

__all__ = ("WaitQueue", "checkpoint")


def _is_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


@coroutine
def _yield_once() -> Generator[None, None, None]:
    yield  # to asyncio: run me again in the next iteration


async def checkpoint() -> None:
    """Let other tasks run and take in a cancellation, like ``anyio.lowlevel.checkpoint``."""
    if _is_trio():
        await sys.modules["trio"].lowlevel.checkpoint()
    else:
        await _yield_once()


@final
class WaitQueue:
    """Parked tasks in the order of `WaitOrder`.

    Args:
        returned: Called with the number of slots that come back when a waiter was cancelled: what
            it needed if they had been granted, else 0 (those behind it may fit now). It must look
            who is next.

    Attributes:
        order: Who waits.
    """

    __slots__ = ("_returned", "order")

    def __init__(self, returned: Callable[[int], None]) -> None:
        self._returned: Final = returned
        self.order: Final[WaitOrder[Any]] = WaitOrder()  # asyncio futures or trio tasks

    async def park(self, need: int, priority: Priority) -> bool:
        """Wait until `grant_next` or `refuse_all` reaches this task. A checkpoint.

        Args:
            need: How many slots it wants.
            priority: How urgent it is.

        Returns:
            True when the slots were granted, False when it was refused.
        """
        if _is_trio():
            return await self._park_in_trio(need, priority)
        future: Future[bool] = get_running_loop().create_future()
        self.order.add(future, priority, need)
        try:
            return await future
        except BaseException:
            was_granted = future.done() and not future.cancelled() and future.result()
            self.order.discard(future)
            self._returned(need if was_granted else 0)
            raise

    async def _park_in_trio(self, need: int, priority: Priority) -> bool:
        trio = sys.modules["trio"]
        task = trio.lowlevel.current_task()
        order = self.order

        def abort(raise_cancel: object) -> object:  # noqa: ARG001 - trio raises it for us
            order.discard(task)
            self._returned(0)
            return trio.lowlevel.Abort.SUCCEEDED

        order.add(task, priority, need)
        try:
            granted: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        except GeneratorExit:  # the coroutine was closed without its loop
            order.discard(task)
            raise
        return granted

    def next_need(self) -> int:
        """Return how many slots the next waiter wants; 0 when nobody waits."""
        order = self.order
        while (head := order.next()) is not None:
            waiter, need = head
            if not (isinstance(waiter, Future) and waiter.done()):
                return need
            # Cancelled, but its task has not run since: it must not take a place, nor a slot.
            order.discard(waiter)
        return 0

    def grant_next(self) -> None:
        """Wake the waiter that `next_need` spoke of; its slots must be counted before."""
        waiter = self.order.pop()
        if isinstance(waiter, Future):
            waiter.set_result(True)
        else:
            _reschedule(waiter, granted=True)

    def try_pass(self, priority: Priority) -> bool:
        """Whether a newcomer would be next; if so, it counts as served and must not park."""
        newcomer = object()
        self.next_need()  # drops the dead
        self.order.add(newcomer, priority)
        head = self.order.next()
        if head is not None and head[0] is newcomer:
            self.order.pop()
            return True
        self.order.discard(newcomer)
        return False

    def refuse_all(self) -> None:
        """Wake every waiter with a refusal."""
        while self.next_need():
            waiter = self.order.pop()
            if isinstance(waiter, Future):
                waiter.set_result(False)
            else:
                _reschedule(waiter, granted=False)


def _reschedule(task: Any, *, granted: bool) -> None:
    sys.modules["trio"].lowlevel.reschedule(task, sys.modules["outcome"].Value(granted))
