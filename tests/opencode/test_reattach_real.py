"""What is left of prompts on a real server when we, or the server, or both are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from benchmarks.killable import PASSWORD, KillableServer

from orchestra.abc import Agent, Session
from orchestra.events import Finished, FinishReason, Started, TextReceived
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.testing import ModelRequest, Reply, Rule, ScriptedModel

pytestmark = pytest.mark.real_server

AGENT = Agent("echo", prompt="You are the echo.")


async def _repeat(request: ModelRequest) -> Reply:
    """Answer at once, or when the file that the prompt names is there."""
    word, _, place = request.prompt.partition(" ")
    while word == "wait" and not await anyio.Path(place).exists():  # noqa: ASYNC110
        await anyio.sleep(0.02)
    return Reply(f"heard {word}")


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            ScriptedModel(Rule(agent="echo", answer=_repeat))
        ) as model,
    ):
        yield model


@pytest.fixture(scope="module")
def server(
    model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KillableServer]:
    config = model.opencode_config()
    with KillableServer(tmp_path_factory.mktemp("server"), config) as server:
        yield server


def backend_of(server: KillableServer) -> OpenCodeBackend:
    return OpenCodeBackend(server.url, password=PASSWORD, model="scripted/m1")


async def until_called(model: ScriptedModel, prompt: str) -> None:
    with anyio.fail_after(30):
        while not model.calls(prompt=prompt):  # noqa: ASYNC110  (it runs on another loop)
            await anyio.sleep(0.02)


async def leave_running(
    server: KillableServer, directory: Path, prompt: str, model: ScriptedModel
) -> tuple[str, str]:
    """Send a prompt and go away while it runs, as a process does that is killed."""
    async with backend_of(server) as backend:
        session = await backend.open(AGENT, directory=directory, metadata={"mission": prompt})
        prompt_id = session.new_prompt_id()
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await session.prompt(prompt, prompt_id=prompt_id)

            tasks.start_soon(run)
            await until_called(model, prompt)
            await session.detach()
        return session.id, prompt_id


async def is_done(backend: OpenCodeBackend, session_id: str) -> bool:
    assert backend._http is not None
    return bool((await backend._http.messages(session_id, limit=1))[0].info.finish)


async def told(session: Session, prompt: str, prompt_id: str) -> Finished:
    """Follow a prompt to its end."""
    async with session.stream(prompt, prompt_id=prompt_id) as stream:
        events = [event async for event in stream]
    begun, finished = events[0], events[-1]
    assert isinstance(begun, Started)
    assert begun.prompt_id == prompt_id
    assert isinstance(finished, Finished)
    texts = [event.text for event in events if isinstance(event, TextReceived)]
    assert "".join(texts).endswith(finished.text)
    return finished


async def test_a_running_turn_is_followed(
    server: KillableServer, model: ScriptedModel, tmp_path: Path
) -> None:
    """A turn that went on without us is followed to its end, and the model was asked once."""
    prompt = f"wait {tmp_path / 'go'}"
    session_id, prompt_id = await leave_running(server, tmp_path, prompt, model)
    async with backend_of(server) as backend:
        found = await backend.find_sessions({"mission": prompt}, directory=tmp_path)
        assert found == (session_id,)
        async with await backend.reopen(session_id, AGENT, directory=tmp_path) as session:
            async with anyio.create_task_group() as tasks:

                async def release() -> None:
                    await anyio.sleep(0.3)
                    (tmp_path / "go").touch()

                tasks.start_soon(release)
                finished = await told(session, prompt, prompt_id)
            assert (finished.reason, finished.text) == (FinishReason.DONE, "heard wait")
            assert finished.usage.input_tokens > 0
            # What came later does not change what an earlier prompt was answered.
            later = session.new_prompt_id()
            assert (await told(session, "later", later)).text == "heard later"
            assert (await told(session, prompt, prompt_id)).text == "heard wait"
            assert (await told(session, "later", later)).text == "heard later"
        assert await backend.find_sessions({"mission": prompt}, directory=tmp_path) == ()
    assert len(model.calls(prompt=prompt)) == 1


async def test_a_server_that_was_killed(
    server: KillableServer, model: ScriptedModel, tmp_path: Path
) -> None:
    """After a kill a finished turn is told, a broken one is interrupted, a stored one begun."""
    done, broken = f"wait {tmp_path / 'done'}", f"wait {tmp_path / 'broken'}"
    ended = await leave_running(server, tmp_path, done, model)
    (tmp_path / "done").touch()
    cut_off = await leave_running(server, tmp_path, broken, model)
    async with backend_of(server) as backend:
        session = await backend.open(AGENT, directory=tmp_path)
        stored = session.id, session.new_prompt_id()
        part = {"id": f"prt{stored[1].removeprefix('msg')}", "type": "text", "text": broken + "2"}
        body = {"messageID": stored[1], "noReply": True, "parts": [part]}
        assert backend._http is not None
        await backend._http.prompt(session.id, body)
        while not await is_done(backend, ended[0]):  # noqa: ASYNC110
            await anyio.sleep(0.02)
        await session.detach()
    server.kill()
    (tmp_path / "broken").touch()
    (tmp_path / "broken2").touch()
    server.start()
    async with backend_of(server) as backend:
        for (session_id, prompt_id), prompt, reason in (
            (ended, done, FinishReason.DONE),
            (cut_off, broken, FinishReason.INTERRUPTED),
            (stored, broken + "2", FinishReason.DONE),
        ):
            async with await backend.reopen(session_id, AGENT, directory=tmp_path) as session:
                with anyio.fail_after(20):
                    finished = await told(session, prompt, prompt_id)
                assert finished.reason is reason
                assert finished.text == ("heard wait" if reason is FinishReason.DONE else "")
                calls = model.calls(prompt=lambda text, prompt=prompt: text == prompt)
                assert len(calls) == 1
