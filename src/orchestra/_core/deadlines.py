"""Which holder is overdue: deadlines for one sweeper instead of a timer each. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar, final

__all__ = ("Deadlines",)

H = TypeVar("H", bound=Hashable)


@final
class Deadlines(Generic[H]):
    """Holders by deadline; adding and forgetting one is O(1).

    Holders of the same lifetime expire in the order in which they came, so each lifetime needs
    nothing but a queue; a fleet uses a handful of lifetimes.
    """

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[H, float]] = {}

    def add(self, holder: H, now: float, lifetime: float) -> float:
        """Watch a holder.

        Args:
            holder: Any hashable object that is not watched yet.
            now: The clock; not before the ``now`` of an earlier call.
            lifetime: Seconds.

        Returns:
            Its deadline.
        """
        queue = self._queues.get(lifetime)
        if queue is None:
            queue = self._queues[lifetime] = OrderedDict()
        queue[holder] = now + lifetime
        return now + lifetime

    def discard(self, holder: H, lifetime: float) -> None:
        """Forget a holder; no matter whether it is still watched."""
        queue = self._queues.get(lifetime)
        if queue is not None:
            queue.pop(holder, None)
            if not queue:
                del self._queues[lifetime]

    def next_at(self) -> float:
        """Return the earliest deadline; infinity when nobody is watched."""
        earliest = float("inf")
        for queue in self._queues.values():
            earliest = min(earliest, next(iter(queue.values())))
        return earliest

    def expire(self, now: float) -> list[H]:
        """Forget and return those whose deadline has come."""
        expired: list[H] = []
        for lifetime, queue in list(self._queues.items()):
            while queue:
                holder, deadline = next(iter(queue.items()))
                if deadline > now:
                    break
                del queue[holder]
                expired.append(holder)
            if not queue:
                del self._queues[lifetime]
        return expired
