"""The parts of a shutdown: handlers and how they are called, guards and who waits for them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, final

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from orchestra._core.shutdown import HandlerReport
from orchestra._ending import EndingFunction, end

__all__ = ("Caller", "ShutdownGuard", "ShutdownHandler")


@final
class ShutdownHandler:
    """What `ShutdownManager.register` returns, and nobody else makes.

    Attributes:
        fn: What it calls.
        over: Set when it has been called and that is over.
        name: What reports and errors call it.
        priority: The higher, the earlier; None: it is called when draining begins.
        timeout: How many seconds it may take at most.
    """

    __slots__ = ("_unregister", "fn", "name", "over", "priority", "timeout")

    def __init__(
        self,
        fn: EndingFunction,
        name: str,
        priority: int | None,
        timeout: float,
        unregister: Callable[[ShutdownHandler], bool],
    ) -> None:
        self.fn: Final = fn
        self.over: Final = anyio.Event()
        self._unregister = unregister
        self.name: Final = name
        self.priority: Final = priority
        self.timeout: Final = timeout

    def unregister(self) -> bool:
        """Take it back, because what it would end has ended.

        Returns:
            Whether it is now sure not to be called; False when it has been called already.
        """
        return self._unregister(self)

    def __repr__(self) -> str:
        when = "drain" if self.priority is None else f"priority {self.priority}"
        return f"<ShutdownHandler {self.name!r} {when}, {self.timeout:g} s>"


@final
class ShutdownGuard:
    """Work in flight, for the length of a ``with`` block; comes from `ShutdownManager.guard`.

    Attributes:
        name: What the report calls the work.
    """

    __slots__ = ("_begin", "_end", "name")

    def __init__(
        self,
        name: str,
        begin: Callable[[ShutdownGuard], object],
        end: Callable[[ShutdownGuard], object],
    ) -> None:
        self._begin = begin
        self._end = end
        self.name: Final = name

    def __enter__(self) -> ShutdownGuard:
        self._begin(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(self)

    def __repr__(self) -> str:
        return f"<ShutdownGuard {self.name!r}>"


@final
class Caller:
    """Calls handlers in tasks of a group, each bounded, and keeps how they ended.

    Attributes:
        running: What is being called, and what cancels it.
        reports: How those ended that are over.

    Args:
        listener: Called when one is over.
    """

    def __init__(self, listener: Callable[[], object]) -> None:
        self._listener = listener
        self._tasks: TaskGroup | None = None
        self.running: Final[dict[ShutdownHandler, CancelScope]] = {}
        self.reports: Final[list[HandlerReport]] = []

    @property
    def errors(self) -> list[BaseException]:
        """What went wrong."""
        return [report.error for report in self.reports if report.error is not None]

    @property
    def is_open(self) -> bool:
        """Whether it has a group to call in."""
        return self._tasks is not None

    def open(self, tasks: TaskGroup) -> None:
        """Give it the group."""
        self._tasks = tasks

    def call(self, handler: ShutdownHandler, timeout: float) -> None:
        """Call a handler and do not wait for it.

        Args:
            handler: Which one.
            timeout: After how many seconds it is cancelled.
        """
        if self._tasks is None:
            raise AssertionError("unreachable")
        scope = CancelScope(deadline=anyio.current_time() + timeout)
        self.running[handler] = scope
        self._tasks.start_soon(self._end, handler, scope, name=f"shutdown of {handler.name}")

    def cancel(self) -> None:
        """Cancel what is being called."""
        for scope in self.running.values():
            scope.cancel()

    async def _end(self, handler: ShutdownHandler, scope: CancelScope) -> None:
        ending = await end(handler.fn, handler.name, scope, in_thread=True)
        self.reports.append(
            HandlerReport(
                name=handler.name,
                priority=handler.priority,
                outcome=ending.outcome,
                duration=ending.duration,
                error=ending.error,
            )
        )
        del self.running[handler]
        handler.over.set()
        self._listener()
