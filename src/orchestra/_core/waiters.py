"""Who is next: the order in which waiting tasks are served. Pure: no clock, no tasks, no wake-ups.

Strict priority would let a stream of urgent work starve the rest, and ageing by arrival would let a
long queue of unimportant work overtake what is urgent. So a priority ages by the *grants it had to
watch*: the first NORMAL waiter is passed over at most 4 times, the first LOW waiter at most 16
times, whatever arrives meanwhile (weighted round robin; the same idea as the priority levels of
failsafe-go and the partitions of Netflix concurrency-limits). A class keeps its age when its first
waiter gives up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from typing import Final, Generic, TypeVar, final

__all__ = ("LOW_PATIENCE", "NORMAL_PATIENCE", "Priority", "WaitOrder")

W = TypeVar("W", bound=Hashable)
N = TypeVar("N")

NORMAL_PATIENCE: Final = 4
"""How many grants the first NORMAL waiter lets pass before it is served."""
LOW_PATIENCE: Final = 16
"""How many grants the first LOW waiter lets pass before it is served."""


class Priority(Enum):
    """How urgent a request is.

    Waiters of one priority are served in the order of their arrival. Whatever arrives after it,
    the k-th HIGH waiter is served within ``2 * k + 1`` grants, the k-th NORMAL within ``6 * k``
    and the k-th LOW within ``17 * k``.
    """

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@final
class WaitOrder(Generic[W, N]):
    """Waiters by priority, first come first served within one; adding and removing are O(1).

    Attributes:
        size: How many wait.
    """

    __slots__ = ("_high", "_low", "_low_age", "_normal", "_normal_age", "size")

    def __init__(self) -> None:
        # An OrderedDict forgets any key in O(1) and finds its first in O(1); a plain dict has to
        # walk over the graves of all that were served before.
        self._high: OrderedDict[W, N] = OrderedDict()
        self._normal: OrderedDict[W, N] = OrderedDict()
        self._low: OrderedDict[W, N] = OrderedDict()
        self._normal_age = 0
        self._low_age = 0
        self.size: int = 0

    def add(self, waiter: W, priority: Priority, need: N) -> None:
        """Put a waiter behind those of its priority.

        Args:
            waiter: Any hashable object that is not waiting yet.
            priority: How urgent it is.
            need: What it wants; anything, kept for who asks for the next waiter.
        """
        if priority is Priority.NORMAL:
            self._normal[waiter] = need
        elif priority is Priority.HIGH:
            self._high[waiter] = need
        else:
            self._low[waiter] = need
        self.size += 1

    def discard(self, waiter: W) -> bool:
        """Forget a waiter; tell whether it was waiting."""
        for queue in (self._normal, self._high, self._low):
            if waiter in queue:
                del queue[waiter]
                break
        else:
            return False
        self.size -= 1
        # An empty class has nobody who could be impatient.
        if not self._normal:
            self._normal_age = 0
        if not self._low:
            self._low_age = 0
        return True

    def next(self) -> tuple[W, N] | None:
        """Return who is next and what it needs; None when nobody waits."""
        queue = self._next_queue() if self._high or self._low else self._normal
        for waiter in queue:
            return waiter, queue[waiter]
        return None

    def pop(self) -> W:
        """Serve the next waiter: remove it, and age those that it passes.

        Raises:
            KeyError: Nobody waits.
        """
        if not (self._high or self._low):  # nobody is passed
            waiter, _ = self._normal.popitem(last=False)
            self._normal_age = 0
            self.size -= 1
            return waiter
        queue = self._next_queue()
        waiter, _ = queue.popitem(last=False)
        self.size -= 1
        self._normal_age = self._normal_age + 1 if self._normal and queue is not self._normal else 0
        self._low_age = self._low_age + 1 if self._low and queue is not self._low else 0
        return waiter

    def waiting(self, priority: Priority) -> int:
        """Return how many of one priority wait."""
        return len({"high": self._high, "normal": self._normal, "low": self._low}[priority.value])

    def _next_queue(self) -> OrderedDict[W, N]:
        # LOW first: its patience is four times as long, so it can delay NORMAL by one grant only.
        if self._low_age >= LOW_PATIENCE:
            return self._low
        normal = self._normal
        if normal and (not self._high or self._normal_age >= NORMAL_PATIENCE):
            return normal
        return self._high or self._low
