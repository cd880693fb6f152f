"""Models that do not get anywhere, behind the real OpenCode server: the end is near and told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestra.opencode import (
    MissionOutcome,
    MissionReport,
    MissionSettings,
    Plan,
    TaskSpec,
    report_from_json,
    run_mission,
)
from orchestra.opencode.mission.plan import LoopLimits
from orchestra.testing import ModelRequest, Rule, ScriptedModel, ToolCall

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

SCRIPT = Path(sys.executable).with_name("orchestra")
PLAN = json.dumps({"tasks": [{"id": "one", "title": "Write it", "files": ["one.txt"]}]})


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.real_server
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_always_done_is_exit_code_1_in_bounded_requests(tmp_path: Path) -> None:
    """Refused by the gates, ended by stagnation, with a report, after 18 prompts.

    Three plans, each with a commander, a planner, and four turns of the worker.
    """
    await anyio.Path(tmp_path / "work").mkdir()
    path = tmp_path / "mission.toml"
    rules = (Rule(agent="planner", answer=[PLAN]), Rule(answer=["done"]))
    async with ScriptedModel(*rules) as model:
        await anyio.Path(path).write_text(
            f"""
goal = "write a file"
workspace.directory = "work"
[backend]
kind = "opencode"
model = "scripted/m1"
config = {_toml(model.opencode_config())}
"""
        )
        with anyio.fail_after(120):
            done = await anyio.run_process(
                [str(SCRIPT), "run", str(path), "--json"], check=False, stdin=subprocess.DEVNULL
            )
        agents = [
            request.agent
            for request in model.requests
            if request.agent in {"commander", "planner", "worker", "reviewer"}
        ]
        assert len(model.requests) <= 2 * len(agents)
    assert done.returncode == 1, done.stderr
    report = report_from_json(json.loads(done.stdout))
    assert report.outcome.value == "failed"
    assert report.reason.startswith("stagnation: plans change nothing any more; 1 of 1 task")
    assert {name: agents.count(name) for name in set(agents)} == {
        "commander": 3,
        "planner": 3,
        "worker": 3 * 4,
    }
    for task in report.tasks:
        assert task.receipt is not None
        assert not task.receipt.is_passed
        assert "stagnation" in task.reasons[-1]
    assert (tmp_path / "work" / ".orchestra" / "report.html").is_file()


async def run_stuck(
    server: RealServer,
    directory: Path,
    worker: Callable[[ModelRequest], str | ToolCall],
    **limits: int,
) -> tuple[MissionReport, list[ModelRequest]]:
    """Run a mission of one task whose reviewer is never content; return what the worker was asked."""
    server.scripts["worker"] = worker
    server.scripts["reviewer"] = lambda _: '{"verdict": "reject", "reasons": ["not yet"]}'
    first = len(server.model.requests)
    try:
        with anyio.fail_after(100):
            report = await run_mission(
                "never content",
                backend=server.backend(),
                directory=directory,
                plan=Plan([TaskSpec(id="t", title="t", files=("a",))]),
                settings=MissionSettings(
                    retry_delay=0, todo_file=None, loop=LoopLimits(rounds=20, **limits)
                ),
            )
    finally:
        server.scripts.clear()
    assert report.outcome is MissionOutcome.FAILED
    asked = server.model.requests[first:]
    assert report.usage.input_tokens <= 1_000 * len(asked)
    return report, [request for request in asked if request.agent == "worker"]


@pytest.mark.real_server
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_edits_back_and_forth(real_server: RealServer, tmp_path: Path) -> None:
    """Each round changes the file, to what it was two rounds ago: four rounds, not twenty."""
    rounds = 0

    def worker(request: ModelRequest) -> str | ToolCall:
        nonlocal rounds
        if request.step:
            return "Changed."
        rounds += 1
        return ToolCall("bash", {"command": f"echo {rounds % 2} > a", "description": "Edit"})

    report, asked = await run_stuck(real_server, tmp_path, worker, stagnation=1)
    (task,) = report.tasks
    assert task.rounds == rounds == 4
    assert len(asked) == 2 * rounds
    assert "stagnation: 3 rounds have changed neither its files" in task.reasons[-1]
    assert len({request.session_id for request in asked}) == 2, "the way was changed once"


@pytest.mark.real_server
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_same_tool_call_for_ever(real_server: RealServer, tmp_path: Path) -> None:
    """The turn is ended at the limit, tried once more in a fresh session, and given up."""

    def worker(_request: ModelRequest) -> ToolCall:
        return ToolCall("bash", {"command": "ls", "description": "Look"})

    report, asked = await run_stuck(real_server, tmp_path, worker, equal_calls=5)
    (task,) = report.tasks
    assert "it made the same call of 'bash' 5 times in a row" in task.reasons[-1]
    # One more may be on its way when the turn is ended.
    assert 10 <= len(asked) <= 12
    assert len({request.session_id for request in asked}) == 2
