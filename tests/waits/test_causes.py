"""Whole missions that wait for one thing each, in virtual time: what is recorded, and what is told."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from attrs import define, evolve, field, frozen
from model_backend import ModelBackend, done

from orchestra import EmbeddedBackend, MemoryStore, Priority, SessionBackend, Turn
from orchestra.abc import Agent
from orchestra.errors import ConfigurationError
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionReply,
    PermissionRequest,
    RetryScheduled,
    SessionEvent,
    TurnError,
)
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings, ProviderSettings
from orchestra.opencode.mission.critical_path import critical_path
from orchestra.opencode.mission.events import MissionEvent, TaskChanged
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.plan import (
    LoopLimits,
    MissionSettings,
    Plan,
    Role,
    TaskMode,
    TaskSpec,
)
from orchestra.opencode.mission.report import MissionOutcome, MissionReport, TaskReport
from orchestra.opencode.mission.report_waits import draw_waits
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import SavedMission, load_mission
from orchestra.opencode.mission.transitions import OVER
from orchestra.opencode.mission.waits import Cause, read_book, totals
from orchestra.opencode.people.questions import PersonQuestion
from orchestra.opencode.why import explain

ACCEPT = '{"verdict": "accept"}'
AGENTS = {
    Role.WORKER: Agent("worker", prompt="work", model="p/m1"),
    Role.REVIEWER: Agent("reviewer", prompt="review", model="own/r"),
}
SETTINGS = MissionSettings(todo_file=None, has_evidence=False, retry_delay=40.0)
ONE_WORKER = {"worker": 1, "reviewer": 10}
BREAK = 0.001
"""Seconds; what lasts less is not written down, so that each change may be that much off."""
PEEK = 5.0
TURNS = {Cause.WORK, Cause.REVIEW, Cause.PLACE, Cause.RETRY, Cause.PERMISSION}

Steps = Sequence[float | Path | SessionEvent]
"""What a turn tells, the seconds that pass in between, and the files that it writes."""
Work = Callable[[TaskSpec, int], Steps]
"""A worker's turn, by its task and how many of the task's turns were before."""


def answer(text: str, seconds: float = 0.0, tokens: int = 10) -> Steps:
    return [seconds, *done(text, tokens)]


def fail(status: int, retry_after: float | None = None) -> Finished:
    error = TurnError(name="APIError", message="no", status=status, retry_after=retry_after)
    return Finished(session_id="", reason=FinishReason.FAILED, error=error)


def fail_once(turns: int, status: int, retry_after: float | None = None) -> Steps:
    return [fail(status, retry_after)] if turns == 0 else answer("did it", 5.0)


def players(work: Work, directory: Path) -> ModelBackend:
    """A backend whose workers do that, and whose reviewers take ten seconds to accept."""
    turns: dict[str, int] = {}

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        if agent.name == "reviewer":
            steps = answer(ACCEPT, 10.0)
        else:
            spec = read_task(prompt)
            turns[spec.id] = turns.get(spec.id, -1) + 1
            steps = work(spec, turns[spec.id])
        for step in steps:
            if isinstance(step, SessionEvent):
                yield step
            elif isinstance(step, Path):
                (directory / step).write_text(prompt)
            else:
                await anyio.sleep(step)

    return ModelBackend(play)


@define
class Told:
    """What became of a mission.

    Attributes:
        report: Its report.
        saved: Its records.
        why: What was said of each task while it ran, in order.
        ends: When each task was over.
    """

    report: MissionReport
    saved: SavedMission
    why: Mapping[str, list[str]]
    ends: Mapping[str, float]
    after: Mapping[str, str] = field(factory=dict)

    def task(self, name: str) -> TaskReport:
        return next(each for each in self.report.tasks if each.id == name)

    def seconds(self, name: str, cause: Cause) -> float:
        return totals(self.task(name).segments).get(cause, 0.0)

    def waited_for(self, name: str, cause: Cause) -> tuple[str, ...]:
        return next(each.by for each in self.task(name).segments if each.cause is cause)

    def was_told(self, name: str, phrase: str) -> bool:
        return any(phrase in text for text in self.why[name])


async def play_mission(
    tmp_path: Path,
    backend: SessionBackend,
    tasks: tuple[TaskSpec, ...],
    settings: MissionSettings = SETTINGS,
    approve: Callable[[PersonQuestion], Awaitable[bool]] | None = None,
) -> Told:
    """Run a mission, ask all the time why its tasks are where they are, and check all sums."""
    why: dict[str, list[str]] = {}
    ends: dict[str, float] = {}

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged) and event.state in OVER:
            ends[event.task_id] = event.at

    async with MemoryStore() as store:
        mission = Mission(
            "the goal",
            backend=backend,
            directory=tmp_path,
            plan=Plan(tasks),
            agents=AGENTS,
            settings=settings,
            store=store,
            approve=approve,
            listener=listen,
        )

        async def peek() -> None:
            while True:
                await anyio.sleep(PEEK)
                saved = await load_mission(store, mission.id)
                for name in {*(task.id for task in tasks), *read_book(saved.waits).tasks}:
                    try:
                        why.setdefault(name, []).append(str(explain(saved, name, {})))
                    except ConfigurationError:
                        continue  # it has not come up yet

        async with mission, anyio.create_task_group() as group:
            group.start_soon(peek)
            report = await mission.wait_finished()
            group.cancel_scope.cancel()
        saved = await load_mission(store, mission.id)
    told = Told(report, saved, why, ends)
    told.after = {task.id: str(explain(saved, task.id, {})) for task in report.tasks}
    check_sums(told)
    return told


def check_sums(told: Told) -> None:
    """The causes of each task tile its time, which is what turns and events tell of it too."""
    report, book = told.report, read_book(told.saved.waits)
    for task in report.tasks:
        segments = task.segments
        assert segments == book.segments(task.id), "the journal alone tells it"
        assert segments[0].since == 0.0
        assert all(before.until == after.since for before, after in pairwise(segments))
        tolerance = BREAK * len(segments)
        assert sum(totals(segments).values()) == pytest.approx(told.ends[task.id], abs=tolerance)
        spans = [span for span in report.timeline if span.task_id == task.id]
        turns = [span for span in spans if span.name in {"worker", "reviewer"}]
        own = totals(each for each in segments if each.of == task.id)
        at_work = sum(own.get(cause, 0.0) for cause in TURNS)
        took = sum(span.ended - span.started for span in turns)
        assert at_work == pytest.approx(took, abs=tolerance + BREAK * len(turns))
        assert "since the mission's start: " in told.after[task.id]
    assert critical_path(book) == report.critical_path
    whole = sum(step.segment.seconds for step in report.critical_path)
    assert whole == pytest.approx(max(told.ends.values()), abs=BREAK * len(report.critical_path))


@frozen
class Wait:
    """A mission in which a task waits for something.

    Attributes:
        work: What the workers do.
        cause: For what.
        by: For whom.
        seconds: How long.
        phrase: What ``orchestra why`` says meanwhile.
    """

    work: Work
    cause: Cause
    by: tuple[str, ...]
    seconds: float
    phrase: str
    tasks: tuple[TaskSpec, ...] = (TaskSpec(id="a", title="A"), TaskSpec(id="b", title="B"))
    settings: MissionSettings = SETTINGS
    tolerance: float = 0.01


def work_for(seconds: float) -> Work:
    return lambda spec, _turns: [*map(Path, spec.files), *answer("did it", seconds)]


def split(spec: TaskSpec, _turns: int) -> Steps:
    if spec.id != "a":
        return work_for(20.0)(spec, 0)
    parts = [{"id": name, "title": name, "files": [f"{name}.txt"]} for name in "xy"]
    return answer(json.dumps({"split": parts}), 5.0)


def repeated_by_the_server(_spec: TaskSpec, _turns: int) -> Steps:
    retry = RetryScheduled(session_id="", attempt=1, message="overloaded", delay=20.0)
    return [5.0, retry, *answer("did it", 25.0)]


def broken(spec: TaskSpec, turns: int) -> Steps:
    return [1.0, fail(500)] if spec.id == "a" and turns == 0 else answer("did it", 5.0)


WAITS = {
    "slot": Wait(
        work_for(20.0),
        Cause.SLOT,
        ("worker",),
        20.0,
        "it waits for a free slot: every worker is busy",
        settings=evolve(SETTINGS, limits=ONE_WORKER),
    ),
    "breaker": Wait(
        broken,
        Cause.BREAKER,
        ("p",),
        32.5,
        "provider p fails again and again, so nobody asks it for now",
        tolerance=2.51,  # afterwards one tries for five seconds, and the others wait for that
        settings=evolve(
            SETTINGS, limits=ONE_WORKER, providers=ProviderSettings(failure_threshold=1, spacing=0)
        ),
    ),
    "cooldown": Wait(
        lambda _spec, turns: fail_once(turns, 429, 60.0),
        Cause.COOLDOWN,
        ("p",),
        60.0,
        "provider p wants to be left alone",
        settings=evolve(SETTINGS, providers=ProviderSettings(spacing=0)),
    ),
    "back-off": Wait(
        lambda _spec, turns: fail_once(turns, 500),
        Cause.BACKOFF,
        (),
        30.0,
        "a turn has failed, and is asked again after a pause",
        tolerance=10.0,  # up to half of it is left out at random
    ),
    "lease": Wait(
        work_for(20.0),
        Cause.LEASE,
        ("a",),
        30.0,
        "it waits for a file that a holds",
        tasks=(
            TaskSpec(id="a", title="A", files=("x.txt",)),
            TaskSpec(id="b", title="B", files=("x.txt",)),
        ),
    ),
    "dependency": Wait(
        work_for(20.0),
        Cause.DEPENDENCY,
        ("a",),
        30.0,
        "it waits for a, for ",
        tasks=(TaskSpec(id="a", title="A"), TaskSpec(id="b", title="B", depends=("a",))),
    ),
    "provider retry": Wait(
        repeated_by_the_server,
        Cause.RETRY,
        (),
        20.0,
        "the server repeats a model call that failed",
    ),
    "parts": Wait(
        split,
        Cause.PARTS,
        (),
        30.0,
        "its parts are under way",
        tasks=(
            TaskSpec(id="a", title="A", files=("x.txt", "y.txt"), mode=TaskMode.FRACTAL),
            TaskSpec(id="b", title="B"),
        ),
    ),
}


@pytest.mark.parametrize("name", WAITS)
async def test_each_cause_is_recorded_and_told(name: str, tmp_path: Path) -> None:
    """A task that waits is recorded to, for whom and how long, and ``why`` says it meanwhile."""
    wait = WAITS[name]
    told = await play_mission(tmp_path, players(wait.work, tmp_path), wait.tasks, wait.settings)
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    task = max(wait.tasks, key=lambda task: told.seconds(task.id, wait.cause)).id
    assert told.seconds(task, wait.cause) == pytest.approx(wait.seconds, abs=wait.tolerance)
    assert told.waited_for(task, wait.cause) == wait.by
    assert told.was_told(task, wait.phrase), told.why[task]
    assert f"{wait.cause.value} " in told.after[task]
    assert f"<title>{wait.cause.value}" in draw_waits(told.report)


async def test_who_is_overtaken_is_told_by_whom(tmp_path: Path) -> None:
    """One of two that wait for the slot sees it go to a later, more urgent task."""

    def work(spec: TaskSpec, turns: int) -> Steps:
        if spec.id in {"a", "b"} and turns == 0:
            return [fail(500)]  # so that whoever was first, the slot is "first"'s
        return answer("did it", 5.0 if spec.id == "first" else 30.0)

    tasks = (
        TaskSpec(id="first", title="First", priority=Priority.LOW),
        TaskSpec(id="urgent", title="Urgent", priority=Priority.HIGH, depends=("first",)),
        TaskSpec(id="a", title="A", priority=Priority.LOW),
        TaskSpec(id="b", title="B", priority=Priority.LOW),
    )
    settings = evolve(SETTINGS, limits=ONE_WORKER, retry_delay=4.0)
    told = await play_mission(tmp_path, players(work, tmp_path), tasks, settings)
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    seconds = {name: told.seconds(name, Cause.PRIORITY) for name in "ab"}
    assert sorted(seconds.values()) == pytest.approx([0.0, 30.0], abs=0.01)
    late = max(seconds, key=lambda name: seconds[name])
    assert told.waited_for(late, Cause.PRIORITY) == ("urgent",)
    assert told.was_told(late, "it waits for a free slot, and urgent is more urgent")


async def test_who_has_no_budget_waits_for_another_ones_settlement(tmp_path: Path) -> None:
    """Two turns do not fit into what is left: the second begins when the first has paid."""
    tasks = tuple(TaskSpec(id=name, title=name, instructions="x" * 15_000) for name in "ab")
    settings = evolve(SETTINGS, budget=BudgetSettings(mission=Allowance(tokens=9_000)))
    told = await play_mission(tmp_path, players(work_for(20.0), tmp_path), tasks, settings)
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    seconds = {name: told.seconds(name, Cause.BUDGET) for name in "ab"}
    late = max(seconds, key=lambda name: seconds[name])
    assert seconds[late] > 19.99
    assert told.was_told(late, "what is left of a budget is held by others")


async def test_the_plans_approval_is_what_its_tasks_wait_for(tmp_path: Path) -> None:
    """Before anybody has said yes, ``why`` of a proposed task says who has to, and it is a cause."""

    async def approve(_question: PersonQuestion) -> bool:
        await anyio.sleep(100.0)
        return True

    told = await play_mission(
        tmp_path,
        players(work_for(20.0), tmp_path),
        (TaskSpec(id="a", title="A"),),
        evolve(SETTINGS, must_approve=True),
        approve,
    )
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    assert told.seconds("a", Cause.APPROVAL) == pytest.approx(100.0, abs=0.01)
    assert told.was_told("a", "somebody has to approve the plan; see 'orchestra approve'")


async def test_a_persons_leave_is_a_cause_of_its_own(tmp_path: Path) -> None:
    """While somebody is asked it is no work; what the rules answer at once is no wait."""

    def policy(request: PermissionRequest) -> PermissionReply | Awaitable[PermissionReply]:
        async def ask() -> PermissionReply:
            await anyio.sleep(50.0 if request.permission == "bash" else 90.0)
            return PermissionReply(is_allowed=True)

        is_clear = request.permission == "read"
        return PermissionReply(is_allowed=True) if is_clear else ask()

    async def worker(turn: Turn) -> str:
        await anyio.sleep(10.0)
        await turn.ask_permission("read", "x")
        async with anyio.create_task_group() as group:
            group.start_soon(turn.ask_permission, "bash", "make")
            group.start_soon(turn.ask_permission, "webfetch", "it")
        await anyio.sleep(10.0)
        return "did it"

    async def reviewer(_turn: Turn) -> str:
        return ACCEPT

    backend = EmbeddedBackend({"worker": worker, "reviewer": reviewer}, permission_policy=policy)
    told = await play_mission(tmp_path, backend, (TaskSpec(id="a", title="A"),))
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    assert told.seconds("a", Cause.PERMISSION) == pytest.approx(90.0, abs=0.01)
    assert told.seconds("a", Cause.WORK) == pytest.approx(20.0, abs=0.01)
    assert told.waited_for("a", Cause.PERMISSION) in {("bash", "webfetch"), ("webfetch", "bash")}
    assert told.was_told("a", "somebody has to permit ")
    assert told.was_told("a", "somebody has to permit webfetch; see 'orchestra approve")


async def test_who_is_cut_off_while_somebody_is_asked_does_not_wait_for_it_any_more(
    tmp_path: Path,
) -> None:
    """A turn that ends while its request is open leaves nothing behind for the next one."""
    turns = 0

    async def policy(_request: PermissionRequest) -> PermissionReply:
        await anyio.sleep(1_000.0)
        return PermissionReply(is_allowed=True)

    async def worker(turn: Turn) -> str:
        nonlocal turns
        turns += 1
        if turns == 1:
            await turn.ask_permission("bash", "make")
        await anyio.sleep(5.0)
        return "did it"

    async def reviewer(_turn: Turn) -> str:
        return ACCEPT

    backend = EmbeddedBackend({"worker": worker, "reviewer": reviewer}, permission_policy=policy)
    settings = evolve(SETTINGS, turn_timeout=100.0, loop=LoopLimits(rounds=2))
    told = await play_mission(tmp_path, backend, (TaskSpec(id="a", title="A"),), settings)
    assert told.report.outcome is MissionOutcome.ACCEPTED, told.report.reason
    assert told.seconds("a", Cause.PERMISSION) == pytest.approx(100.0, abs=0.01)
    assert told.seconds("a", Cause.WORK) == pytest.approx(5.0, abs=0.01)
