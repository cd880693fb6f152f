"""A mission on the embedded backend: the whole way, and every way to end it early."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from orchestra import (
    Agent,
    BackendStatistics,
    EmbeddedAgent,
    EmbeddedBackend,
    Session,
    SessionBackend,
    Turn,
)
from orchestra.errors import AgentNotFoundError, TransportError
from orchestra.events import SessionEvent, Usage
from orchestra.opencode.mission.events import (
    EventsDropped,
    MissionEvent,
    MissionFinished,
    MissionStarted,
    PlanAccepted,
    TaskChanged,
    TurnFinished,
    TurnStarted,
)
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, MissionReport, TaskState
from orchestra.opencode.mission.run import run_mission
from orchestra.opencode.mission.runner import Mission

ACCEPT = '{"verdict": "accept"}'
REJECT = '{"verdict": "reject", "reasons": ["there is no test"]}'
QUICK = MissionSettings(retry_delay=0, todo_file=None)
ROLES = ("commander", "planner", "worker", "reviewer")

Answer = Callable[[Turn], Awaitable[str]]


def plan_of(*ids: str, **fields: object) -> str:
    return json.dumps({"tasks": [{"id": id_, "title": f"Do {id_}", **fields} for id_ in ids]})


class Crew:
    """Four agents that bring a mission to its end, unless a test has another answer for one."""

    def __init__(self, plan: str = "", **answers: Answer | str) -> None:
        self.turns: list[str] = []
        self.sessions: dict[str, list[str]] = {}
        self.most: dict[str, int] = {}
        self._working: dict[str, int] = {}
        self._answers: dict[str, Answer | str] = {
            "commander": "Do it well.",
            "planner": plan or plan_of("a"),
            "worker": "Done.",
            "reviewer": ACCEPT,
            **answers,
        }
        self.agents: dict[str, EmbeddedAgent] = {role: self._agent(role) for role in ROLES}
        self.backend = EmbeddedBackend(self.agents)

    def _agent(self, role: str) -> EmbeddedAgent:
        async def agent(turn: Turn) -> str:
            name = f"{role} {turn.metadata['task']}".strip()
            self.turns.append(name)
            self.sessions.setdefault(name, []).append(turn.session_id)
            self._working[role] = self._working.get(role, 0) + 1
            self.most[role] = max(self.most.get(role, 0), self._working[role])
            try:
                await turn.usage(Usage(input_tokens=10, cost=0.25))
                answer = self._answers[role]
                return answer if isinstance(answer, str) else await answer(turn)
            finally:
                self._working[role] -= 1

        return agent


def meeting(number: int, answer: str) -> Answer:
    """Return an answer that nobody gives before that many are asked for it at once."""
    complete = anyio.Event()
    present = 0

    async def meet(turn: Turn) -> str:
        nonlocal present
        present += 1
        if present == number:
            complete.set()
        await complete.wait()
        return answer

    return meet


def in_turn(*answers: str) -> Answer:
    """Return an answer that is another one each time; the last one stays."""
    left = list(answers)

    async def answer(turn: Turn) -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


async def run(
    crew: Crew,
    directory: Path,
    settings: MissionSettings = QUICK,
    plan: Plan | None = None,
    listener: Callable[[MissionEvent], object] | None = None,
) -> MissionReport:
    with anyio.fail_after(30):
        return await run_mission(
            "the goal",
            backend=crew.backend,
            directory=directory,
            plan=plan,
            settings=settings,
            listener=listener,
        )


# --- the whole way ---


async def test_the_whole_way(tmp_path: Path) -> None:
    """Commander, planner, workers side by side and reviewers bring every task to acceptance."""
    ids = [f"t{number}" for number in range(8)]
    crew = Crew(plan_of(*ids), worker=meeting(8, "Done."), reviewer=meeting(8, ACCEPT))
    report = await run(crew, tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert report.reason == "all 8 tasks were accepted"
    assert (report.goal, report.backend, report.directory) == (
        "the goal",
        "embedded",
        str(tmp_path),
    )
    assert [task.id for task in report.tasks] == ids
    assert all(task.state is TaskState.ACCEPTED and task.rounds == 1 for task in report.tasks)
    assert all(task.summary == "Done." for task in report.tasks)
    assert crew.turns[:2] == ["commander", "planner"]
    assert len(crew.turns) == len(set(crew.turns)) == 2 + 8 + 8
    assert report.usage == Usage(input_tokens=180, cost=4.5)
    assert all(task.usage == Usage(input_tokens=20, cost=0.5) for task in report.tasks)
    assert report.statistics["turns"] == 18
    assert report.statistics["retries"] == 0
    assert report.warnings == ()
    spans = report.timeline
    assert len(spans) == 18
    assert [span.started for span in spans] == sorted(span.started for span in spans)
    assert all(0 <= span.queued <= span.started <= span.ended <= report.elapsed for span in spans)
    assert {span.outcome for span in spans if span.name == "reviewer"} == {"accepted"}
    assert len({span.session_id for span in spans}) == 18
    assert not crew.backend.is_open


async def test_a_limit_is_never_exceeded(tmp_path: Path) -> None:
    """As many of a role work at once as its limit says, and no more."""
    ids = [f"t{number}" for number in range(12)]
    crew = Crew(plan_of(*ids), worker=meeting(3, "Done."), reviewer=meeting(2, ACCEPT))
    settings = evolve(QUICK, limits={"worker": 3, "reviewer": 2})
    report = await run(crew, tmp_path, settings)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert crew.most == {"commander": 1, "planner": 1, "worker": 3, "reviewer": 2}


async def test_tasks_wait_for_what_they_depend_on(tmp_path: Path) -> None:
    """A task starts when what it depends on was accepted, not when it was worked on."""
    plan = Plan(
        (
            TaskSpec(id="c", title="C", depends=("a", "b")),
            TaskSpec(id="a", title="A"),
            TaskSpec(id="b", title="B", depends=("a",)),
        )
    )
    crew = Crew()
    report = await run(crew, tmp_path, plan=plan)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert crew.turns == [f"{role} {id_}" for id_ in "abc" for role in ("worker", "reviewer")]


async def test_a_rejection_sends_the_worker_back(tmp_path: Path) -> None:
    """The second round is in the worker's own session with the reasons; the reviewer is new."""
    prompts: list[str] = []

    async def worker(turn: Turn) -> str:
        prompts.append(turn.prompt)
        return f"try {turn.number}"

    crew = Crew(worker=worker, reviewer=in_turn(REJECT, ACCEPT))
    report = await run(crew, tmp_path)
    (task,) = report.tasks
    assert (task.state, task.rounds, task.summary) == (TaskState.ACCEPTED, 2, "try 2")
    assert task.reasons == ("there is no test",)
    assert "there is no test" not in prompts[0]
    assert "there is no test" in prompts[1]
    assert read_task(prompts[0]) == read_task(prompts[1])
    assert len(set(crew.sessions["worker a"])) == 1
    assert len(set(crew.sessions["reviewer a"])) == 2
    outcomes = [span.outcome for span in report.timeline if span.name == "reviewer"]
    assert outcomes == ["rejected", "accepted"]


async def test_rounds_have_an_end(tmp_path: Path) -> None:
    """A task that is never good enough fails after its rounds; what depends on it is skipped."""
    plan = Plan((TaskSpec(id="a", title="A"), TaskSpec(id="b", title="B", depends=("a",))))
    crew = Crew(reviewer=REJECT)
    report = await run(crew, tmp_path, evolve(QUICK, loop=LoopLimits(rounds=3)), plan)
    assert report.outcome is MissionOutcome.FAILED
    assert report.reason == "2 of 2 tasks not accepted: a, b"
    assert [task.state for task in report.tasks] == [TaskState.FAILED, TaskState.SKIPPED]
    assert report.tasks[0].rounds == 3
    assert crew.turns.count("worker a") == 3


async def test_acceptance_commands_decide(tmp_path: Path) -> None:
    """A task's command that fails sends it back; the mission's own ones come at the end."""

    async def worker(turn: Turn) -> str:
        if turn.number == 2:
            (turn.directory / "made").touch()
        return "Done."

    plan = Plan((TaskSpec(id="a", title="A", acceptance=(("test", "-e", "made"), ("id",))),))
    settings = evolve(QUICK, allow=(("test", "*"),), acceptance=(("echo", "whole"),))
    crew = Crew(worker=worker)
    report = await run(crew, tmp_path, settings, plan)
    (task,) = report.tasks
    assert report.outcome is MissionOutcome.ACCEPTED
    assert task.rounds == 2
    assert [
        (result.argv[0], result.exit_code) for result in task.commands if not result.refusal
    ] == [("test", 0)]
    assert [result.argv for result in task.commands if result.refusal] == [("id",)]
    assert [(result.exit_code, result.output) for result in report.commands] == [
        (0, "whole\n"),
        (0, ""),
    ]
    spans = [(span.task_id, span.outcome) for span in report.timeline if span.name == "acceptance"]
    assert spans == [("a", "failed"), ("a", "done"), (None, "done")]


async def test_a_mission_that_fails_its_own_acceptance(tmp_path: Path) -> None:
    """Accepted tasks are not enough when the mission's own command fails."""
    settings = evolve(QUICK, acceptance=(("sh", "-c", "echo broken; exit 5"),))
    report = await run(Crew(), tmp_path, settings)
    assert report.outcome is MissionOutcome.FAILED
    assert "exit code 5" in report.reason
    assert report.tasks[0].state is TaskState.ACCEPTED


# --- what is told ---


async def test_events_come_in_order_and_end(tmp_path: Path) -> None:
    """The feed starts with the start, ends with the report, and tells every change in between."""
    crew = Crew(plan_of("a", "b"))
    mission = Mission("g", backend=crew.backend, directory=tmp_path, settings=QUICK)
    feed = mission.events()
    async with mission:
        with anyio.fail_after(30):
            events = [event async for event in feed]
            report = await mission.wait_finished()
            assert [event async for event in mission.events()] == [events[-1]]
    assert [event async for event in mission.events()] == [events[-1]]
    assert isinstance(events[0], MissionStarted)
    assert events[-1] == MissionFinished(at=events[-1].at, report=report)
    assert [event.at for event in events] == sorted(event.at for event in events)
    started = [event for event in events if isinstance(event, TurnStarted)]
    finished = [event for event in events if isinstance(event, TurnFinished)]
    assert len(started) == len(finished) == 6
    assert {event.session_id for event in started} == {event.session_id for event in finished}
    assert len([event for event in events if isinstance(event, PlanAccepted)]) == 1
    for id_ in ("a", "b"):
        assert [
            event.state
            for event in events
            if isinstance(event, TaskChanged) and event.task_id == id_
        ] == [
            TaskState.READY,
            TaskState.WORKING,
            TaskState.CHECKING,
            TaskState.REVIEWING,
            TaskState.MERGING,
            TaskState.ACCEPTED,
        ]


async def test_a_listener_gets_what_a_feed_gets(tmp_path: Path) -> None:
    """A listener hears everything from the start to the report."""
    heard: list[MissionEvent] = []
    report = await run(Crew(), tmp_path, listener=heard.append)
    assert isinstance(heard[0], MissionStarted)
    assert heard[-1] == MissionFinished(at=heard[-1].at, report=report)


async def test_a_listener_that_raises_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged; the mission goes on."""

    def listen(event: MissionEvent) -> None:
        raise LookupError("the listener's own")

    report = await run(Crew(), tmp_path, listener=listen)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert len(caplog.records) == 1
    assert "the listener's own" in caplog.text


async def test_a_slow_reader_is_told_what_it_missed(tmp_path: Path) -> None:
    """A reader that comes late to a long mission finds a bounded feed, and its end."""

    async def worker(turn: Turn) -> str:
        for _ in range(6_000):
            await turn.text("x\n")
        return "Done."

    mission = Mission("g", backend=Crew(worker=worker).backend, directory=tmp_path, settings=QUICK)
    feed = mission.events()
    async with mission:
        with anyio.fail_after(30):
            await mission.wait_finished()
            events = [event async for event in feed]
    assert isinstance(events[0], EventsDropped)
    assert events[0].count > 1_000
    assert len(events) == 4_097
    assert isinstance(events[-1], MissionFinished)


async def test_the_todo_file_is_true(tmp_path: Path) -> None:
    """TODO.md never shows a state that a task has not had, never goes back, and ends right."""
    path = tmp_path / "TODO.md"
    marks = {
        TaskState.READY: "[ ]",
        TaskState.WORKING: "[/]",
        TaskState.REVIEWING: "[/]",
        TaskState.ACCEPTED: "[x]",
    }

    def text() -> str:
        return path.read_text() if path.exists() else ""

    history: dict[str, list[str]] = {"a": ["[ ]"], "b": ["[ ]"]}
    shown: dict[str, int] = {"a": 0, "b": 0}

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged):
            state = (
                "" if event.state in {TaskState.READY, TaskState.ACCEPTED} else event.state.value
            )
            history[event.task_id].append(f"{marks[event.state]} {state}".strip())
        for line in text().splitlines():
            if line.startswith("- "):
                id_ = line[6]
                state = line[2:5] + (
                    f" {line.partition('(')[2][:-1]}" if "(w" in line or "(r" in line else ""
                )
                shown[id_] = history[id_].index(state, shown[id_])

    async def worker(turn: Turn) -> str:
        while f"[/] {turn.metadata['task']}: " not in text():  # noqa: ASYNC110
            await anyio.sleep(0.005)
        if turn.number == 1:  # later a line may be an old one
            written = text(), path.stat().st_mtime_ns
            await anyio.sleep(0.05)
            assert written == (text(), path.stat().st_mtime_ns)  # not written again and again
        return "Done."

    plan = Plan((TaskSpec(id="a", title="A"), TaskSpec(id="b", title="B", depends=("a",))))
    crew = Crew(worker=worker, reviewer=in_turn(REJECT, ACCEPT))
    report = await run(crew, tmp_path, evolve(QUICK, todo_file="TODO.md"), plan, listen)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert "- [x] a: A\n- [x] b: B (after a)\n" in path.read_text()
    assert [entry.name for entry in os.scandir(tmp_path)] == ["TODO.md"]


async def test_a_todo_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A mission without its TODO.md goes on, and says so once."""
    (tmp_path / "TODO.md").mkdir()
    report = await run(Crew(), tmp_path, evolve(QUICK, todo_file="TODO.md"))
    assert report.outcome is MissionOutcome.ACCEPTED
    (warning,) = report.warnings
    assert "TODO.md cannot be written" in warning


async def test_statistics_and_repr_show_live_state(tmp_path: Path) -> None:
    """While a worker works the mission says so."""
    asked, go = anyio.Event(), anyio.Event()

    async def worker(turn: Turn) -> str:
        asked.set()
        await go.wait()
        return "Done."

    crew = Crew(worker=worker)
    async with Mission("g", backend=crew.backend, directory=tmp_path, settings=QUICK) as mission:
        with anyio.fail_after(30):
            await asked.wait()
            statistics = mission.statistics()
            assert statistics.tasks == {TaskState.WORKING: 1}
            assert (statistics.turns_running, statistics.turns_finished) == (1, 2)
            assert statistics.sessions_open == 2  # the commander's stays, for what may come
            assert "working=1" in repr(mission)
            go.set()
            await mission.wait_finished()
    assert mission.statistics().turns_running == mission.statistics().sessions_open == 0
    assert mission.statistics().tasks == {TaskState.ACCEPTED: 1}


# --- every way to end it early ---

PHASES = (*ROLES, "acceptance", "delay")


class Halted:
    """A mission that does not get past a phase: an agent, the commands, or the wait for a retry."""

    def __init__(self, phase: str, directory: Path) -> None:
        self._reached = anyio.Event()
        self._phase = phase
        self._pid = directory / "acceptance.pid"
        answers: dict[str, Answer | str] = {phase: self._wait} if phase in ROLES else {}
        if phase == "delay":
            answers["worker"] = self._fail
        self.backend = Crew(**answers).backend  # type: ignore[arg-type]  # "plan" is no phase
        self.mission = Mission(
            "g",
            backend=self.backend,
            directory=directory,
            settings=evolve(
                QUICK,
                retry_delay=1_000.0,
                acceptance=(("sh", "-c", "echo $$ > acceptance.pid; exec sleep 1000"),),
            ),
            listener=self._listen,
        )

    async def _wait(self, turn: Turn) -> str:
        await turn.usage(Usage(cost=2.0))
        self._reached.set()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def _fail(self, _: Turn) -> str:
        raise LookupError("try again")

    def _listen(self, event: MissionEvent) -> None:
        if isinstance(event, TaskChanged) and "try again" in event.note:
            self._reached.set()

    def has_pid(self) -> bool:
        return self._pid.exists() and self._pid.read_text().endswith("\n")

    async def reached(self) -> None:
        """Wait until the phase is reached."""
        if self._phase != "acceptance":
            await self._reached.wait()
            await anyio.wait_all_tasks_blocked()
            return
        while not self.has_pid():  # noqa: ASYNC110
            await anyio.sleep(0.005)

    def check_nothing_is_left(self) -> None:
        """No session is open or busy, and no command runs."""
        statistics = self.backend.statistics()
        assert statistics.sessions_open == statistics.turns_running == 0
        assert self.mission.statistics().sessions_open == 0
        if self._phase == "acceptance":
            with pytest.raises(ProcessLookupError):
                os.kill(int(self._pid.read_text()), 0)


@pytest.fixture(params=PHASES)
def halted(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Halted]:
    return lambda: Halted(request.param, tmp_path)


async def test_stop(halted: Callable[[], Halted]) -> None:
    """A mission that is stopped, in whatever phase, ends with a report and leaves nothing."""
    halt = halted()
    with anyio.fail_after(30):
        async with halt.backend, halt.mission as mission:
            await halt.reached()
            mission.stop("the user pressed Ctrl-C")
            mission.stop("twice")
            report = await mission.wait_finished()
            halt.check_nothing_is_left()
            mission.stop("too late")
    assert report.outcome is MissionOutcome.INTERRUPTED
    assert report.reason == "the user pressed Ctrl-C"
    assert all(task.state in {TaskState.FAILED, TaskState.ACCEPTED} for task in report.tasks)


async def test_leaving_early(halted: Callable[[], Halted]) -> None:
    """Leaving the block in any phase stops the mission; the report can still be had."""
    halt = halted()
    with anyio.fail_after(30):
        async with halt.backend:
            async with halt.mission as mission:
                await halt.reached()
            halt.check_nothing_is_left()
            report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.INTERRUPTED
    assert report.reason == "the mission was left before it ended"


async def test_an_error_in_the_block(halted: Callable[[], Halted]) -> None:
    """What the block raises comes out as it is, after the mission was stopped."""
    halt = halted()
    error = LookupError("the caller's own")
    with anyio.fail_after(30):
        async with halt.backend:
            with pytest.raises(LookupError) as caught:  # noqa: PT012
                async with halt.mission:
                    await halt.reached()
                    raise error
            halt.check_nothing_is_left()
    assert caught.value is error


async def test_cancellation(halted: Callable[[], Halted]) -> None:
    """A mission that is cancelled, in whatever phase, leaves nothing but a report that says so."""
    halt = halted()
    feed = halt.mission.events()

    async def wait() -> None:
        with scope:
            async with halt.mission as mission:
                await mission.wait_finished()

    with anyio.fail_after(30):
        async with halt.backend, anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(wait)
            await halt.reached()
            scope.cancel()
            while not scope.cancelled_caught:
                await anyio.lowlevel.checkpoint()
            halt.check_nothing_is_left()
            events = [event async for event in feed]
            report = await halt.mission.wait_finished()
    assert (report.outcome, report.reason) == (MissionOutcome.INTERRUPTED, "it was cancelled")
    assert isinstance(events[-1], MissionFinished)


async def test_a_deadline(halted: Callable[[], Halted], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mission whose time is over has failed, in whatever phase, and leaves nothing."""
    halt = halted()
    settings = halt.mission._settings
    monkeypatch.setattr(halt.mission, "_settings", evolve(settings, deadline=0.2))
    with anyio.fail_after(30):
        async with halt.backend, halt.mission as mission:
            report = await mission.wait_finished()
            assert halt.backend.statistics().sessions_open == 0
    assert report.outcome is MissionOutcome.FAILED
    assert report.reason == "the mission's deadline of 0.2 s is over"


@pytest.mark.parametrize("phase", ROLES)
async def test_a_stopped_turn_is_in_the_report(phase: str, tmp_path: Path) -> None:
    """The turn that ran when the mission was stopped is on the timeline, with what it cost."""
    halt = Halted(phase, tmp_path)
    with anyio.fail_after(30):
        async with halt.backend, halt.mission as mission:
            await halt.reached()
            mission.stop()
            report = await mission.wait_finished()
    assert (report.timeline[-1].name, report.timeline[-1].outcome) == (phase, "aborted")
    assert report.timeline[-1].session_id
    assert report.usage.cost == 2.0 + 0.25 * (ROLES.index(phase) + 1)
    assert report.statistics["turns"] == ROLES.index(phase) + 1


async def test_stop_before_the_first_step(tmp_path: Path) -> None:
    """A mission that is stopped before it was entered does nothing."""
    crew = Crew()
    mission = Mission("g", backend=crew.backend, directory=tmp_path, settings=QUICK)
    mission.stop("never mind")
    async with mission:
        with anyio.fail_after(30):
            report = await mission.wait_finished()
    assert (report.outcome, report.reason) == (MissionOutcome.INTERRUPTED, "never mind")
    assert crew.turns == []


async def test_a_turn_has_its_time(tmp_path: Path) -> None:
    """A turn that takes too long is aborted, its cost is counted, and the task is tried again."""

    async def worker(turn: Turn) -> str:
        if len(crew.sessions["worker a"]) == 1:
            await turn.usage(Usage(cost=7.0))
            await anyio.sleep_forever()
        return "Done."

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged):
            notes.append(event.note)

    notes: list[str] = []
    crew = Crew(worker=worker)
    settings = evolve(QUICK, turn_timeout=0.3)
    report = await run(crew, tmp_path, settings, listener=listen)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert report.tasks[0].rounds == 1  # the turn failed, not the work
    assert any("no answer within 0.3 s" in note for note in notes)
    outcomes = [span.outcome for span in report.timeline if span.name == "worker"]
    assert outcomes == ["aborted", "done"]
    assert len(set(crew.sessions["worker a"])) == 2
    assert report.usage.cost == 7.0 + 5 * 0.25
    assert report.tasks[0].usage.cost == 7.0 + 3 * 0.25


# --- agents and backends that do not do as they should ---


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "answer", ["", "x" * 400_000, "[" * 100_000, "\ud800\0\x1b", "not what was asked for"]
)
async def test_any_answer_brings_a_report(role: str, answer: str, tmp_path: Path) -> None:
    """Empty, huge or broken answers end in a report; of planner and reviewer, one that failed.

    So does a worker's that is empty, since nothing else shows that anything was done.
    """
    settings = evolve(QUICK, todo_file="TODO.md")
    report = await run(Crew(**{role: answer}), tmp_path, settings)
    is_fine = role == "commander" or (role == "worker" and answer != "")
    assert report.outcome is (MissionOutcome.ACCEPTED if is_fine else MissionOutcome.FAILED)
    assert len(report.reason) < 1_000
    assert all(len(task.summary) <= 2_000 for task in report.tasks)


async def test_a_plan_of_strange_texts(tmp_path: Path) -> None:
    """Texts of a plan that cannot be written or run as they are do not stop the mission."""
    plan = plan_of("a", acceptance=[["echo", "\ud800"]], instructions="\ud800\0")
    crew = Crew(plan.replace("Do a", "\\ud800 --> \\u0000"))
    settings = evolve(QUICK, todo_file="TODO.md", allow=(("echo", "*"),))
    report = await run(crew, tmp_path, settings)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert "[x] a: ? -- >" in (tmp_path / "TODO.md").read_text()


async def test_a_python_plan_of_strange_texts(tmp_path: Path) -> None:
    """A plan that was made in Python may say anything."""
    spec = TaskSpec(id="a b", title="\ud800\n-->", acceptance=(("echo", "\0"),))
    settings = evolve(QUICK, todo_file="TODO.md", allow=(("echo", "*"),), loop=LoopLimits(rounds=1))
    report = await run(Crew(), tmp_path, settings, Plan((spec,)))
    assert report.outcome is MissionOutcome.FAILED
    assert "null byte" in report.tasks[0].commands[0].error


async def test_an_agent_that_fails_is_asked_again(tmp_path: Path) -> None:
    """Every role is asked again after an error, in a fresh session."""

    def unsteady(answer: str) -> Answer:
        async def agent(turn: Turn) -> str:
            if turn.session_id in first or not first:
                first.append(turn.session_id)
                raise LookupError("not today")
            return answer

        first: list[str] = []
        return agent

    crew = Crew(
        commander=unsteady("Do it."),
        planner=unsteady(plan_of("a")),
        worker=unsteady("Done."),
        reviewer=unsteady(ACCEPT),
    )
    report = await run(crew, tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert report.tasks[0].rounds == 1  # turns failed, not the work
    assert crew.turns == [name for role in ("commander", "planner") for name in [role] * 2] + [
        name for role in ("worker a", "reviewer a") for name in [role] * 2
    ]
    assert all(len(set(sessions)) == 2 for sessions in crew.sessions.values())


@pytest.mark.parametrize("role", ROLES)
async def test_an_agent_that_always_fails(role: str, tmp_path: Path) -> None:
    """After three tries in each plan the mission has failed, with the agent's own words."""

    async def fail(turn: Turn) -> str:
        raise LookupError("not today")

    answers: dict[str, Answer | str] = {role: fail}
    crew = Crew(**answers)  # type: ignore[arg-type]  # "plan" is no role
    report = await run(crew, tmp_path)
    assert report.outcome is MissionOutcome.FAILED
    told = report.reason if role in {"commander", "planner"} else report.tasks[0].reasons[-1]
    assert "not today" in told
    plans = 1 if role in {"commander", "planner"} else 3
    assert len([turn for turn in crew.turns if turn.startswith(role)]) == 3 * plans


class BrokenSession(Session):
    """A session that raises where it should not."""

    def __init__(self, inner: Session, errors: Mapping[str, Exception]) -> None:
        self._inner = inner
        self._errors = errors

    @property
    def id(self) -> str:
        return self._inner.id

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[SessionEvent]]:
        if "stream" in self._errors:
            raise self._errors["stream"]
        async with self._inner.stream(prompt, prompt_id=prompt_id) as events:
            yield self._middle(events) if "middle" in self._errors else events

    async def _middle(self, events: AsyncIterator[SessionEvent]) -> AsyncIterator[SessionEvent]:
        yield await anext(events)
        raise self._errors["middle"]

    async def abort(self) -> None:
        await self._inner.abort()

    async def aclose(self) -> None:
        await self._inner.aclose()
        if "aclose" in self._errors:
            raise self._errors["aclose"]


class BrokenBackend(SessionBackend):
    """An embedded backend whose sessions of one agent raise where they should not."""

    def __init__(self, inner: EmbeddedBackend, agent: str, errors: Mapping[str, Exception]) -> None:
        self._inner = inner
        self._agent = agent
        self._errors = errors

    @property
    def name(self) -> str:
        return "broken"

    @property
    def is_open(self) -> bool:
        return self._inner.is_open

    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        name = agent if isinstance(agent, str) else agent.name
        if name == self._agent and "hang" in self._errors:
            await anyio.sleep_forever()
        if name == self._agent and "open" in self._errors:
            raise self._errors["open"]
        session = await self._inner.open(agent, directory=directory, title=title, metadata=metadata)
        return BrokenSession(session, self._errors) if name == self._agent else session

    def statistics(self) -> BackendStatistics:
        return self._inner.statistics()

    async def __aenter__(self) -> Self:
        if "enter" in self._errors:
            raise self._errors["enter"]
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._inner.__aexit__(exc_type, exc, traceback)


@pytest.mark.parametrize("where", ["open", "stream", "middle"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "error",
    [
        TransportError("the wire is cut"),
        OSError("the wire is cut"),
        anyio.ClosedResourceError("the wire is cut"),
        KeyError("the wire is cut"),
        ExceptionGroup("the wire is cut", [ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_backend_that_raises(
    where: str, role: str, error: Exception, tmp_path: Path
) -> None:
    """Whatever a backend raises ends in a report that says so, and leaves no session."""
    backend = BrokenBackend(Crew().backend, role, {where: error})
    with anyio.fail_after(30):
        async with backend:
            report = await run_mission("g", backend=backend, directory=tmp_path, settings=QUICK)
            assert backend.statistics().sessions_open == 0
    assert report.outcome is MissionOutcome.FAILED
    told = report.reason if role in {"commander", "planner"} else report.tasks[0].reasons[-1]
    assert "the wire is cut" in told


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "error", [TransportError("cut"), KeyError("cut")], ids=lambda error: type(error).__name__
)
async def test_a_session_that_cannot_be_closed(
    role: str, error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A session's failing close is logged and costs the mission nothing."""
    backend = BrokenBackend(Crew().backend, role, {"aclose": error})
    with anyio.fail_after(30):
        async with backend:
            report = await run_mission("g", backend=backend, directory=tmp_path, settings=QUICK)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert "cut" in caplog.text


async def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    """An unknown agent is not asked for twice."""
    backend = BrokenBackend(Crew().backend, "worker", {"open": AgentNotFoundError("no such agent")})
    with anyio.fail_after(30):
        report = await run_mission("g", backend=backend, directory=tmp_path, settings=QUICK)
    (task,) = report.tasks
    assert (task.state, task.rounds) == (TaskState.FAILED, 1)
    assert "no such agent" in task.reasons[0]


# --- entering ---


async def test_a_backend_that_cannot_be_entered(tmp_path: Path) -> None:
    """The error of a backend that does not start comes out as it is."""
    error = TransportError("the server does not start")
    backend = BrokenBackend(Crew().backend, "", {"enter": error})
    with pytest.raises(TransportError) as caught:
        await run_mission("g", backend=backend, directory=tmp_path, settings=QUICK)
    assert caught.value is error


async def test_an_open_backend_stays_open(tmp_path: Path) -> None:
    """Two missions share one open backend, side by side, and leave it open."""
    crew = Crew(worker=meeting(2, "Done."))
    reports: list[MissionReport] = []

    async def work() -> None:
        reports.append(await run(crew, tmp_path))

    with anyio.fail_after(30):
        async with crew.backend as backend:
            async with anyio.create_task_group() as group:
                group.start_soon(work)
                group.start_soon(work)
            assert backend.is_open
            assert backend.statistics().sessions_open == 0
    assert [report.outcome for report in reports] == [MissionOutcome.ACCEPTED] * 2


async def test_a_mission_is_for_one_use(tmp_path: Path) -> None:
    """A mission cannot be entered again."""
    mission = Mission("g", backend=Crew().backend, directory=tmp_path, settings=QUICK)
    async with mission:
        await mission.wait_finished()
    with pytest.raises(RuntimeError, match="make a new one"):
        async with mission:
            pass


async def test_a_workspace_that_is_missing(tmp_path: Path) -> None:
    """A missing workspace is told before anything starts."""
    crew = Crew()
    with pytest.raises(NotADirectoryError, match="nowhere"):
        await run(crew, tmp_path / "nowhere")
    assert not crew.turns


def test_wrong_arguments_are_refused() -> None:
    """An empty goal, or a limit that lets nobody work, is refused at construction."""
    with pytest.raises(ValueError, match="goal"):
        Mission(" \n", backend=Crew().backend)
    with pytest.raises(ValueError, match="'worker'"):
        Mission("g", backend=Crew().backend, settings=MissionSettings(limits={"worker": 0}))


async def test_a_role_may_have_another_agent(tmp_path: Path) -> None:
    """The agents that are given replace a role's own."""
    crew = Crew()
    asked: list[Agent] = []

    async def other(turn: Turn) -> str:
        asked.append(turn.agent)
        return "Done."

    backend = EmbeddedBackend({**crew.agents, "other": other})
    agent = Agent("other", model="provider/model")
    with anyio.fail_after(30):
        report = await run_mission(
            "g", backend=backend, directory=tmp_path, settings=QUICK, agents={Role.WORKER: agent}
        )
    assert report.outcome is MissionOutcome.ACCEPTED
    assert asked == [evolve(agent, subagent_depth=1)]


async def test_a_backend_that_never_opens_a_session_does_not_hang_the_mission(
    tmp_path: Path,
) -> None:
    """A turn's time includes the opening of its session."""
    crew = Crew()
    backend = BrokenBackend(crew.backend, "planner", {"hang": TimeoutError()})
    settings = evolve(QUICK, turn_timeout=0.05)
    with anyio.fail_after(20):
        report = await run_mission("g", backend=backend, directory=tmp_path, settings=settings)
    assert report.reason == "the planner failed: no answer within 0.05 s"
