"""The embedded backend: its contract, and what is its own."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from tool_processes import is_running, until

from orchestra import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn
from orchestra.errors import SessionLostError
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionAsked,
    PermissionReply,
    PermissionRequest,
    SessionEvent,
    Started,
    TextReceived,
    ToolCalled,
    Usage,
)
from orchestra.testing import check_session_backend


async def echo(turn: Turn) -> str:
    await turn.usage(Usage(input_tokens=3, output_tokens=2, cost=0.5))
    return turn.prompt


async def slow(turn: Turn) -> None:
    await turn.text("working")
    await anyio.sleep_forever()


async def fail(turn: Turn) -> str:
    raise LookupError("there is nothing here")


async def tool(turn: Turn) -> str:
    await turn.text("let me see")
    await turn.tool_call("read", {"path": "a.py"}, output="pass")
    return "done"


async def ask(turn: Turn) -> str:
    reply = await turn.ask_permission("bash", "rm -r build")
    return "allowed" if reply.is_allowed else f"refused: {reply.message}"


async def empty(turn: Turn) -> str:
    return ""


def plain_echo(turn: Turn) -> str:
    return turn.prompt


def plain_fail(turn: Turn) -> str:
    raise LookupError("there is nothing here")


def plain_slow(turn: Turn) -> None:
    anyio.from_thread.run(turn.text, "working")
    while True:
        anyio.from_thread.check_cancelled()
        threading.Event().wait(0.01)


def plain_ask(turn: Turn) -> str:
    reply = anyio.from_thread.run(turn.ask_permission, "bash", "ls")
    return "allowed" if reply.is_allowed else "refused"


def plain_tool(turn: Turn) -> str:
    anyio.from_thread.run(turn.tool_call, "read")
    return "done"


def python(code: str) -> CommandAgent:
    return CommandAgent((sys.executable, "-c", code))


COROUTINES: dict[str, EmbeddedAgent] = {
    "echo": echo,
    "slow": slow,
    "fail": fail,
    "tool": tool,
    "ask": ask,
    "empty": empty,
}
FUNCTIONS: dict[str, EmbeddedAgent] = {
    "echo": plain_echo,
    "slow": plain_slow,
    "fail": plain_fail,
    "tool": plain_tool,
    "ask": plain_ask,
    "empty": lambda _: "",
}
COMMANDS: dict[str, EmbeddedAgent] = {
    **COROUTINES,
    "echo": CommandAgent(("cat",)),
    "slow": CommandAgent(("sh", "-c", "echo working; sleep 1000")),
    "fail": CommandAgent(("sh", "-c", "echo nothing here >&2; exit 3")),
    "empty": CommandAgent(("true",)),
}


@pytest.mark.parametrize("agents", [COROUTINES, FUNCTIONS, COMMANDS], ids=["async", "def", "argv"])
async def test_contract(agents: dict[str, EmbeddedAgent], tmp_path: Path) -> None:
    """Coroutines, plain functions and command lines all keep the contract."""
    await check_session_backend(lambda: EmbeddedBackend(agents), directory=tmp_path)


async def run(agent: EmbeddedAgent, directory: Path, prompt: str = "go") -> list[SessionEvent]:
    async with (
        EmbeddedBackend({"agent": agent}) as backend,
        backend.lease("agent", directory=directory) as session,
        session.stream(prompt) as stream,
    ):
        return [event async for event in stream]


def last(events: list[SessionEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


async def test_a_session_of_another_process_is_lost(tmp_path: Path) -> None:
    """Its id is nobody else's, so that a mission that goes on does not get another task's session."""
    async with EmbeddedBackend({"echo": echo}) as before:
        session = await before.open("echo", directory=tmp_path)
    async with EmbeddedBackend({"echo": echo}) as after:
        await after.open("echo", directory=tmp_path)
        with pytest.raises(SessionLostError):
            await after.reopen(session.id, "echo", directory=tmp_path)


async def test_command_reads_the_prompt_and_then_the_end_of_its_input(tmp_path: Path) -> None:
    """A command that reads its whole input is not left waiting."""
    agent = python("import sys; text = sys.stdin.read(); print(text.upper(), end='')")
    assert last(await run(agent, tmp_path, "grüße")).text == "GRÜSSE"


async def test_command_works_in_the_directory(tmp_path: Path) -> None:
    """The session's directory is the command's."""
    await run(python("open('made', 'w').close()"), tmp_path)
    assert (tmp_path / "made").exists()


async def test_command_that_does_not_read_its_input(tmp_path: Path) -> None:
    """A prompt that nobody reads, larger than a pipe, does not hang or fail the turn."""
    finished = last(await run(CommandAgent(("echo", "hi")), tmp_path, "x" * 1_000_000))
    assert (finished.reason, finished.text) == (FinishReason.DONE, "hi\n")


async def test_command_with_invalid_utf8(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are replaced, also where a piece ends in the middle of one."""
    code = "import sys; sys.stdout.buffer.write(b'a\\xff\\xc3'); sys.stdout.flush()"
    assert last(await run(python(code), tmp_path)).text == "a\ufffd\ufffd"


async def test_long_answer_is_cut(tmp_path: Path) -> None:
    """5 MB of text give 1 MiB and the word that it was cut."""
    finished = last(await run(python("print('y' * 5_000_000)"), tmp_path))
    assert finished.is_truncated
    assert len(finished.text) == 1 << 20


async def test_command_that_does_not_exist(tmp_path: Path) -> None:
    """A program that is missing fails the turn, not the caller."""
    finished = last(await run(CommandAgent(("no-such-program-here",)), tmp_path))
    assert finished.reason is FinishReason.FAILED
    assert finished.error is not None
    assert "no-such-program-here" in finished.error.message


async def test_command_timeout(tmp_path: Path) -> None:
    """A command that takes too long is ended, and the error says so."""
    finished = last(await run(CommandAgent(("sleep", "1000"), timeout=0.05), tmp_path))
    assert finished.error is not None
    assert "stopped after 0.05 s" in finished.error.message


async def test_aborted_command_leaves_no_child(tmp_path: Path) -> None:
    """What the command started ends with it."""
    agent = CommandAgent(("sh", "-c", "sleep 1000 & echo $!; wait"))
    async with (
        EmbeddedBackend({"agent": agent}) as backend,
        backend.lease("agent", directory=tmp_path) as session,
    ):
        child = 0
        async with session.stream("go") as stream:
            async for event in stream:
                if isinstance(event, TextReceived):
                    child = int(event.text)
                    break
        await until(lambda: not is_running(child))


async def test_policy_decides(tmp_path: Path) -> None:
    """The policy gets the request; it may be a coroutine function."""
    requests: list[PermissionRequest] = []

    async def policy(request: PermissionRequest) -> PermissionReply:
        await anyio.lowlevel.checkpoint()
        requests.append(request)
        return PermissionReply(is_allowed=True)

    async with (
        EmbeddedBackend({"ask": ask}, permission_policy=policy) as backend,
        backend.lease("ask", directory=tmp_path) as session,
    ):
        events: list[SessionEvent] = []
        finished = await session.prompt("go", listener=events.append)
    assert finished.text == "allowed"
    assert [(request.permission, request.patterns) for request in requests] == [
        ("bash", ("rm -r build",))
    ]
    assert any(isinstance(event, PermissionAsked) for event in events)


async def test_answer_is_the_text_after_the_last_tool(tmp_path: Path) -> None:
    """An agent that returns nothing has answered with what it showed after its last tool call."""

    async def agent(turn: Turn) -> None:
        await turn.text("first I look")
        await turn.tool_call("look", error="nothing there")
        await turn.text("it is ")
        await turn.text("empty")

    events = await run(agent, tmp_path)
    assert last(events).text == "it is empty"
    assert sum(isinstance(event, ToolCalled) for event in events) == 1


async def test_usage_is_added_up(tmp_path: Path) -> None:
    """What model calls cost is summed over the turn."""

    async def agent(turn: Turn) -> str:
        for _ in range(3):
            await turn.usage(Usage(input_tokens=10, output_tokens=1, cost=0.25))
        return "ok"

    assert last(await run(agent, tmp_path)).usage == Usage(
        input_tokens=30, output_tokens=3, cost=0.75
    )


async def test_memory_lasts_for_the_session(tmp_path: Path) -> None:
    """An agent finds its notes in the next turn of the session, and only there."""

    async def agent(turn: Turn) -> str:
        turn.memory["seen"] = turn.memory.get("seen", 0) + 1
        return f"{turn.number} {turn.memory['seen']}"

    async with EmbeddedBackend({"agent": agent}) as backend:
        async with backend.lease("agent", directory=tmp_path) as session:
            answers = [(await session.prompt("go")).text for _ in range(2)]
        async with backend.lease("agent", directory=tmp_path) as session:
            answers.append((await session.prompt("go")).text)
    assert answers == ["1 1", "2 2", "1 1"]


async def test_agent_that_returns_something_else(tmp_path: Path) -> None:
    """An answer that is no string fails the turn and says what it was."""
    finished = last(await run(lambda _: 42, tmp_path))  # type: ignore[arg-type,return-value]
    assert finished.error is not None
    assert "int" in finished.error.message


async def test_hung_function_is_left_after_the_grace(tmp_path: Path) -> None:
    """A function that ignores the abort delays it by the grace and no longer; it cannot tell on."""
    release = threading.Event()
    refused = threading.Event()

    def hang(turn: Turn) -> str:
        anyio.from_thread.run(turn.text, "working")
        release.wait(30)
        try:
            anyio.from_thread.run(turn.text, "too late")
        except RuntimeError:
            refused.set()
        return "ignored"

    async with (
        EmbeddedBackend({"hang": hang}, thread_grace=0.02) as backend,
        backend.lease("hang", directory=tmp_path) as session,
    ):
        events: list[SessionEvent] = []
        async with session.stream("go") as stream:
            async for event in stream:
                if isinstance(event, TextReceived):
                    await session.abort()
                events.append(event)
        assert last(events).reason is FinishReason.ABORTED
        release.set()
        assert await anyio.to_thread.run_sync(refused.wait, 10)


async def test_slow_reader_holds_the_agent_back(tmp_path: Path) -> None:
    """Events that nobody reads are bounded: the agent waits, and goes on when they are read."""
    told = 0

    async def chatty(turn: Turn) -> str:
        nonlocal told
        for _ in range(2_000):
            await turn.text("x")
            told += 1
        return "end"

    async with (
        EmbeddedBackend({"chatty": chatty}) as backend,
        backend.lease("chatty", directory=tmp_path) as session,
        session.stream("go") as stream,
    ):
        await anyio.wait_all_tasks_blocked()
        assert told < 300
        assert sum([isinstance(event, TextReceived) async for event in stream]) == 2_001
    assert told == 2_000


async def test_crash_of_the_body_comes_out_plain(tmp_path: Path) -> None:
    """What is raised beside an open backend is not wrapped into a group."""

    async def crash() -> None:
        async with EmbeddedBackend(COROUTINES) as backend:
            await backend.open("echo", directory=tmp_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await crash()


async def test_entered_twice() -> None:
    """A backend is for one use."""
    backend = EmbeddedBackend({})
    async with backend:
        pass
    with pytest.raises(RuntimeError, match="make a new one"):
        async with backend:
            pass


def test_an_abandoned_function_may_end_with_the_loop(tmp_path: Path) -> None:
    """A function that was given up and returns while the loop is closing ends its thread."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    class ClosingLoop(asyncio.SelectorEventLoop):
        def close(self) -> None:
            release.set()
            for thread in threads:  # until it has ended, or has asked for what never comes
                thread.join(0.2)
            super().close()

    def stubborn(turn: Turn) -> None:
        threads.append(threading.current_thread())
        anyio.from_thread.run(turn.text, "working")
        release.wait(30)

    async def main() -> None:
        async with (
            EmbeddedBackend({"stubborn": stubborn}, thread_grace=0.0) as backend,
            backend.lease("stubborn", directory=tmp_path) as session,
            session.stream("work") as stream,
        ):
            async for event in stream:
                if isinstance(event, TextReceived):
                    break
            await session.abort()

    anyio.run(main, backend_options={"loop_factory": ClosingLoop})
    (thread,) = threads
    thread.join(10)
    assert not thread.is_alive()


def test_bad_configuration() -> None:
    """A wrong argument is named at construction."""
    with pytest.raises(TypeError, match="'worker' must be callable"):
        EmbeddedBackend({"worker": "cat"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="thread_grace"):
        EmbeddedBackend({}, thread_grace=-1)
    with pytest.raises(ValueError, match="argv"):
        CommandAgent(())
    with pytest.raises(ValueError, match="timeout"):
        CommandAgent(("cat",), timeout=0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_an_agent_awaits_may_be_cancelled(tmp_path: Path) -> None:
    """A cancelled future that an agent awaits fails its turn and touches nobody else."""

    async def impatient(turn: Turn) -> None:
        task = asyncio.ensure_future(asyncio.sleep(1000))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    is_at_the_end = False
    async with (
        EmbeddedBackend({"impatient": impatient, "slow": slow}) as backend,
        backend.lease("impatient", directory=tmp_path) as session,
        backend.lease("slow", directory=tmp_path) as other,
        other.stream("work") as events,
    ):
        finished = await session.prompt("go")
        assert finished.reason is FinishReason.FAILED
        assert finished.error is not None
        assert finished.error.name == "CancelledError"
        assert isinstance(await anext(events), Started)
        assert isinstance(await anext(events), TextReceived)
        assert backend.statistics().turns_running == 1
        is_at_the_end = True
    assert is_at_the_end


async def test_a_function_may_return_something_to_await(tmp_path: Path) -> None:
    """A plain callable that returns a coroutine has its answer awaited."""
    events = await run(lambda turn: echo(turn), tmp_path, "hello")  # noqa: PLW0108
    assert isinstance(events[-1], Finished)
    assert events[-1].text == "hello"
    assert events[-1].usage.cost == 0.5


async def test_cancelling_a_backend_aborts_its_turns(tmp_path: Path) -> None:
    """A turn that runs when its backend is cancelled is over before the backend is left."""
    started = anyio.Event()
    told: list[str] = []

    async def tidy(turn: Turn) -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            told.append("tidied up")

    with anyio.CancelScope() as scope:
        async with (
            EmbeddedBackend({"tidy": tidy}) as backend,
            backend.lease("tidy", directory=tmp_path) as session,
            session.stream("work") as events,
        ):
            await started.wait()
            scope.cancel()
            assert isinstance(await anext(events), Started)
            await anext(events)
    assert scope.cancelled_caught
    assert told == ["tidied up"]
    assert backend.statistics().turns_running == backend.statistics().sessions_open == 0
