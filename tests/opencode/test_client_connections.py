from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, SocketAttribute
from attrs import define, field

from orchestra.errors import RemoteProtocolError, TransportError
from orchestra.opencode.client.connections import Connections

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; x=1\r\nContent-Length: 2\r\n\r\n{}"


@define
class Server:
    """Answers as a test says, and remembers what it was asked."""

    answer: Callable[[ByteStream], Awaitable[None]]
    port: int = 0
    accepted: int = 0
    ended: int = 0
    asked: list[bytes] = field(factory=list)
    gone: anyio.Event = field(factory=anyio.Event)

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection."""
        self.accepted += 1
        async with stream:
            try:
                while True:
                    head = b""
                    while not head.endswith((b"\r\n\r\n", b"{}")):
                        head += await stream.receive()
                    self.asked.append(head)
                    await self.answer(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            finally:
                self.ended += 1
                self.gone.set()
                self.gone = anyio.Event()

    async def wait_ended(self, count: int) -> None:
        """Wait until so many connections have ended."""
        with anyio.fail_after(30):
            while self.ended < count:
                await self.gone.wait()

    def connections(self, timeout: float = 30.0) -> Connections:
        """Make a client of it."""
        url = f"http://127.0.0.1:{self.port}"
        return Connections(
            urlsplit(url),
            url=url,
            username="u",
            password="secret",  # noqa: S106
            timeout=timeout,
        )


async def usual(stream: ByteStream) -> None:
    await stream.send(OK)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server on loopback."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(usual, port=listener.extra(SocketAttribute.local_port))  # noqa: S610
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


async def ask(connections: Connections, method: str = "GET", **more: object) -> bytes:
    """Make a call, and return the body."""
    async with connections.call(method, "/a b", headers={}, **more) as reply:  # type: ignore[arg-type]
        assert reply.status == 200
        with anyio.fail_after(30):
            return await reply.read()


def raw(*pieces: bytes, is_end: bool = False) -> Callable[[ByteStream], Awaitable[None]]:
    """Answer with these bytes."""

    async def answer(stream: ByteStream) -> None:
        for piece in pieces:
            await stream.send(piece)
            await anyio.lowlevel.checkpoint()
        if is_end:
            await stream.aclose()

    return answer


async def test_a_connection_is_used_again(server: Server) -> None:
    """Calls one after the other share a connection; each is asked as it should be."""
    connections = server.connections()
    for _ in range(5):
        assert await ask(connections, params={"limit": 1}) == b"{}"
    await ask(connections, "POST", body=b"{}")
    await ask(connections, "POST")
    await connections.aclose()
    assert server.accepted == 1
    first, *_, with_body, without = server.asked
    assert first.startswith(b"GET /a%20b?limit=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: Basic dTpzZWNyZXQ=\r\n" in first
    assert b"content-length" not in first
    assert with_body.endswith(b"content-length: 2\r\n\r\n{}")
    assert without.endswith(b"content-length: 0\r\n\r\n")


async def test_calls_at_once_wait_for_nobody(server: Server) -> None:
    """As many connections are open as there are calls; afterwards twenty are kept."""
    begun, go = 0, anyio.Event()

    async def answer(stream: ByteStream) -> None:
        nonlocal begun
        begun += 1
        if begun == 30:
            go.set()
        await go.wait()
        await stream.send(OK)

    server.answer = answer
    connections = server.connections()
    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(ask, connections)
    await server.wait_ended(10)
    assert "idle=20" in repr(connections)
    await connections.aclose()
    await server.wait_ended(30)


async def test_what_the_server_dropped_is_not_used(server: Server) -> None:
    """A connection that ended while it was idle is replaced, and nothing is asked twice."""
    server.answer = raw(OK, is_end=True)
    connections = server.connections()
    for count in range(1, 4):
        assert await ask(connections, "POST", body=b"{}") == b"{}"
        await server.wait_ended(count)
    assert len(server.asked) == server.accepted == 3
    await connections.aclose()


@pytest.mark.parametrize(
    ("head", "is_end"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", False),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", True),
        (OK + b"more", False),
        (OK + OK, False),
    ],
)
async def test_a_connection_that_must_not_be_used_again(
    server: Server, head: bytes, *, is_end: bool
) -> None:
    """One that the server closes, or on which too much arrived, is closed."""
    server.answer = raw(head, is_end=is_end)
    connections = server.connections()
    for _ in range(2):
        if head.startswith(OK):
            with pytest.raises(RemoteProtocolError):
                await ask(connections)
        else:
            assert await ask(connections) == b"{}"
    await server.wait_ended(2)
    await connections.aclose()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", OK),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
            b"1\r\n}\r\n0\r\n\r\n",
        ),
        tuple(OK[n : n + 1] for n in range(len(OK))),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n", OK[17:]),
    ],
)
async def test_an_answer_in_any_form(server: Server, pieces: tuple[bytes, ...]) -> None:
    """In chunks, byte by byte, announced by another: it is read, and the connection kept."""
    server.answer = raw(*pieces)
    connections = server.connections()
    for _ in range(2):
        assert await ask(connections) == b"{}"
    assert server.accepted == 1
    await connections.aclose()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (raw(b"SSH-2.0-OpenSSH\r\n"), RemoteProtocolError, "unreadable answer"),
        (raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000), RemoteProtocolError, "65,536 bytes"),
        (raw(b"HTTP/1.1 101 Up\r\nconnection: upgrade\r\n\r\n"), RemoteProtocolError, "unread"),
        (raw(OK.replace(b"2\r\n\r\n{}", b"9999\r\n\r\n") + b"x" * 999), RemoteProtocolError, "500"),
        (raw(OK[:-1], is_end=True), TransportError, "broke .it ended"),
        (raw(OK[:20], is_end=True), TransportError, "within an answer"),
        (raw(is_end=True), TransportError, "the connection to"),
    ],
)
async def test_faults_have_names(
    server: Server,
    answer: Callable[[ByteStream], Awaitable[None]],
    error: type[Exception],
    words: str,
) -> None:
    """What is not HTTP, too large or cut off is told in one sentence; the next call is well."""
    server.answer = answer
    connections = server.connections()
    with pytest.raises(error, match=words) as caught:
        await ask(connections, limit=500)
    assert "secret" not in str(caught.value)
    await server.wait_ended(1)
    server.answer = usual
    assert await ask(connections) == b"{}"
    await connections.aclose()


@pytest.mark.parametrize("start", [b"", OK[:30], OK[:-1]])
async def test_a_silent_server_is_given_up(server: Server, start: bytes) -> None:
    """Silence before the head, in it or in the body ends the call, and closes the connection."""
    server.answer = raw(start) if start else raw()
    connections = server.connections(timeout=0.05)
    with pytest.raises(TransportError, match="in time"):
        await ask(connections)
    await server.wait_ended(1)
    server.answer = usual
    assert await ask(connections) == b"{}"
    await connections.aclose()


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_calls_leave_nothing(server: Server, steps: int) -> None:
    """Wherever a call is cancelled, its connection is closed or kept whole; the next proceeds."""
    connections = server.connections()
    if steps % 2:
        await ask(connections)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, connections)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await ask(connections) == b"{}"
    await connections.aclose()
    assert "open=0 idle=0" in repr(connections)
    await server.wait_ended(server.accepted)


async def test_closing_ends_what_is_under_way(server: Server) -> None:
    """A call that waits fails when all is closed, and so does every later one."""
    server.answer = raw()
    connections = server.connections()
    failed = anyio.Event()

    async def call() -> None:
        with pytest.raises(TransportError, match="broke"):
            await ask(connections)
        failed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        while not server.asked:
            await anyio.lowlevel.checkpoint()
        await connections.aclose()
        await failed.wait()
    with pytest.raises(TransportError, match="closed"):
        await ask(connections)
    await connections.aclose()


async def test_a_body_piece_by_piece(server: Server) -> None:
    """A stream gives each piece as it comes; leaving it early closes the connection."""
    more = anyio.Event()

    async def answer(stream: ByteStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        await stream.send(b"3\r\ntwo\r\n")

    server.answer = answer
    connections = server.connections()
    got = []
    async with connections.call("GET", "/", headers={}) as reply:
        got.append(await reply.read_some())
        more.set()
        got.append(await reply.read_some())
    assert got == [b"one", b"two"]
    await server.wait_ended(1)
    await connections.aclose()
