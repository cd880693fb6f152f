"""A cap on tokens against workers that all overspend, on the real server: what the model billed."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from orchestra.opencode import MissionOutcome, MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings
from orchestra.opencode.mission.run import run_mission
from orchestra.testing import ModelRequest, Reply, ToolCall, Usage

from .conftest import RealServer

pytestmark = pytest.mark.real_server

CAP, CHILDREN, STEP = 1_000_000, 8, 25_000


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_million_tokens_hold_against_eight_who_overspend(
    real_server: RealServer, tmp_path: Path
) -> None:
    """Each would use more than the cap alone; what the model billed exceeds it by one call at most."""
    (tmp_path / "notes.txt").write_text("\n".join(map(str, range(200))))
    billed: list[int] = []

    def overspend(request: ModelRequest) -> Reply:
        billed.append(STEP)
        path, line = str(tmp_path / "notes.txt"), len(billed) % 200
        call = ToolCall("read", {"filePath": path, "offset": line, "limit": 1})
        return Reply(calls=(call,), usage=Usage(input=STEP - 1_000, output=1_000), delay=0.3)

    real_server.scripts["worker"] = overspend
    try:
        async with real_server.backend() as backend:
            with anyio.fail_after(120):
                report = await run_mission(
                    "spend",
                    backend=backend,
                    directory=tmp_path,
                    plan=Plan([TaskSpec(id=f"t{n}", title="spend") for n in range(CHILDREN)]),
                    settings=MissionSettings(
                        todo_file=None,
                        retry_delay=0,
                        limits={"worker": CHILDREN},
                        budget=BudgetSettings(mission=Allowance(tokens=CAP)),
                    ),
                )
    finally:
        del real_server.scripts["worker"]
    assert report.outcome is MissionOutcome.FAILED
    assert "budget 'mission" in report.reason
    assert report.costs is not None
    assert CAP // 2 < report.costs.tokens <= CAP + STEP
    # Nobody tells what a call has cost that was under way when its turn was ended: it is counted.
    assert CAP // 2 < sum(billed) <= CAP + STEP
