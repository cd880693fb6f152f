"""Groups of tasks in a pool of threads, as blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar, final

import anyio
import anyio.lowlevel

from orchestra._groups import ScopeGroup, fulfil
from orchestra._scheduler import Scheduler, Task

__all__ = ("TaskScope",)

T = TypeVar("T")
R = TypeVar("R")


def is_in_event_loop() -> bool:
    """Whether this thread runs an event loop, which must not be blocked."""
    try:
        anyio.lowlevel.current_token()
    except anyio.NoEventLoopError:
        return False
    return True


@final
class TaskScope:
    """Tasks that belong together: the block does not end before they have.

    From `WorkStealingPool.scope` only. ::

        with pool.scope() as scope:
            scope.submit_many(check, files)

    The first task that fails cancels the scope: what has not started is dropped, what runs is
    waited for, and the block raises an ``ExceptionGroup`` of all errors. So does an error in the
    block itself. Tasks may submit to their own scope. ``async with`` is the same for an event loop;
    when it is cancelled, it drops what has not started and waits for what runs.

    In a task, leaving a plain ``with`` block runs other tasks while it waits.
    """

    __slots__ = ("__weakref__", "_group", "_role", "_scheduler")

    def __init__(self, scheduler: Scheduler, role: str | None) -> None:
        self._scheduler = scheduler
        self._role = role
        self._group = ScopeGroup(scheduler)

    @property
    def is_cancelled(self) -> bool:
        """Whether tasks that have not started are dropped."""
        return self._group.is_cancelled

    def submit(self, fn: Callable[..., object], /, *args: Any) -> None:
        """Have a worker call ``fn(*args)``; the result is dropped. Never blocks.

        In a worker of the same role the task goes to that worker's own deque, else to the queue
        for tasks from outside.

        Args:
            fn: What to call, in another thread.
            args: Its arguments.

        Raises:
            anyio.ClosedResourceError: The scope's block has not been entered, or has ended.
            RuntimeError: This process was forked from the pool's.
        """
        group = self._group
        group.expect(1)
        self._scheduler.put((group, fn, args), self._role)

    def submit_many(self, fn: Callable[[T], object], items: Iterable[T], /) -> None:
        """Have workers call ``fn(item)`` for each item: cheaper than one by one. Never blocks.

        Args:
            fn: What to call, in other threads.
            items: A finite iterable; if it raises, nothing has been submitted.

        Raises:
            anyio.ClosedResourceError: The scope's block has not been entered, or has ended.
            RuntimeError: This process was forked from the pool's.
        """
        group = self._group
        tasks: list[Task] = [(group, fn, (item,)) for item in items]
        group.expect(len(tasks))
        self._scheduler.put_many(tasks, self._role)

    def future(self, fn: Callable[..., R], /, *args: Any) -> Future[R]:
        """Have a worker call ``fn(*args)``, and return a future for what comes of it.

        An error is the future's alone and does not cancel the scope. The future of a task that was
        dropped is cancelled. Waiting for a future in a task blocks that worker; a scope does not.

        Args:
            fn: What to call, in another thread.
            args: Its arguments.

        Raises:
            anyio.ClosedResourceError: The scope's block has not been entered, or has ended.
            RuntimeError: This process was forked from the pool's.
        """
        future: Future[R] = Future()
        self.submit(fulfil, future, fn, args)
        return future

    def cancel(self) -> None:
        """Drop the tasks that have not started. The block still waits for those that run."""
        self._group.is_cancelled = True

    def __enter__(self) -> TaskScope:
        if is_in_event_loop():
            raise RuntimeError("leaving a scope would block this event loop; use 'async with'")
        self._group.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._scheduler.is_foreign:
            return  # a forked process leaves the block: the tasks are its parent's
        try:
            self._group.begin_join(exc)
            self._scheduler.wait(self._group.latch)
        except BaseException as interrupt:  # Ctrl-C in the main thread
            self._group.begin_join(interrupt)
            self._group.latch.wait()
            self._group.end_join(interrupt)
            raise
        self._group.end_join(exc)

    async def __aenter__(self) -> TaskScope:
        await anyio.lowlevel.checkpoint()
        self._group.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._scheduler.is_foreign:
            return
        self._group.begin_join(exc)
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            exc = None  # errors come first, and a cancellation is not put in a group
        try:
            await self._group.latch.wait_async()
        except BaseException:
            self.cancel()
            with anyio.CancelScope(shield=True):
                await self._group.latch.wait_async()
            self._group.end_join(None)
            raise
        self._group.end_join(exc)

    def __repr__(self) -> str:
        group = self._group
        state = "closed" if group.is_closed else "cancelled" if group.is_cancelled else "open"
        return f"<TaskScope {state}: {group.pending} tasks unfinished, {group.failures} failed>"


def raise_first(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the first error alone: to the caller of one function the others are echoes."""
    first = group.exceptions[0]
    if len(group.exceptions) > 1:
        first.add_note(f"{len(group.exceptions) - 1} more calls failed")
    try:
        raise first from None
    finally:
        del first, group
