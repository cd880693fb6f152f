"""What tasks belong to: the inside of a scope, and a single call that an event loop waits for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import anyio

from orchestra._scheduler import Latch, Scheduler, Task

__all__ = ("Call", "ScopeGroup", "fulfil")

R = TypeVar("R")


def fulfil(future: Future[R], fn: Callable[..., R], args: tuple[Any, ...]) -> None:
    """The task behind a future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args)
    except BaseException as error:  # noqa: BLE001 - the future's, whatever it is
        future.set_exception(error)
        del future, error  # no cycle through this frame
    else:
        future.set_result(result)


class ScopeGroup:
    """The tasks of a `TaskScope`: counts them, keeps their errors, tells when they are over."""

    __slots__ = (
        "__weakref__",
        "_errors",
        "_is_aborted",
        "_is_joining",
        "_lock",
        "_scheduler",
        "is_cancelled",
        "is_closed",
        "latch",
        "pending",
    )

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = Lock()
        self._errors: list[BaseException] = []
        self._is_joining = False
        self._is_aborted = False
        self.latch: Latch = Latch()
        self.pending: int = 0
        self.is_closed: bool = True
        self.is_cancelled: bool = False

    @property
    def failures(self) -> int:
        """How many tasks have failed."""
        return len(self._errors)

    def open(self) -> None:
        """Begin to take tasks."""
        if self.latch.is_set() or not self.is_closed:
            raise RuntimeError("a task scope can be entered once; ask the pool for another one")
        self._scheduler.open_group(self)
        self.is_closed = False

    def expect(self, count: int) -> None:
        """Count tasks, before they are queued."""
        if self._scheduler.is_foreign:
            self._scheduler.check()
        with self._lock:
            if self.is_closed:
                raise anyio.ClosedResourceError
            self.pending += count

    def failed(self, error: BaseException) -> None:
        """As `Group.failed`."""
        with self._lock:
            self._errors.append(error)
            self.is_cancelled = True

    def skipped(self, task: Task) -> Callable[[], object] | None:
        """As `Group.skipped`."""
        _, fn, args = task
        if fn is fulfil:
            future, fn, args = args
            future.cancel()
        return partial(fn, *args) if self._is_aborted else None

    def finished(self, count: int) -> None:
        """As `Group.finished`."""
        with self._lock:
            self.pending -= count
            self.is_closed = is_last = self._is_joining and not self.pending
        if is_last:
            self._settle()

    def abort(self) -> None:
        """As `Group.abort`. It does not need the block's end, which an interrupt may have cut off."""
        self._is_aborted = True
        self.is_cancelled = True
        self.begin_join(None)

    def _settle(self) -> None:
        self._scheduler.close_group(self)
        self.latch.set()

    def begin_join(self, exc: BaseException | None) -> None:
        """The block is left: the latch is set when the last task is over."""
        if exc is not None:
            self.is_cancelled = True
        with self._lock:
            self._is_joining = True
            self.is_closed = is_last = not self.pending
        if is_last:
            self._settle()

    def end_join(self, exc: BaseException | None) -> None:
        """Raise what went wrong; ``exc`` is what the block raises anyway, if anything."""
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
        self.is_cancelled: bool = False
        self.latch: Latch = Latch()

    def _claim(self) -> bool:
        try:
            return self._ticket.pop()
        except IndexError:
            return False

    def execute(self) -> None:
        """Make the call, unless it was revoked; the task of this group."""
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
        """As `Group.failed`."""
        self._error = error

    def skipped(self, task: Task) -> Callable[[], object] | None:  # noqa: ARG002 - a group of one
        """As `Group.skipped`."""
        if not self._claim():
            return None  # its task was cancelled and is gone
        self._error = anyio.ClosedResourceError()
        return partial(self._fn, *self._args)

    def finished(self, count: int) -> None:  # noqa: ARG002 - a group of one
        """As `Group.finished`."""
        self._scheduler.close_group(self)
        self.latch.set()

    def abort(self) -> None:
        """As `Group.abort`."""
        self.is_cancelled = True
