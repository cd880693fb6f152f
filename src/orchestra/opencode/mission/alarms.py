"""Time limits of turns, which do nothing in a process that has slept through its ownership.

A process that was stopped for a while finds every deadline over when it goes on, and would abort turns
that somebody else carries on by now. So who is about to cut a turn off asks first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import final

import anyio

__all__ = ("Alarms",)


@final
class Alarms:
    """Time limits for any number of blocks.

    Args:
        may_ring: Asked before blocks are cancelled; False: they are left alone, for good.
    """

    def __init__(self, may_ring: Callable[[], Awaitable[bool]]) -> None:
        self._may_ring = may_ring
        self._set: dict[anyio.CancelScope, float] = {}
        self._next = inf
        self._is_earlier = anyio.Event()

    @contextmanager
    def move_on_after(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Cancel the block when it takes too long; what is behind it goes on.

        Args:
            seconds: How long it may take.
        """
        scope = anyio.CancelScope()
        at = anyio.current_time() + seconds
        self._set[scope] = at
        if at < self._next:
            self._is_earlier.set()
        try:
            with scope:
                yield scope
        finally:
            del self._set[scope]

    async def keep(self) -> None:
        """Watch the time, for ever."""
        while True:
            self._next = min(self._set.values(), default=inf)
            self._is_earlier = anyio.Event()
            with anyio.CancelScope(deadline=self._next):
                await self._is_earlier.wait()
                continue
            if not await self._may_ring():
                return
            now = anyio.current_time()
            for scope, at in self._set.items():
                if at <= now:
                    scope.cancel()
                    self._set[scope] = inf

    def __repr__(self) -> str:
        return f"<Alarms {len(self._set)} set>"
