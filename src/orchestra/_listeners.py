"""How events reach a listener: in order, never two at once, and never at the teller's expense."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, final

__all__ = ("Listener", "Teller")

E = TypeVar("E")

Listener = Callable[[E], object]

_logger = logging.getLogger("orchestra")


@final
class Teller(Generic[E]):
    """Delivers events to one listener, which is logged and dropped when it raises.

    `put` may be called under a lock; `deliver` calls the listener and must not be. Events come in
    the order of `put`, one at a time, from whichever thread delivers.

    Attributes:
        events: What was put and not yet told.

    Args:
        listener: Called with each event; None: nothing is kept and nothing is told.
    """

    __slots__ = ("_delivering", "_listener", "events")

    def __init__(self, listener: Listener[E] | None) -> None:
        if listener is not None and not callable(listener):
            raise TypeError(f"listener must be callable or None, not {listener!r}")
        self._listener = listener
        self.events: deque[E] = deque()
        self._delivering = threading.Lock()

    def put(self, event: E) -> None:
        """Keep an event until `deliver`.

        Args:
            event: What happened.
        """
        if self._listener is not None:
            self.events.append(event)

    def deliver(self) -> None:
        """Tell what was put; returns at once when another call is doing it already."""
        # Whoever put an event after the inner loop ended finds the lock taken and goes away, so
        # the one that held it must look again after letting go.
        while self.events and self._delivering.acquire(blocking=False):
            try:
                while self.events:
                    self._tell(self.events.popleft())
            finally:
                self._delivering.release()

    def _tell(self, event: E) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            _logger.exception("listener %r raised and is dropped", self._listener)
            self._listener = None
