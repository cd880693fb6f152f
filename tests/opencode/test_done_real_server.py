"""A model that only ever says "done", behind the real OpenCode server and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from orchestra.opencode import report_from_json
from orchestra.testing import Rule, ScriptedModel

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
