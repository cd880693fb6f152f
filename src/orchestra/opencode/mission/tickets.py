"""The book of ordered work: what goes out has a ticket, and what comes back must show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from attrs import evolve

from orchestra.opencode.mission.orders import Cancel, Command, Order
from orchestra.opencode.mission.recovery import Troubles
from orchestra.opencode.mission.tracking import OpenWork, TrackedTask

__all__ = ("Tickets",)


@final
class Tickets:
    """Orders that have not come back, and the commands of this step."""

    def __init__(self) -> None:
        self._open: dict[int, OpenWork] = {}
        self._last = 0
        self._out: list[Command] = []
        self.stale: int = 0

    def __len__(self) -> int:
        return len(self._open)

    def put(self, *commands: Command) -> None:
        """Send commands that nothing comes back from.

        Args:
            *commands: What is to be done, in order.
        """
        self._out.extend(commands)

    def order(
        self, order: Order, task: TrackedTask | None = None, troubles: Troubles | None = None
    ) -> None:
        """Send an order, under a ticket of its own.

        Args:
            order: What is ordered; its ticket is filled in.
            task: The task it is about.
            troubles: What this piece of work has been through.
        """
        self._last += 1
        order = evolve(order, ticket=self._last)
        self._open[self._last] = OpenWork(order, task, troubles or Troubles())
        self._out.append(order)

    def take(self, ticket: int) -> OpenWork | None:
        """Return the work that comes back; None, and counted, when it is not expected any more.

        Args:
            ticket: What came back with it.
        """
        work = self._open.pop(ticket, None)
        if work is None:
            self.stale += 1
        return work

    def look(self, ticket: int) -> OpenWork | None:
        """Return the work that goes on; None, and counted, when it is not expected any more.

        Args:
            ticket: What was told with it.
        """
        work = self._open.get(ticket)
        if work is None:
            self.stale += 1
        return work

    def cancel(self, tasks: Iterable[TrackedTask]) -> None:
        """Give up what is open for some tasks.

        Args:
            tasks: The tasks.
        """
        gone = set(map(id, tasks))
        for ticket, work in list(self._open.items()):
            if id(work.task) in gone:
                del self._open[ticket]
                self._out.append(Cancel(ticket=ticket))

    def clear(self) -> None:
        """Expect nothing any more."""
        self._open.clear()

    def flush(self) -> list[Command]:
        """Return the commands since the last call."""
        out, self._out = self._out, []
        return out

    def __repr__(self) -> str:
        return f"<Tickets open={len(self._open)} last={self._last}>"
