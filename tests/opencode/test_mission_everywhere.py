"""The same mission of 20 tasks on the real server and on the embedded backend."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx2
import pytest

from orchestra import EmbeddedBackend, PermissionPolicy, PermissionRule, Turn, deny_all
from orchestra.events import PermissionReply, PermissionRequest
from orchestra.opencode import (
    ROLE_AGENTS,
    Mission,
    MissionOutcome,
    MissionReport,
    OpenCodeBackend,
    Role,
    TaskState,
    read_task,
    run_mission,
)
from orchestra.opencode.mission.events import AgentActed
from orchestra.opencode.reaper import find_processes
from orchestra.testing import (
    CutStream,
    Failure,
    Hang,
    ModelRequest,
    Rule,
    ScriptedModel,
    Step,
    ToolCall,
)

TASKS = [f"t{number:02}" for number in range(20)]
REJECTED_ONCE = {"t02", "t09", "t13"}
RATE_LIMITED, ASKING, CUT = "t03", "t05", "t07"
AGENTS = {
    **ROLE_AGENTS,
    # The worker may run commands only after asking, which the policy below answers.
    Role.WORKER: attrs.evolve(
        ROLE_AGENTS[Role.WORKER],
        permissions=(
            *ROLE_AGENTS[Role.WORKER].permissions,
            PermissionRule(permission="bash", action="ask"),
        ),
    ),
}


def plan() -> str:
    tasks = [
        {
            "id": name,
            "title": f"write {name}",
            "instructions": f"Write your id and the round into {name}.txt.",
            "files": [f"{name}.txt"],
            "depends": [TASKS[0]] if name == TASKS[-1] else [],
        }
        for name in TASKS
    ]
    return f"Here it is.\n```json\n{json.dumps({'tasks': tasks})}\n```\n"


def round_of(message: str) -> int:
    return int(message.partition("<round>")[2].partition("</round>")[0])


def verdict(message: str) -> str:
    if read_task(message).id in REJECTED_ONCE and round_of(message) == 1:
        return json.dumps({"verdict": "reject", "reasons": ["say which round it is"]})
    return json.dumps({"verdict": "accept", "reasons": []})


def check(report: MissionReport, directory: Path) -> None:
    """Check what must be true of the mission wherever it ran."""
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert [task.id for task in report.tasks] == TASKS
    for task in report.tasks:
        rounds = 2 if task.id in REJECTED_ONCE else 1
        assert (task.state, task.rounds) == (TaskState.ACCEPTED, rounds)
        assert (directory / f"{task.id}.txt").read_text() == f"{task.id} round {rounds}\n"
        assert f"- [x] {task.id}:" in (directory / "TODO.md").read_text()
    workers = sorted(
        (at, change)
        for span in report.timeline
        if span.name == "worker"
        for at, change in ((span.started, 1), (span.ended, -1))
    )
    running = most = 0
    for _, change in workers:
        running += change
        most = max(most, running)
    assert most == 10, "ten workers at once: not fewer, not more"


async def test_on_the_embedded_backend(tmp_path: Path) -> None:
    """The mission's machine drives the 20 tasks over callables."""
    crowd = anyio.Event()
    waiting = 0

    async def worker(turn: Turn) -> str:
        nonlocal waiting
        task = read_task(turn.prompt)
        waiting += 1
        if waiting == 10:  # the limit's worth of workers is here: prove that they overlap
            crowd.set()
        await crowd.wait()
        path = turn.directory / task.files[0]
        await anyio.Path(path).write_text(f"{task.id} round {round_of(turn.prompt)}\n")
        return "Written."

    async def commander(turn: Turn) -> str:
        return "Twenty files, one task each."

    async def planner(turn: Turn) -> str:
        return plan()

    async def reviewer(turn: Turn) -> str:
        return verdict(turn.prompt)

    backend = EmbeddedBackend(
        {"commander": commander, "planner": planner, "worker": worker, "reviewer": reviewer}
    )
    with anyio.fail_after(30):
        report = await run_mission("write 20 files", backend=backend, directory=tmp_path)
    check(report, tmp_path)


# --- the real server ---------------------------------------------------------------------------


def work(directory: Path) -> Any:
    def answer(request: ModelRequest) -> list[Step]:
        task = read_task(request.prompt)
        content = f"{task.id} round {round_of(request.prompt)}\n"
        write = ToolCall("write", {"filePath": str(directory / task.files[0]), "content": content})
        steps: list[Step] = [write, "Written."]
        if task.id == RATE_LIMITED:
            steps.insert(0, Failure(429, "slow down", retry_after=0.2))
        if task.id == ASKING:
            steps.insert(0, ToolCall("bash", {"command": "echo hello", "description": "Greet"}))
        if task.id == CUT:
            steps.insert(1, CutStream("Writ"))
        return steps

    return answer


def rules(directory: Path) -> tuple[Rule, ...]:
    return (
        Rule(agent="commander", answer=["Twenty files, one task each."]),
        Rule(agent="planner", answer=lambda _: [plan()]),
        Rule(agent="worker", answer=work(directory)),
        Rule(agent="reviewer", answer=lambda request: [verdict(request.prompt)]),
    )


def backend_for(model: ScriptedModel, policy: PermissionPolicy = deny_all) -> OpenCodeBackend:
    return OpenCodeBackend(
        model="scripted/m1",
        agents=AGENTS.values(),
        config=model.opencode_config(),
        permission_policy=policy,
    )


async def busy_sessions(backend: OpenCodeBackend, directory: Path) -> dict[str, object]:
    server = backend._server
    assert server is not None
    assert backend.url is not None
    async with httpx2.AsyncClient(
        base_url=backend.url, auth=("opencode", server.password), trust_env=False
    ) as client:
        answer = await client.get(
            "/session/status", headers={"x-opencode-directory": str(directory)}
        )
        status: dict[str, object] = answer.json()
    return status


@pytest.mark.real_server
async def test_on_the_real_server(tmp_path: Path) -> None:
    """Rejections, a 429, a permission request and a cut stream: accepted, and nothing is left."""
    asked: list[PermissionRequest] = []

    def policy(request: PermissionRequest) -> PermissionReply:
        asked.append(request)
        return PermissionReply(is_allowed=True)

    workspace = tmp_path / "workspace"
    workspace.mkdir()
    async with ScriptedModel(*rules(workspace)) as model:
        async with backend_for(model, policy) as backend:
            with anyio.fail_after(120):
                report = await run_mission(
                    "write 20 files", backend=backend, directory=workspace, agents=AGENTS
                )
            assert await busy_sessions(backend, workspace) == {}
            assert backend.statistics().sessions_open == 0
            server = backend._server
            assert server is not None
            marker = server._marker
            assert find_processes(marker), "the proof below would prove nothing"
        assert not find_processes(marker), "a process was left behind"
        assert not model.unmatched
        assert sum(call.agent == "worker" for call in model.requests) >= 2 * 23
    check(report, workspace)
    assert [(each.permission, each.patterns) for each in asked] == [("bash", ("echo hello",))]
    assert report.statistics["permissions"] == 1
    assert report.usage.cost > 0
    assert any("slow down" in warning for warning in report.warnings)
    assert sorted(path.name for path in workspace.iterdir()) == sorted(
        [*(f"{name}.txt" for name in TASKS), "TODO.md"]
    )


@pytest.mark.real_server
async def test_killed_server_ends_the_mission(tmp_path: Path) -> None:
    """After kill -9 of the server the mission ends at once, with a report that says so."""
    script = (
        Rule(agent="commander", answer=["Twenty files."]),
        Rule(agent="planner", answer=lambda _: [plan()]),
        Rule(agent="worker", answer=Hang("I am thinking", times=None)),
    )
    async with (
        ScriptedModel(*script) as model,
        backend_for(model) as backend,
        Mission("write 20 files", backend=backend, directory=tmp_path, agents=AGENTS) as mission,
    ):
        with anyio.fail_after(60):
            async for event in mission.events():
                if isinstance(event, AgentActed) and event.role is Role.WORKER:
                    break
        assert backend.server_pid is not None
        os.kill(backend.server_pid, signal.SIGKILL)
        with anyio.fail_after(30):
            report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.FAILED
    assert "the backend is gone" in report.reason
    assert "9" in report.reason
    assert all(task.state is not TaskState.WORKING for task in report.tasks)
