"""The tool server: its methods, its errors, cancellation, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from text_tools import write_files
from tool_processes import children, until

from orchestra import CancelStyle, Framing, ToolCommand, ToolPool, ToolProcess
from orchestra.errors import ToolResponseError, ToolTimeoutError
from orchestra.tools._stdio import Pipes
from orchestra.tools.catalog import Argument, Tool, shipped_tools
from orchestra.tools.root import Root
from orchestra.tools.server import ToolServer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")

SERVER = (sys.executable, "-P", "-m", "orchestra.tools")
CATASTROPHE = {"pattern": "(a|aa)+(?=b)"}


def tool(name: str, call: Callable[[], Awaitable[object]]) -> Tool:
    """Return a tool of the test's."""

    async def answer(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
        return {"value": await call(), "given": given}, "text"

    arguments = {
        "text": Argument(description="A text.", is_required=True),
        "number": Argument(kind="integer", description="A number.", default=1, bounds=(1, 9)),
        "flag": Argument(kind="boolean", description="A flag.", default=False),
        "choice": Argument(description="A choice.", choices=("a", "b")),
    }
    return Tool(name=name, description="Does it.", arguments=arguments, call=answer)


class Client:
    """The other end of the server's pipes."""

    def __init__(self, pipes: Pipes, close: Callable[[], None]) -> None:
        self.pipes = pipes
        self.close = close
        self._rest = b""

    async def send(self, *messages: object) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            await self.pipes.write(data + b"\n")

    async def receive(self) -> Any:
        while b"\n" not in self._rest:
            data = await self.pipes.read()
            assert data, "the server has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    async def error(self) -> tuple[Any, int, str]:
        answer = await self.receive()
        return answer["id"], answer["error"]["code"], answer["error"]["message"]


@asynccontextmanager
async def serving(*tools: Tool, linger: float = 5.0) -> AsyncIterator[tuple[Client, ToolServer]]:
    """Run a server in this process; leaving closes its input and waits for its end."""
    there, back = os.pipe(), os.pipe()
    ends = {there[1], back[0]}

    def close() -> None:
        if there[1] in ends:
            ends.remove(there[1])
            os.close(there[1])

    server = ToolServer(tools, Pipes(there[0], back[1]), linger=linger)
    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(server.serve)
                yield Client(Pipes(back[0], there[1]), close), server
                close()
    finally:
        for descriptor in (*ends, there[0], back[1]):
            os.close(descriptor)


def call(request_id: object, name: str, **arguments: object) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def forever() -> None:
    await anyio.sleep_forever()


async def done() -> str:
    await anyio.lowlevel.checkpoint()
    return "done"


# ---- methods ----


async def test_methods() -> None:
    """It introduces itself, answers a ping, lists its tools and calls one, defaults filled in."""
    async with serving(tool("do", done)) as (client, server):
        params = {"protocolVersion": "2025-03-26"}
        await client.send(
            {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": params},
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
        )
        answer = await client.receive()
        assert (answer["id"], answer["result"]["protocolVersion"]) == ("a", "2025-03-26")
        assert answer["result"]["capabilities"] == {"tools": {}}
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert (await client.receive())["result"] == {}
        await client.send({"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
        (listed,) = (await client.receive())["result"]["tools"]
        assert (listed["name"], listed["inputSchema"]["required"]) == ("do", ["text"])
        await client.send(call(3, "do", text="x", choice=None))
        given = {"text": "x", "number": 1, "flag": False, "choice": None}
        assert (await client.receive())["result"] == {
            "content": [{"type": "text", "text": "text"}],
            "structuredContent": {"value": "done", "given": given},
            "isError": False,
        }
        assert (server.statistics().requests, server.statistics().answered) == (4, 4)
        assert repr(server) == "<ToolServer do: 0 pending, 4 answered>"


def test_every_shipped_tool_has_a_schema(tmp_path: Path) -> None:
    """Each has a description, and a schema that names a type for each argument."""
    tools = shipped_tools(Root(tmp_path))
    names = [tool.name for tool in tools]
    assert names == ["grep", "glob", "file_statistics", "ast_search", "ast_rewrite"]
    for one in tools:
        described = one.describe()
        assert described["description"].endswith((".", "s true."))
        schema = described["inputSchema"]
        assert set(schema["required"]) <= set(schema["properties"])
        assert all(
            {"type", "description"} <= set(property_) for property_ in schema["properties"].values()
        )
        assert described["annotations"]["readOnlyHint"] is (one.name != "ast_rewrite")


# ---- errors ----


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"garbage", -32700),
        (b"\xff\xfe{}", -32700),
        (b"[" * 10_000, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":NaN}', -32700),
        ({}, -32600),
        ([], -32600),
        (5, -32600),
        ({"id": 1, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, -32600),
        ({"jsonrpc": "2.0", "id": {}, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "nothing"}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call"}, -32602),
        (call(1, "nothing"), -32602),
        (call(1, "do"), -32602),
        (call(1, "do", text=5), -32602),
        (call(1, "do", text="x", number=True), -32602),
        (call(1, "do", text="x", number=10), -32602),
        (call(1, "do", text="x", number="x" * 10_000), -32602),
        (call(1, "do", text="x", flag=1), -32602),
        (call(1, "do", text="x", choice="c"), -32602),
        (call(1, "do", text="x", more=1), -32602),
        (
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": "do", "arguments": [1]},
            },
            -32602,
        ),
    ],
)
async def test_faulty_messages_are_answered(message: object, code: int) -> None:
    """Each fault has its JSON-RPC error in one short sentence, and the next message is served."""
    async with serving(tool("do", done)) as (client, _):
        await client.send(message)
        _, found, sentence = await client.error()
        assert found == code
        assert 0 < len(sentence) < 400
        await client.send({"jsonrpc": "2.0", "id": 2, "method": "ping"})
        assert (await client.receive())["result"] == {}


@pytest.mark.parametrize(
    "error", [ValueError("is wrong"), FileNotFoundError("is wrong"), ImportError("is wrong")]
)
async def test_what_a_tool_cannot_do_is_a_result(error: Exception) -> None:
    """A refusal of the tool is told to the model, as its text."""

    async def fail() -> None:
        raise error

    async with serving(tool("do", fail)) as (client, _):
        await client.send(call(1, "do", text="x"))
        content = [{"type": "text", "text": "is wrong"}]
        assert (await client.receive())["result"] == {"content": content, "isError": True}


async def test_a_tool_that_fails_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours is logged, and not told in detail."""

    async def fail() -> None:
        raise KeyError("secret")

    async with serving(tool("do", fail)) as (client, _):
        await client.send(call(1, "do", text="x"))
        request_id, code, sentence = await client.error()
        assert (request_id, code, "secret" in sentence) == (1, -32603, False)
    assert "KeyError" in caplog.text


async def test_an_id_that_is_in_use_is_refused() -> None:
    """The second request with the id of one that is worked on is an error; the first goes on."""
    release = anyio.Event()
    async with serving(tool("do", release.wait)) as (client, _):
        await client.send(call(1, "do", text="x"), call(1, "do", text="x"))
        assert (await client.error())[:2] == (1, -32600)
        release.set()
        assert (await client.receive())["result"]["isError"] is False


async def test_too_many_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes when as many wait as may is refused at once; the others are answered."""
    monkeypatch.setattr("orchestra.tools.server._MAX_PENDING", 20)
    release = anyio.Event()
    async with serving(tool("do", release.wait)) as (client, server):
        await client.send(*(call(number, "do", text="x") for number in range(21)))
        assert (await client.error())[:2] == (20, -32000)
        assert server.statistics().pending == 20
        release.set()
        ids = [(await client.receive())["id"] for _ in range(20)]
        assert sorted(ids) == list(range(20))


# ---- concurrency, cancellation ----


async def test_requests_do_not_wait_for_each_other() -> None:
    """A request that takes long does not hold up the next one."""
    async with serving(tool("do", done), tool("wait", forever), linger=0) as (client, _):
        await client.send(call(1, "wait", text="x"), call(2, "do", text="x"))
        assert (await client.receive())["id"] == 2


@pytest.mark.parametrize("method", ["notifications/cancelled", "$/cancelRequest"])
async def test_cancellation(method: str) -> None:
    """A request is stopped; one style of notification wants an answer, the other none."""
    stopped, started = anyio.Event(), anyio.Event()

    async def wait() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with serving(tool("wait", wait)) as (client, server):
        await client.send(call(1, "wait", text="x"))
        await started.wait()
        params = {"requestId": 1, "id": 1}
        for _ in range(2):  # the second has nothing to stop
            await client.send({"jsonrpc": "2.0", "method": method, "params": params})
        await stopped.wait()
        if method == "$/cancelRequest":
            assert (await client.error())[:2] == (1, -32800)
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "ping"})  # the id is free
        assert (await client.receive())["result"] == {}
        assert server.statistics().cancelled == 1


@pytest.mark.parametrize("params", [None, [], {}, {"requestId": None}, {"requestId": {}}])
async def test_a_faulty_cancellation_is_passed_over(params: object) -> None:
    """A notification never gets an answer, whatever is in it."""
    async with serving() as (client, _):
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
        await client.send(message if params is None else {**message, "params": params})
        await client.send({"jsonrpc": "2.0", "id": 2, "method": "ping"})
        assert (await client.receive())["id"] == 2


# ---- the end ----


async def test_the_end_of_the_input_lets_requests_finish() -> None:
    """What was asked is answered although the input has ended, and then the server ends."""
    release = anyio.Event()
    async with serving(tool("do", release.wait)) as (client, _):
        await client.send(call(1, "do", text="x"))
        client.close()
        await anyio.wait_all_tasks_blocked()
        release.set()
        assert (await client.receive())["id"] == 1


async def test_the_end_of_the_input_is_no_wait_for_ever() -> None:
    """A request that does not end is stopped after the linger."""
    async with serving(tool("wait", forever), linger=0.05) as (client, server):
        await client.send(call(1, "wait", text="x"))
        await until(lambda: server.statistics().pending == 1)


async def test_a_client_that_does_not_read_does_not_hold_the_server() -> None:
    """An answer that nobody takes is given up after the linger."""

    async def large() -> str:
        await anyio.lowlevel.checkpoint()
        return "x" * 1_000_000

    async with serving(tool("do", large), linger=0.05) as (client, server):
        await client.send(*(call(number, "do", text="x") for number in range(30)))
        await until(lambda: server.statistics().requests == 30)


# ---- as a process ----


@asynccontextmanager
async def process(folder: Path, *arguments: str, **options: Any) -> AsyncIterator[ToolProcess]:
    command = ToolCommand(argv=(*SERVER, *arguments), directory=folder, **options)
    with anyio.fail_after(30):
        async with ToolProcess(command) as running:
            yield running


async def use(running: ToolProcess | ToolPool, name: str, **arguments: object) -> Any:
    params = {"name": name, "arguments": arguments}
    return await running.request("tools/call", params)


async def test_the_tools_of_a_process(tmp_path: Path) -> None:
    """Each tool works over the pipes, and cannot leave the root."""
    write_files(tmp_path, {"a.py": "print(1)\n", "deep/b.txt": "x\ny\n"})
    async with process(tmp_path) as running:
        found = await use(running, "grep", pattern=r"print\(")
        assert found["content"] == [{"type": "text", "text": "a.py:1:1: print(1)"}]
        assert found["structuredContent"]["matches"][0]["line"] == 1
        found = await use(running, "glob", glob="*.txt")
        assert found["structuredContent"] == {"paths": ["deep/b.txt"], "cut": ""}
        found = await use(running, "file_statistics")
        assert found["structuredContent"]["lines"] == 3
        query = {"pattern": "print($A)", "language": "python"}
        found = await use(running, "ast_search", **query)
        assert found["structuredContent"]["matches"][0]["captures"] == {"A": "1"}
        found = await use(running, "ast_rewrite", **query, rewrite="log($A)", apply=True)
        assert found["structuredContent"]["written"] == ["a.py"]
        assert (tmp_path / "a.py").read_text() == "log(1)\n"
        for name, arguments in (("grep", {"pattern": "x"}), ("glob", {"glob": "*"})):
            refused = await use(running, name, path="..", **arguments)
            assert refused["isError"], refused
            assert "leads out of the root" in refused["content"][0]["text"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_a_deadline_stops_the_search_behind_it(tmp_path: Path) -> None:
    """A request that is given up ends its search, and the server goes on."""
    write_files(tmp_path, {"a": "a" * 60})
    async with process(tmp_path, cancel_style=CancelStyle.CONTEXT_PROTOCOL) as running:
        params = {"name": "grep", "arguments": CATASTROPHE}
        with pytest.raises(ToolTimeoutError):
            await running.request("tools/call", params, timeout=0.5)
        await until(lambda: running.load == 0)
        assert not running.is_stuck
        below = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        await until(lambda: not below.read_text().split())
        assert (await use(running, "glob", glob="*"))["isError"] is False


async def test_the_tools_in_a_pool(tmp_path: Path, others: set[int]) -> None:
    """A pool of tool servers answers each request with its own answer."""
    write_files(tmp_path, {f"{number}.txt": f"needle{number}\n" for number in range(20)})
    answers: dict[int, str] = {}

    async def ask(number: int) -> None:
        found = await use(tools, "grep", pattern=f"needle{number}$")
        answers[number] = found["structuredContent"]["matches"][0]["path"]

    with anyio.fail_after(30):
        command = ToolCommand(argv=SERVER, directory=tmp_path)
        async with ToolPool(command, max_size=1) as tools, anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(ask, number)
    assert answers == {number: f"{number}.txt" for number in range(20)}
    assert sys.platform != "linux" or children() <= others


async def test_the_other_framing(tmp_path: Path) -> None:
    """With Content-Length too, and an error comes out with its code."""
    options = ("--framing", "content-length")
    async with process(tmp_path, *options, framing=Framing.CONTENT_LENGTH) as running:
        assert await running.request("ping") == {}
        with pytest.raises(ToolResponseError, match="grep takes no 'needle'") as caught:
            await use(running, "grep", needle="x")
        assert caught.value.code == -32602


def run(folder: Path, text: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, input=text, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )


def test_nothing_else_is_written_to_the_output(tmp_path: Path) -> None:
    """What the tools or their children print goes to the errors, and a workspace brings no module."""
    write_files(tmp_path, {"json.py": "raise SystemExit(9)"})
    code = (
        "import os, sys; import orchestra.tools.__main__ as m; real = m.shipped_tools\n"
        "m.shipped_tools = lambda *a, **k: (print('stray', flush=True), os.system('echo lost'), "
        "real(*a, **k))[2]\n"
        "sys.exit(m.main([]))"
    )
    ping = '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    done = run(tmp_path, ping, sys.executable, "-P", "-c", code)
    assert done.stdout == '{"jsonrpc":"2.0","id":1,"result":{}}\n'
    assert (done.stderr.split(), done.returncode) == (["stray", "lost"], 0)


def test_input_from_a_file(tmp_path: Path) -> None:
    """Its input and output may be plain files."""
    write_files(tmp_path, {"in": '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'})
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        done = subprocess.run(SERVER, stdin=source, stdout=target, timeout=30, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out").read_text())["result"] == {}


def test_a_signal_ends_it(tmp_path: Path) -> None:
    """SIGTERM ends the server although its input is open, with 128 + 15."""
    with subprocess.Popen(
        SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        running.stdin.flush()
        assert running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 128 + signal.SIGTERM


def test_a_root_that_is_none(tmp_path: Path) -> None:
    """A wrong root is told on standard error, with the exit code of a wrong command line."""
    done = run(tmp_path, "", *SERVER, "--root", "nothing")
    assert done.returncode == 2
    assert "is no folder; name the one to work in" in done.stderr
