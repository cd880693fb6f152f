"""What only the real server can prove; a scripted model answers behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestra.abc import Agent, PermissionRule, Session
from orchestra.errors import (
    AgentNotFoundError,
    ConfigurationError,
    ModelNotFoundError,
    ServerError,
    TransportError,
)
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionAsked,
    RetryScheduled,
    SessionEvent,
    TextReceived,
    ToolCalled,
    ToolStatus,
)
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.reaper import find_processes
from orchestra.testing import Rule, ScriptedModel, ToolCall

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

pytestmark = pytest.mark.real_server


@pytest.fixture
async def backend(real_server: RealServer) -> AsyncIterator[OpenCodeBackend]:
    """A backend that is attached to the shared server."""
    async with real_server.backend() as found:
        yield found


async def run(session: Session, prompt: str = "go") -> tuple[list[SessionEvent], Finished]:
    """Run a turn to its end; a turn that hangs fails."""
    events: list[SessionEvent] = []
    with anyio.fail_after(60):
        end = await session.prompt(prompt, listener=events.append)
    return events, end


async def expect_idle(backend: OpenCodeBackend, directory: Path) -> None:
    """The server says that nothing runs and nobody waits in a directory."""
    http = backend._http
    assert http is not None
    assert await http.statuses(str(directory)) == {}
    assert await http.permissions(str(directory)) == ()


async def test_a_subagents_request_is_answered_and_its_usage_counted(
    backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """The task tool's session asks, the policy answers, and four model calls are counted."""
    async with backend.lease("boss", directory=tmp_path) as session:
        events, end = await run(session, "ask")
    assert (end.reason, end.text) == (FinishReason.DONE, "delegated")
    (asked,) = [event for event in events if isinstance(event, PermissionAsked)]
    assert asked.session_id == session.id != asked.request.session_id
    assert asked.request.agent == "ask"
    assert asked.request.patterns == ("echo asked",)
    assert end.usage.input_tokens == 400


async def test_aborting_a_session_ends_its_subagent(
    backend: OpenCodeBackend, real_server: RealServer, tmp_path: Path
) -> None:
    """Nothing of the tree is busy afterwards; the next prompt works."""
    before = len(real_server.model.calls(agent="slow"))
    async with backend.lease("boss", directory=tmp_path) as session:
        with anyio.fail_after(60):
            async with session.stream("slow") as events:
                async for event in events:
                    is_running = isinstance(event, ToolCalled) and (
                        event.status is ToolStatus.RUNNING
                    )
                    if is_running:
                        while len(real_server.model.calls(agent="slow")) == before:  # noqa: ASYNC110 - the model is in a thread
                            await anyio.sleep(0.02)
                        await session.abort()
        await expect_idle(backend, tmp_path)
        _, end = await run(session, "echo")
        assert end.reason is FinishReason.DONE


async def test_a_retry_is_told_and_survived(backend: OpenCodeBackend, tmp_path: Path) -> None:
    """The server repeats a call that got a 429; the turn tells of it and ends well."""
    async with backend.lease("limited", directory=tmp_path) as session:
        events, end = await run(session)
    (retry,) = [event for event in events if isinstance(event, RetryScheduled)]
    assert retry.attempt == 1
    assert retry.delay <= 1.0
    assert (end.reason, end.text) == (FinishReason.DONE, "at last")


async def test_a_turn_that_waits_for_a_retry_can_be_aborted(
    backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """A provider that asks for five minutes does not park the session for five minutes."""
    async with backend.lease("parked", directory=tmp_path) as session:
        with anyio.fail_after(60):
            async with session.stream("go") as events:
                async for event in events:
                    if isinstance(event, RetryScheduled):
                        assert event.delay > 200
                        await session.abort()
        assert isinstance(event, Finished)
        assert event.reason is FinishReason.ABORTED
        await expect_idle(backend, tmp_path)


async def test_a_cut_answer_says_so(backend: OpenCodeBackend, tmp_path: Path) -> None:
    """An answer that ran into the output limit is not taken for a whole one."""
    async with backend.lease("cut", directory=tmp_path) as session:
        _, end = await run(session)
    assert (end.reason, end.text) == (FinishReason.LENGTH, "cut off here")


async def test_invalid_utf8_of_a_tool_is_survived(backend: OpenCodeBackend, tmp_path: Path) -> None:
    """Bytes that are no text come through as replacement characters."""
    async with backend.lease("noise", directory=tmp_path) as session:
        events, end = await run(session)
    assert end.reason is FinishReason.DONE
    calls = [event for event in events if isinstance(event, ToolCalled)]
    output = calls[-1].output
    assert output[0] + output[-1] == "ab"


async def test_an_agent_that_the_server_lacks_obeys_its_prompt_and_rules(
    backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """Its prompt reaches the model as system text; its rules hold for the session."""
    rules = (PermissionRule(permission="bash", action="ask"),)
    agent = Agent("stranger", prompt="You are the ask.", permissions=rules)
    async with backend.lease(agent, directory=tmp_path) as session:
        events, end = await run(session)
    assert end.text == "refused"
    assert [event.request.permission for event in events if isinstance(event, PermissionAsked)]


async def test_directories_of_any_name_work(backend: OpenCodeBackend, tmp_path: Path) -> None:
    """Blanks, percent signs, other alphabets and symbolic links reach the server unharmed."""
    real = tmp_path / "wörk 100% 世界"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    for directory in (real, link):
        async with backend.lease("echo", directory=directory) as session:
            events, end = await run(session, "hello")
        assert end.text == "hello"
        assert [event for event in events if isinstance(event, TextReceived)]


async def test_forty_sessions_run_at_once(backend: OpenCodeBackend, tmp_path: Path) -> None:
    """Every one of many concurrent sessions gets its own answer."""
    answers: dict[int, str] = {}

    async def talk(number: int) -> None:
        async with backend.lease("echo", directory=tmp_path) as session:
            answers[number] = (await session.prompt(f"number {number}")).text

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(talk, number)
    assert answers == {number: f"number {number}" for number in range(40)}
    await expect_idle(backend, tmp_path)


async def test_what_does_not_exist_is_told_with_what_does(
    backend: OpenCodeBackend, real_server: RealServer, tmp_path: Path
) -> None:
    """Unknown agents and models, and a wrong password, on the real server."""
    with pytest.raises(AgentNotFoundError, match=r"'nobody'.*echo"):
        await backend.open("nobody", directory=tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"'scripted/m2'.*scripted/m1"):
        await backend.open(Agent("echo", model="scripted/m2"), directory=tmp_path)
    with pytest.raises(ServerError, match="password"):
        async with OpenCodeBackend(real_server.url, password="wrong"):  # noqa: S106
            raise AssertionError("entered")


# --- servers of our own ---


async def test_a_killed_server_ends_its_turns_and_its_processes(
    real_server: RealServer, tmp_path: Path
) -> None:
    """Killed in the middle: every turn ends as LOST at once, and nothing is left running."""
    command = {"command": "setsid sleep 1000 & sleep 1000", "description": "Wait"}
    agents = [Agent(name, prompt=f"You are the {name}.") for name in ("hang", "slow")]
    ends: list[Finished] = []
    async with ScriptedModel(Rule(agent="hang", answer=ToolCall("bash", command)),
                             Rule(agent="slow", answer="unused")) as model:  # fmt: skip
        provider = {**real_server.config["provider"]["scripted"]}
        provider["options"] = {**provider["options"], "baseURL": model.url}
        config = {**real_server.config, "provider": {"scripted": provider}}
        with anyio.fail_after(90):
            async with OpenCodeBackend(
                agents=agents, config=config, model="scripted/m1"
            ) as backend:
                session = await backend.open("hang", directory=tmp_path)
                pid = backend.server_pid
                assert pid is not None
                assert backend._server is not None
                marker = backend._server._marker

                async def kill_when_running() -> None:
                    while len(find_processes(marker)) < 4:  # noqa: ASYNC110 - server, sh, sleeps
                        await anyio.sleep(0.05)
                    os.kill(pid, signal.SIGKILL)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill_when_running)
                    ends.append(await session.prompt("go"))
                with anyio.fail_after(30):
                    while find_processes(marker):  # noqa: ASYNC110 - no event says it
                        await anyio.sleep(0.02)
                with pytest.raises(TransportError, match="killed by signal 9"):
                    await backend.open("hang", directory=tmp_path)
                home = backend._server._home
    assert not home.exists()
    assert ends[0].reason is FinishReason.LOST
    assert ends[0].error is not None
    assert "killed by signal 9" in ends[0].error.message


async def test_a_wrong_configuration_is_told_with_its_path(tmp_path: Path) -> None:
    """What the server says about its configuration becomes one sentence per fault."""
    config = {"agent": {"x": {"mode": "sometimes"}}, "provider": {}}
    async with OpenCodeBackend(config=config) as backend:
        with pytest.raises(ConfigurationError, match=r"agent\.x\.mode"):
            await backend.open("build", directory=tmp_path)
