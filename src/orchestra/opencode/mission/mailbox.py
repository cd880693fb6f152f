"""Where what has happened waits for the mission's machine."""

from __future__ import annotations

from typing import final

import anyio

from orchestra.opencode.mission.orders import Event

__all__ = ("Mailbox",)


@final
class Mailbox:
    """Events in the order in which they came; one task takes them out."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._arrival = anyio.Event()

    def post(self, event: Event) -> None:
        """Put an event in; from the mission's own event loop.

        Args:
            event: What has happened.
        """
        self._events.append(event)
        self._arrival.set()

    async def take(self) -> list[Event]:
        """Wait until there is something, and take all of it. A checkpoint when there is nothing."""
        while not self._events:
            self._arrival = anyio.Event()
            await self._arrival.wait()
        events, self._events = self._events, []
        return events

    def __repr__(self) -> str:
        return f"<Mailbox {len(self._events)} events>"
