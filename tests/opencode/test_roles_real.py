"""What each role may do, as the real server offers it to the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs
import pytest

from orchestra import Agent
from orchestra.events import FinishReason, SessionEvent, ToolCalled
from orchestra.opencode import ROLE_AGENTS, Role
from orchestra.testing import ModelRequest, ToolCall

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

pytestmark = pytest.mark.real_server

OFFERED = {
    Role.COMMANDER: {"bash", "glob", "grep", "read", "skill", "todowrite", "webfetch"},
    Role.PLANNER: {"glob", "grep", "read", "todowrite"},
    Role.WORKER: {
        *("bash", "edit", "glob", "grep", "read", "skill", "todowrite", "webfetch", "write"),
    },
    Role.REVIEWER: {"bash", "glob", "grep", "read"},
}
"""The tools that each rule set leaves, as seen on server 1.18.33."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all tests, since a server takes seconds for each new one."""
    return tmp_path_factory.mktemp("roles")


async def test_the_tools_of_each_role(real_server: RealServer, place: Path) -> None:
    """Exactly the role's tools are offered, by a server that was told of it and by any other."""
    async with real_server.backend() as backend:
        for role, agent in ROLE_AGENTS.items():
            unheard_of = attrs.evolve(agent, name=f"unheard-of-{role.value}")
            for known in (Agent(role.value), unheard_of):
                before = len(real_server.model.requests)
                async with backend.lease(known, directory=place) as session:
                    with anyio.fail_after(60):
                        assert (await session.prompt("hello")).text == "hello"
                (request,) = real_server.model.requests[before:]
                assert request.agent == role.value
                assert request.system.count(agent.prompt.strip()) == 1
                assert set(request.tools) == OFFERED[role], (role, known.name)


async def test_nobody_starts_agents_of_its_own(real_server: RealServer, place: Path) -> None:
    """A worker that calls the tool for sub-agents all the same is told that there is none."""

    def delegate(request: ModelRequest) -> str | ToolCall:
        if request.step:
            return "alone, then"
        task = {"description": "work", "prompt": "do it", "subagent_type": "echo"}
        return ToolCall("task", task)

    real_server.scripts["worker"] = delegate
    events: list[SessionEvent] = []
    try:
        async with (
            real_server.backend() as backend,
            backend.lease(ROLE_AGENTS[Role.WORKER], directory=place) as session,
        ):
            with anyio.fail_after(60):
                end = await session.prompt("go", listener=events.append)
            assert backend._http is not None
            assert await backend._http.children(session.id) == ()
    finally:
        del real_server.scripts["worker"]
    assert (end.reason, end.text) == (FinishReason.DONE, "alone, then")
    last = [event for event in events if isinstance(event, ToolCalled)][-1]
    assert "task" in f"{last.tool} {last.input} {last.output} {last.error}"
