"""What is remembered, as the model of a real server gets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestra import MemoryStore
from orchestra.opencode import ROLE_AGENTS, MissionSettings, Plan, Role, TaskSpec, run_mission
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.prompt_limits import MAX_SYSTEM
from orchestra.testing import ToolCall

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

    from orchestra.testing import ModelRequest

PROMPT = ROLE_AGENTS[Role.WORKER].prompt.strip()
REASON = "the importer insists on a trailing newline in table.csv"


@pytest.mark.real_server
async def test_the_model_is_told_once(real_server: RealServer, tmp_path: Path) -> None:
    """A lesson joins the worker's system text, which is there once and within its limit."""

    def work(request: ModelRequest) -> ToolCall | str:
        if request.step > 0:
            return "Wrote the table with the newline that the importer wants at its end."
        is_warned = "trailing newline" in request.system + request.prompt
        path = tmp_path / read_task(request.prompt).files[0]
        content = f"{request.session_id},{len(request.messages)}" + "\n" * is_warned
        return ToolCall("write", {"filePath": str(path), "content": content})

    def review(request: ModelRequest) -> str:
        is_right = (tmp_path / read_task(request.prompt).files[0]).read_text().endswith("\n")
        verdict = {"verdict": "accept"} if is_right else {"verdict": "reject", "reasons": [REASON]}
        return json.dumps(verdict)

    real_server.scripts.update({"worker": work, "reviewer": review})
    reports = []
    systems: list[set[str]] = []
    try:
        async with MemoryStore() as store, real_server.backend() as backend:
            for title in ("write the table", "append new rows"):
                before = len(real_server.model.requests)
                with anyio.fail_after(60):
                    report = await run_mission(
                        "keep the table",
                        backend=backend,
                        directory=tmp_path,
                        plan=Plan((TaskSpec(id="t1", title=title, files=("table.csv",)),)),
                        settings=MissionSettings(retry_delay=0, todo_file=None),
                        store=store,
                    )
                reports.append(report)
                requests = real_server.model.requests[before:]
                systems.append({each.system for each in requests if each.agent == "worker"})
    finally:
        real_server.scripts.clear()
    assert [report.tasks[0].rounds for report in reports] == [2, 1]
    (first,), (second,) = systems
    assert "<memory>" not in first
    added = len(second) - len(first)
    assert abs(added - reports[1].statistics["memory_characters"]) <= len("\n\n")
    for system in (first, second):
        assert system.count(PROMPT) == 1
    assert second.count("<memory>") == second.count("</memory>") == 1
    assert len(PROMPT.encode()) + added <= MAX_SYSTEM
