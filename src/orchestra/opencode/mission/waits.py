"""Where the time of a mission's tasks goes: at each moment a task has one cause, and only one.

Pure: no clock. The mission itself has a line of causes too, under the name ``""``. A task goes with
the mission until it has a cause of its own, and so does a part of a task with that task; the causes
of each therefore tile its time from the mission's start to its own end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, final

from attrs import define, evolve, field, frozen

__all__ = ("Cause", "Segment", "WaitBook", "read_book", "totals")

_MISSION = ""
_DIGITS = 4


class Cause(Enum):
    """What a task's time is spent on."""

    PLANNING = "planning"
    """Commander and planner are at work, or a plan is looked at."""
    APPROVAL = "approval"
    """Somebody is asked about the plan."""
    TASKS = "tasks"
    """Of the mission itself, its tasks are under way."""
    DEPENDENCY = "dependency"
    """Tasks that it depends on have not been accepted."""
    LEASE = "lease"
    """Another task holds a file that it writes."""
    BACKOFF = "back-off"
    """A turn has failed, and is asked again after a pause."""
    BREAKER = "breaker"
    """The provider fails again and again, and its breaker is open."""
    COOLDOWN = "cooldown"
    """The provider has asked to be left alone."""
    SLOT = "slot"
    """All slots of the role are taken."""
    PRIORITY = "priority"
    """A more urgent task that came later got the slot."""
    BUDGET = "budget"
    """What is left of a budget is held by others."""
    PLACE = "workplace"
    """The copy or worktree that it works in is made ready."""
    WORK = "work"
    """A worker's turn."""
    PERMISSION = "permission"
    """An agent asks for leave, and somebody has to answer."""
    RETRY = "provider retry"
    """The server repeats a model call that failed, after a pause."""
    GATE_QUEUE = "gates queue"
    """The slots of those who run acceptance commands are taken."""
    GATES = "gates"
    """What has changed is checked."""
    REVIEW = "review"
    """A reviewer's turn."""
    MERGE_ORDER = "merge order"
    """Changes of earlier tasks are taken over first."""
    MERGE = "merge"
    """Its change is taken over into the workspace."""
    PARTS = "parts"
    """Its parts are under way."""
    RECORDS = "records"
    """Between two steps, what was decided is written down."""
    AWAY = "away"
    """No process carried the mission on."""

    @property
    def is_work(self) -> bool:
        """Whether something is done for the task meanwhile, rather than waited for."""
        return self in _AT_WORK


_AT_WORK = frozenset(
    {
        Cause.PLANNING,
        Cause.TASKS,
        Cause.PLACE,
        Cause.WORK,
        Cause.GATES,
        Cause.REVIEW,
        Cause.MERGE,
        Cause.PARTS,
        Cause.RECORDS,
    }
)


_OF_OTHERS = frozenset({Cause.PLANNING, Cause.TASKS, Cause.DEPENDENCY, Cause.LEASE, Cause.PARTS})
"""Causes that only others can end."""


@frozen(kw_only=True)
class Segment:
    """A stretch of a task's time with one cause.

    Attributes:
        cause: What it was spent on.
        since: Seconds after the mission's start at which it began.
        until: Seconds after the mission's start at which it ended.
        of: Whose cause it was: the task's own, that of the task that it is a part of, or (empty)
            the mission's.
        by: Who is waited for: tasks, a role, a provider.
        expected: Seconds after the mission's start at which it should end; None: nobody knows.
    """

    cause: Cause
    since: float
    until: float
    of: str = ""
    by: tuple[str, ...] = ()
    expected: float | None = None

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.until - self.since


@frozen
class _Mark:
    """From ``since`` on that is the cause; None: that of the line above."""

    since: float
    cause: Cause | None
    by: tuple[str, ...] = ()
    expected: float | None = None


@define
class _Line:
    """One task's marks; ``above`` is the task that it is a part of."""

    above: str = _MISSION
    marks: list[_Mark] = field(factory=list)


@final
class WaitBook:
    """Keeps what each task's time is spent on.

    Args:
        tolerance: Seconds; a cause that lasts less counts for the next one, so that what is
            waited for without waiting is not written down.
    """

    def __init__(self, tolerance: float = 0.001) -> None:
        self._tolerance = tolerance
        self._lines: dict[str, _Line] = {_MISSION: _Line()}
        self._news: dict[tuple[str, float], list[Any]] = {}
        self._last = 0.0

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have had a cause of their own, in the order in which they came."""
        return tuple(name for name in self._lines if name != _MISSION)

    @property
    def last(self) -> float:
        """The latest moment that is known of, in seconds after the mission's start."""
        return self._last

    # --- what happens ---

    def begin(self, task: str, above: str = _MISSION) -> None:
        """A task has come up; a repetition changes nothing.

        Args:
            task: The task.
            above: The task that it is a part of; empty: the mission.
        """
        self._lines.setdefault(task, _Line(above))

    def turn(
        self,
        task: str,
        cause: Cause | None,
        at: float,
        *,
        by: Iterable[str] = (),
        expected: float | None = None,
    ) -> None:
        """From now on a task's time is spent on this.

        Args:
            task: The task; empty: the mission.
            cause: On what; None: on the same as that which it is a part of, or it is over.
            at: Seconds after the mission's start; earlier than the last change counts as that.
            by: Who is waited for.
            expected: When it should end.
        """
        line = self._lines.setdefault(task, _Line())
        mark = _Mark(round(at, _DIGITS), cause, tuple(by), _rounded(expected))
        if line.marks:
            last = line.marks[-1]
            is_over = last.cause is None and cause is None
            if is_over or (cause, mark.by, mark.expected) == (last.cause, last.by, last.expected):
                return
            # What was over within the tolerance has not been.
            is_brief = mark.since - last.since < self._tolerance and last.cause is not None
            if is_brief or mark.since <= last.since:
                mark = evolve(mark, since=last.since)
                line.marks.pop()
        elif cause is None:
            return
        line.marks.append(mark)
        self._last = max(self._last, mark.since)
        plain: list[Any] = [task, line.above, mark.since, cause.value if cause else None]
        if mark.by or mark.expected is not None:
            plain.append(list(mark.by))
        if mark.expected is not None:
            plain.append(mark.expected)
        self._news[task, mark.since] = plain

    def end(self, at: float) -> None:
        """The mission is over, and with it all that is not over yet.

        Args:
            at: Seconds after the mission's start.
        """
        for name in list(self._lines):
            self.turn(name, None, at)

    # --- what is known ---

    def above(self, task: str) -> str:
        """Return the task that a task is a part of; empty: it is no part.

        Args:
            task: The task.
        """
        return self._lines[task].above if task in self._lines else _MISSION

    def is_open(self, task: str) -> bool:
        """Whether a task's time is being spent on something.

        Args:
            task: The task.
        """
        line = self._lines.get(task)
        return line is not None and bool(line.marks) and line.marks[-1].cause is not None

    def now(self, task: str) -> Segment | None:
        """Return what a task's time is spent on now; None: it is over, or unknown.

        Args:
            task: The task.
        """
        line = self._lines.get(task)
        mark = line.marks[-1] if line is not None and line.marks else None
        if mark is None or (cause := mark.cause) is None:
            return None
        return Segment(
            cause=cause,
            since=mark.since,
            until=max(mark.since, self._last),
            of=task,
            by=mark.by,
            expected=mark.expected,
        )

    def ends(self, task: str, now: float | None = None) -> tuple[float, ...]:
        """Return when a task was over; more than once if a later plan has begun it again.

        Args:
            task: The task; empty: the mission.
            now: When it ends, in seconds after the mission's start, if it is not over.
        """
        marks = self._lines.get(task, _Line()).marks
        over = [mark.since for mark in marks if mark.cause is None]
        if marks and marks[-1].cause is not None:
            over.append(self._until(now))
        return tuple(over)

    def segments(self, task: str, now: float | None = None) -> tuple[Segment, ...]:
        """Return what a task's time was spent on, without gaps, from the mission's start.

        Args:
            task: The task; empty: the mission.
            now: Until when, in seconds after the mission's start, if it is not over.
        """
        joined: list[Segment] = []
        for each in self._segments(task, 0.0, self._until(now), is_own=True):
            last = joined[-1] if joined else None
            if last is not None and _is_same(last, each):
                joined[-1] = evolve(last, until=each.until)
            else:
                joined.append(each)
        return tuple(joined)

    def _until(self, now: float | None) -> float:
        # What is known was rounded, perhaps up.
        return self._last if now is None else max(now, self._last)

    def _segments(self, task: str, start: float, end: float, *, is_own: bool) -> Iterable[Segment]:
        """Return the causes of a line between two moments; of its own one, until it is over."""
        line = self._lines.get(task, _Line())
        marks = line.marks
        if is_own and marks and marks[-1].cause is None:
            end = min(end, marks[-1].since)
        bounds = [*(mark.since for mark in marks), math.inf]
        before = [_Mark(0.0, None), *marks]
        for mark, until in zip(before, bounds, strict=True):
            left, right = max(mark.since, start), min(until, end)
            if left >= right:
                continue
            if mark.cause is None and task != _MISSION:
                yield from self._segments(line.above, left, right, is_own=False)
            else:
                yield Segment(
                    cause=mark.cause or Cause.RECORDS,
                    since=left,
                    until=right,
                    of=task,
                    by=mark.by,
                    expected=mark.expected,
                )

    # --- the store ---

    def take_news(self) -> list[list[Any]]:
        """Return the changes since the last call, in plain form; all of them make the book."""
        news, self._news = list(self._news.values()), {}
        return news

    def restore(self, news: Iterable[Sequence[Any]]) -> None:
        """Take in changes that were written.

        Args:
            news: What `take_news` returned, in that order.
        """
        for task, above, since, value, *more in news:
            line = self._lines.setdefault(task, _Line(above))
            line.above = above
            while line.marks and line.marks[-1].since >= since:
                line.marks.pop()  # it was over within the tolerance
            by = tuple(more[0]) if more else ()
            cause = None if value is None else _cause(value)
            line.marks.append(_Mark(since, cause, by, more[1] if len(more) > 1 else None))
            self._last = max(self._last, since)

    def leave(self) -> None:
        """Nobody carries the mission on since what was last written."""
        away = self._last
        for name in [name for name in self._lines if self.is_open(name)]:
            self.turn(name, Cause.AWAY, away)

    def resume(self, at: float) -> None:
        """The mission goes on after nobody has carried it on since what was last written.

        Args:
            at: Seconds after the mission's first start.
        """
        before = {
            name: next(mark for mark in reversed(line.marks) if mark.cause is not Cause.AWAY)
            for name, line in self._lines.items()
            if self.is_open(name)
        }
        self.leave()
        for name, mark in before.items():
            # What others have to end is still waited for; what was under way begins again.
            is_waiting = mark.cause in _OF_OTHERS
            cause = mark.cause if is_waiting else Cause.RECORDS
            self.turn(name, cause, at, by=mark.by if is_waiting else ())

    def __repr__(self) -> str:
        return f"<WaitBook {len(self._lines) - 1} tasks, until {self._last:.1f} s>"


def read_book(written: Mapping[str, Any]) -> WaitBook:
    """Return the book that was written in the store.

    Args:
        written: All that `WaitBook.take_news` returned, by names in the order of the writing.
    """
    book = WaitBook()
    for name in sorted(written):
        book.restore(written[name])
    return book


def totals(segments: Iterable[Segment]) -> Mapping[Cause, float]:
    """Return the seconds of each cause, the longest first.

    Args:
        segments: Stretches of time.
    """
    seconds: dict[Cause, float] = {}
    for segment in segments:
        seconds[segment.cause] = seconds.get(segment.cause, 0.0) + segment.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _is_same(before: Segment, after: Segment) -> bool:
    """Whether one goes on where the other ends, with the same cause."""
    return (
        before.cause is after.cause
        and before.of == after.of
        and before.by == after.by
        and before.expected == after.expected
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _cause(value: str) -> Cause:
    """Return a cause that was written; one that this version does not know is bookkeeping."""
    try:
        return Cause(value)
    except ValueError:
        return Cause.RECORDS
