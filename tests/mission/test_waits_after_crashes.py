"""Where the time goes when nobody carries a mission on: after kill -9, and however often."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, SQLiteStore, Turn
from orchestra.opencode.mission.critical_path import critical_path
from orchestra.opencode.mission.events import MissionEvent, TaskChanged
from orchestra.opencode.mission.report import MissionOutcome, TaskState
from orchestra.opencode.mission.report_waits import draw_waits
from orchestra.opencode.mission.run import resume_mission
from orchestra.opencode.mission.saved import load_mission, unfinished_missions
from orchestra.opencode.mission.waits import Cause, Segment, WaitBook, read_book, totals
from orchestra.opencode.why import explain, explain_task

TASKS = ("", "a", "b", "a#1")
BRIEF = 0.0011
"""Seconds; what lasts less is not kept."""
Change = tuple[str, Cause | None, float, bool]


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[list[Change], float]]:
    """Some processes, each with what it changes, when, and whether that was written; and a gap."""
    found: list[tuple[list[Change], float]] = []
    for _ in range(draw(st.integers(1, 4))):
        changes: list[Change] = []
        for _ in range(draw(st.integers(0, 12))):
            step = draw(st.sampled_from([0.0, 0.0004, 0.0011, 0.5, 3.0]))
            task = draw(st.sampled_from(TASKS))
            causes = st.sampled_from([each for each in Cause if each is not Cause.AWAY])
            cause = draw(st.none() | causes) if task else draw(causes)
            changes.append((task, cause, step, draw(st.booleans())))
        found.append((changes, draw(st.sampled_from([0.0, 0.25, 7.0, 90.0]))))
    return found


def overlap(segments: tuple[Segment, ...], start: float, end: float, *, is_away: bool) -> float:
    return sum(
        max(0.0, min(each.until, end) - max(each.since, start))
        for each in segments
        if (each.cause is Cause.AWAY) is is_away
    )


@given(lives())
def test_each_gap_is_away_and_nothing_else_is(lives: list[tuple[list[Change], float]]) -> None:
    """Whatever was written before each crash, causes tile the time, and gaps are nobody's."""
    book = WaitBook()
    book.turn("", Cause.PLANNING, 0.0)
    book.begin("a")
    book.begin("a#1", "a")
    written: dict[str, Any] = {"0": book.take_news()}
    now, gaps = 0.0, []
    for changes, gap in lives:
        for task, cause, step, is_written in changes:
            now += step
            book.turn(task, cause, now)
            if is_written:
                written[f"{len(written):08}"] = book.take_news()
        before = book = read_book(written)
        begun = {task: book.segments(task, book.last) for task in TASKS}
        open_ = [task for task in TASKS if book.is_open(task)]
        lost_since, now = book.last, max(now, book.last) + gap
        gaps.append((lost_since, now, open_))
        book.resume(now)
        written[f"{len(written):08}"] = book.take_news()
        book = read_book(written)
        for task in open_:  # the past is as it was
            for old in (each for each in begun[task] if each.seconds > BRIEF):
                middle = (old.since + old.until) / 2
                assert old.cause in {
                    each.cause
                    for each in book.segments(task, now)
                    if each.since <= middle < each.until
                }
        assert before.last == book.last
    now += 1.0
    book.end(now)
    assert critical_path(book)[-1].segment.until == pytest.approx(now)
    for task in TASKS:
        segments = book.segments(task)
        if not segments:
            continue
        assert segments[0].since == 0.0
        assert all(one.until == other.since for one, other in pairwise(segments))
        end = segments[-1].until
        away = 0.0
        for start, stop, open_ in gaps:
            away += overlap(segments, start, stop, is_away=True)
            if task in open_:
                assert overlap(segments, start, stop, is_away=False) <= BRIEF
        assert totals(segments).get(Cause.AWAY, 0.0) <= away + BRIEF * len(gaps)
        assert sum(totals(segments).values()) <= end + BRIEF


CHILD = """
import anyio
from pathlib import Path
from orchestra import EmbeddedBackend, SQLiteStore
from orchestra.opencode import Mission, MissionSettings, Plan, TaskSpec

WORK = Path({work!r})

async def worker(turn):
    if turn.metadata["task"] == "b":
        print("b is at work", flush=True)
        await anyio.sleep_forever()
    (WORK / "a.txt").write_text("done")
    return "Done."

async def reviewer(turn):
    return '{{"verdict": "accept"}}'

async def main():
    plan = Plan((
        TaskSpec(id="a", title="A", files=("a.txt",)),
        TaskSpec(id="b", title="B", files=("b.txt",), depends=("a",)),
        TaskSpec(id="c", title="C", files=("c.txt",), depends=("b",)),
    ))
    async with SQLiteStore(WORK / ".orchestra" / "missions.db") as store:
        async with Mission(
            "x", backend=EmbeddedBackend({{"worker": worker, "reviewer": reviewer}}), directory=WORK,
            plan=plan, settings=MissionSettings(todo_file=None, has_evidence=False), store=store,
        ) as mission:
            await mission.wait_finished()

print("at the start", flush=True)
anyio.run(main)
"""


async def test_the_time_after_kill_9_is_nobodys(tmp_path: Path) -> None:
    """A mission is killed and resumed: the gap is ``away``, and each task's time is still whole."""
    records = tmp_path / ".orchestra" / "missions.db"
    records.parent.mkdir()
    script = CHILD.format(work=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        assert child.stdout is not None
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "at the start\n"
        started = time.time()
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "b is at work\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed = time.time()
        if child.stdout is not None:
            child.stdout.close()
    ends: dict[str, float] = {}

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged) and event.state is TaskState.ACCEPTED:
            ends[event.task_id] = time.time()

    async def worker(turn: Turn) -> str:
        (tmp_path / f"{turn.metadata['task']}.txt").write_text("done")
        return "Done."

    async def reviewer(_turn: Turn) -> str:
        return '{"verdict": "accept"}'

    backend = EmbeddedBackend({"worker": worker, "reviewer": reviewer})
    async with SQLiteStore(records) as store:
        (name,) = await unfinished_missions(store)
        saved = await load_mission(store, name)
        told = str(await explain_task(tmp_path, "b", name))
        assert "no process carries the mission on; see 'orchestra resume', for " in told
        assert "away " in told.rpartition("since the mission's start: ")[2]
        resumed = time.time()
        with anyio.fail_after(60):
            report = await resume_mission(name, backend=backend, store=store, listener=listen)
        saved = await load_mission(store, name)
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    for task in report.tasks:
        assert task.segments == read_book(saved.waits).segments(task.id)
        assert all(one.until == other.since for one, other in pairwise(task.segments))
        away = totals(task.segments).get(Cause.AWAY, 0.0)
        assert away == 0.0 if task.id == "a" else away >= resumed - killed - 0.01
        # The clocks of two processes and the writing of a step lie in between.
        if task.id in ends:
            assert 0.0 <= ends[task.id] - started - task.segments[-1].until + 0.01 < 5.0
    assert {each.cause for each in report.tasks[2].segments} >= {Cause.AWAY, Cause.DEPENDENCY}
    assert "away " in str(explain(saved, "c", {}))
    brief = evolve(report, elapsed=0.01, timeline=())  # its last process was there for a moment
    assert draw_waits(brief).count('class="w-nobody"') == 3, "of the mission, b, and c"
    assert report.critical_path[-1].segment.until == report.segments[-1].until
