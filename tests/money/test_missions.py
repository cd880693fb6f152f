"""Whole missions whose providers fail and whose workers overspend, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from model_backend import ModelBackend, Play, done

from orchestra import Price
from orchestra.abc import Agent
from orchestra.events import (
    Finished,
    FinishReason,
    RetryScheduled,
    SessionEvent,
    ToolCalled,
    ToolStatus,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.opencode import MissionReport, run_mission
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, TaskState

ACCEPT = '{"verdict": "accept"}'
AGENTS = {
    Role.WORKER: Agent("worker", prompt="work", model="p/m1"),
    Role.REVIEWER: Agent("reviewer", prompt="review", model="own/r"),
}
SETTINGS = MissionSettings(todo_file=None, has_evidence=False, retry_delay=1.0)


def plan(number: int) -> Plan:
    return Plan([TaskSpec(id=f"t{n}", title="do it") for n in range(number)])


def failure(message: str, status: int = 429, retry_after: float | None = None) -> Finished:
    error = TurnError(name="APIError", message=message, status=status, retry_after=retry_after)
    return Finished(session_id="", reason=FinishReason.FAILED, error=error)


async def mission(
    play: Play, directory: Path, settings: MissionSettings = SETTINGS, tasks: int = 1
) -> tuple[MissionReport, list[str | None]]:
    backend = ModelBackend(play)
    report = await run_mission(
        "the goal",
        backend=backend,
        directory=directory,
        plan=plan(tasks),
        agents=AGENTS,
        settings=settings,
    )
    return report, backend.models


@pytest.mark.parametrize(
    "message", ["You exceeded your current quota, stop and check billing", "insufficient_quota"]
)
async def test_quota_goes_to_the_fallback_model(message: str, tmp_path: Path) -> None:
    """omo#7161, omo#3937: quota text never leads to the same model again, whatever else it says."""

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        if agent.model == "p/m1":
            yield failure(message, retry_after=1.0)
            return
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    settings = evolve(SETTINGS, fallbacks={"worker": ("p/m2",)})
    report, models = await mission(play, tmp_path, settings)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert models == ["p/m1", "p/m2", "own/r"]


async def test_a_step_that_failed_and_then_succeeded_is_a_success(tmp_path: Path) -> None:
    """opencode#50062: what was retried and worked does not make the mission fail."""
    calls = 0

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        nonlocal calls
        calls += 1
        if calls <= 2:
            yield failure("overloaded", status=500)
            return
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    report, _ = await mission(play, tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert report.tasks[0].rounds == 1
    assert report.statistics["retries"] == 2


async def test_a_rate_limit_of_one_holds_back_all(tmp_path: Path) -> None:
    """The longest ``Retry-After`` counts for all workers of that provider, reviewers go on."""
    first_at = None
    starts: list[float] = []

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        nonlocal first_at
        now = anyio.current_time()
        if agent.name == "worker":
            if first_at is None:
                first_at = now
                yield failure("rate limit", retry_after=100.0)
                return
            starts.append(now - first_at)
            await anyio.sleep(10.0)
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    limits = {**SETTINGS.limits, "worker": 2}
    report, _ = await mission(play, tmp_path, evolve(SETTINGS, limits=limits), tasks=6)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert len(starts) == 6
    assert sum(start < 100.0 for start in starts) <= 1, "only what had begun went on"


async def test_a_wait_that_nobody_has_time_for_is_cut_short(tmp_path: Path) -> None:
    """A server that parks a call for an hour is not waited for: the turn is ended by us."""
    waits = 0
    was_waited = False

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        nonlocal waits, was_waited
        if agent.name == "worker" and waits == 0:
            waits += 1
            yield RetryScheduled(
                session_id="", attempt=1, message="Too Many Requests", delay=3600.0
            )
            await anyio.sleep(3600.0)
            was_waited = True
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    report, _ = await mission(play, tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert not was_waited
    assert any("alone for 3600 s" in reason for reason in report.tasks[0].reasons)


async def test_a_provider_that_is_away_is_not_waited_for_when_there_is_another(
    tmp_path: Path,
) -> None:
    """Its workers go to the model of another provider, past those of the same one."""
    was_waited = False

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        nonlocal was_waited
        if agent.model == "p/m1":
            yield RetryScheduled(session_id="", attempt=1, message="Too Many Requests", delay=300.0)
            await anyio.sleep(300.0)
            was_waited = True
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    settings = evolve(SETTINGS, fallbacks={"worker": ("p/m2", "q/m1")})
    report, models = await mission(play, tmp_path, settings, tasks=5)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert not was_waited
    assert models.count("q/m1") == 5
    assert "p/m2" not in models, "the same provider is as far away"


async def test_a_worker_that_repeats_itself_is_ended(tmp_path: Path) -> None:
    """opencode#45442: equal calls, one per step, end the turn; once more afresh, then the task."""
    calls = 0

    async def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        nonlocal calls
        for number in range(364):
            calls += 1
            yield ToolCalled(
                session_id="",
                call_id=str(number),
                tool="grep",
                status=ToolStatus.COMPLETED,
                input={"pattern": "x"},
            )
            yield UsageReported(session_id="", usage=Usage(output_tokens=5))
        for event in done("at last"):
            yield event

    report, _ = await mission(play, tmp_path)
    assert report.outcome is MissionOutcome.FAILED
    assert calls == 2 * SETTINGS.loop.equal_calls
    assert any("same call of 'grep' 20 times" in reason for reason in report.tasks[0].reasons)


STEP = 9_000


async def overspend(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
    """Never come to an end by itself."""
    for number in range(1_000):
        await anyio.sleep(1.0)
        yield ToolCalled(
            session_id="",
            call_id=str(number),
            tool="read",
            status=ToolStatus.COMPLETED,
            input={"path": str(number)},
        )
        yield UsageReported(session_id="", usage=Usage(output_tokens=STEP))
    yield Finished(session_id="", reason=FinishReason.DONE, text="done")


async def test_a_cap_holds_against_parallel_children_that_all_overspend(tmp_path: Path) -> None:
    """1,000,000 tokens, 8 at once, each would take 9,000,000: at most one step beyond the cap."""
    budget = BudgetSettings(mission=Allowance(tokens=1_000_000))
    limits = {**SETTINGS.limits, "worker": 8}
    settings = evolve(SETTINGS, budget=budget, limits=limits)
    report, _ = await mission(overspend, tmp_path, settings, tasks=8)
    assert report.outcome is MissionOutcome.FAILED
    assert "budget" in report.reason
    assert report.costs is not None
    assert 500_000 < report.costs.tokens <= 1_000_000 + STEP
    cut_off = report.costs.tokens - report.usage.output_tokens
    assert cut_off > 0, "the calls under way when turns were ended are paid too"
    assert cut_off % STEP == 0
    assert report.costs.tokens == sum(part.tokens for part in report.costs.parts)
    assert all(task.state is not TaskState.WORKING for task in report.tasks)


@pytest.mark.parametrize(
    "limit", [Allowance(tokens=200_000), Allowance(dollars=2.0), Allowance(seconds=62.0)]
)
async def test_what_was_worked_for_is_still_judged(limit: Allowance, tmp_path: Path) -> None:
    """When a worker has used up the budget, the review of another uses what is kept for it."""

    async def answer(agent: Agent) -> AsyncGenerator[SessionEvent]:
        if agent.name == "reviewer":
            await anyio.sleep(60.0)  # meanwhile the other worker spends everything
        for event in done(ACCEPT if agent.name == "reviewer" else "did it", 500):
            yield event

    def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        is_good = agent.name == "reviewer" or "t0" in prompt
        return answer(agent) if is_good else overspend(agent, prompt)

    prices = {model: Price(input=1, output=10) for model in ("p/m1", "own/r")}
    budget = BudgetSettings(mission=limit, wrap_up=0.1, prices=prices)
    report, _ = await mission(play, tmp_path, evolve(SETTINGS, budget=budget), tasks=3)
    assert report.outcome is MissionOutcome.FAILED
    assert "budget 'mission'" in report.reason
    states = {task.id: task.state for task in report.tasks}
    assert states["t0"] is TaskState.ACCEPTED
    assert states["t1"] is TaskState.FAILED
    assert report.costs is not None
    assert report.costs.tokens <= (200_000 if limit.seconds is None else 120 * STEP) + STEP
    judged = next(span for span in report.timeline if span.name == "reviewer")
    assert judged.ended > (limit.seconds or 0.0) * 0.9, "in what was kept"


async def test_a_tasks_budget_ends_the_task_alone(tmp_path: Path) -> None:
    """What one task may spend is spent by it, and the others go on."""

    async def answer(agent: Agent) -> AsyncGenerator[SessionEvent]:
        for event in done(ACCEPT if agent.name == "reviewer" else "did it"):
            yield event

    def play(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        is_greedy = agent.name == "worker" and "t1" in prompt
        return overspend(agent, prompt) if is_greedy else answer(agent)

    budget = BudgetSettings(task=Allowance(tokens=60_000))
    report, _ = await mission(play, tmp_path, evolve(SETTINGS, budget=budget), tasks=3)
    states = {task.id: task.state for task in report.tasks}
    assert states == {
        "t0": TaskState.ACCEPTED,
        "t1": TaskState.FAILED,
        "t2": TaskState.ACCEPTED,
    }
    assert report.outcome is MissionOutcome.FAILED


async def test_the_time_of_a_mission_is_over(tmp_path: Path) -> None:
    """A budget of seconds ends a mission whose workers would go on, with a report."""
    budget = BudgetSettings(mission=Allowance(seconds=100.0))
    report, _ = await mission(overspend, tmp_path, evolve(SETTINGS, budget=budget))
    assert report.outcome is MissionOutcome.FAILED
    assert "budget" in report.reason
    assert report.costs is not None
    assert 0 < report.costs.tokens <= 100 * STEP


async def test_the_backends_prices_count(tmp_path: Path) -> None:
    """A limit in dollars is kept by the prices that the backend names."""
    backend = ModelBackend(
        overspend,
        rates={"p/m1": {"input": 1.0, "output": 10.0}, "own/r": {"input": 1.0, "output": 1.0}},
    )
    budget = BudgetSettings(mission=Allowance(dollars=2.0))
    report = await run_mission(
        "the goal",
        backend=backend,
        directory=tmp_path,
        plan=plan(4),
        agents=AGENTS,
        settings=evolve(SETTINGS, budget=budget),
    )
    assert report.outcome is MissionOutcome.FAILED
    assert report.costs is not None
    assert 0.5 < report.costs.dollars <= 2.0 + STEP * 10 / 1e6
