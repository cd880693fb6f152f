"""Watches one turn: what it costs, whether it repeats itself, and what its provider says."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from orchestra.events import (
    Finished,
    RetryScheduled,
    SessionEvent,
    ToolCalled,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.opencode.mission.loop_guard import LoopGuard
from orchestra.opencode.mission.providers import Passage
from orchestra.opencode.mission.spending import Bill

__all__ = ("TurnStoppedError", "TurnWatch")


class TurnStoppedError(Exception):
    """We end a turn that would have gone on.

    Args:
        error: Why.
    """

    def __init__(self, error: TurnError) -> None:
        super().__init__(error.message)
        self.error = error


@final
class TurnWatch:
    """Looks at every event of a turn.

    Args:
        bill: What it costs.
        passage: Its way to the model's provider.
        loop: Sees that it repeats itself.
        time_limit: Seconds that it may take.
        patience: Returns the seconds that it waits for its provider.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        bill: Bill,
        passage: Passage,
        loop: LoopGuard,
        *,
        time_limit: float,
        patience: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.bill: Bill = bill
        self.passage: Passage = passage
        self.loop: LoopGuard = loop
        self._patience = patience
        self._clock = clock
        self._ends_at = clock() + min(time_limit, bill.seconds_left)
        self._is_own_limit = bill.seconds_left >= time_limit
        self._usage = Usage()
        self._reports = 0
        self._has_called = False  # a tool, in this step of the model
        self._ever_called = False
        self._shortage: TurnError | None = None

    @property
    def seconds_left(self) -> float:
        """How long the turn may still take."""
        return self._ends_at - self._clock()

    def see(self, event: SessionEvent) -> None:
        """Take an event.

        Args:
            event: What the session told.

        Raises:
            TurnStoppedError: The turn must not go on.
        """
        if self._shortage is not None and not isinstance(event, Finished):
            self.bill.cut()
            raise TurnStoppedError(self._shortage)
        if isinstance(event, UsageReported):
            self.passage.answered()
            self._pay(event.usage)
        elif isinstance(event, RetryScheduled):
            self.passage.retrying(event)
            self._bear(event)
        elif isinstance(event, ToolCalled):
            self._has_called = self._ever_called = True
            if reason := self.loop.see(event):
                raise TurnStoppedError(TurnError(name="LoopError", message=reason))

    def _pay(self, usage: Usage) -> None:
        """Take in what a model call has used; stop the turn if there is no room for another."""
        self._usage += usage
        self._reports += 1
        self._shortage = self.bill.record(self._usage)
        # A model that has called no tool is done, and its answer is paid for: let it come.
        goes_on = self._has_called or (self._reports > 1 and not self._ever_called)
        self._has_called = False
        if self._shortage is not None and goes_on:
            self.bill.cut()
            raise TurnStoppedError(self._shortage)

    def _bear(self, event: RetryScheduled) -> None:
        """Let the server repeat its call, unless that takes longer than there is time."""
        patience, left = self._patience(), self.seconds_left
        if event.delay <= min(patience, left):
            return
        # There is patience to lose only where there is another provider to go to.
        name = "ProviderAwayError" if event.delay > patience else "RetryWaitError"
        message = f"the provider wants to be left alone for {event.delay:.0f} s: {event.message}"
        raise TurnStoppedError(TurnError(name=name, message=message, retry_after=event.delay))

    def time_over(self, seconds: float) -> TurnError:
        """Return why a turn ends whose time is over.

        Args:
            seconds: What a turn may take.
        """
        if self._is_own_limit:
            return TurnError(name="TimeoutError", message=f"no answer within {seconds:g} s")
        return self.bill.time_over()

    def __repr__(self) -> str:
        return f"<TurnWatch {self.bill!r} {self.loop!r} {self.seconds_left:.1f} s left>"
