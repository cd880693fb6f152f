"""A mission's timeline over all the processes that have carried it on; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve

from orchestra.opencode.mission.report import Span
from orchestra.opencode.mission.waits import Cause, WaitBook

__all__ = ("carried_on", "make_timeline")

_TURNS: Mapping[Cause, str] = {
    Cause.PLANNING: "planner",
    Cause.WORK: "worker",
    Cause.REVIEW: "reviewer",
}
_QUEUES = frozenset({Cause.SLOT, Cause.PRIORITY})
_INSIDE = frozenset({Cause.PLACE, Cause.PERMISSION, Cause.RETRY})
"""What a turn waits for after it has begun."""


def carried_on(book: WaitBook, now: float) -> float:
    """Return for how many seconds some process has carried a mission on.

    Args:
        book: What its time was spent on.
        now: Until when, in seconds after its start.
    """
    segments = book.segments("", now)
    return sum(each.seconds for each in segments if each.cause is not Cause.AWAY)


def make_timeline(book: WaitBook, spans: Iterable[Span], *, began: float) -> tuple[Span, ...]:
    """Return every turn and acceptance run in the order of their start.

    What earlier processes did comes from the book, which knows the turns of each task, but not their
    sessions, nor which commands were run.

    Args:
        book: What the time was spent on.
        spans: What this process did, in seconds after it began.
        began: When that was, in seconds after the mission's start.
    """
    moved = (
        evolve(
            each,
            queued=each.queued + began,
            started=each.started + began,
            ended=each.ended + began,
        )
        if began
        else each
        for each in spans
    )
    earlier = (each for task in ("", *book.tasks) for each in _earlier(book, task, began))
    return tuple(sorted((*earlier, *moved), key=lambda span: span.started))


def _earlier(book: WaitBook, task: str, began: float) -> Iterator[Span]:
    """Return the turns of a task that had begun before this process did."""
    if not began:
        return
    segments = [each for each in book.segments(task, began) if each.since < began]
    turn: Span | None = None
    queued: float | None = None
    rounds = 0
    for each in segments:
        name = _TURNS.get(each.cause) if each.of == task else None
        if turn is not None:
            if each.cause in _INSIDE or name == turn.name:
                turn = evolve(turn, ended=each.until)
                continue
            yield evolve(turn, outcome="lost" if each.cause is Cause.AWAY else "done")
            turn = None
        if name is not None:
            rounds += name == "worker"
            turn = Span(
                name=name,
                task_id=task or None,
                round=rounds if task else 0,
                queued=each.since if queued is None else queued,
                started=each.since,
                ended=each.until,
                outcome="",
            )
        if each.cause not in _QUEUES:
            queued = None
        elif queued is None:
            queued = each.since
    if turn is not None:
        yield evolve(turn, ended=min(turn.ended, began), outcome="lost")
