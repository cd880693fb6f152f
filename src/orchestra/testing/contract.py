"""The contract suite of session backends: what `orchestra.abc` demands, as checks that run.

A backend under test offers six agents that behave as follows, whatever is behind them:

=========  ==========================================================================
``echo``   answers with the text of the prompt
``slow``   shows some text, then works until it is aborted
``fail``   ends its turn with an error
``tool``   calls one tool (any), then answers with some text
``ask``    asks for one permission, then answers ``allowed`` or ``refused``
``empty``  ends its turn without any text
=========  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import anyio

from orchestra.abc import Agent, Session, SessionBackend
from orchestra.errors import AgentNotFoundError, SessionLostError
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionAsked,
    SessionEvent,
    Started,
    TextReceived,
    ToolCalled,
    ToolStatus,
    Usage,
    UsageReported,
)

__all__ = ("SESSION_CHECKS", "check_session_backend")

SessionCheck: TypeAlias = Callable[[SessionBackend, Path], Awaitable[None]]
BackendFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[SessionBackend]]


def _expect(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


async def _collect(session: Session, prompt: str) -> tuple[list[SessionEvent], Finished]:
    """Run a turn and check what is true of every turn."""
    events: list[SessionEvent] = []
    async with session.stream(prompt) as stream:
        events.extend([event async for event in stream])
    _expect(events, "a turn tells nothing")
    _expect(isinstance(events[0], Started), f"the first event is {events[0]!r}, not Started")
    finished = events[-1]
    if not isinstance(finished, Finished):
        raise AssertionError(  # noqa: TRY004  (a check that failed)
            f"the last event is {finished!r}, not Finished"
        )
    starts = sum(isinstance(event, Started) for event in events)
    ends = sum(isinstance(event, Finished) for event in events)
    _expect(starts == 1 and ends == 1, f"{starts} Started and {ends} Finished instead of one each")
    _expect(
        all(event.session_id == session.id for event in events),
        "an event carries another session's id",
    )
    shown = [event.text for event in events if isinstance(event, TextReceived)]
    _expect(all(shown), "a TextReceived is empty")
    if not finished.is_truncated:
        _expect(
            "".join(shown).endswith(finished.text),
            "the shown text does not end with Finished.text",
        )
    total = Usage()
    for event in events:
        if isinstance(event, UsageReported):
            total += event.usage
    _expect(
        (total.input_tokens, total.output_tokens)
        == (finished.usage.input_tokens, finished.usage.output_tokens),
        "the reported usage does not add up to Finished.usage",
    )
    return events, finished


async def _expect_echo(session: Session, text: str = "still there?") -> None:
    _, finished = await _collect(session, text)
    _expect(finished.reason is FinishReason.DONE, f"a simple prompt ended as {finished!r}")
    _expect(text in finished.text, f"the answer {finished.text!r} lacks {text!r}")


async def _first_text(session: Session, prompt: str, seen: anyio.Event) -> Finished | None:
    last: Finished | None = None
    async with session.stream(prompt) as stream:
        async for event in stream:
            if isinstance(event, TextReceived):
                seen.set()
            if isinstance(event, Finished):
                last = event
    return last


async def check_answer(backend: SessionBackend, directory: Path) -> None:
    """An agent's answer comes as events and ends the turn; the next prompt works."""
    async with backend.lease("echo", directory=directory, title="echo") as session:
        _expect(session.id, "a session has no id")
        await _expect_echo(session, "hello out there")
        await _expect_echo(session, "a second prompt: grüße, 世界, \U0001f3bb")
        finished = await session.prompt("by the short way")
        _expect("by the short way" in finished.text, "prompt() gives another answer")


async def check_agent_object(backend: SessionBackend, directory: Path) -> None:
    """An agent may be named by an `Agent` as well as by a string."""
    async with backend.lease(Agent("echo"), directory=directory) as session:
        await _expect_echo(session)


async def check_empty_answer(backend: SessionBackend, directory: Path) -> None:
    """An empty answer is an answer."""
    async with backend.lease("empty", directory=directory) as session:
        _, finished = await _collect(session, "say nothing")
        _expect(finished.reason is FinishReason.DONE, f"an empty answer ended as {finished!r}")
        _expect(not finished.text.strip(), f"the empty answer is {finished.text!r}")


async def check_failure(backend: SessionBackend, directory: Path) -> None:
    """A failing agent ends its turn with an error that says something; nothing is raised."""
    async with backend.lease("fail", directory=directory) as session:
        _, finished = await _collect(session, "fail, please")
        _expect(finished.reason is FinishReason.FAILED, f"a failure ended as {finished.reason}")
        if finished.error is None:
            raise AssertionError("a failed turn has no error")
        _expect(finished.error.message and finished.error.name, "the error says nothing")


async def check_tool(backend: SessionBackend, directory: Path) -> None:
    """A tool call is told, and told to have ended, before the answer."""
    async with backend.lease("tool", directory=directory) as session:
        events, finished = await _collect(session, "use your tool")
        _expect(finished.reason is FinishReason.DONE, f"the turn ended as {finished!r}")
        calls = [event for event in events if isinstance(event, ToolCalled)]
        _expect(calls, "the tool call was not told")
        _expect(
            calls[-1].status in {ToolStatus.COMPLETED, ToolStatus.FAILED},
            f"the tool call's last status is {calls[-1].status}",
        )
        seen = [(call.call_id, call.status) for call in calls]
        _expect(len(seen) == len(set(seen)), "a tool call's status was told twice")


async def check_permission(backend: SessionBackend, directory: Path) -> None:
    """A permission request is answered by the policy and told; the turn goes on to its end."""
    async with backend.lease("ask", directory=directory) as session:
        events, finished = await _collect(session, "ask for permission")
        asked = [event for event in events if isinstance(event, PermissionAsked)]
        _expect(len(asked) == 1, f"{len(asked)} permission requests were told, not 1")
        word = "allowed" if asked[0].reply.is_allowed else "refused"
        _expect(finished.reason is FinishReason.DONE, f"the turn ended as {finished!r}")
        _expect(word in finished.text, f"the agent was told otherwise: {finished.text!r}")


async def check_misuse(backend: SessionBackend, directory: Path) -> None:
    """Misuse raises the documented error and harms nobody."""
    try:
        await backend.open("no-such-agent", directory=directory)
    except AgentNotFoundError as exc:
        _expect("no-such-agent" in str(exc), "the error does not name the agent")
    else:
        raise AssertionError("an unknown agent was accepted")
    try:
        await backend.open("echo", directory=directory / "no-such-directory")
    except NotADirectoryError:
        pass
    else:
        raise AssertionError("a directory that does not exist was accepted")
    session = await backend.open("echo", directory=directory)
    try:
        async with session.stream(""):
            raise AssertionError("an empty prompt was accepted")
    except ValueError:
        pass
    await _expect_echo(session)
    await session.aclose()
    await session.aclose()
    await session.abort()
    try:
        async with session.stream("too late"):
            raise AssertionError("a closed session took a prompt")
    except anyio.ClosedResourceError:
        pass


async def check_one_prompt_at_a_time(backend: SessionBackend, directory: Path) -> None:
    """A second prompt on a busy session is refused, and the first goes on."""
    async with (
        backend.lease("slow", directory=directory) as session,
        session.stream("work") as stream,
    ):
        async for event in stream:
            if isinstance(event, TextReceived):
                break
        try:
            async with session.stream("me too"):
                raise AssertionError("a busy session took a second prompt")
        except anyio.BusyResourceError:
            pass
        await session.abort()


async def check_abort(backend: SessionBackend, directory: Path) -> None:
    """abort() ends the running turn as ABORTED, and both sides see it."""
    async with backend.lease("slow", directory=directory) as session:
        await session.abort()
        for _ in range(2):
            ends: list[Finished | None] = []
            seen = anyio.Event()

            async def run(seen: anyio.Event = seen, ends: list[Finished | None] = ends) -> None:
                ends.append(await _first_text(session, "work", seen))

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await seen.wait()
                await session.abort()
            _expect(
                ends and ends[0] is not None and ends[0].reason is FinishReason.ABORTED,
                f"an aborted turn ended as {ends!r}",
            )
        await session.abort()


async def check_abort_from_the_reader(backend: SessionBackend, directory: Path) -> None:
    """The task that reads the events may abort the turn itself."""
    async with backend.lease("slow", directory=directory) as session:
        last: SessionEvent | None = None
        async with session.stream("work") as stream:
            async for event in stream:
                if isinstance(event, TextReceived):
                    await session.abort()
                last = event
        _expect(
            isinstance(last, Finished) and last.reason is FinishReason.ABORTED,
            f"the turn ended as {last!r}",
        )


async def check_cancel(backend: SessionBackend, directory: Path) -> None:
    """Cancelling the reader aborts the turn; the session takes the next prompt."""
    async with backend.lease("slow", directory=directory) as session:
        for _ in range(2):
            seen = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(_first_text, session, "work", seen)
                await seen.wait()
                group.cancel_scope.cancel()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.prompt("cancelled before it starts")
            raise AssertionError("prompt() is no checkpoint")
        seen = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_first_text, session, "and again", seen)
            await seen.wait()
            await session.abort()


async def check_leaving_early(backend: SessionBackend, directory: Path) -> None:
    """Leaving the block before the end aborts the turn; what the block raises comes out."""
    async with backend.lease("slow", directory=directory) as session:
        async with session.stream("work") as stream:
            async for _ in stream:
                break
        try:
            async with session.stream("work"):
                raise LookupError("mine")
        except LookupError:
            pass
        seen = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_first_text, session, "still usable", seen)
            await seen.wait()
            await session.abort()


async def check_close_while_busy(backend: SessionBackend, directory: Path) -> None:
    """aclose() on a busy session ends its turn as ABORTED; others are not touched."""
    ends: list[Finished | None] = []
    seen = anyio.Event()
    async with backend.lease("echo", directory=directory) as other:
        session = await backend.open("slow", directory=directory)

        async def run() -> None:
            ends.append(await _first_text(session, "work", seen))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await seen.wait()
            await session.aclose()
        _expect(
            ends and ends[0] is not None and ends[0].reason is FinishReason.ABORTED,
            f"the turn of a closed session ended as {ends!r}",
        )
        await _expect_echo(other)


async def check_close_under_cancellation(backend: SessionBackend, directory: Path) -> None:
    """Leaving a lease in a cancelled scope still closes the session."""
    before = backend.statistics().sessions_open
    with anyio.CancelScope() as scope:
        async with backend.lease("echo", directory=directory):
            scope.cancel()
    after = backend.statistics().sessions_open
    _expect(before == after, f"{after - before} session was left open")


async def check_sessions_run_together(backend: SessionBackend, directory: Path) -> None:
    """Sessions run at the same time, and one's failure does not touch the others."""
    async with (
        backend.lease("slow", directory=directory) as slow,
        backend.lease("fail", directory=directory) as failing,
        backend.lease("echo", directory=directory) as echo,
    ):
        _expect(len({slow.id, failing.id, echo.id}) == 3, "sessions share an id")
        seen = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_first_text, slow, "work", seen)
            await seen.wait()
            failed = await failing.prompt("fail, please")
            _expect(failed.reason is FinishReason.FAILED, f"it ended as {failed.reason}")
            await _expect_echo(echo)
            _expect(backend.statistics().turns_running >= 1, "a running turn is not counted")
            await slow.abort()


async def check_statistics(backend: SessionBackend, directory: Path) -> None:
    """What the backend counts is true, and its repr says something."""
    before = backend.statistics()
    async with backend.lease("echo", directory=directory) as session:
        during = backend.statistics()
        _expect(during.sessions_open == before.sessions_open + 1, "an open session is not counted")
        _expect(during.sessions_opened == before.sessions_opened + 1, "an opening is not counted")
        await _expect_echo(session)
        _expect(session.id in repr(session), "the session's repr lacks its id")
    after = backend.statistics()
    _expect(after.sessions_open == before.sessions_open, "a closed session is counted as open")
    _expect(after.turns_finished >= before.turns_finished + 1, "a finished turn is not counted")
    _expect(after.turns_running == before.turns_running, "a finished turn is counted as running")
    _expect(type(backend).__name__ in repr(backend), "the backend's repr lacks its name")
    _expect(backend.name and backend.is_open, "an open backend has no name or says it is closed")


async def check_health(backend: SessionBackend, directory: Path) -> None:
    """check() is True for an idle session only; it raises nothing."""
    session = await backend.open("slow", directory=directory)
    _expect(await session.check(), "a new session is said to be unfit")
    seen = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_first_text, session, "work", seen)
        await seen.wait()
        _expect(not await session.check(), "a busy session is said to be free for a prompt")
        await session.abort()
    _expect(await session.check(), "a session is said to be unfit after an abort")
    await session.aclose()
    _expect(not await session.check(), "a closed session is said to be fit")


async def check_reset(backend: SessionBackend, directory: Path) -> None:
    """reset() never says True of a session that is busy or closed; an emptied one goes on."""
    async with backend.lease("slow", directory=directory) as slow:
        seen = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_first_text, slow, "work", seen)
            await seen.wait()
            _expect(not await slow.reset(), "a busy session is said to be empty")
            await slow.abort()
    session = await backend.open("echo", directory=directory)
    for text in ("first", "second"):
        await _expect_echo(session, text)
        if not await session.reset():
            break  # a backend need not be able to
        _expect(await session.check(), "an emptied session is said to be unfit")
    else:
        await _expect_echo(session, "third")
    await session.aclose()
    _expect(not await session.reset(), "a closed session is said to be empty")


async def check_relabel(backend: SessionBackend, directory: Path) -> None:
    """A session that was given another title and other metadata works as before."""
    async with backend.lease("echo", directory=directory, title="one") as session:
        await session.relabel(title="another", metadata={"task": "another"})
        _expect(await session.check(), "a session is said to be unfit for its new title")
        await _expect_echo(session)


async def check_prewarm(backend: SessionBackend, directory: Path) -> None:
    """prewarm() may be called again and together with others, and leaves nothing open."""
    before = backend.statistics()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(backend.prewarm, directory)
    await backend.prewarm(directory)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.prewarm(directory)
        raise AssertionError("prewarm() is no checkpoint")
    _expect(backend.statistics() == before, "prewarming is counted as a session or a turn")
    async with backend.lease("echo", directory=directory) as session:
        await _expect_echo(session)


async def check_prompt_ids(backend: SessionBackend, directory: Path) -> None:
    """Under an id that is known nothing is sent, and how the turn ended is told again."""
    async with backend.lease("echo", directory=directory) as session:
        first, second = session.new_prompt_id(), session.new_prompt_id()
        _expect(first and first != second, f"two prompt ids are {first!r} and {second!r}")
        for prompt_id, text in ((first, "one"), (second, "two")):
            ends = []
            for words in (text, "this must not be sent"):
                async with session.stream(words, prompt_id=prompt_id) as stream:
                    events = [event async for event in stream]
                begun, finished = events[0], events[-1]
                if not isinstance(begun, Started) or not isinstance(finished, Finished):
                    raise AssertionError(  # noqa: TRY004  (a check that failed)
                        f"a turn goes from {begun!r} to {finished!r}"
                    )
                _expect(begun.prompt_id == prompt_id, f"{prompt_id} is told as {begun.prompt_id}")
                ends.append((finished.reason, finished.text))
            _expect(ends[0] == ends[1], f"{prompt_id} ended as {ends[0]}, and again as {ends[1]}")
            _expect(text in ends[0][1], f"the answer {ends[0][1]!r} lacks {text!r}")
        again = await session.prompt("not this either", prompt_id=first)
        _expect("one" in again.text, f"the earlier prompt's answer has become {again.text!r}")
        await _expect_echo(session)


async def check_reopen(backend: SessionBackend, directory: Path) -> None:
    """A session that is open can be had again; one that was closed is lost."""
    session = await backend.open("echo", directory=directory)
    again = await backend.reopen(session.id, "echo", directory=directory)
    _expect(again.id == session.id, f"session {session.id} was reopened as {again.id}")
    await _expect_echo(again)
    await again.aclose()
    try:
        await backend.reopen(session.id, "echo", directory=directory)
    except SessionLostError:
        pass
    else:
        raise AssertionError("a closed session was reopened")


async def check_find(backend: SessionBackend, directory: Path) -> None:
    """Sessions that are found by their metadata are those that carry them, and are open."""
    metadata = {"mission": "found", "task": "a"}
    async with (
        backend.lease("echo", directory=directory, metadata=metadata) as session,
        backend.lease("echo", directory=directory, metadata={"mission": "other"}),
    ):
        for wanted in ({"mission": "found"}, metadata):
            found = await backend.find_sessions(wanted, directory=directory)
            _expect(set(found) <= {session.id}, f"{found} were found, not {session.id}")
    left = await backend.find_sessions(metadata, directory=directory)
    _expect(not left, f"the closed sessions {left} were found")


async def check_detach(backend: SessionBackend, directory: Path) -> None:
    """A detached session takes no prompts here, and its running turn ends."""
    session = await backend.open("slow", directory=directory)
    ends: list[Finished | None] = []
    seen = anyio.Event()

    async def run() -> None:
        ends.append(await _first_text(session, "work", seen))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await seen.wait()
        await session.detach()
    _expect(ends and ends[0] is not None, "the turn of a detached session does not end")
    try:
        async with session.stream("too late"):
            raise AssertionError("a detached session took a prompt")
    except anyio.ClosedResourceError:
        pass
    for left in await backend.find_sessions({}, directory=directory):
        if left == session.id:
            await (await backend.reopen(left, "slow", directory=directory)).aclose()


SESSION_CHECKS: tuple[SessionCheck, ...] = (
    check_answer,
    check_agent_object,
    check_empty_answer,
    check_failure,
    check_tool,
    check_permission,
    check_misuse,
    check_one_prompt_at_a_time,
    check_abort,
    check_abort_from_the_reader,
    check_cancel,
    check_leaving_early,
    check_close_while_busy,
    check_close_under_cancellation,
    check_sessions_run_together,
    check_statistics,
    check_health,
    check_reset,
    check_relabel,
    check_prewarm,
    check_prompt_ids,
    check_reopen,
    check_find,
    check_detach,
)


async def _check_leaving(factory: BackendFactory, directory: Path) -> None:
    """Leaving the backend ends what runs; afterwards nothing can be opened."""
    ends: list[Finished | None] = []
    seen = anyio.Event()
    async with anyio.create_task_group() as group, factory() as backend:
        session = await backend.open("slow", directory=directory)

        async def run() -> None:
            ends.append(await _first_text(session, "work", seen))

        group.start_soon(run)
        await seen.wait()
    _expect(
        ends and ends[0] is not None and ends[0].reason is FinishReason.ABORTED,
        f"the turn of a left backend ended as {ends!r}",
    )
    _expect(not backend.is_open, "a left backend says it is open")
    try:
        await backend.open("echo", directory=directory)
    except anyio.ClosedResourceError:
        pass
    else:
        raise AssertionError("a left backend opened a session")


async def check_session_backend(
    factory: BackendFactory, *, directory: Path, timeout: float = 60.0
) -> None:
    """Prove a backend against the contract of ``orchestra.abc``. Run it on asyncio and on trio.

    ::

        @pytest.mark.anyio
        async def test_contract(tmp_path):
            await check_session_backend(lambda: MyBackend(agents), directory=tmp_path)

    Args:
        factory: Makes a new backend that offers the six agents of this module; called twice.
        directory: An empty directory to work in.
        timeout: Seconds that one check may take.

    Raises:
        ExceptionGroup: One error for each check that failed, with the check's name as a note.
    """
    failures: list[Exception] = []

    async def run(check: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            with anyio.fail_after(timeout):
                await check(*args)
        except Exception as exc:  # noqa: BLE001  (reported below)
            exc.add_note(f"{check.__name__}: {check.__doc__}")
            failures.append(exc)

    async with factory() as backend:
        for check in SESSION_CHECKS:
            await run(check, backend, directory)
    await run(_check_leaving, factory, directory)
    if failures:
        raise ExceptionGroup("the backend breaks its contract", failures)
