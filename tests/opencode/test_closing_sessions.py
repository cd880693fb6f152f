"""Whom the server is asked about before a session is deleted there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestra.events import FinishReason
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import TurnTiming

if TYPE_CHECKING:
    from tests.opencode.conftest import FakeServer

STREAM = StreamTiming(silence=60.0, window=1.0, first_delay=0.01, longest_delay=0.05)
TURN = TurnTiming(start=0.2, start_limit=1.0, settle=0.02, settle_limit=0.2, quiet=60.0)


async def nothing(server: FakeServer) -> None:
    """Leave everything as it is."""


async def a_child(server: FakeServer) -> None:
    """Tell of a session that the session has started."""
    info = {"id": "ses_c", "parentID": "ses_0", "agent": "helper"}
    await server.send("session.created", sessionID="ses_c", info=info)


async def a_cut(server: FakeServer) -> None:
    """Break the stream, and wait for the next one."""
    await server.cut()
    await server.wait_seen("GET /event", 2)


async def a_riddle(server: FakeServer) -> None:
    """Send an event that nobody can read."""
    await server.send_raw(b"data: {\n\n")


@pytest.mark.parametrize(
    ("happens", "asked"), [(nothing, 0), (a_child, 1), (a_cut, 1), (a_riddle, 1)]
)
async def test_children_are_asked_for_when_there_may_be_some(
    fake_server: FakeServer,
    tmp_path: Path,
    happens: Callable[[FakeServer], Awaitable[None]],
    asked: int,
) -> None:
    """A stream that has missed nothing and told of no child is believed; any doubt is not."""
    with anyio.fail_after(30):
        async with (
            OpenCodeBackend(fake_server.url, stream_timing=STREAM, turn_timing=TURN) as backend,
            backend.lease("echo", directory=tmp_path) as session,
        ):
            await happens(fake_server)
            assert (await session.prompt("go")).reason is FinishReason.DONE
            before = len(fake_server.seen("GET /session/ses_0/children"))
        assert len(fake_server.seen("GET /session/ses_0/children")) - before == asked
        assert len(fake_server.seen("DELETE /session/ses_0")) == 1


async def test_children_are_asked_for_after_a_turn_that_was_cut_off(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """What an aborted agent has started at the last moment is looked for."""
    fake_server.is_answering = False
    with anyio.fail_after(30):
        async with (
            OpenCodeBackend(fake_server.url, stream_timing=STREAM, turn_timing=TURN) as backend,
            backend.lease("echo", directory=tmp_path) as session,
        ):
            async with session.stream("go") as events:
                await fake_server.wait_seen("POST /session/ses_0/prompt_async")
                await session.abort()
                assert [event async for event in events]
            before = len(fake_server.seen("GET /session/ses_0/children"))
        assert len(fake_server.seen("GET /session/ses_0/children")) > before
