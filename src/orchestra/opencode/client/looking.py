"""When to look at the server, what a look shows, and what to believe while no events come; pure."""

from __future__ import annotations

from math import inf
from typing import final

from attrs import field, frozen, validators

from orchestra.opencode.client import wire

__all__ = ("FallbackPoller", "Snapshot", "TurnTiming")

_SLOWER = 1.5
"""How much longer the next interval is when a read has shown nothing new."""


@frozen(kw_only=True)
class TurnTiming:
    """When to look at the server although no event asks for it, in seconds.

    Attributes:
        start: After a prompt was sent and nothing was heard of it.
        start_limit: How long a prompt may stay unheard of.
        settle: Between looks at a session that is idle although its last message is still open.
        settle_limit: How long that may last; then the turn counts as interrupted.
        quiet: After the last event of a running turn: in case the one that mattered was lost.
        poll: Between two reads while the event stream is down and things change.
        longest_poll: The most between two of them, when nothing changes.
        stable_reads: How many reads in a row must show the same end before it is believed.
        unknown_limit: How long a session that says neither that it works nor how it ended may
            stay like that, while the stream is down; then its turn counts as interrupted.
    """

    start: float = 5.0
    start_limit: float = 60.0
    settle: float = 0.25
    settle_limit: float = 2.0
    quiet: float = 60.0
    poll: float = field(default=0.5, validator=validators.gt(0))
    longest_poll: float = field(default=5.0, validator=validators.gt(0))
    stable_reads: int = field(default=3, validator=validators.ge(1))
    unknown_limit: float = field(default=60.0, validator=validators.ge(0))


@frozen(kw_only=True)
class Snapshot:
    """What a look at the server has shown.

    Attributes:
        status: What the session does; None when it is idle.
        messages: The session's newest messages, oldest first.
        is_whole: Whether ``messages`` is all there is.
        children: The messages of the session's children; needed when events were lost.
        is_status_known: Whether ``status`` was looked at.
    """

    status: wire.StatusInfo | None
    messages: tuple[wire.Message, ...]
    is_whole: bool
    children: tuple[wire.Message, ...] = ()
    is_status_known: bool = True


def _reading_of(snapshot: Snapshot) -> tuple[object, ...]:
    """Return what tells two reads apart; the newest message is in every one of them."""
    status = snapshot.status
    doing = (status.type, status.attempt) if status is not None else None
    if not snapshot.messages:
        return (doing,)
    newest = snapshot.messages[-1]
    info = newest.info
    size = sum(len(part.text or "") for part in newest.parts)
    return (doing, info.id, info.is_completed, info.finish, len(newest.parts), size)


@final
class FallbackPoller:
    """Takes the place of the events of one turn while the event stream is down.

    The status map of a server has no entry for an idle session, and neither for one that it does
    not know (yet, or any more): absence is *unknown*, never "finished". What ends a turn is its
    last message, seen to be the end by several reads in a row; a read that failed is no read, and
    breaks the row.

    Args:
        timing: The intervals.
    """

    def __init__(self, timing: TurnTiming) -> None:
        self._timing = timing
        self._interval = timing.poll
        self._reading: tuple[object, ...] | None = None
        self._since = inf
        self._equal = 0
        self.is_active: bool = False
        self.due_at: float = inf

    def __repr__(self) -> str:
        if not self.is_active:
            return "<FallbackPoller off>"
        return f"<FallbackPoller every {self._interval:.2g} s, {self._equal} equal reads>"

    def start(self, now: float) -> None:
        """Say that the stream is down.

        Args:
            now: The time.
        """
        if not self.is_active:
            self.is_active = True
            self._interval = self._timing.poll
            self.due_at = now + self._interval
            self._begin_row()

    def stop(self) -> None:
        """Say that events come in again."""
        self.is_active = False
        self.due_at = inf

    def begin_read(self) -> None:
        """Say that a read starts now."""
        self.due_at = inf

    def retry(self, now: float) -> None:
        """Say that a read failed: the next one comes at the usual time, and starts a new row.

        Args:
            now: The time.
        """
        self._begin_row()
        if self.is_active:
            self.due_at = now + self._interval

    def _begin_row(self) -> None:
        self._reading = None
        self._equal = 0

    def take(self, snapshot: Snapshot, now: float) -> None:
        """Take in what a read has shown.

        Args:
            snapshot: What was seen.
            now: The time.
        """
        if not self.is_active:
            return
        reading = _reading_of(snapshot)
        if reading == self._reading:
            self._equal += 1
        else:
            self._reading, self._since, self._equal = reading, now, 1
        if self._equal == 1:
            self._interval = self._timing.poll
        elif snapshot.status is not None or self._equal >= self._timing.stable_reads:
            self._interval = min(self._interval * _SLOWER, self._timing.longest_poll)
        self.due_at = now + self._interval

    @property
    def is_nearly_sure(self) -> bool:
        """Whether one more read like the last ones would do; it should show everything."""
        return self.is_active and self._equal == self._timing.stable_reads - 1

    def believes(self, now: float, *, is_conclusive: bool) -> bool:
        """Whether a session that is not seen at work may be judged by its last message.

        Args:
            now: The time.
            is_conclusive: Whether a run does not go on after that message.
        """
        if not self.is_active:
            return True
        if is_conclusive:
            return self._equal >= self._timing.stable_reads
        return now - self._since >= self._timing.unknown_limit
