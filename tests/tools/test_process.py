"""One tool process: requests, deadlines, cancellation, faults, and that nothing of it is left."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tool_processes import SERVER, is_running, odd_command, until

from orchestra import CancelStyle, Framing, ToolCommand, ToolProcess
from orchestra.errors import (
    ToolError,
    ToolLostError,
    ToolProtocolError,
    ToolResponseError,
    ToolStartError,
    ToolTimeoutError,
)
from orchestra.tools import process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")


@asynccontextmanager
async def odd(directory: Path, *arguments: str, **options: Any) -> AsyncIterator[ToolProcess]:
    """Run the odd server, for a bounded time."""
    with anyio.fail_after(30):
        async with ToolProcess(odd_command(directory, *arguments, **options)) as tool:
            yield tool


async def cancel_while_waiting(tool: ToolProcess, method: str) -> None:
    """Make a request and cancel it when the server has got it."""
    async with anyio.create_task_group() as group:
        group.start_soon(tool.request, method)
        await anyio.wait_all_tasks_blocked()
        await tool.request("echo")  # so it has read the one before
        group.cancel_scope.cancel()


# ---- answers ----


@pytest.mark.parametrize(
    ("framing", "arguments"), [(Framing.LINES, ()), (Framing.CONTENT_LENGTH, ("--counted",))]
)
async def test_a_request_is_answered(
    framing: Framing, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """What is asked comes back, however large and strange, in both framings."""
    async with odd(tmp_path, *arguments, framing=framing) as tool:
        for params in ([1, "ä\n\u2028"], {"a": None}, ["x" * 300_000]):
            assert await tool.request("echo", params) == params
        assert await tool.request("echo") is None


async def test_each_answer_finds_its_request(tmp_path: Path) -> None:
    """Answers in another order than the requests go to those who asked."""
    answers: dict[int, str] = {}

    async def ask(number: int) -> None:
        answers[number] = await tool.request("hold")

    async with odd(tmp_path) as tool:
        async with anyio.create_task_group() as group:
            for number in range(1, 6):
                group.start_soon(ask, number)
                await until(lambda count=number: tool.load == count)  # type: ignore[misc]
            assert await tool.request("release") == 5
        assert answers == {number: f"held {number}" for number in range(1, 6)}


async def test_an_error_is_an_error_of_that_request(tmp_path: Path) -> None:
    """An answer with an error raises, with its code and data, and pickles; the process goes on."""
    async with odd(tmp_path) as tool:
        with pytest.raises(ToolResponseError) as caught:
            await tool.request("nonsense")
        error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (error.code, error.data) == (-32601, [1])
        assert str(error) == "odd answered 'nonsense' with error -32601: no nonsense"
        assert await tool.request("echo", [1]) == [1]


async def test_params_that_are_no_json_leave_no_trace(tmp_path: Path) -> None:
    """What cannot be sent raises at once, and nothing is in flight."""
    async with odd(tmp_path) as tool:
        with pytest.raises(TypeError):
            await tool.request("echo", {1, 2})
        assert tool.load == 0
        assert await tool.request("echo", [1]) == [1]


# ---- deadlines and cancellation ----


async def test_a_deadline_is_an_error_of_that_request(tmp_path: Path) -> None:
    """A request that is not answered in time raises; others are served meanwhile and after."""
    async with odd(tmp_path, request_timeout=0.05) as tool:
        await tool.request("say", {"text": "still thinking"}, timeout=None)
        with pytest.raises(ToolTimeoutError) as caught:
            await tool.request("hold")
        assert isinstance(caught.value, TimeoutError)
        assert "did not answer 'hold' within 0.05 s, having said: still thinking" in str(
            caught.value
        )
        assert await tool.request("echo", [1], timeout=20) == [1]


async def test_a_late_answer_is_dropped(tmp_path: Path) -> None:
    """The answer to a request that was given up harms nobody and settles it."""
    async with odd(tmp_path) as tool:
        await cancel_while_waiting(tool, "hold")
        assert (tool.load, tool.statistics().unsettled) == (1, 1)
        await tool.request("release")
        assert await tool.wait_settled()
        assert tool.load == 0


@pytest.mark.parametrize(
    ("style", "told"),
    [
        (CancelStyle.NONE, []),
        (CancelStyle.LANGUAGE_SERVER, [["$/cancelRequest", {"id": 1}]]),
        (CancelStyle.CONTEXT_PROTOCOL, [["notifications/cancelled", {"requestId": 1}]]),
    ],
)
async def test_the_server_is_told_of_a_cancellation(
    style: CancelStyle, told: list[object], tmp_path: Path
) -> None:
    """Who gives up, by cancellation or deadline, tells the server in its own words."""
    async with odd(tmp_path, cancel_style=style) as tool:
        await cancel_while_waiting(tool, "hold")
        assert await tool.request("seen") == told
        with pytest.raises(ToolTimeoutError):
            await tool.request("hold", timeout=0.01)
        assert len(await tool.request("seen")) == 2 * len(told)


@pytest.mark.parametrize("style", [CancelStyle.LANGUAGE_SERVER, CancelStyle.CONTEXT_PROTOCOL])
async def test_a_server_that_understands_settles(style: CancelStyle, tmp_path: Path) -> None:
    """A language server settles by answering, any other proves by a ping that it is not stuck."""
    async with odd(tmp_path, cancel_style=style) as tool:
        await cancel_while_waiting(tool, "hold")
        assert await tool.wait_settled()
        assert not tool.is_stuck


async def test_a_server_that_does_not_settle_is_stuck(tmp_path: Path) -> None:
    """When the grace is over and a request that was given up is not settled, it is stuck."""
    async with odd(tmp_path, grace=0.05) as tool:
        await cancel_while_waiting(tool, "hold")
        assert not await tool.wait_settled()
        assert tool.is_stuck


async def test_a_request_that_is_cancelled_at_once_is_not_made(tmp_path: Path) -> None:
    """A caller who is cancelled already sends nothing."""
    async with odd(tmp_path) as tool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await tool.request("hold")
        assert scope.cancelled_caught
        assert tool.statistics().requests == 0
        assert await tool.request("release") == 0


async def test_a_deaf_server_holds_up_its_own_requests_only(tmp_path: Path) -> None:
    """Who writes to a server that does not read waits, within the deadline, and can be cancelled."""
    async with odd(tmp_path, message_limit=200_000, grace=0.05) as tool:
        with pytest.raises(ToolTimeoutError):
            await tool.request("deaf", timeout=0.01)
        with anyio.move_on_after(0.05) as scope:
            await tool.notify("x", ["x" * 1_000_000])
        assert scope.cancelled_caught
        with pytest.raises(ToolTimeoutError):
            await tool.request("echo", timeout=0.05)
        assert tool.statistics().requests == 1  # the other one has found no room
        assert await tool.wait_settled() is False


# ---- what the server says by itself ----


async def test_notifications_come_in_order(tmp_path: Path) -> None:
    """Each notification is heard once, in order, before the answer that follows it."""
    heard: list[tuple[str, Any]] = []
    talkative = ToolProcess(
        odd_command(tmp_path), on_notification=lambda method, params: heard.append((method, params))
    )
    async with talkative as tool:
        assert await tool.request("tell", {"count": 500}) == 500
        assert heard == [("told", [number]) for number in range(500)]


async def test_a_listener_that_raises_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the listener is logged, and the process goes on without it."""

    def listen(method: str, params: Any) -> None:
        raise LookupError(method)

    async with ToolProcess(odd_command(tmp_path), on_notification=listen) as tool:
        assert await tool.request("tell", {"count": 3}) == 3
    assert caplog.text.count("is dropped") == 1


def unknown(method: str, params: Any) -> object:
    raise LookupError(method)


def refused(method: str, params: Any) -> object:
    raise ToolResponseError("not today", 7, [1])


def broken(method: str, params: Any) -> object:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda method, params: [method, params], ["q", {"method": "q"}]),
        (None, {"code": -32601, "message": "method 'q' is unknown"}),
        (unknown, {"code": -32601, "message": "method 'q' is unknown"}),
        (refused, {"code": 7, "message": "not today", "data": [1]}),
        (broken, {"code": -32603, "message": "the client could not answer"}),
        (lambda *_: {1}, {"code": -32603, "message": "the client could not answer"}),
    ],
)
async def test_the_server_may_ask_too(
    answer: Callable[[str, Any], object] | None, expected: object, tmp_path: Path
) -> None:
    """A request of the server gets an answer, whatever happens here."""
    async with ToolProcess(odd_command(tmp_path), on_request=answer) as tool:
        assert await tool.request("ask", {"method": "q"}) == expected


# ---- faults ----


@pytest.mark.parametrize(
    ("method", "params", "kind", "fact"),
    [
        ("garbage", None, ToolProtocolError, "wrote 'Hello, world!', which is not JSON"),
        ("wrong id", None, ToolProtocolError, "answered with the id 1002, which nobody waits for"),
        ("twice", None, ToolProtocolError, "answered with the id 2, which nobody waits for"),
        ("giant", None, ToolProtocolError, "where 1,000,000 are allowed"),
        ("flood", None, ToolProtocolError, "more than 1,000,000 bytes to its standard error"),
        ("ask a lot", None, ToolProtocolError, "asks faster than it reads"),
        ("close", None, ToolLostError, "closed its pipes and was ended"),
        ("half", None, ToolLostError, "ended with exit status 0"),
        ("die", {"code": 5}, ToolLostError, "ended with exit status 5"),
        ("kill", None, ToolLostError, "was killed by signal 9"),
    ],
)
async def test_a_fault_fails_every_request_at_once(
    method: str, params: Any, kind: type[ToolError], fact: str, tmp_path: Path
) -> None:
    """What is in flight and what comes later fails with a sentence that says why; all is killed."""
    errors: list[ToolError] = []

    async def wait() -> None:
        with pytest.raises(kind) as caught:
            await tool.request("hold")
        errors.append(caught.value)

    limits = {"message_limit": 1_000_000, "stderr_limit": 1_000_000}
    async with odd(tmp_path, request_timeout=None, **limits) as tool:
        pid = tool.pid
        assert pid is not None
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            # "twice" is answered before the fault is seen
            with suppress(ToolError):
                await tool.request(method, params)
        with pytest.raises(kind) as caught:
            await tool.request("echo")
        assert fact in str(caught.value)
        assert str(caught.value).count("; ") == 1
        assert [str(error) for error in errors] == [str(caught.value)]
        assert errors[0] is not caught.value
        assert not tool.is_running
        await until(lambda: not is_running(pid))


async def test_a_wrong_id_in_headers(tmp_path: Path) -> None:
    """Garbage between counted messages is found out at its first line."""
    async with odd(tmp_path, "--counted", framing=Framing.CONTENT_LENGTH) as tool:
        with pytest.raises(ToolProtocolError, match="where a header should be"):
            await tool.request("garbage")


async def test_a_kill_from_outside_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill -9 in the middle of a request fails it, and takes the grandchildren along."""
    monkeypatch.setattr(process, "_LINGER", 1000.0)  # nor is anything waited for
    async with odd(tmp_path, request_timeout=None) as tool:
        grandchild = await tool.request("spawn", {})
        assert tool.pid is not None
        async with anyio.create_task_group() as group:
            group.start_soon(wait_lost, tool)
            await anyio.wait_all_tasks_blocked()
            os.kill(tool.pid, signal.SIGKILL)
        await until(lambda: not is_running(grandchild))


async def wait_lost(tool: ToolProcess) -> None:
    with pytest.raises(ToolLostError, match="was killed by signal 9"):
        await tool.request("hold")


async def test_who_left_the_group_holds_nothing_up(tmp_path: Path) -> None:
    """A grandchild outside the group that holds the pipes cannot hide that the process is dead."""
    async with odd(tmp_path, request_timeout=None) as tool:
        outcast = await tool.request("spawn", {"leave": True})
        try:
            with pytest.raises(ToolLostError, match="exit status 4"):
                await tool.request("die", {"code": 4})
        finally:
            os.kill(outcast, signal.SIGKILL)


async def test_last_words_are_in_the_error(tmp_path: Path) -> None:
    """A process that ends at its start says why, in one sentence."""
    async with odd(tmp_path, "--exit") as tool:
        with pytest.raises(ToolLostError) as caught:
            await tool.request("echo")
    assert str(caught.value) == (
        f"odd (pid {tool.pid}) ended with exit status 3, having said: no license found; "
        "repeat the request if doing it twice does no harm"
    )
    assert caught.value.stderr == "no license\nfound"


async def test_the_end_of_a_long_stderr_is_kept(tmp_path: Path) -> None:
    """A talkative server that answers is no flood; of what it says, the end is kept."""
    async with odd(tmp_path, stderr_limit=200_000) as tool:
        for number in range(20):
            await tool.request("say", {"text": f"{number} " * 10_000})
        assert await tool.request("echo", [1]) == [1]
        await until(lambda: tool.statistics().stderr_bytes == 20_000 * 10 + 10_000 * 30)
        assert tool.stderr.endswith("19 19 ")
        assert len(tool.stderr) == 8192


# ---- start ----


@pytest.mark.parametrize(
    ("argv", "error", "match"),
    [
        ((), ValueError, "must begin with a program"),
        (("",), ValueError, "must begin with a program"),
        (("./tool",), ValueError, "depends on the directory"),
        (("bin/tool",), ValueError, "depends on the directory"),
        ("tool", TypeError, "not the text 'tool'"),
    ],
)
def test_a_command_is_checked(argv: Any, error: type[Exception], match: str) -> None:
    """A command line that is wrong, or depends on where it is run, is refused when it is made."""
    with pytest.raises(error, match=match):
        ToolCommand(argv=argv, directory=Path("/"))


@pytest.mark.parametrize("name", ["no-such-program-anywhere", "/no/such/program", "/", "a\0b"])
async def test_a_program_that_is_not_there(name: str, tmp_path: Path) -> None:
    """A program that cannot be found or started is one error, not a group."""
    with pytest.raises(ToolStartError) as caught:
        async with ToolProcess(ToolCommand(argv=(name,), directory=tmp_path)):
            raise AssertionError("unreachable")
    assert repr(name) in str(caught.value)


async def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    """What the system refuses to run is an error that says why."""
    program = tmp_path / "program"
    program.write_text("\0")
    program.chmod(0o755)
    with pytest.raises(ToolStartError, match="Exec format error"):
        async with ToolProcess(ToolCommand(argv=(str(program),), directory=tmp_path)):
            raise AssertionError("unreachable")


@pytest.mark.parametrize("current", ["workspace", "elsewhere"])
@pytest.mark.parametrize("entry", ["", ".", "bin", "{workspace}", "{workspace}/bin", "{link}"])
async def test_no_program_of_the_workspace_is_run(
    entry: str, current: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However PATH leads into the workspace, a program there is not found by its name."""
    workspace = tmp_path / "workspace"
    for place in (workspace, workspace / "bin", tmp_path / "elsewhere" / "bin"):
        place.mkdir(parents=True)
        program = place / "tool-of-the-workspace"
        program.write_text("#!/bin/sh\ntouch was-run\n")
        program.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(workspace / "bin")
    path = entry.format(workspace=workspace, link=link)
    command = ToolCommand(
        argv=("tool-of-the-workspace",), directory=workspace, environment={"PATH": path}
    )
    monkeypatch.chdir(tmp_path / current)
    with pytest.raises(ToolStartError, match="outside"):
        async with ToolProcess(command):
            raise AssertionError("unreachable")
    assert not (workspace / "was-run").exists()


async def test_a_name_is_found_outside(tmp_path: Path) -> None:
    """A name is looked up on the PATH of the environment that the program gets."""
    bin_directory, workspace = tmp_path / "bin", tmp_path / "workspace"
    bin_directory.mkdir()
    workspace.mkdir()
    (bin_directory / "odd").symlink_to(sys.executable)
    command = ToolCommand(
        argv=("odd", "-IS", str(SERVER)),
        directory=workspace,
        environment={"PATH": f"relative::{bin_directory}"},
    )
    async with ToolProcess(command) as tool:
        assert await tool.request("echo", [1]) == [1]
    assert command.label == "odd"


# ---- the end ----


async def test_leaving_ends_everything(tmp_path: Path) -> None:
    """Who waits is told, and neither the process nor its children are left."""
    async with anyio.create_task_group() as group:
        async with odd(tmp_path, request_timeout=None) as tool:
            grandchild = await tool.request("spawn", {})
            group.start_soon(wait_closed, tool)
            await anyio.wait_all_tasks_blocked()
        assert tool.pid is not None
        assert not is_running(tool.pid)
        await until(lambda: not is_running(grandchild))
        with pytest.raises(anyio.ClosedResourceError):
            await tool.request("echo")


async def wait_closed(tool: ToolProcess) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await tool.request("hold")


async def test_who_ignores_every_wish_is_killed(tmp_path: Path) -> None:
    """A process that ignores the end of its input and SIGTERM is killed when both graces are over."""
    async with odd(tmp_path, "--stubborn", grace=0.05) as tool:
        await tool.request("echo")
    assert tool.pid is not None
    assert not is_running(tool.pid)


async def test_cancellation_ends_everything(tmp_path: Path) -> None:
    """A cancelled block leaves no process behind, and the cancellation is not swallowed."""
    with anyio.CancelScope() as scope:
        async with odd(tmp_path, request_timeout=None) as tool:
            await tool.request("echo")
            scope.cancel()
            await tool.request("hold")
    assert scope.cancelled_caught
    assert tool.pid is not None
    assert not is_running(tool.pid)


async def test_the_block_keeps_its_own_error(tmp_path: Path) -> None:
    """What the block raises comes out as it is."""
    with pytest.raises(LookupError, match="mine"):
        async with odd(tmp_path):
            raise LookupError("mine")


async def test_a_process_is_entered_once(tmp_path: Path) -> None:
    """Before the block nothing can be asked, and there is no second block."""
    tool = ToolProcess(odd_command(tmp_path))
    with pytest.raises(RuntimeError, match="was not started"):
        await tool.request("echo")
    async with tool:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with tool:
            raise AssertionError("unreachable")


async def test_it_can_be_looked_at(tmp_path: Path) -> None:
    """Its repr and statistics say what it does."""
    tool = ToolProcess(odd_command(tmp_path))
    assert repr(tool) == "<ToolProcess 'odd' not started>"
    async with tool:
        await cancel_while_waiting(tool, "hold")
        statistics = tool.statistics()
        assert (statistics.requests, statistics.answered) == (2, 1)
        assert (statistics.in_flight, statistics.unsettled) == (0, 1)
        assert repr(tool) == f"<ToolProcess 'odd' pid {tool.pid}, 1 in flight>"
    assert repr(tool) == f"<ToolProcess 'odd' pid {tool.pid}, over>"
