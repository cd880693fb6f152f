"""Groups of tasks in a pool of threads: scopes, and single calls that an event loop waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar, final

import anyio
import anyio.lowlevel

from orchestra._scheduler import Latch, Scheduler, Task

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


def _fulfil(future: Future[R], fn: Callable[..., R], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args)
    except BaseException as error:  # noqa: BLE001 - the future's, whatever it is
        future.set_exception(error)
        del future, error  # no cycle through this frame
    else:
        future.set_result(result)


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

    __slots__ = (
        "__weakref__",
        "_errors",
        "_is_aborted",
        "_is_closed",
        "_is_joining",
        "_latch",
        "_lock",
        "_pending",
        "_role",
        "_scheduler",
        "is_cancelled",
    )

    def __init__(self, scheduler: Scheduler, role: str | None) -> None:
        self._scheduler = scheduler
        self._role = role
        self._lock = Lock()
        self._latch = Latch()
        self._pending = 0
        self._errors: list[BaseException] = []
        self._is_joining = False
        self._is_closed = True
        self._is_aborted = False
        self.is_cancelled = False
        """Whether tasks that have not started are dropped."""

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
        scheduler = self._scheduler
        if scheduler.is_foreign:
            scheduler.check()
        with self._lock:
            if self._is_closed:
                raise anyio.ClosedResourceError
            self._pending += 1
        scheduler.put((self, fn, args), self._role)

    def submit_many(self, fn: Callable[[T], object], items: Iterable[T], /) -> None:
        """Have workers call ``fn(item)`` for each item: cheaper than one by one. Never blocks.

        Args:
            fn: What to call, in other threads.
            items: A finite iterable; if it raises, nothing has been submitted.

        Raises:
            anyio.ClosedResourceError: The scope's block has not been entered, or has ended.
            RuntimeError: This process was forked from the pool's.
        """
        self.put_all([(self, fn, (item,)) for item in items])

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
        self.submit(_fulfil, future, fn, args)
        return future

    def cancel(self) -> None:
        """Drop the tasks that have not started. The block still waits for those that run."""
        self.is_cancelled = True

    def put_all(self, tasks: list[Task]) -> None:
        """For the pool."""
        self._scheduler.check()
        with self._lock:
            if self._is_closed:
                raise anyio.ClosedResourceError
            self._pending += len(tasks)
        self._scheduler.put_many(tasks, self._role)

    # The scheduler's side: see `orchestra._scheduler.Group`.

    def failed(self, error: BaseException) -> None:
        """For the pool."""
        with self._lock:
            self._errors.append(error)
            self.is_cancelled = True

    def skipped(self, task: Task) -> Callable[[], object] | None:
        """For the pool."""
        _, fn, args = task
        if fn is _fulfil:
            future, fn, args = args
            future.cancel()
        return partial(fn, *args) if self._is_aborted else None

    def finished(self, count: int) -> None:
        """For the pool."""
        with self._lock:
            self._pending -= count
            self._is_closed = is_last = self._is_joining and not self._pending
        if is_last:
            self._latch.set()

    def abort(self) -> None:
        """For the pool."""
        self._is_aborted = True
        self.cancel()

    def _open(self) -> None:
        if self._latch.is_set() or not self._is_closed:
            raise RuntimeError("a task scope can be entered once; ask the pool for another one")
        self._scheduler.open_group(self)
        self._is_closed = False

    def _begin_join(self, exc: BaseException | None) -> None:
        if exc is not None:
            self.cancel()
        with self._lock:
            self._is_joining = True
            self._is_closed = is_last = not self._pending
        if is_last:
            self._latch.set()

    def _end_join(self, exc: BaseException | None) -> None:
        """Raise what went wrong; ``exc`` is what the block raises anyway, if anything."""
        self._scheduler.close_group(self)
        errors, self._errors = self._errors, []
        if errors:
            if exc is not None:
                errors.append(exc)
            try:
                raise BaseExceptionGroup("tasks of a scope failed", errors) from None
            finally:
                del errors, exc  # no cycle through this frame
        if self._is_aborted and exc is None:
            raise anyio.ClosedResourceError

    def __enter__(self) -> TaskScope:
        if is_in_event_loop():
            raise RuntimeError("leaving a scope would block this event loop; use 'async with'")
        self._open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._scheduler.is_foreign:
            return  # a forked process leaves the block: the tasks are its parent's
        self._begin_join(exc)
        try:
            self._scheduler.wait(self._latch)
        except BaseException as interrupt:  # Ctrl-C in the main thread
            self.cancel()
            self._latch.wait()
            self._end_join(interrupt)
            raise
        self._end_join(exc)

    async def __aenter__(self) -> TaskScope:
        await anyio.lowlevel.checkpoint()
        self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._scheduler.is_foreign:
            return
        self._begin_join(exc)
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            exc = None  # errors come first, and a cancellation is not put in a group
        try:
            await self._latch.wait_async()
        except BaseException:
            self.cancel()
            with anyio.CancelScope(shield=True):
                await self._latch.wait_async()
            self._end_join(None)
            raise
        self._end_join(exc)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "cancelled" if self.is_cancelled else "open"
        return f"<TaskScope {state}: {self._pending} tasks unfinished, {len(self._errors)} failed>"


class Call:
    """One call that a task of an event loop waits for: a group of one task."""

    __slots__ = (
        "_args",
        "_context",
        "_error",
        "_fn",
        "_result",
        "_scheduler",
        "_ticket",
        "is_cancelled",
        "latch",
    )

    def __init__(
        self, scheduler: Scheduler, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._scheduler = scheduler
        self._fn = fn
        self._args = args
        self._context = copy_context()
        self._ticket = [True]  # whoever pops it decides whether the call is made
        self._result: object = None
        self._error: BaseException | None = None
        self.is_cancelled = False
        self.latch = Latch()

    def _claim(self) -> bool:
        try:
            return self._ticket.pop()
        except IndexError:
            return False

    def execute(self) -> None:
        if not self._claim():
            return
        try:
            self._result = self._context.run(self._fn, *self._args)
        except BaseException as error:  # noqa: BLE001 - the waiting task raises it
            self._error = error

    def revoke(self) -> bool:
        """Prevent the call; False if it has begun."""
        self.is_cancelled = True
        return self._claim()

    def outcome(self) -> Any:
        """The result, or raise the error."""
        if self._error is None:
            return self._result
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error, self  # no cycle through this frame

    def failed(self, error: BaseException) -> None:
        self._error = error

    def skipped(self, task: Task) -> Callable[[], object] | None:  # noqa: ARG002 - a group of one
        if not self._claim():
            return None  # its task was cancelled and is gone
        self._error = anyio.ClosedResourceError()
        return partial(self._fn, *self._args)

    def finished(self, count: int) -> None:  # noqa: ARG002 - a group of one
        self._scheduler.close_group(self)
        self.latch.set()

    def abort(self) -> None:
        self.is_cancelled = True


def raise_first(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the first error alone: to the caller of one function the others are echoes."""
    first = group.exceptions[0]
    if len(group.exceptions) > 1:
        first.add_note(f"{len(group.exceptions) - 1} more calls failed")
    try:
        raise first from None
    finally:
        del first, group
