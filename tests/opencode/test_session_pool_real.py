"""A pool of sessions on the real server; a scripted model answers behind it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from orchestra import SessionPool
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client import wire

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

pytestmark = pytest.mark.real_server


@pytest.fixture
async def backend(real_server: RealServer) -> AsyncIterator[OpenCodeBackend]:
    """A backend that is attached to the shared server."""
    async with real_server.backend() as found:
        yield found


async def sessions_in(backend: OpenCodeBackend, directory: Path) -> list[str]:
    """The sessions that the server has for a directory, and no runs there."""
    place = str(await anyio.Path(directory).resolve())
    http = backend._http
    assert http is not None
    assert await http.statuses(place) == {}
    data = await http._call("GET", "/session", place, params={"limit": 1000})
    listed = wire.decode(data, tuple[wire.SessionInfo, ...])
    return [info.id for info in listed if info.directory == place]


async def test_prewarming_calls_no_model_and_leaves_no_session(
    backend: OpenCodeBackend, real_server: RealServer, tmp_path: Path
) -> None:
    """A warm directory has cost nothing and holds nothing; the first prompt there works."""
    before = len(real_server.model.calls())
    with anyio.fail_after(60):
        await backend.prewarm(tmp_path)
        assert await sessions_in(backend, tmp_path) == []
        assert len(real_server.model.calls()) == before
        assert real_server.model.unmatched == ()
        async with backend.lease("echo", directory=tmp_path) as session:
            assert (await session.prompt("hello")).text == "hello"


async def test_a_reset_session_tells_the_model_nothing_of_its_past(
    backend: OpenCodeBackend, real_server: RealServer, tmp_path: Path
) -> None:
    """After a reset the model gets one prompt, the new one; tools and sub-agents are gone too."""
    with anyio.fail_after(90):
        async with SessionPool(backend, policy="reset", max_size=1) as pool:
            ids = set()
            for text in ("the secret", "another one"):
                async with pool.lease("echo", directory=tmp_path, title=text) as session:
                    await session.prompt(f"{text} 1")
                    assert (await session.prompt(f"{text} 2")).text == f"{text} 2"
                    ids.add(session.id)
            prompts = [
                message["content"]
                for message in real_server.model.calls(agent="echo")[-1].messages
                if message["role"] == "user"
            ]
            assert prompts == ["another one 1", "another one 2"]
            assert len(ids) == 1
            async with pool.lease("echo", directory=tmp_path):
                pass
        assert pool.statistics().reset_failures == 0
        assert await sessions_in(backend, tmp_path) == []


async def test_a_session_with_a_to_do_list_is_not_leased_again(
    backend: OpenCodeBackend, tmp_path: Path
) -> None:
    """The server keeps what the agent has noted, so the session is closed."""
    with anyio.fail_after(60):
        async with SessionPool(backend, policy="reset", max_size=1) as pool:
            ids = set()
            for _ in range(2):
                async with pool.lease("noter", directory=tmp_path) as session:
                    assert (await session.prompt("take a note")).text == "Noted."
                    ids.add(session.id)
        assert len(ids) == 2
        assert pool.statistics().reset_failures == 2
        assert await sessions_in(backend, tmp_path) == []


@pytest.mark.parametrize("policy", ["fresh", "reset"])
async def test_cancelled_at_random_nothing_is_left_on_the_server(
    backend: OpenCodeBackend, tmp_path: Path, policy: Literal["fresh", "reset"]
) -> None:
    """Missions that end, hang or fail, and are cancelled anywhere: no session, no run is left."""
    rng = random.Random(6)
    with anyio.fail_after(120):
        async with SessionPool(backend, policy=policy) as pool:

            async def mission(name: str) -> None:
                agent = rng.choice(("echo", "slow", "fail", "tool"))
                with anyio.move_on_after(rng.uniform(0.0, 1.5)):
                    async with pool.lease(agent, directory=tmp_path, mission=name) as session:
                        await session.prompt(name)

            async with anyio.create_task_group() as tasks:
                for n in range(30):
                    tasks.start_soon(mission, f"m{n}")
            assert pool.statistics().in_use == 0
            async with pool.lease("echo", directory=tmp_path, mission="last") as session:
                assert (await session.prompt("last")).text == "last"
        assert await sessions_in(backend, tmp_path) == []
    end = pool.statistics()
    assert end.opened == end.closed > 0
