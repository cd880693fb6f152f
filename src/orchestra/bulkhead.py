"""One key of a concurrency controller, as an object of its own and as a policy around calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, final

from orchestra._functions import decorated

if TYPE_CHECKING:
    from orchestra._core.waiters import Priority
    from orchestra._lane import ConcurrencyToken, Lane
    from orchestra.concurrency import ConcurrencyController, ConcurrencyStatistics

__all__ = ("Bulkhead",)

P = ParamSpec("P")
T = TypeVar("T")


@final
class Bulkhead:
    """The slots of one key; comes from ``ConcurrencyController.at`` only.

    ::

        workers = controller.at("worker")
        reply = await workers.call(session.prompt, "hello")        # one call in a slot

        @workers                                                    # every call in a slot
        async def ask(prompt: str) -> str: ...

    It is a policy for `Pipeline`, and the shortest way to `acquire_nowait`.

    Attributes:
        key: The key.
        priority: How urgent its calls are.
    """

    __slots__ = ("_controller", "_lane", "acquire_nowait", "key", "priority")

    acquire_nowait: Callable[[], ConcurrencyToken]
    """Take a slot that is free and that nobody waits for; see
    ``ConcurrencyController.acquire_nowait``."""

    def __init__(
        self, controller: ConcurrencyController, lane: Lane, key: str, priority: Priority
    ) -> None:
        self._controller: Final = controller
        self._lane: Final = lane
        self.key: Final = key
        self.priority: Final = priority
        # The bound method itself: one call less on the shortest path there is.
        self.acquire_nowait = lane.acquire_nowait

    def acquire(self) -> Coroutine[Any, Any, ConcurrencyToken]:
        """Wait for a slot, as ``ConcurrencyController.acquire``."""
        return self._lane.acquire(self.priority, 0)

    def lease(self) -> AbstractAsyncContextManager[ConcurrencyToken]:
        """Hold a slot for the length of a block, as ``ConcurrencyController.lease``."""
        return self._controller.lease(self.key, priority=self.priority)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function while holding a slot; a checkpoint like ``acquire``.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Raises:
            CapacityError: Too many wait already, or the controller is closed.
            PressureError: The priority is LOW and memory is short.
        """
        async with self.lease():
            return await fn(*args, **kwargs)

    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Decorate an async function; the signature stays.

        Args:
            fn: A coroutine function.

        Raises:
            TypeError: ``fn`` is no coroutine function.
        """
        return decorated(self, fn)

    def statistics(self) -> ConcurrencyStatistics:
        """Return the state of the key."""
        return self._controller.statistics(self.key)

    def __repr__(self) -> str:
        lane = self._lane
        return f"<Bulkhead {self.key!r} {lane.in_use}/{lane.limit} {self.priority.name}>"
