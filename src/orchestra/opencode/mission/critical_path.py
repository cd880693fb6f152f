"""Which chain of tasks and waits has determined when a mission ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from attrs import evolve, frozen

from orchestra.opencode.mission.waits import Cause, Segment, WaitBook

__all__ = ("PathStep", "critical_path")

_OF_PARTS = frozenset({Cause.TASKS, Cause.PARTS})
_OF_OTHERS = frozenset({Cause.DEPENDENCY, Cause.LEASE, Cause.MERGE_ORDER})
"""Waits that are over as soon as one of those that are named is."""


@frozen(kw_only=True)
class PathStep:
    """A stretch of the chain that has determined a mission's end.

    Attributes:
        task: The task; empty: the mission itself.
        segment: What its time was spent on.
    """

    task: str
    segment: Segment


def critical_path(book: WaitBook, now: float | None = None) -> tuple[PathStep, ...]:
    """Go back from the end: what was waited for last is what counts.

    The steps tile the time from the mission's start to its end. The method is the one of the
    critical path (Kelley and Walker, 1959), on what has happened instead of on estimates.

    Args:
        book: What the time of the tasks was spent on.
        now: The moment to go back from, in seconds after the start, if the mission is not over.
    """
    ends = {name: book.ends(name, now) for name in ("", *book.tasks)}
    lines: dict[str, Sequence[Segment]] = {}
    parts: dict[str, list[str]] = {}
    for name in book.tasks:
        parts.setdefault(book.above(name), []).append(name)
    task, moment = "", max(ends[""], default=0.0)
    steps: list[PathStep] = []
    seen: set[str] = set()
    while moment > 0:
        if task not in lines:
            lines[task] = book.segments(task, now)
        segment = _before(lines[task], moment)
        if segment is None:
            break
        task = segment.of
        seen.add(task)
        names: Sequence[str] = segment.by if segment.cause in _OF_OTHERS else ()
        if segment.cause in _OF_PARTS:
            names = parts.get(task, ())
        following, start = _last_of(names, ends, segment.since, moment, seen)
        if start < moment:
            own = evolve(segment, since=start, until=moment)
            if following is not None:  # what was waited for was over: the rest is our own
                own = evolve(own, cause=Cause.RECORDS, by=())
            steps.append(PathStep(task=task, segment=own))
            moment = start
            seen = set()
        if following is not None:
            task = following
            seen.add(task)
    steps.reverse()
    return tuple(_joined(steps))


def _before(segments: Sequence[Segment], moment: float) -> Segment | None:
    """Return what led up to a moment."""
    return next((each for each in reversed(segments) if each.since < moment), None)


def _last_of(
    names: Sequence[str],
    ends: Mapping[str, Sequence[float]],
    since: float,
    until: float,
    seen: set[str],
) -> tuple[str | None, float]:
    """Return who was the last to end in a time, and when; nobody: None, and its beginning."""
    reached = [
        (end, name)
        for name in names
        if name not in seen
        for end in ends.get(name, ())
        if since < end <= until
    ]
    end, name = max(reached, default=(since, None))
    return name, end


def _joined(steps: Sequence[PathStep]) -> Sequence[PathStep]:
    """Put together what follows on itself."""
    joined = list(steps[:1])
    for before, step in pairwise(steps):
        last = joined[-1]
        is_same = (before.task, before.segment.cause) == (step.task, step.segment.cause)
        if is_same and before.segment.by == step.segment.by:
            joined[-1] = evolve(last, segment=evolve(last.segment, until=step.segment.until))
        else:
            joined.append(step)
    return joined
