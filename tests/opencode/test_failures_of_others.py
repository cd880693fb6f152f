"""Failures that users of other orchestrators met, reproduced against ours.

Each test names its thread and the mechanism. Here are those of talking with a server; those of
missions, processes and the store are in ``tests/mission/test_failures_of_others.py``. Some are
proved where the part that they concern is tested:

=====================  =============================================================================
jac#8064               ``tests/resilience/test_breaker.py``, ``test_breaker_threads.py``:
                       of 20 callers (or threads) at the end of the cool-down exactly the configured
                       number of probes gets through
gastown#3191           ``test_server.py``: ``test_the_processes_of_others_are_left_alone`` (the same
                       program, another owner), ``test_a_number_that_was_given_to_another_...``
beads#3964             ``tests/stores/test_processes.py``: ``test_four_processes_lose_no_update``;
                       ``test_crash.py``: ``test_a_kill_at_any_write_point_loses_nothing``
omo#5911               ``tests/mission/test_worktrees.py``: what is untracked is saved before a
                       worktree is removed
omo#7161, omo#3937     ``tests/money/test_missions.py``: ``test_quota_goes_to_the_fallback_model``
=====================  =============================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestra import Session
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionReply,
    PermissionRequest,
    SessionEvent,
    ToolCalled,
    ToolStatus,
)
from orchestra.opencode import (
    MissionOutcome,
    MissionSettings,
    OpenCodeBackend,
    Plan,
    TaskSpec,
    run_mission,
)
from orchestra.opencode.client.session import OpenCodeSession
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import TurnTiming

if TYPE_CHECKING:
    from tests.opencode.conftest import Answer, FakeServer

STREAM = StreamTiming(silence=60.0, window=1.0, first_delay=0.01, longest_delay=0.05)
PATIENT = TurnTiming(start=300.0, quiet=300.0)
"""No look comes by the clock within a test's time: what ends a turn then is no timer."""
QUICK = TurnTiming(start=0.1, start_limit=0.4, settle=0.02, settle_limit=0.1, poll=0.03)
PROMPT = "POST /session/ses_0/prompt_async"


@pytest.fixture
def answers(fake_server: FakeServer) -> type[Answer]:
    """How the fake server's faults are written."""
    import sys

    found: type[Answer] = sys.modules[type(fake_server).__module__].Answer
    return found


def attach(server: FakeServer, timing: TurnTiming = PATIENT, **options: Any) -> OpenCodeBackend:
    return OpenCodeBackend(server.url, stream_timing=STREAM, turn_timing=timing, **options)


async def beside(
    session: Session,
    then: Callable[[], Awaitable[None]],
    listener: Callable[[SessionEvent], object] | None = None,
) -> Finished:
    """Run a turn, and something else beside it."""
    ends: list[Finished] = []

    async def run() -> None:
        ends.append(await session.prompt("go", listener=listener))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await then()
    return ends[0]


async def watch_for_idle(session: OpenCodeSession) -> None:
    """Wait until the idle event of the running turn has been delivered."""
    turn = session.turn
    assert turn is not None
    while turn._machine.needs_status:  # it has not heard that the session is idle
        turn._wake = anyio.Event()
        await turn._wake.wait()


async def test_the_only_idle_event_comes_early(fake_server: FakeServer, tmp_path: Path) -> None:
    """omo#1517: the worker is done before we know that it began; the one idle event counts."""
    path = "/session/ses_0/prompt_async"
    fake_server.held[path] = held = anyio.Event()
    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        assert isinstance(session, OpenCodeSession)

        async def let_go() -> None:
            await fake_server.wait_seen(PROMPT)  # busy, the answer and idle are out by now
            await watch_for_idle(session)
            held.set()

        end = await beside(session, let_go)
    assert (end.reason, end.text) == (FinishReason.DONE, "answer")


async def test_no_message_is_no_success(fake_server: FakeServer, tmp_path: Path) -> None:
    """omo#4642: a session that is idle and has said nothing is not done, and the mission fails."""
    fake_server.is_answering = False

    async def take_and_rest() -> None:
        for number in itertools.count():
            await fake_server.wait_seen(f"POST /session/ses_{number}/prompt_async")
            await fake_server.settle(f"ses_{number}")

    plan = Plan((TaskSpec(id="t1", title="do it"),))
    settings = MissionSettings(todo_file=None, retry_delay=0.0, has_evidence=False)
    async with attach(fake_server, QUICK) as backend:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take_and_rest)
                report = await run_mission(
                    "do it", backend=backend, directory=tmp_path, plan=plan, settings=settings
                )
                tasks.cancel_scope.cancel()
    assert report.outcome is MissionOutcome.FAILED
    assert "never started" in report.reason or "not accepted" in report.reason
    assert report.usage.cost == 0


async def test_the_last_turn_of_the_parent_is_waited_for(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """omo#4721: the sub-agents are done and idle; the end is the parent's own last message."""
    fake_server.is_answering = False

    async def work() -> None:
        (request,) = await fake_server.wait_seen(PROMPT)
        prompt = request.body["messageID"]
        child = {"id": "ses_c", "parentID": "ses_0", "agent": "helper"}
        await fake_server.send("session.created", sessionID="ses_c", info=child)
        fake_server.store("ses_0", prompt, "delegating", finish="tool-calls")
        await fake_server.send("session.idle", sessionID="ses_c")
        await fake_server.send("session.idle", sessionID="ses_0")  # early: it is still busy
        await fake_server.wait_seen("GET /session/status")
        fake_server.store("ses_0", prompt, "all parts are in")
        await fake_server.settle("ses_0")

    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        end = await beside(session, work)
    assert (end.reason, end.text) == (FinishReason.DONE, "all parts are in")


async def test_an_open_request_does_not_hold_up_other_results(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """opencode#37694: what other tools have done is told while a permission is still waited for."""
    fake_server.is_answering = False
    thinking, decided = anyio.Event(), anyio.Event()
    told: list[SessionEvent] = []
    settled = anyio.Event()

    async def policy(_request: PermissionRequest) -> PermissionReply:
        thinking.set()
        await decided.wait()
        return PermissionReply(is_allowed=True)

    def listen(event: SessionEvent) -> None:
        told.append(event)
        if isinstance(event, ToolCalled) and event.status is ToolStatus.COMPLETED:
            settled.set()

    async def work() -> None:
        (request,) = await fake_server.wait_seen(PROMPT)
        names = {"messageID": "msg_a", "sessionID": "ses_0"}
        info = {"id": "msg_a", "role": "assistant", "sessionID": "ses_0"}
        parent = request.body["messageID"]
        await fake_server.send("message.updated", info={**info, "parentID": parent})
        asked = {"id": "per_1", "permission": "bash", "patterns": ["rm x"]}
        await fake_server.send("permission.asked", sessionID="ses_0", **asked)
        await thinking.wait()
        done = {"id": "prt_1", "type": "tool", "tool": "read", "callID": "c1", **names}
        state = {"status": "completed", "output": "the file"}
        await fake_server.send("message.part.updated", part={**done, "state": state})
        await settled.wait()
        assert not fake_server.seen("POST /permission/*")
        decided.set()
        await fake_server.wait_seen("POST /permission/per_1/reply")
        fake_server.store("ses_0", parent, "done")
        await fake_server.settle("ses_0")

    async with (
        attach(fake_server, permission_policy=policy) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):
        end = await beside(session, work, listen)
    assert (end.reason, end.text) == (FinishReason.DONE, "done")


@pytest.mark.parametrize("is_clean", [True, False], ids=["closed", "broken"])
async def test_the_stream_ends_in_the_middle_of_a_turn(
    fake_server: FakeServer, tmp_path: Path, *, is_clean: bool
) -> None:
    """opencode#38458: the stream goes away, the end happens, and nobody tells: the turn ends."""
    fake_server.is_answering = False

    async def work() -> None:
        (request,) = await fake_server.wait_seen(PROMPT)
        if is_clean:
            for stream in tuple(fake_server.streams):
                await stream.send(b"0\r\n\r\n")
        await fake_server.cut()
        fake_server.store("ses_0", request.body["messageID"], "told to nobody")
        fake_server.statuses.clear()

    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        end = await beside(session, work)
    assert (end.reason, end.text) == (FinishReason.DONE, "told to nobody")


async def test_nothing_is_sent_before_the_stream_is_open(
    fake_server: FakeServer, tmp_path: Path, answers: type[Answer]
) -> None:
    """research-agent#174: events before the subscription are lost, so there are none."""
    fake_server.faults["GET /event"] = [answers(status=0)] * 3
    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        with anyio.fail_after(20):
            assert (await session.prompt("go")).reason is FinishReason.DONE
    calls = [(request.method, request.path) for request in fake_server.requests]
    subscribed = max(index for index, call in enumerate(calls) if call == ("GET", "/event"))
    assert subscribed < calls.index(("POST", "/session"))
    assert len(fake_server.seen("GET /event")) == 4


async def test_the_instance_goes_between_create_and_prompt(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """oc-orchestrator#146: disposed after the session was made, it ends the stream, not the turn."""
    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        await fake_server.send("server.instance.disposed", directory=str(tmp_path))
        for stream in tuple(fake_server.streams):
            await stream.send(b"0\r\n\r\n")
        await fake_server.cut()
        with anyio.fail_after(20):
            end = await session.prompt("go")
    assert (end.reason, end.text) == (FinishReason.DONE, "answer")


async def test_two_prompts_in_one_window(fake_server: FakeServer, tmp_path: Path) -> None:
    """opencode#28202, omo#4167: of prompts that are sent at once to one session one is taken."""
    fake_server.is_answering = False
    refused: list[str] = []
    ends: list[Finished] = []

    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:

        async def caller(text: str) -> None:
            try:
                ends.append(await session.prompt(text))
            except anyio.BusyResourceError:
                refused.append(text)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(caller, f"prompt {number}")
                (request,) = await fake_server.wait_seen(PROMPT)
                fake_server.store("ses_0", request.body["messageID"], "one answer")
                await fake_server.settle("ses_0")
    assert len(refused) == 9
    assert [end.text for end in ends] == ["one answer"]
    assert len(fake_server.seen(PROMPT)) == 1
    users = [one for one in fake_server.messages["ses_0"] if one["info"]["role"] == "user"]
    assert len(users) == 1
