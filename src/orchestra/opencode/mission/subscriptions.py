"""Event feeds of bounded size: a slow reader loses events, and is told how many."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel

from orchestra.opencode.mission.events import EventsDropped, MissionEvent, MissionFinished

__all__ = ("Subscriptions",)

_CAPACITY = 4_096
_BATCH = 64
"""Buffered events that are handed out in a row. A checkpoint for each would let a busy mission,
which publishes many events in one round of the loop, outrun the most willing reader."""


class _Subscription:
    """One reader's feed; ends after `MissionFinished`."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[MissionEvent] = deque()
        self._capacity = capacity
        self._dropped = 0
        self._in_a_row = _BATCH
        self._is_ended = False
        self._wake = anyio.Event()

    def put(self, event: MissionEvent) -> None:
        if len(self._events) >= self._capacity:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._wake.set()

    def end(self) -> None:
        self._is_ended = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[MissionEvent]:
        return self

    async def __anext__(self) -> MissionEvent:
        self._in_a_row += 1
        if self._in_a_row >= _BATCH or not self._events:
            self._in_a_row = 0
            await anyio.lowlevel.checkpoint()
        while not self._events:
            if self._is_ended:
                raise StopAsyncIteration
            if self._wake.is_set():  # otherwise somebody waits for it
                self._wake = anyio.Event()
            await self._wake.wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return EventsDropped(at=self._events[0].at, count=dropped)
        return self._events.popleft()


class Subscriptions:
    """Hands each event to every reader.

    Args:
        capacity: Events that wait for one reader before its oldest are dropped.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        # A feed that nobody holds any more is not filled any more.
        self._readers: weakref.WeakSet[_Subscription] = weakref.WeakSet()
        self._last: MissionFinished | None = None
        self._is_ended = False

    def publish(self, event: MissionEvent) -> None:
        """Give an event to every reader.

        Args:
            event: The event.
        """
        for reader in self._readers:
            reader.put(event)
        if isinstance(event, MissionFinished):
            self._last = event
            self.end()

    def end(self) -> None:
        """Nothing comes any more: let every reader run out."""
        self._is_ended = True
        for reader in self._readers:
            reader.end()
        self._readers.clear()

    def open(self) -> AsyncIterator[MissionEvent]:
        """Return a feed of what comes from now on; of an ended mission, its last event."""
        reader = _Subscription(self._capacity)
        if self._last is not None:
            reader.put(self._last)
        if self._is_ended:
            reader.end()
        else:
            self._readers.add(reader)
        return reader
