from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestra.abc import Agent, PermissionRule, Session
from orchestra.errors import (
    AgentNotFoundError,
    ModelNotFoundError,
    ServerError,
    TransportError,
)
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionAsked,
    PermissionReply,
    PermissionRequest,
    QuestionAsked,
    SessionEvent,
    Started,
    TextReceived,
    ToolCalled,
)
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client.session import OpenCodeSession
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import VAIN_STEPS, TurnTiming

if TYPE_CHECKING:
    from tests.opencode.conftest import Answer, FakeServer

STREAM = StreamTiming(silence=60.0, window=1.0, first_delay=0.01, longest_delay=0.05)
TURN = TurnTiming(start=0.2, start_limit=1.0, settle=0.02, settle_limit=0.2, quiet=60.0)


def attach(server: FakeServer, **options: Any) -> OpenCodeBackend:
    """A backend that loses patience quickly."""
    options = {"stream_timing": STREAM, "turn_timing": TURN, **options}
    return OpenCodeBackend(server.url, password="secret-word", **options)  # noqa: S106


@pytest.fixture
async def session(fake_server: FakeServer, tmp_path: Path) -> AsyncIterator[Session]:
    """An open session on the fake server."""
    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as found:
        yield found


@pytest.fixture
def answers(fake_server: FakeServer) -> type[Answer]:
    """How the fake server's faults are written."""
    import sys

    found: type[Answer] = sys.modules[type(fake_server).__module__].Answer
    return found


def prompts(server: FakeServer) -> list[Any]:
    """The bodies of the prompts that were sent."""
    return [request.body for request in server.seen("POST /session/ses_0/prompt_async")]


async def run_beside(
    session: Session, then: Callable[[], Awaitable[None]], events: list[SessionEvent] | None = None
) -> Finished:
    """Run a turn; when its first event is there, do something else beside it."""
    ends: list[Finished] = []
    started = anyio.Event()

    def listen(event: SessionEvent) -> None:
        started.set()
        if events is not None:
            events.append(event)

    async def run() -> None:
        ends.append(await session.prompt("go", listener=listen))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await started.wait()
            await then()
    return ends[0]


async def expect_next_prompt_works(server: FakeServer, session: Session) -> None:
    """A session that took trouble takes the next prompt."""
    server.is_answering = True
    with anyio.fail_after(20):
        assert (await session.prompt("next")).reason is FinishReason.DONE


# --- sending ---


async def test_a_prompt_names_everything_and_its_ids(
    fake_server: FakeServer, session: Session
) -> None:
    """Agent, model, message id and part id are explicit; the stream was there before."""
    end = await session.prompt("hello")
    assert (end.reason, end.text) == (FinishReason.DONE, "answer")
    (body,) = prompts(fake_server)
    assert body["agent"] == "echo"
    assert body["model"] == {"providerID": "p", "modelID": "m"}
    assert body["messageID"].startswith("msg_")
    assert body["parts"][0]["id"].startswith("prt_")
    calls = [(request.method, request.path) for request in fake_server.requests]
    assert calls.index(("GET", "/event")) < calls.index(("POST", "/session/ses_0/prompt_async"))
    (created,) = fake_server.seen("POST /session")
    assert created.body["title"]


async def test_a_prompt_whose_answer_was_lost_is_sent_again_with_the_same_ids(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """The server had it already: it runs once, and the turn ends well."""
    fake_server.faults["POST /session/ses_0/prompt_async"] = [answers(status=0)] * 4
    end = await session.prompt("hello")
    assert end.reason is FinishReason.DONE
    bodies = prompts(fake_server)
    assert len(bodies) == 5
    assert all(body == bodies[0] for body in bodies)
    assert len(fake_server.messages["ses_0"]) == 2


async def test_a_prompt_that_got_lost_is_sent_again(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """A 204 for a prompt that is then nowhere to be seen is not believed for ever."""
    fake_server.faults["POST /session/ses_0/prompt_async"] = [answers(status=204)]
    end = await session.prompt("hello")
    assert end.reason is FinishReason.DONE
    first, second = prompts(fake_server)
    assert first == second


@pytest.mark.parametrize(
    ("status", "reason"), [(400, FinishReason.REFUSED), (500, FinishReason.FAILED)]
)
async def test_a_prompt_that_is_not_taken_ends_the_turn(
    fake_server: FakeServer,
    session: Session,
    answers: type[Answer],
    status: int,
    reason: FinishReason,
) -> None:
    """An error instead of a 204 is told by the last event, not raised."""
    body = {"name": "BadRequest", "data": {"message": "no, thanks", "ref": "err_1"}}
    fake_server.faults["POST /session/ses_0/prompt_async"] = [answers(body, status)]
    events: list[SessionEvent] = []
    end = await session.prompt("hello", listener=events.append)
    assert [type(event) for event in events] == [Started, Finished]
    assert end.reason is reason
    assert end.error is not None
    assert "no, thanks" in end.error.message
    await expect_next_prompt_works(fake_server, session)


async def test_a_web_page_instead_of_a_session_ends_the_turn(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """Something else that answers at the address is a failure with a sentence."""
    page = answers(b"<html>", 200, "text/html")
    fake_server.faults["POST /session/ses_0/prompt_async"] = [page]
    end = await session.prompt("hello")
    assert end.reason is FinishReason.FAILED
    assert end.error is not None
    assert "OpenCode" in end.error.message


# --- the event stream ---


async def test_an_end_that_came_while_the_stream_was_down_is_found(
    fake_server: FakeServer, session: Session
) -> None:
    """Reconnecting asks for the state: the idle event that nobody heard is not needed."""
    fake_server.is_answering = False

    async def lose_the_end() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        await fake_server.cut()
        (body,) = prompts(fake_server)
        fake_server.store("ses_0", body["messageID"], "told to nobody")
        fake_server.statuses.clear()

    end = await run_beside(session, lose_the_end)
    assert (end.reason, end.text) == (FinishReason.DONE, "told to nobody")


async def test_an_end_between_the_break_and_the_new_stream_is_found(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """What happened after the look at the break, and before the new stream, is looked for."""
    fake_server.is_answering = False

    async def lose_the_end() -> None:
        (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        fake_server.faults["GET /event"] = [answers(status=0)] * 1000
        await fake_server.cut()
        await fake_server.wait_seen("GET /session/ses_0/children")
        fake_server.store("ses_0", request.body["messageID"], "told to nobody")
        fake_server.statuses.clear()
        fake_server.faults.clear()

    end = await run_beside(session, lose_the_end)
    assert (end.reason, end.text) == (FinishReason.DONE, "told to nobody")


async def test_a_silent_stream_is_replaced(fake_server: FakeServer, tmp_path: Path) -> None:
    """Without even a heartbeat the watchdog opens a new stream, and the turn goes on."""
    timing = StreamTiming(silence=0.1, window=5.0, first_delay=0.01, longest_delay=0.05)
    fake_server.is_answering = False

    async def wait_for_new_streams() -> None:
        await fake_server.wait_seen("GET /event", 3)
        (body,) = prompts(fake_server)
        fake_server.store("ses_0", body["messageID"], "at last")
        await fake_server.settle("ses_0")

    async with (
        attach(fake_server, stream_timing=timing) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):
        end = await run_beside(session, wait_for_new_streams)
    assert (end.reason, end.text) == (FinishReason.DONE, "at last")


async def test_a_stream_that_cannot_be_mended_loses_the_turn(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """When the server stays away, the turn ends as LOST with a sentence; nothing hangs."""
    fake_server.is_answering = False

    async def go_away() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        for call in ("GET /event", "GET /session/status"):
            fake_server.faults[call] = [answers(status=0)] * 1000
        await fake_server.cut()

    end = await run_beside(session, go_away)
    assert end.reason is FinishReason.LOST
    assert end.error is not None
    assert end.error.message
    fake_server.faults.clear()


async def test_a_server_that_comes_back_is_used_again(
    fake_server: FakeServer, tmp_path: Path, answers: type[Answer]
) -> None:
    """A lost directory is connected anew by the next open."""
    async with attach(fake_server) as backend:
        async with backend.lease("echo", directory=tmp_path):
            for call in ("GET /event", "GET /global/health"):
                fake_server.faults[call] = [answers(status=0)] * 1000
            await fake_server.cut()
            with anyio.fail_after(20):
                (workspace,) = backend._workspaces.values()
                while workspace.failure is None:
                    await workspace.stream._changed.wait()
        fake_server.faults.clear()
        async with backend.lease("echo", directory=tmp_path) as session:
            assert (await session.prompt("hi")).reason is FinishReason.DONE


async def test_strange_events_harm_nobody(fake_server: FakeServer, session: Session) -> None:
    """Unknown types, wrong shapes, garbage and foreign sessions are skipped."""
    fake_server.is_answering = False

    async def talk_nonsense() -> None:
        (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        for data in (b"data: {{{\n\n", b": comment\n\n", b"event: x\ndata: []\n\n", b"\xff\n\n"):
            await fake_server.send_raw(data)
        await fake_server.send("some.new.type", anything={"goes": 1})
        await fake_server.send("session.status", sessionID="ses_0", status="a word")
        await fake_server.send("session.status", sessionID="ses_other", status={"type": "idle"})
        await fake_server.send("message.part.updated", part={"id": 1})
        await fake_server.send("permission.asked", id="per_9", sessionID="ses_other")
        fake_server.store("ses_0", request.body["messageID"], "still sane")
        await fake_server.settle("ses_0")

    end = await run_beside(session, talk_nonsense)
    assert (end.reason, end.text) == (FinishReason.DONE, "still sane")
    assert not fake_server.seen("POST /permission/*")


async def test_a_run_of_empty_answers_is_ended(fake_server: FakeServer, session: Session) -> None:
    """A model that is called without end and says nothing is aborted, and the turn says why."""
    fake_server.is_answering = False

    async def spin() -> None:
        (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        parent = request.body["messageID"]
        for number in range(VAIN_STEPS):
            names = {"id": f"msg_z{number:03}", "role": "assistant", "sessionID": "ses_0"}
            await fake_server.send("message.updated", info={**names, "parentID": parent})
            part = {"id": f"prt_{number}", "messageID": names["id"], "sessionID": "ses_0"}
            await fake_server.send("message.part.updated", part={**part, "type": "step-finish"})
        await fake_server.wait_seen("POST /session/ses_0/abort")

    end = await run_beside(session, spin)
    assert end.reason is FinishReason.FAILED
    assert end.error is not None
    assert "20 times in a row" in end.error.message
    await expect_next_prompt_works(fake_server, session)


async def test_five_megabytes_of_text_come_cut(fake_server: FakeServer, session: Session) -> None:
    """A huge answer, in one huge event too, ends as a truncated text."""
    fake_server.is_answering = False

    async def talk_a_lot() -> None:
        (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        fake_server.store("ses_0", request.body["messageID"], "x" * 5_000_000)
        message = fake_server.messages["ses_0"][-1]
        await fake_server.send("message.updated", sessionID="ses_0", info=message["info"])
        await fake_server.send("message.part.updated", part=message["parts"][0])
        await fake_server.settle("ses_0")

    events: list[SessionEvent] = []
    end = await run_beside(session, talk_a_lot, events)
    assert end.reason is FinishReason.DONE
    assert end.is_truncated
    assert len(end.text) == 1024 * 1024
    told = sum(len(event.text) for event in events if isinstance(event, TextReceived))
    assert told == 1024 * 1024


async def test_a_healthy_stream_is_not_polled(fake_server: FakeServer, session: Session) -> None:
    """From its start to its idle event a turn asks the server for nothing."""
    fake_server.is_answering = False
    before = len(fake_server.requests)

    async def work_for_a_while() -> None:
        (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        for number in range(20):
            todos = [{"content": str(number), "status": "pending"}]
            await fake_server.send("todo.updated", sessionID="ses_0", todos=todos)
            await anyio.sleep(0.03)
        assert [one.path for one in fake_server.requests[before:]] == [request.path]
        fake_server.store("ses_0", request.body["messageID"], "done")
        await fake_server.settle("ses_0")

    assert (await run_beside(session, work_for_a_while)).reason is FinishReason.DONE
    looked = [one.path for one in fake_server.requests[before + 1 :]]
    assert 1 <= len(looked) <= 3, looked


# --- aborting and closing ---


async def test_abort_reaches_children_and_what_they_ask(
    fake_server: FakeServer, session: Session
) -> None:
    """Children and grandchildren are aborted one by one; open requests are rejected."""
    fake_server.is_answering = False
    fake_server.children = {"ses_0": [{"id": "ses_c"}], "ses_c": [{"id": "ses_g"}]}
    asked = {"id": "per_1", "sessionID": "ses_g", "permission": "bash", "patterns": ["rm *"]}
    fake_server.permissions = [asked, {**asked, "id": "per_2", "sessionID": "ses_other"}]
    fake_server.questions = [{"id": "que_1", "sessionID": "ses_c", "questions": []}]

    async def abort() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        await session.abort()

    assert (await run_beside(session, abort)).reason is FinishReason.ABORTED
    for session_id in ("ses_0", "ses_c", "ses_g"):
        assert fake_server.seen(f"POST /session/{session_id}/abort")
    (reply,) = fake_server.seen("POST /permission/*")
    assert reply.path == "/permission/per_1/reply"
    assert reply.body["reply"] == "reject"
    assert fake_server.seen("POST /question/que_1/reject")
    await expect_next_prompt_works(fake_server, session)


async def test_a_prompt_that_cannot_be_sent_can_be_aborted(
    fake_server: FakeServer,
    session: Session,
    answers: type[Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While sending fails again and again, an abort ends the turn, and it is not sent later."""
    monkeypatch.setattr("orchestra.opencode.client.session._RETRY_DELAY", 0.01)
    monkeypatch.setattr(session._workspace, "window", 60.0)  # type: ignore[attr-defined]
    call = "POST /session/ses_0/prompt_async"
    fake_server.faults[call] = [answers(status=0)] * 1000
    fake_server.is_answering = False

    async def abort() -> None:
        await fake_server.wait_seen(call, 3)
        await session.abort()

    assert (await run_beside(session, abort)).reason is FinishReason.ABORTED
    sent = len(fake_server.seen(call))
    fake_server.faults.clear()
    await expect_next_prompt_works(fake_server, session)
    assert len(fake_server.seen(call)) == sent + 1


async def test_a_cancelled_backend_aborts_what_runs(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """Cancelled from outside as a whole, it still leaves the server's sessions idle and deleted."""
    fake_server.is_answering = False
    with anyio.CancelScope() as scope:
        async with attach(fake_server) as backend:
            session = await backend.open("echo", directory=tmp_path)
            async with session.stream("go") as events:
                async for _ in events:
                    await fake_server.wait_seen("POST /session/ses_0/prompt_async")
                    scope.cancel()
    assert not fake_server.statuses
    assert fake_server.seen("POST /session/ses_0/abort")
    assert fake_server.seen("DELETE /session/ses_0")


async def test_a_run_that_ignores_its_abort_is_aborted_again(
    fake_server: FakeServer, session: Session, answers: type[Answer]
) -> None:
    """An abort that had no effect is repeated after a second."""
    fake_server.is_answering = False
    fake_server.faults["POST /session/ses_0/abort"] = [answers(body=True)]

    async def abort() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        await session.abort()

    assert (await run_beside(session, abort)).reason is FinishReason.ABORTED
    assert len(fake_server.seen("POST /session/ses_0/abort")) == 2


async def test_a_prompt_cancelled_before_it_was_sent_never_runs(
    fake_server: FakeServer, session: Session
) -> None:
    """Cancelled at once, nothing is sent, and the next prompt works."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session.prompt("never")
    assert prompts(fake_server) == []
    await expect_next_prompt_works(fake_server, session)


async def test_a_prompt_cancelled_while_it_is_sent_is_aborted(
    fake_server: FakeServer, session: Session
) -> None:
    """Whoever cancels in the middle of sending finds the session idle."""
    fake_server.is_answering = False
    with anyio.CancelScope() as scope:
        async with session.stream("go") as events:
            async for _ in events:
                scope.cancel()
    assert not fake_server.statuses
    await expect_next_prompt_works(fake_server, session)


async def test_cancelled_during_its_abort_a_session_is_idle_all_the_same(
    fake_server: FakeServer, session: Session
) -> None:
    """Cancelling the one who aborts does not cancel the abort."""
    fake_server.is_answering = False

    async def abort() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.abort()
        assert scope.cancelled_caught

    assert (await run_beside(session, abort)).reason is FinishReason.ABORTED
    await expect_next_prompt_works(fake_server, session)


async def test_cancelled_during_aclose_a_session_is_deleted_all_the_same(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """Closing is shielded: abort, then delete; the backend goes on."""
    fake_server.is_answering = False
    async with attach(fake_server) as backend:
        session = await backend.open("echo", directory=tmp_path)

        async def close() -> None:
            await fake_server.wait_seen("POST /session/ses_0/prompt_async")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await session.aclose()

        assert (await run_beside(session, close)).reason is FinishReason.ABORTED
        paths = [(one.method, one.path) for one in fake_server.requests]
        aborted = paths.index(("POST", "/session/ses_0/abort"))
        assert aborted < paths.index(("DELETE", "/session/ses_0"))
        assert backend.statistics().sessions_open == 0
        async with backend.lease("echo", directory=tmp_path) as other:
            await expect_next_prompt_works(fake_server, other)


async def test_an_open_that_is_cancelled_leaves_no_session(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """A session that was created while its opener was cancelled is deleted again."""
    async with attach(fake_server) as backend:
        await (await backend.open("echo", directory=tmp_path)).aclose()
        fake_server.requests.clear()

        async def cancel_when_created(scope: anyio.CancelScope) -> None:
            await fake_server.wait_seen("POST /session")
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel_when_created, scope)
                await backend.open("echo", directory=tmp_path)
        assert backend.statistics().sessions_open == 0
        assert len(fake_server.seen("POST /session")) == len(fake_server.seen("DELETE *"))


async def test_what_the_block_raises_comes_out_as_it_is(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """The backend's own tasks do not wrap an error of the caller, and end with it."""
    backend = attach(fake_server)

    async def enter_and_fail() -> None:
        async with backend:
            await backend.open("echo", directory=tmp_path)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await enter_and_fail()
    assert fake_server.seen("DELETE /session/ses_0")
    assert not backend.is_open


# --- requests of agents ---


async def ask(server: FakeServer, session_id: str, **request: Any) -> None:
    """Ask for a permission, as the server does."""
    asked = {"id": "per_1", "permission": "bash", "patterns": ["rm -r x"], **request}
    await server.send("permission.asked", sessionID=session_id, **asked)


async def finish(server: FakeServer) -> None:
    """Answer the running prompt."""
    server.store("ses_0", prompts(server)[-1]["messageID"], "done")
    await server.settle("ses_0")


async def test_a_request_is_answered_by_the_policy_and_told(
    fake_server: FakeServer, tmp_path: Path, answers: type[Answer]
) -> None:
    """Also a child's request, even one whose birth was missed; the same request only once."""
    fake_server.is_answering = False
    seen: list[PermissionRequest] = []

    async def policy(request: PermissionRequest) -> PermissionReply:
        seen.append(request)
        await anyio.lowlevel.checkpoint()
        return PermissionReply(is_allowed=request.permission == "edit", message="not that")

    async def be_asked() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        await ask(fake_server, "ses_0")
        await ask(fake_server, "ses_0")
        child = {"id": "ses_c", "parentID": "ses_0", "agent": "helper"}
        await fake_server.send("session.created", sessionID="ses_c", info=child)
        await ask(fake_server, "ses_c", id="per_2", permission="edit")
        grandchild = {"id": "ses_g", "parentID": "ses_c", "agent": "unseen"}
        fake_server.faults["GET /session/ses_g"] = [answers(grandchild)]
        await ask(fake_server, "ses_g", id="per_3")
        await fake_server.wait_seen("POST /permission/*", 3)
        await finish(fake_server)

    events: list[SessionEvent] = []
    async with (
        attach(fake_server, permission_policy=policy) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):
        await run_beside(session, be_asked, events)
    told = [event for event in events if isinstance(event, PermissionAsked)]
    assert {one.request.agent: one.reply.is_allowed for one in told} == {
        "echo": False,
        "helper": True,
        "unseen": False,
    }
    replies = {one.path: one.body for one in fake_server.seen("POST /permission/*")}
    assert replies == {
        "/permission/per_1/reply": {"reply": "reject", "message": "not that"},
        "/permission/per_2/reply": {"reply": "once", "message": "not that"},
        "/permission/per_3/reply": {"reply": "reject", "message": "not that"},
    }
    assert len(seen) == len(told) == 3


async def test_a_policy_that_fails_refuses(
    fake_server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in the caller's policy is logged and does not hang the agent."""
    fake_server.is_answering = False
    caplog.set_level(logging.CRITICAL + 1)

    def policy(request: PermissionRequest) -> PermissionReply:
        raise LookupError(request.id)

    async def be_asked() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        await ask(fake_server, "ses_0")
        (reply,) = await fake_server.wait_seen("POST /permission/*")
        assert reply.body["reply"] == "reject"
        assert reply.body["message"]
        await finish(fake_server)

    async with (
        attach(fake_server, permission_policy=policy) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):
        assert (await run_beside(session, be_asked)).reason is FinishReason.DONE


async def test_a_policy_that_thinks_too_long_does_not_hold_an_abort(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """Aborting cancels the policy and rejects what was asked."""
    fake_server.is_answering = False
    thinking = anyio.Event()

    async def policy(_request: PermissionRequest) -> PermissionReply:
        thinking.set()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async with (
        attach(fake_server, permission_policy=policy) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):

        async def abort() -> None:
            await fake_server.wait_seen("POST /session/ses_0/prompt_async")
            await ask(fake_server, "ses_0")
            await thinking.wait()
            await session.abort()

        assert (await run_beside(session, abort)).reason is FinishReason.ABORTED
        (reply,) = await fake_server.wait_seen("POST /permission/*")
        assert reply.body["reply"] == "reject"


async def test_requests_that_were_asked_while_the_stream_was_down_are_found(
    fake_server: FakeServer, session: Session
) -> None:
    """Reconnecting asks for open requests, which no event will repeat."""
    fake_server.is_answering = False

    async def miss_the_request() -> None:
        await fake_server.wait_seen("POST /session/ses_0/prompt_async")
        asked = {"id": "per_1", "sessionID": "ses_0", "permission": "bash", "patterns": []}
        fake_server.permissions = [asked]
        question = {"question": "which one?", "header": "h", "options": []}
        fake_server.questions = [
            {"id": "que_1", "sessionID": "ses_0", "questions": [question, question]}
        ]
        await fake_server.cut()
        await fake_server.wait_seen("POST /permission/per_1/reply")
        (reply,) = await fake_server.wait_seen("POST /question/que_1/reply")
        assert len(reply.body["answers"]) == 2
        await finish(fake_server)

    events: list[SessionEvent] = []
    assert (await run_beside(session, miss_the_request, events)).reason is FinishReason.DONE
    questions = [event for event in events if isinstance(event, QuestionAsked)]
    assert [event.question for event in questions] == ["which one?"] * 2
    assert all(event.answer for event in questions)


# --- opening ---


async def test_unknown_agents_and_models_are_named_with_what_there_is(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """The error lists what the server has, without the hidden ones."""
    async with attach(fake_server) as backend:
        with pytest.raises(AgentNotFoundError, match=r"'nobody'.*it has echo$"):
            await backend.open("nobody", directory=tmp_path)
        with pytest.raises(ModelNotFoundError, match=r"'p/x'.*it has p/m$"):
            await backend.open(Agent("echo", model="p/x"), directory=tmp_path)


async def test_an_agent_that_the_server_lacks_is_made_of_its_prompt(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """Its prompt travels with each message, its rules with the session, in their order."""
    rules = (PermissionRule(permission="*", action="deny"), PermissionRule(permission="read"))
    agent = Agent("reviewer", prompt="You are the reviewer.", permissions=rules)
    async with (
        attach(fake_server) as backend,
        backend.lease(agent, directory=tmp_path, metadata={"task": "t1"}) as session,
    ):
        await session.prompt("look")
    (body,) = prompts(fake_server)
    assert body["system"] == "You are the reviewer."
    assert body["agent"] == "build"
    (created,) = fake_server.seen("POST /session")
    assert created.body["metadata"] == {"task": "t1"}
    assert created.body["permission"] == [
        {"permission": "*", "pattern": "*", "action": "deny"},
        {"permission": "read", "pattern": "*", "action": "allow"},
    ]


async def test_an_attached_server_is_left_as_it_was(
    fake_server: FakeServer, session: Session
) -> None:
    """Nothing but sessions is created, and nothing of the server is changed."""
    await session.prompt("hi")
    await session.aclose()
    allowed = ("/session", "/session/ses_0", "/session/ses_0/prompt_async")
    changing = [one.path for one in fake_server.requests if one.method != "GET"]
    assert set(changing) <= set(allowed)


async def test_entering_tells_what_is_wrong_in_one_sentence(
    fake_server: FakeServer, answers: type[Answer]
) -> None:
    """A wrong password and an absent server are told when the backend is entered."""
    fake_server.faults["GET /global/health"] = [answers(b"", 401)]
    with pytest.raises(ServerError, match="password") as refused:
        async with attach(fake_server):
            raise AssertionError("entered")
    assert "secret-word" not in str(refused.value)
    with pytest.raises(TransportError, match="running"):
        async with OpenCodeBackend("127.0.0.1:9"):
            raise AssertionError("entered")


async def test_an_unknown_version_is_warned_of(
    fake_server: FakeServer, answers: type[Answer], caplog: pytest.LogCaptureFixture
) -> None:
    """A server of another version is used, with a warning."""
    health = answers({"healthy": True, "version": "9.9.9"})
    fake_server.faults["GET /global/health"] = [health]
    async with attach(fake_server):
        assert "9.9.9" in caplog.text


async def test_representations_tell_the_state_and_no_secret(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    """What people see of the objects helps, and the password is not in it."""
    backend = attach(fake_server)
    assert "not entered" in repr(backend)
    async with backend:
        async with backend.lease("echo", directory=tmp_path) as session:
            assert isinstance(session, OpenCodeSession)
            workspace = session._workspace
            shown = repr([backend, session, workspace, workspace.stream, backend._http])
            assert "secret" not in shown
            assert "idle" in repr(session)
            assert "1 sessions" in repr(backend)
        assert "closed" in repr(session)
    assert "left" in repr(backend)
    with pytest.raises(RuntimeError, match="entered already"):
        async with backend:
            raise AssertionError("entered twice")


async def test_tool_calls_of_an_unread_turn_do_not_pile_up(
    fake_server: FakeServer, session: Session
) -> None:
    """Whoever does not read keeps the text and the usage; the rest is dropped at some point."""
    assert isinstance(session, OpenCodeSession)
    fake_server.is_answering = False
    async with session.stream("go") as events:
        turn = session.turn
        assert turn is not None
        call = ToolCalled(session_id=session.id, call_id="c", tool="t", status=None)  # type: ignore[arg-type]  # never read
        text = TextReceived(session_id=session.id, text="x")
        for _ in range(20_000):
            turn.tell([call, text, text])
        assert len(turn._outbox._events) < 10_010
        await session.abort()
        told = [event async for event in events]
    shown = "".join(event.text for event in told if isinstance(event, TextReceived))
    assert len(shown) == 40_000
    assert isinstance(told[-1], Finished)
