"""People and lineage on the real server: depth, permissions of the whole tree, cancel, root prompts."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from attrs import evolve

from orchestra import Agent
from orchestra.events import (
    FinishReason,
    PermissionAsked,
    PermissionPending,
    PermissionReply,
    PermissionRequest,
    SessionEvent,
    SubagentStarted,
    ToolCalled,
    ToolStatus,
)
from orchestra.opencode.mission.events import MissionEvent, TurnStarted
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings, Role
from orchestra.opencode.mission.report import MissionOutcome
from orchestra.opencode.mission.run import run_mission
from orchestra.opencode.people.commands import close_sessions
from orchestra.opencode.toasts import Toast

from .conftest import RealServer

pytestmark = pytest.mark.real_server


async def _collect(
    server: RealServer, directory: Path, agent: Agent, prompt: str, **options: object
) -> list[SessionEvent]:
    events: list[SessionEvent] = []
    with anyio.fail_after(60):
        async with (
            server.backend(**options) as backend,
            backend.lease(agent, directory=directory, metadata={"role": "worker"}) as session,
        ):
            await session.prompt(prompt, listener=events.append)
            assert await backend.find_busy([session.id]) == frozenset()
    return events


async def test_a_session_that_is_too_deep_is_aborted(
    real_server: RealServer, tmp_path: Path
) -> None:
    """opencode#18100: a child below the agent's depth is told of and aborted; its parent goes on."""
    boss = Agent("boss", subagent_depth=0)
    events = await _collect(real_server, tmp_path, boss, "slow")
    started = [event for event in events if isinstance(event, SubagentStarted)]
    assert [(event.depth, event.is_refused) for event in started] == [(1, True)]
    assert events[-1].reason is FinishReason.DONE  # type: ignore[attr-defined]


async def test_asks_of_the_whole_tree_reach_the_policy(
    real_server: RealServer, tmp_path: Path
) -> None:
    """opencode#36868, #16367: a child's ask is answered, under the role of the root of its tree."""
    requests: list[PermissionRequest] = []

    async def policy(request: PermissionRequest) -> PermissionReply:
        requests.append(request)
        return PermissionReply(is_allowed=True)

    boss = Agent("boss", subagent_depth=1)
    events = await _collect(real_server, tmp_path, boss, "ask", permission_policy=policy)
    assert [request.session_metadata["role"] for request in requests] == ["worker"]
    assert requests[0].session_id != events[0].session_id
    started = [event for event in events if isinstance(event, SubagentStarted)]
    assert [(event.agent, event.is_refused) for event in started] == [("ask", False)]
    assert any(isinstance(event, PermissionAsked) for event in events)
    assert events[-1].reason is FinishReason.DONE  # type: ignore[attr-defined]


async def test_sessions_of_a_mission_that_was_left_are_closed(
    real_server: RealServer, tmp_path: Path
) -> None:
    """Whoever cancels a mission without an owner aborts its sessions, and the server says idle."""
    with anyio.fail_after(60):
        async with real_server.backend() as owner:
            session = await owner.open(
                "slow", directory=tmp_path, metadata={"mission": "mission_x"}
            )
            other = await owner.open("slow", directory=tmp_path, metadata={"mission": "other"})
            async with session.stream("wait") as events:
                await anext(events)
                while not await owner.find_busy(  # noqa: ASYNC110  (the server is what is asked)
                    [session.id, other.id]
                ):
                    await anyio.sleep(0.02)
                async with real_server.backend() as backend:
                    quiescence = await close_sessions(backend, "mission_x", tmp_path)
                async for _ in events:
                    pass
            assert await owner.find_busy([session.id, other.id]) == frozenset()
            assert await other.check()
    assert (quiescence.sessions, quiescence.busy) == (1, ())


async def test_an_open_ask_holds_up_nothing_else(real_server: RealServer, tmp_path: Path) -> None:
    """opencode#37694: while nobody answers, the other call's result is there; then all go on."""
    first = anyio.Event()

    async def policy(_: PermissionRequest) -> PermissionReply:
        await first.wait()
        return PermissionReply(is_allowed=False, message="not now")

    def listen(event: SessionEvent) -> None:
        events.append(event)
        if isinstance(event, ToolCalled) and event.status is ToolStatus.COMPLETED:
            first.set()

    events: list[SessionEvent] = []
    with anyio.fail_after(60):
        async with (
            real_server.backend(permission_policy=policy) as backend,
            backend.lease("pair", directory=tmp_path) as session,
        ):
            finished = await session.prompt("both", listener=listen)
    assert finished.reason is FinishReason.DONE
    assert [event.reply.message for event in events if isinstance(event, PermissionAsked)] == [
        "not now"
    ]
    pending = next(event for event in events if isinstance(event, PermissionPending))
    asked = next(event for event in events if isinstance(event, PermissionAsked))
    assert pending.request == asked.request
    assert events.index(pending) < events.index(asked)


async def test_only_the_idle_root_is_told_to_go_on(real_server: RealServer, tmp_path: Path) -> None:
    """Continuation prompts go to the commander's session alone, never to a child or a busy one."""
    started: list[TurnStarted] = []

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TurnStarted):
            started.append(event)

    before = len(real_server.model.requests)
    with anyio.fail_after(90):
        report = await run_mission(
            "the root goal",
            backend=real_server.backend(),
            directory=tmp_path,
            agents={
                Role.COMMANDER: Agent("echo"),
                Role.PLANNER: Agent("planner-of-one"),
                Role.WORKER: Agent("delegator"),
                Role.REVIEWER: Agent("refuser"),
            },
            settings=MissionSettings(
                loop=LoopLimits(iterations=2, rounds=1), todo_file=None, retry_delay=0
            ),
            listener=listen,
        )
    assert report.outcome is MissionOutcome.FAILED
    roots = {event.session_id for event in started if event.role is Role.COMMANDER}
    requests = real_server.model.requests[before:]
    # The commander repeats what it is told, so the planner's brief has it too.
    told = [
        request
        for request in requests
        if "<progress>" in request.prompt and "<brief>" not in request.prompt
    ]
    assert len(roots) == 1
    assert [request.session_id for request in told] == list(roots)
    assert all("<mission>" in each.prompt and "<evidence>" in each.prompt for each in told)
    ours = {event.session_id for event in started}
    children = [request for request in requests if request.session_id not in ours]
    assert "do it" in {request.prompt for request in children}
    assert not [request for request in children if "<mission>" in request.prompt]


async def test_a_toast_is_taken(real_server: RealServer, tmp_path: Path) -> None:
    """The server takes a toast, whether anybody looks or not."""
    async with real_server.backend() as backend:
        for variant in ("info", "success", "warning", "error"):
            toast = evolve(Toast(title="t", message="m"), variant=variant)
            await backend.show_toast(toast, directory=tmp_path)
