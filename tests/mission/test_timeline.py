"""A mission's timeline, from the book of waits."""

from __future__ import annotations

from orchestra.opencode.mission.report import Span
from orchestra.opencode.mission.timeline import carried_on, make_timeline
from orchestra.opencode.mission.waits import Cause, WaitBook


def book() -> WaitBook:
    """Return the book of a mission that was killed in a worker's turn at 40, and went on at 1,000."""
    book = WaitBook()
    book.turn("", Cause.PLANNING, 0)
    book.turn("", Cause.TASKS, 10)
    book.begin("a")
    for cause, at in (
        (Cause.SLOT, 10), (Cause.PRIORITY, 12), (Cause.WORK, 15), (Cause.RETRY, 17),
        (Cause.WORK, 18), (Cause.GATES, 20), (Cause.REVIEW, 21), (Cause.RECORDS, 25),
        (Cause.WORK, 30), (Cause.RETRY, 40),
    ):  # fmt: skip
        book.turn("a", cause, at)
    book.resume(1_000)
    return book


def test_who_was_away_was_not_at_work() -> None:
    """The time that a mission was carried on for leaves out the time that nobody did."""
    assert carried_on(book(), 1_005) == 45
    assert carried_on(WaitBook(), 7) == 7


def test_turns_of_earlier_processes() -> None:
    """They are known from the causes: when they were wanted, had a slot, and ended; and how."""
    here = Span(
        name="worker", task_id="a", round=2, queued=1, started=2, ended=3, outcome="done",
        session_id="s",
    )  # fmt: skip
    timeline = make_timeline(book(), [here], began=1_000)
    told = [
        (each.name, each.round, each.queued, each.started, each.ended, each.outcome)
        for each in timeline
    ]
    assert told == [
        ("planner", 0, 0, 0, 10, "done"),
        ("worker", 1, 10, 15, 20, "done"),
        ("reviewer", 1, 21, 21, 25, "done"),
        ("worker", 2, 30, 30, 40, "lost"),
        ("worker", 2, 1_001, 1_002, 1_003, "done"),
    ]
    assert [each.task_id for each in timeline] == [None, "a", "a", "a", "a"]
    assert make_timeline(book(), [here], began=0) == (here,)


def test_what_a_turn_waits_for_does_not_end_it() -> None:
    """A workplace, somebody's leave and the server's next try are waited for within one turn."""
    book = WaitBook()
    book.begin("a")
    for at, cause in enumerate(
        (Cause.WORK, Cause.PLACE, Cause.WORK, Cause.PERMISSION, Cause.WORK, Cause.RETRY, Cause.WORK)
    ):
        book.turn("a", cause, at)
    book.turn("a", Cause.GATES, 10)
    book.turn("a", Cause.REVIEW, 12)
    book.resume(20)
    turn, *_ = make_timeline(book, (), began=20)
    assert (turn.name, turn.started, turn.ended, turn.outcome) == ("worker", 0, 10, "done")
