"""Where the time of tasks goes: causes tile it, whatever happens, and the store has them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, MemoryStore, Priority, SQLiteStore, Turn
from orchestra.errors import ConfigurationError, MissionError
from orchestra.events import RetryScheduled
from orchestra.opencode.mission.critical_path import critical_path
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.orders import Ask, PlanMade
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, MissionReport
from orchestra.opencode.mission.report_html import report_to_html
from orchestra.opencode.mission.report_json import report_from_json, report_to_json
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import load_mission
from orchestra.opencode.mission.wait_log import WaitLog
from orchestra.opencode.mission.wait_words import describe_path, explain_time, explain_wait
from orchestra.opencode.mission.waits import Cause, Segment, WaitBook, read_book, totals
from orchestra.opencode.why import explain, explain_task

TASKS = ("", "a", "b", "a#1")
TOLERANCE = 0.001


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, Cause | None, float, tuple[str, ...]]]:
    """Any tasks change their causes at any times, that only go forward."""
    now, found = 0.0, []
    for _ in range(draw(st.integers(0, 30))):
        now += draw(st.sampled_from([0.0, 0.0004, 0.0011, 0.5, 3.0]))
        task = draw(st.sampled_from(TASKS))
        cause = draw(st.none() | st.sampled_from(Cause)) if task else draw(st.sampled_from(Cause))
        by = draw(st.lists(st.sampled_from(TASKS[1:]), max_size=2).map(tuple))
        found.append((task, cause, now, by))
    return found


def write(steps: Sequence[tuple[str, Cause | None, float, tuple[str, ...]]]) -> WaitBook:
    book = WaitBook(TOLERANCE)
    book.begin("a")
    book.begin("b")
    book.begin("a#1", "a")
    for task, cause, at, by in steps:
        book.turn(task, cause, at, by=by)
    return book


def assert_tiles(segments: Sequence[Segment], end: float) -> None:
    assert all(before.until == after.since for before, after in pairwise(segments))
    assert all(segment.seconds > 0 for segment in segments)
    assert sum(totals(segments).values()) == pytest.approx(end)
    if segments:
        assert segments[0].since == 0.0


@given(changes())
def test_causes_add_up_to_the_time_of_each_task(steps: list[Any]) -> None:
    """The causes of a task tile its time from the mission's start to its own end."""
    book = write(steps)
    end = steps[-1][2] if steps else 0.0
    book.end(end)
    for task in TASKS:
        wall, brief, current = end, 0, None
        for name, cause, at, _ in steps:
            if name == task and cause is not current:
                current, brief = cause, brief + 1
                wall = end if cause is not None else at
        segments = book.segments(task, end)
        until = segments[-1].until if segments else 0.0
        # What lasts less than the tolerance has not been, so an end may be that much earlier.
        assert until == pytest.approx(wall, abs=TOLERANCE * (brief + 1))
        assert_tiles(segments, until)


@given(changes(), st.lists(st.integers(0, 30), max_size=4))
def test_the_book_can_be_made_of_what_was_written(steps: list[Any], commits: list[int]) -> None:
    """Whenever it is written, the changes in the store make the same book, and each is there once."""
    book, news = write([]), []
    for number, (task, cause, at, by) in enumerate(steps):
        book.turn(task, cause, at, by=by)
        if number in commits:
            news.append(book.take_news())
    news.append(book.take_news())
    assert book.take_news() == []
    copy = WaitBook(TOLERANCE)
    for each in json.loads(json.dumps(news)):
        copy.restore(each)
    assert sum(map(len, news)) <= len(steps)
    for task in copy.tasks:
        assert copy.segments(task, 100.0) == book.segments(task, 100.0)
        assert copy.now(task) == book.now(task)


@given(changes())
def test_the_critical_path_tiles_the_mission(steps: list[Any]) -> None:
    """The chain leads from the mission's end back to its start without a gap, and says whose it was."""
    book = write([("", Cause.PLANNING, 0.0, ()), *steps])
    path = critical_path(book, 100.0)
    assert_tiles([step.segment for step in path], 100.0)
    for step in path:
        middle = (step.segment.since + step.segment.until) / 2
        at = [each for each in book.segments(step.task, 100.0) if each.since <= middle < each.until]
        assert at
        assert step.segment.cause in {at[0].cause, Cause.RECORDS}


def test_the_chain_goes_through_what_was_waited_for() -> None:
    """The path follows dependencies and leases to whoever ended last, not to those that were early."""
    book = WaitBook()
    book.turn("", Cause.PLANNING, 0.0)
    book.turn("", Cause.TASKS, 1.0)
    for name in "abcd":
        book.begin(name)
    book.turn("a", Cause.WORK, 1.0)
    book.turn("b", Cause.WORK, 1.0)
    book.turn("c", Cause.DEPENDENCY, 1.0, by=["a", "b"])
    book.turn("d", Cause.LEASE, 1.0, by=["c"])
    book.turn("a", None, 3.0)
    book.turn("b", None, 5.0)
    book.turn("c", Cause.SLOT, 5.0, by=["worker"])
    book.turn("c", Cause.WORK, 6.0)
    book.turn("c", None, 8.0)
    book.turn("d", Cause.WORK, 8.0)
    book.turn("d", None, 9.0)
    book.turn("", Cause.GATES, 9.5)
    book.end(10.0)
    assert [
        (step.task, step.segment.cause, step.segment.since) for step in critical_path(book)
    ] == [
        ("", Cause.PLANNING, 0.0),
        ("b", Cause.WORK, 1.0),
        ("c", Cause.SLOT, 5.0),
        ("c", Cause.WORK, 6.0),
        ("d", Cause.WORK, 8.0),
        ("", Cause.RECORDS, 9.0),
        ("", Cause.GATES, 9.5),
    ]


def test_a_later_plan_goes_through_its_own_tasks() -> None:
    """A task that a later plan begins again is on the path in the time in which it was begun."""
    book = WaitBook()
    book.turn("", Cause.TASKS, 0.0)
    book.begin("a")
    book.turn("a", Cause.WORK, 0.0)
    book.turn("a", None, 2.0)
    book.turn("", Cause.PLANNING, 2.0)
    book.turn("", Cause.TASKS, 3.0)
    book.turn("a", Cause.WORK, 3.0)
    book.turn("a", None, 5.0)
    book.end(5.0)
    assert [segment.cause for segment in book.segments("a")] == [
        Cause.WORK,
        Cause.PLANNING,
        Cause.WORK,
    ]
    assert [step.task for step in critical_path(book)] == ["a", "", "a"]


def test_time_without_a_process_is_told() -> None:
    """After a restart the time in between is nobody's; what others end is still waited for."""
    book = WaitBook()
    book.turn("", Cause.TASKS, 0.0)
    book.begin("a")
    book.begin("b")
    book.turn("a", Cause.WORK, 1.0)
    book.turn("b", Cause.DEPENDENCY, 1.0, by=["a"])
    copy = WaitBook()
    copy.restore(book.take_news())
    copy.resume(11.0)
    copy.end(12.0)
    assert [(each.cause, each.seconds) for each in copy.segments("a")][1:] == [
        (Cause.AWAY, 10.0),
        (Cause.RECORDS, 1.0),
    ]
    assert [each.cause for each in copy.segments("b")][1:] == [Cause.AWAY, Cause.DEPENDENCY]


# --- a mission under way ---


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def started(*ids: str, clock: Clock) -> WaitLog:
    log = WaitLog(clock)
    plan = Plan(tuple(TaskSpec(id=name, title=name) for name in ids))
    log.observe([PlanMade(plan=plan)])
    return log


def ask(task: str, priority: Priority = Priority.NORMAL) -> Ask:
    return Ask(ticket=1, session="s", role=Role.WORKER, message="", task_id=task, priority=priority)


async def test_who_is_overtaken_waits_for_the_more_urgent() -> None:
    """A slot that goes to a later, more urgent task is the cause of waiting for those before it."""
    clock = Clock()
    log = started("a", "b", "c", clock=clock)
    clock.now = 1.0
    log.queue(ask("a"))
    log.queue(ask("b", Priority.HIGH))
    clock.now = 2.0
    log.queue(ask("c"))
    log.granted(ask("b", Priority.HIGH))
    causes = {name: log.book.now(name) for name in "ac"}
    assert causes["a"] is not None
    assert (causes["a"].cause, causes["a"].by) == (Cause.PRIORITY, ("b",))
    assert causes["c"] is not None
    assert causes["c"].cause is Cause.SLOT  # it came after the one that got the slot


async def test_the_servers_own_repetitions_end_when_their_pause_does() -> None:
    """After each pause the turn goes on, although nothing is heard of it at once."""
    clock = Clock()
    log = started("a", clock=clock)
    with log.during(ask("a")):
        log.turn("a", Cause.WORK)
        clock.now = 1.0
        log.see("a", RetryScheduled(session_id="s", attempt=1, message="slow down", delay=2.0))
        clock.now = 9.0
        log.see("a", RetryScheduled(session_id="s", attempt=2, message="slow down", delay=2.0))
        clock.now = 10.0
    log.book.end(10.0)
    seconds = totals(log.book.segments("a"))
    assert seconds[Cause.RETRY] == pytest.approx(3.0)
    assert seconds[Cause.WORK] == pytest.approx(7.0)


def agents(directory: Path) -> EmbeddedBackend:
    async def worker(turn: Turn) -> str:
        await anyio.sleep(0.03)
        (directory / f"{turn.metadata['task']}.txt").write_text("done")
        return "Done."

    async def reviewer(_turn: Turn) -> str:
        return '{"verdict": "accept"}'

    return EmbeddedBackend({"worker": worker, "reviewer": reviewer})


async def test_the_store_alone_tells_what_the_report_tells(tmp_path: Path) -> None:
    """Causes of each task sum up to its time, and the records make the same book and chain."""
    plan = Plan(
        (
            TaskSpec(id="a", title="A", files=("a.txt", "x.txt")),
            TaskSpec(id="b", title="B", files=("b.txt", "x.txt")),
            TaskSpec(id="c", title="C", files=("c.txt",), depends=("b",)),
            TaskSpec(id="d", title="D", files=("d.txt",)),
        )
    )
    settings = MissionSettings(todo_file=None, limits={"worker": 1})
    async with MemoryStore() as store:
        mission = Mission(
            "x",
            backend=agents(tmp_path),
            directory=tmp_path,
            plan=plan,
            settings=settings,
            store=store,
        )
        async with mission:
            report = await mission.wait_finished()
        saved = await load_mission(store, mission.id)
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    book = read_book(saved.waits)
    found: set[Cause] = set()
    for task in report.tasks:
        assert book.segments(task.id) == task.segments
        assert_tiles(task.segments, task.segments[-1].until)
        assert task.segments[-1].until <= report.elapsed
        found |= totals(task.segments).keys()
    assert {Cause.DEPENDENCY, Cause.LEASE, Cause.SLOT, Cause.WORK} <= found
    assert critical_path(book) == report.critical_path
    assert_tiles([step.segment for step in report.critical_path], book.last)
    assert {"a", "b", "c"} & {step.task for step in report.critical_path}
    assert sum(report.causes.values()) == pytest.approx(
        sum(task.segments[-1].until for task in report.tasks), abs=0.01
    )
    assert report_from_json(json.loads(json.dumps(report_to_json(report)))) == report
    page = report_to_html(report)
    assert "Where the time went" in page
    assert "slot" in describe_path(report.critical_path) or "work" in page


async def test_why_tells_of_a_mission_under_way(tmp_path: Path) -> None:
    """Another process sees within a second or so what each task waits for, and for whom."""
    begun, go_on = anyio.Event(), anyio.Event()

    async def worker(turn: Turn) -> str:
        begun.set()
        await go_on.wait()
        (tmp_path / f"{turn.metadata['task']}.txt").write_text("done")
        return "Done."

    plan = Plan(
        (
            TaskSpec(id="a", title="A", files=("a.txt",)),
            TaskSpec(id="b", title="B", files=("b.txt",)),
            TaskSpec(id="c", title="C", files=("c.txt",), depends=("a",)),
        )
    )
    settings = MissionSettings(todo_file=None, limits={"worker": 1})
    (tmp_path / ".orchestra").mkdir()
    async with SQLiteStore(tmp_path / ".orchestra" / "missions.db") as store:
        backend = EmbeddedBackend({"worker": worker})
        async with Mission(
            "x", backend=backend, directory=tmp_path, plan=plan, settings=settings, store=store
        ) as mission:
            await begun.wait()
            with anyio.fail_after(20):
                told, last = [""], ""
                while "worker is at it" not in told[0] or "every worker is busy" not in told[1]:
                    await anyio.sleep(0.05)
                    one, other, last = [
                        str(await explain_task(tmp_path, each, mission.id)) for each in "abc"
                    ]
                    told = sorted([one, other], key=lambda text: "worker is at it" not in text)
            mission.stop()
            go_on.set()
    assert "it waits for a, for " in last
    assert all("since the mission's start: " in each for each in (*told, last))


async def told_while(
    mission: Mission, store: MemoryStore, plan: Plan, phrase: str, release: Callable[[], object]
) -> MissionReport:
    """Wait until the records say a phrase of some task, then release what holds the mission up."""
    async with mission:
        with anyio.fail_after(60):
            try:
                told = ""
                while phrase not in told:
                    await anyio.sleep(0.1)
                    with suppress(MissionError, ConfigurationError):  # too early
                        saved = await load_mission(store, mission.id)
                        told = "".join(str(explain(saved, each.id, {})) for each in plan.tasks)
            finally:
                release()
            report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    for task in report.tasks:
        assert_tiles(task.segments, task.segments[-1].until)
    return report


async def test_who_waits_for_its_commands_to_run_is_told(tmp_path: Path) -> None:
    """As many check their changes as may, and of the next one it is recorded that it waits."""
    go = tmp_path / "go"
    command = ("sh", "-c", f'until test -e "{go}"; do sleep 0.2; done')
    work = tmp_path / "work"
    work.mkdir()
    plan = Plan(
        tuple(
            TaskSpec(id=name, title=name, files=(f"{name}.txt",), acceptance=(command,))
            for name in "abcde"
        )
    )
    async with MemoryStore() as store:
        mission = Mission(
            "x",
            backend=agents(work),
            directory=work,
            plan=plan,
            settings=MissionSettings(todo_file=None, allow=(command,)),
            store=store,
        )
        phrase = "it waits until its acceptance commands may run, for "
        report = await told_while(mission, store, plan, phrase, go.touch)
    assert any(totals(task.segments).get(Cause.GATE_QUEUE) for task in report.tasks)


async def test_who_waits_for_an_earlier_merge_is_told(tmp_path: Path) -> None:
    """A change that is accepted waits for that of an earlier task, and the records name it."""
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        await anyio.run_process(git, cwd=tmp_path)
    begun, done = anyio.Event(), anyio.Event()

    async def worker(turn: Turn) -> str:
        name = turn.metadata["task"]
        if name == "early":
            begun.set()
            await done.wait()
        await begun.wait()  # who has no worktree yet is not waited for
        (turn.directory / f"{name}.txt").write_text("done")
        return "Done."

    async def reviewer(_turn: Turn) -> str:
        return '{"verdict": "accept"}'

    plan = Plan(
        tuple(TaskSpec(id=name, title=name, files=(f"{name}.txt",)) for name in ("early", "late"))
    )
    isolation = Isolation(kind="worktree", folder=tmp_path.parent / f"{tmp_path.name}-trees")
    async with MemoryStore() as store:
        mission = Mission(
            "x",
            backend=EmbeddedBackend({"worker": worker, "reviewer": reviewer}),
            directory=tmp_path,
            plan=plan,
            settings=MissionSettings(todo_file=None, isolation=isolation),
            store=store,
        )
        phrase = "changes of earlier tasks are taken over first, for "
        report = await told_while(mission, store, plan, phrase, done.set)
    late = next(task for task in report.tasks if task.id == "late")
    assert {each.by for each in late.segments if each.cause is Cause.MERGE_ORDER} == {("early",)}


def test_people_are_told_in_sentences() -> None:
    """What is waited for, since when, until when, and where the time went are said plainly."""
    book = WaitBook()
    book.turn("", Cause.PLANNING, 0.0)
    book.begin("a")
    book.turn("a", Cause.COOLDOWN, 2.0, by=["anthropic"], expected=32.0)
    now = book.now("a")
    assert now is not None
    assert explain_wait(now, 12.0) == (
        "provider anthropic wants to be left alone, for 10 s; it should go on in 20 s"
    )
    assert list(explain_time(book.segments("a", 12.0))) == [
        "of 12 s since the mission's start: cooldown 10 s, planning 2.0 s"
    ]
