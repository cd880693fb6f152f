"""People and lineage on the real server: depth, permissions of the whole tree, cancel, root prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import TaskStatus
from attrs import evolve

from orchestra import Agent, MemoryStore, PermissionRule, SQLiteStore
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
from orchestra.opencode.mission.events import AgentActed, MissionEvent, TurnStarted
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome
from orchestra.opencode.mission.run import run_mission
from orchestra.opencode.people.ending import CancelOutcome, cancel_mission, close_sessions
from orchestra.opencode.people.permissions import MissionPermissions
from orchestra.opencode.people.questions import Person, PersonAnswer, PersonQuestion
from orchestra.opencode.toasts import Toast
from orchestra.testing import Hang, ModelRequest, ToolCall

from .conftest import MODEL, RealServer

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
                    quiescence = await close_sessions(backend, "mission_x", [tmp_path])
                async for _ in events:
                    pass
            assert await owner.find_busy([session.id, other.id]) == frozenset()
            assert await other.check()
    assert (quiescence.sessions, quiescence.busy) == (1, ())


async def _busy(server: RealServer, directory: Path) -> frozenset[str]:
    """What the server itself calls busy there."""
    url = f"{server.url}/session/status"
    async with httpx2.AsyncClient(auth=("opencode", server.password)) as client:
        answer = await client.get(url, params={"directory": str(directory)})
    statuses = answer.raise_for_status().json()
    return frozenset(name for name, status in statuses.items() if status["type"] != "idle")


async def test_cancel_ends_what_the_server_has_started_itself(
    real_server: RealServer, tmp_path: Path
) -> None:
    """``orchestra cancel`` of a mission whose worker waits for a sub-agent: by the server all are idle."""
    children: list[str] = []

    def listen(event: MissionEvent) -> None:
        if isinstance(event, AgentActed) and isinstance(event.event, SubagentStarted):
            children.append(event.event.child_id)

    directory = await anyio.Path(tmp_path).resolve()
    records = tmp_path / ".orchestra" / "missions.db"
    await anyio.Path(records).parent.mkdir()
    outcomes: list[CancelOutcome] = []

    async def cancel() -> None:
        while True:
            busy = await _busy(real_server, Path(directory))
            if children and busy > {*children}:
                break
            await anyio.sleep(0.05)
        outcomes.append(await cancel_mission(tmp_path, "last"))

    with anyio.fail_after(90):
        async with SQLiteStore(records) as store, anyio.create_task_group() as group:
            group.start_soon(cancel)
            report = await run_mission(
                "wait",
                backend=real_server.backend(),
                directory=tmp_path,
                plan=Plan([TaskSpec(id="a", title="Wait")]),
                agents={Role.WORKER: Agent("waiter")},
                settings=MissionSettings(todo_file=None, has_evidence=False),
                store=store,
                listener=listen,
            )
    assert (report.outcome, len(children)) == (MissionOutcome.INTERRUPTED, 1)
    assert [(each.state, each.is_quiet) for each in outcomes] == [("interrupted", True)]
    assert await _busy(real_server, Path(directory)) == frozenset()


def test_cancel_of_a_mission_that_was_killed_in_its_worktrees(
    real_server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions are found wherever its agents worked, named by the command line alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", real_server.password)
    work = tmp_path / "work"
    work.mkdir()
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(work))
    for words in (["init", "-q"], ["commit", "-qm", "begin", "--allow-empty"]):
        subprocess.run([*git, *words], check=True)
    path = tmp_path / "mission.toml"
    path.write_text(
        f"""
goal = "wait"
workspace.directory = "work"
backend = {{kind = "opencode", url = "{real_server.url}", model = "{MODEL}"}}
[[tasks]]
id = "t1"
title = "One"
"""
    )
    real_server.scripts.update(worker=lambda _: Hang("hanging", times=None))
    script = Path(sys.executable).with_name("orchestra")
    process = subprocess.Popen(
        [script, "run", path, "--isolation", "worktree"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        (place,) = anyio.run(_wait_busy, real_server, tmp_path / "state")
        process.kill()
        process.communicate(timeout=60)
        outcome = anyio.run(cancel_mission, work, "last")
        assert outcome.quiescence is not None
        assert outcome.quiescence.sessions == 1, outcome
        assert (outcome.state, outcome.is_quiet) == ("interrupted", True)
        assert anyio.run(_busy, real_server, place) == frozenset()
    finally:
        real_server.scripts.clear()
        process.kill()
        process.communicate()


async def _wait_busy(server: RealServer, state: Path) -> list[Path]:
    """Wait until somebody works in a worktree; return the worktrees in which somebody does."""
    with anyio.fail_after(90):
        while True:
            places = [Path(each).parent async for each in anyio.Path(state).rglob(".git")]
            if busy := [place for place in places if await _busy(server, place)]:
                return busy
            await anyio.sleep(0.05)


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


WISHES = ("often", "never", "silent", "banned")


def _fetch_and_tell(request: ModelRequest) -> str | ToolCall:
    """Want to fetch a page whose name is the task's, then repeat what came of it."""
    task = read_task(request.prompt).id
    if request.step == 0:
        return ToolCall("webfetch", {"url": f"http://127.0.0.1:9/{task}", "format": "text"})
    return str(request.messages[-1]["content"])


def _accept(_: ModelRequest) -> str:
    return json.dumps({"verdict": "accept"})


async def _run_wishes(
    server: RealServer, directory: Path, people: PeopleSettings, answer: Person | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Run a mission whose workers ask; what came of each call, and the answers that are kept."""
    server.scripts.update(worker=_fetch_and_tell, reviewer=_accept)
    calls: dict[str, str] = {}

    def listen(event: MissionEvent) -> None:
        if isinstance(event, AgentActed) and isinstance(event.event, PermissionAsked):
            reply = event.event.reply
            calls[str(event.task_id)] = f"{reply.is_allowed} {reply.message}".strip()

    permissions = MissionPermissions(people, person=answer)
    try:
        async with MemoryStore() as store:
            with anyio.fail_after(90), permissions.asking(store):
                report = await run_mission(
                    "wishes",
                    backend=server.backend(permission_policy=permissions),
                    directory=directory,
                    plan=Plan([TaskSpec(id=name, title=name) for name in WISHES]),
                    settings=MissionSettings(todo_file=None, has_evidence=False, people=people),
                    store=store,
                    listener=listen,
                )
            left: dict[str, Any] = {}
            for name in await store.namespaces():
                async with store.namespace(name).snapshot() as snap:
                    left |= {**await snap.range("question/"), **await snap.range("answer/")}
    finally:
        server.scripts.clear()
    assert report.outcome is MissionOutcome.ACCEPTED
    for task in report.tasks:  # the model was told the same
        told = calls.get(task.id, "")
        was_refused = "rejected" in task.summary or "prevents you" in task.summary
        assert was_refused is not told.startswith("True"), task.summary
    return calls, left


ASKING = PeopleSettings(
    permission_deadline=2,
    permissions={
        "worker": (
            PermissionRule(permission="webfetch", action="ask"),
            PermissionRule(permission="webfetch", pattern="*/banned", action="deny"),
        )
    },
)


async def test_each_wish_gets_its_own_answer(real_server: RealServer, tmp_path: Path) -> None:
    """In one mission: yes in time, no with a note, nobody in time, and a rule that forbids."""
    questions: dict[str, PersonQuestion] = {}

    async def answer(question: PersonQuestion) -> PersonAnswer | None:
        assert question.request is not None
        (page,) = question.request.patterns
        name = page.rpartition("/")[2]
        assert question.text == f"worker {name} wants to: webfetch {page}"
        questions[name] = question
        if name == "silent":
            return None
        return PersonAnswer(is_approved=name == "often", note="" if name == "often" else "not you")

    people = ASKING
    calls, left = await _run_wishes(real_server, tmp_path, people, answer)
    assert calls == {
        "often": "True",
        "never": "False not you",
        "silent": "False Nobody answered in time; go on without it.",
    }
    assert left == {}
    assert sorted(questions) == ["never", "often", "silent"]


def test_toasts_of_a_whole_run(
    real_server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at the server's events sees that it began, and how it ended, whatever the rate."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", real_server.password)
    real_server.scripts.update(reviewer=_accept)
    path = tmp_path / "mission.toml"
    tasks = "".join(f'[[tasks]]\nid = "t{number}"\ntitle = "T"\n' for number in range(6))
    path.write_text(
        f"""
goal = "toast"
workspace.directory = "."
backend = {{kind = "opencode", url = "{real_server.url}", model = "{MODEL}"}}
{tasks}
"""
    )
    script = Path(sys.executable).with_name("orchestra")
    try:
        toasts = anyio.run(_toasts_during, real_server, tmp_path, (script, "run", path))
    finally:
        real_server.scripts.clear()
    assert toasts[0] == "orchestra: mission: toast"
    assert toasts[-1] == "mission accepted: all 6 tasks were accepted"
    assert len(toasts) == len({*toasts})


async def _toasts_during(
    server: RealServer, directory: Path, command: Sequence[str | Path]
) -> list[str]:
    """Run a command; return the toasts that the server has passed on meanwhile."""
    toasts: list[str] = []

    async def listen(*, task_status: TaskStatus[None]) -> None:
        auth = ("opencode", server.password)
        async with (
            httpx2.AsyncClient(auth=auth, timeout=None) as client,
            client.stream(
                "GET", f"{server.url}/event", params={"directory": str(directory)}
            ) as got,
        ):
            async for line in got.aiter_lines():
                if "server.connected" in line:
                    task_status.started()
                if '"tui.toast.show"' in line:
                    toast = json.loads(line.removeprefix("data: "))["properties"]
                    toasts.append(f"{toast['title']}: {toast['message']}")

    with anyio.fail_after(90):
        async with anyio.create_task_group() as group:
            await group.start(listen)
            await anyio.run_process(command)
            while not any("accepted: " in toast for toast in toasts):  # noqa: ASYNC110  (the stream)
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    return toasts


async def test_a_toast_is_taken(real_server: RealServer, tmp_path: Path) -> None:
    """The server takes a toast, whether anybody looks or not."""
    async with real_server.backend() as backend:
        for variant in ("info", "success", "warning", "error"):
            toast = evolve(Toast(title="t", message="m"), variant=variant)
            await backend.show_toast(toast, directory=tmp_path)
