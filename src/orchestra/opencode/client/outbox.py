"""The events of one turn on their way to whoever iterates over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Self, final

import anyio
from attrs import evolve

from orchestra.events import (
    Finished,
    SessionEvent,
    Started,
    TextReceived,
    UsageReported,
)

__all__ = ("Outbox",)


@final
class Outbox:
    """A queue that never blocks the writer and never grows without bound.

    Past its limit, for a reader that does not read, texts are joined, usage is summed up, and the
    rest is dropped, so that what the reader finds at last is still true.

    Args:
        limit: Events that wait before that happens.
    """

    def __init__(self, *, limit: int = 10_000) -> None:
        self.dropped: int = 0
        self._limit = limit
        self._events: deque[SessionEvent] = deque()
        self._arrival = anyio.Event()
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Outbox {len(self._events)} waiting, {self.dropped} dropped>"

    def put(self, events: Iterable[SessionEvent]) -> None:
        """Add events, in order.

        Args:
            events: The events.
        """
        for event in events:
            if len(self._events) < self._limit or isinstance(event, Started | Finished):
                self._events.append(event)
            else:
                self._squeeze(event)
        self._arrival.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        """Wait for the next event; the one after `Finished` never comes. Always a checkpoint."""
        await anyio.lowlevel.checkpoint()
        if self._is_over:
            raise StopAsyncIteration
        while not self._events:
            self._arrival = anyio.Event()
            await self._arrival.wait()
        event = self._events.popleft()
        self._is_over = isinstance(event, Finished)
        return event

    def _squeeze(self, event: SessionEvent) -> None:
        last = self._events[-1]
        if isinstance(event, TextReceived) and isinstance(last, TextReceived):
            self._events[-1] = evolve(last, text=last.text + event.text)
        elif isinstance(event, UsageReported) and isinstance(last, UsageReported):
            self._events[-1] = evolve(last, usage=last.usage + event.usage)
        elif isinstance(event, TextReceived | UsageReported):
            self._events.append(event)
        else:
            self.dropped += 1
