"""What a pool asks of a session and of a directory, on a server that misbehaves on demand."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestra.abc import Session
from orchestra.errors import ServerError
from orchestra.events import FinishReason
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import TurnTiming

if TYPE_CHECKING:
    from tests.opencode.conftest import Answer, FakeServer

STREAM = StreamTiming(silence=60.0, window=1.0, first_delay=0.01, longest_delay=0.05)
TURN = TurnTiming(start=0.2, start_limit=1.0, settle=0.02, settle_limit=0.2, quiet=60.0)
LIST = "GET /session/ses_0/message"


@pytest.fixture
async def backend(fake_server: FakeServer) -> AsyncIterator[OpenCodeBackend]:
    """A backend that is attached to the fake server."""
    attached = OpenCodeBackend(fake_server.url, stream_timing=STREAM, turn_timing=TURN)
    async with attached:
        yield attached


@pytest.fixture
async def session(backend: OpenCodeBackend, tmp_path: Path) -> AsyncIterator[Session]:
    """An open session, with one prompt behind it."""
    async with backend.lease("echo", directory=tmp_path) as found:
        assert (await found.prompt("the secret")).reason is FinishReason.DONE
        yield found


@pytest.fixture
def answers(fake_server: FakeServer) -> type[Answer]:
    """How the fake server's faults are written."""
    found: type[Answer] = sys.modules[type(fake_server).__module__].Answer
    return found


# --- reset ---


async def test_a_reset_deletes_every_message_and_looks_again(
    fake_server: FakeServer, session: Session
) -> None:
    """Both messages are deleted one by one, and the last question is whether any is left."""
    assert len(fake_server.messages["ses_0"]) == 2
    assert await session.reset()
    assert fake_server.messages["ses_0"] == []
    deletions = fake_server.seen(f"DELETE {LIST[4:]}/*")
    assert len(deletions) == 2
    last = fake_server.requests.index(deletions[-1])
    after = {request.path for request in fake_server.requests[last + 1 :]}
    assert {"/session/ses_0/message", "/session/ses_0/todo", "/session/status"} <= after
    assert await session.check()
    assert (await session.prompt("next")).reason is FinishReason.DONE


async def test_a_message_that_stays_is_no_proof(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """A server that says it has deleted a message, and has not, is not believed."""
    stays = fake_server.messages["ses_0"][0]["info"]["id"]
    fake_server.faults[f"DELETE {LIST[4:]}/{stays}"] = [answers(body=True)]
    assert not await session.reset()
    assert await session.reset(), "it can be tried again"


async def test_a_to_do_list_is_no_proof(fake_server: FakeServer, session: Session) -> None:
    """The server cannot clear what the agent has noted."""
    fake_server.todos = [{"content": "the secret", "status": "pending"}]
    assert not await session.reset()


async def test_a_session_that_others_keep_busy_is_left_alone(
    fake_server: FakeServer, session: Session
) -> None:
    """What the server calls busy is not emptied, and not fit for a prompt."""
    fake_server.statuses["ses_0"] = {"type": "busy"}
    assert not await session.check()
    assert not await session.reset()
    assert len(fake_server.messages["ses_0"]) == 2
    fake_server.statuses.clear()


async def test_sub_agents_are_deleted_too(fake_server: FakeServer, session: Session) -> None:
    """A child holds a transcript as well; it is aborted, and deleted when it is idle."""
    fake_server.children["ses_0"] = [{"id": "ses_child"}]
    assert await session.reset()
    paths = [f"{request.method} {request.path}" for request in fake_server.requests]
    aborted = paths.index("POST /session/ses_child/abort")
    assert aborted < paths.index("DELETE /session/ses_child")


@pytest.mark.parametrize("call", [f"DELETE {LIST[4:]}/msg_1", LIST, "GET /session/ses_0/todo"])
async def test_an_error_is_no_proof(
    fake_server: FakeServer, session: Session, answers: type[Answer], call: str
) -> None:
    """Wherever the server fails, the answer is no, and nothing is raised."""
    fake_server.faults[call] = [answers({"name": "Broken"}, status=500)]
    assert not await session.reset()


async def test_a_session_in_doubt_cannot_be_reset(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """After a turn that failed nobody knows what the server remembers."""
    fault = answers({"name": "Broken"}, status=500)
    fake_server.faults["POST /session/ses_0/prompt_async"] = [fault]
    assert (await session.prompt("go")).reason is FinishReason.FAILED
    assert not await session.reset()


async def test_no_prompt_comes_between_a_reset(fake_server: FakeServer, session: Session) -> None:
    """While a session is being emptied it takes no prompt and no second reset."""
    fake_server.silent.add("/session/ses_0/todo")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.reset)
        await fake_server.wait_seen("GET /session/ses_0/todo")
        with pytest.raises(anyio.BusyResourceError):
            await session.prompt("me first")
        assert not await session.reset()
        assert not await session.check()
        tasks.cancel_scope.cancel()
    fake_server.silent.clear()
    assert await session.reset()


# --- check and relabel ---


async def test_what_is_written_into_an_empty_session_is_noticed(
    fake_server: FakeServer, session: Session
) -> None:
    """After a reset a session must still be empty when it is looked at."""
    assert await session.reset()
    fake_server.store("ses_0", "msg_x", "written late")
    assert not await session.check()


async def test_a_lost_session_is_noticed(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """A session that the server does not know any more is not fit; nothing is raised."""
    assert await session.check()
    lost = answers({"name": "NotFoundError", "data": {"message": "gone"}}, status=404)
    fake_server.faults[LIST] = [lost]
    assert not await session.check()


async def test_title_and_metadata_are_replaced(fake_server: FakeServer, session: Session) -> None:
    """Both are sent; an empty title becomes the one that open() would have given."""
    await session.relabel(title="the parser", metadata={"task": "t1"})
    await session.relabel(title="", metadata={})
    first, second = fake_server.seen("PATCH /session/ses_0")
    assert first.body == {"title": "the parser", "metadata": {"task": "t1"}}
    assert second.body == {"title": "orchestra: echo", "metadata": {}}


# --- prewarm ---


async def test_a_directory_is_warmed_up_once(
    fake_server: FakeServer, backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """However many ask, one session is created and deleted; after a broken stream one more."""
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(backend.prewarm, tmp_path)
    await backend.prewarm(tmp_path)
    assert len(fake_server.seen("POST /session")) == 1
    assert len(fake_server.seen("DELETE /session/ses_0")) == 1
    assert backend.statistics().sessions_opened == 0
    await fake_server.cut()
    await fake_server.wait_seen("GET /event", 2)
    await backend.prewarm(tmp_path)
    assert len(fake_server.seen("DELETE /session/*")) == 2


async def test_warming_up_leaves_nothing_when_it_is_cancelled(
    fake_server: FakeServer, backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """A session that has just been created is deleted, and the next attempt begins anew."""
    async with anyio.create_task_group() as tasks:
        fake_server.silent.add("/agent")
        tasks.start_soon(backend.prewarm, tmp_path)
        await fake_server.wait_seen("GET /agent")
        tasks.cancel_scope.cancel()
    fake_server.silent.clear()
    async with anyio.create_task_group() as tasks:
        fake_server.silent.add("/session/ses_0/abort")
        tasks.start_soon(backend.prewarm, tmp_path)
        await fake_server.wait_seen("POST /session")
        fake_server.silent.clear()
        tasks.cancel_scope.cancel()
    assert len(fake_server.seen("DELETE /session/*")) == len(fake_server.seen("POST /session"))
    await backend.prewarm(tmp_path)
    assert len(fake_server.seen("DELETE /session/*")) == len(fake_server.seen("POST /session"))


async def test_a_server_that_cannot_warm_up_says_so(
    fake_server: FakeServer, backend: OpenCodeBackend, tmp_path: Path, answers: type[Answer]
) -> None:
    """The server's error comes out, and the directory does not count as warm."""
    fake_server.faults["POST /session"] = [answers({"name": "Broken"}, status=500)]
    with pytest.raises(ServerError):
        await backend.prewarm(tmp_path)
    await backend.prewarm(tmp_path)
    assert len(fake_server.seen("DELETE /session/*")) == 1
    with pytest.raises(NotADirectoryError):
        await backend.prewarm(tmp_path / "nowhere")
