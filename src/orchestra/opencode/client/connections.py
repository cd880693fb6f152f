"""Connections to one server that are kept and used again: HTTP/1.1, parsed by llhttp.

A general HTTP client costs a multiple of what a short call to a server on this machine needs, and
a mission makes a dozen of them for each task: see the benchmarks. The pool is simple, since
there is one server, and nothing to be followed, unpacked or remembered.
"""

from __future__ import annotations

import select
import socket
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from math import inf
from typing import Any, final
from urllib.parse import SplitResult, quote, urlencode

import anyio
import httptools
from anyio.abc import ByteStream, SocketAttribute

from orchestra.errors import RemoteProtocolError, TransportError

__all__ = ("Connections", "Reply")

_CONNECT_LIMIT = 5.0
_IDLE_LIMIT = 4.0
"""Seconds: the server drops idle connections after a while, and we drop them first."""
_MAX_IDLE = 20
_MAX_HEAD = 64 * 1024
_CHUNK = 64 * 1024
_SAFE = "/%~!$&'()*+,;=:@"


@final
class Reply:
    """An answer whose head has arrived.

    Args:
        connection: Where it comes from.
        limit: Bytes of the largest body.

    Attributes:
        status: The status code.
        kind: The content type, without parameters, in small letters.
    """

    __slots__ = (
        "_connection",
        "_has_length",
        "_head",
        "_is_headed",
        "_is_spoilt",
        "_is_whole",
        "_limit",
        "_parser",
        "_parts",
        "_size",
        "kind",
        "status",
    )

    def __init__(self, connection: _Connection, limit: float) -> None:
        self.status: int = 0
        self.kind: str = ""
        self._connection = connection
        self._limit = limit
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0
        self._head = 0
        self._has_length = False
        self._is_headed = False
        self._is_whole = False
        self._is_spoilt = False

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """Called by the parser; a second answer to one call is one too many."""
        if self._is_whole:
            raise _UnreadableError("more than one answer to a call")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        name = name.lower()
        if name == b"content-type":
            self.kind = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif name in {b"content-length", b"transfer-encoding"}:
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Called by the parser; there may be answers that only announce another."""
        self.status = self._parser.get_status_code()
        self._is_headed = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._size += len(body)
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser, which forgets afterwards whether the connection stays open."""
        self._is_whole = self._is_headed
        self._is_spoilt |= not self._parser.should_keep_alive()

    # --- what is called here ---

    @property
    def is_reusable(self) -> bool:
        """Whether the connection is as good as new, once the answer has been read."""
        return self._is_whole and not self._is_spoilt

    async def read_head(self) -> None:
        """Read up to the body. A checkpoint."""
        while not self._is_headed:
            await self._feed()

    async def read(self) -> bytes:
        """Read the whole body, or what is left of it. A checkpoint if it has not arrived yet.

        Raises:
            RemoteProtocolError: It is larger than the limit, or not HTTP.
            TransportError: It breaks off.
        """
        while not self._is_whole:
            if self._size > self._limit:
                raise self._connection.unreadable(f"a body of more than {self._limit:,} bytes")
            await self._feed()
        return b"".join(self._parts)

    async def read_some(self) -> bytes:
        """Read what comes next, and forget it; nothing: that was all. A checkpoint if it waits."""
        while not self._parts and not self._is_whole:
            await self._feed()
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    async def _feed(self) -> None:
        data = await self._connection.receive()
        if not data:
            if not self._is_headed or self._has_length:
                raise self._connection.broken("it ended within an answer")
            self._is_whole = self._is_spoilt = True  # the end of the connection is its end
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._is_spoilt = True
            why = exc.__context__ if isinstance(exc, httptools.HttpParserCallbackError) else exc
            raise self._connection.unreadable(why) from exc
        self._head += len(data)
        if not self._is_headed and self._head > _MAX_HEAD:
            raise self._connection.unreadable(f"a head of more than {_MAX_HEAD:,} bytes")

    def __repr__(self) -> str:
        return f"<Reply {self.status} {self.kind}>"


class _UnreadableError(Exception):
    """Raised through the parser."""


class _Connection:
    """A stream, how long it may be silent, and what its faults are called."""

    __slots__ = ("_poll", "_socket", "_stream", "_url", "idle_since", "silence")

    def __init__(self, stream: ByteStream, url: str) -> None:
        self.silence: float = inf
        self.idle_since: float = 0.0
        self._stream = stream
        self._url = url
        self._socket: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610
        self._poll: Any = None

    async def send(self, data: bytes) -> None:
        """Send everything, in time."""
        try:
            with anyio.move_on_after(self.silence):
                return await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise self.broken(exc) from exc
        raise self._late()

    async def receive(self) -> bytes:
        """Receive something, in time; nothing: it has ended."""
        try:
            with anyio.move_on_after(self.silence):
                return await self._stream.receive(_CHUNK)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise self.broken(exc) from exc
        raise self._late()

    async def aclose(self) -> None:
        """Close it at once."""
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)

    def broken(self, why: object) -> TransportError:
        """Return what is raised when it has ended too early."""
        return TransportError(
            f"the connection to {self._url} broke ({str(why) or type(why).__name__})"
        )

    def unreadable(self, why: object) -> RemoteProtocolError:
        """Return what is raised when something else than HTTP came out of it."""
        return RemoteProtocolError(f"{self._url} sent an unreadable answer ({why})")

    def _late(self) -> TransportError:
        return TransportError(f"{self._url} did not answer in time")

    def is_good(self) -> bool:
        """Whether nothing has arrived that nobody asked for: an end, mostly."""
        if not hasattr(select, "poll"):
            return not select.select([self._socket], [], [], 0)[0]
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return not self._poll.poll(0)


@final
class Connections:
    """The connections to one server. Close them with `aclose`.

    As many are open as there are calls under way; those that have nothing to do are kept for a
    few seconds. A call that is cancelled closes its own.

    Args:
        parts: Where the server is, and what its paths begin with.
        url: The same for people: without a password.
        username: For HTTP basic authentication.
        password: For HTTP basic authentication; None: none.
        timeout: Seconds without a byte after which a call has failed.
    """

    def __init__(
        self,
        parts: SplitResult,
        *,
        url: str,
        username: str,
        password: str | None,
        timeout: float,
    ) -> None:
        self._is_secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._url = url
        self._timeout = timeout
        netloc = parts.netloc.rpartition("@")[2]
        common = f"host: {netloc}\r\naccept: */*\r\nuser-agent: orchestra\r\n"
        if password is not None:
            token = b64encode(f"{username}:{password}".encode()).decode("ascii")
            common += f"authorization: Basic {token}\r\n"
        self._common = common
        self._idle: deque[_Connection] = deque()  # the one that was used last is at the end
        self._open: set[_Connection] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Connections {self._url} open={len(self._open)} idle={len(self._idle)}>"

    async def aclose(self) -> None:
        """Close all, also those that are in use; further calls fail. A checkpoint if there are."""
        self._is_closed = True
        self._idle.clear()
        for connection in list(self._open):
            await self._drop(connection)

    @asynccontextmanager
    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, int | str] | None = None,
        body: bytes | None = None,
        limit: float = inf,
        silence: float | None = None,
    ) -> AsyncGenerator[Reply]:
        """Ask, and yield the answer once its head is there. A checkpoint.

        What is not read of it when the block ends is lost, with its connection.

        Args:
            method: The method.
            path: The path, without the server's own beginning.
            headers: Further headers; safe ASCII.
            params: What stands behind the question mark.
            body: JSON; None: there is none.
            limit: Bytes of the largest body that `Reply.read` takes.
            silence: Seconds without a byte after which it has failed; None: the usual ones.

        Raises:
            TransportError: The server cannot be reached, does not answer in time or breaks off.
            RemoteProtocolError: What it answers is not HTTP, or too large.
        """
        request = self._compose(method, path, headers, params, body)
        connection = self._reuse() or await self._connect()
        connection.silence = self._timeout if silence is None else silence
        reply = Reply(connection, limit)
        try:
            await connection.send(request)
            await reply.read_head()
            yield reply
        finally:
            if reply.is_reusable and len(self._idle) < _MAX_IDLE and not self._is_closed:
                connection.idle_since = anyio.current_time()
                self._idle.append(connection)
            else:
                await self._drop(connection)
        await self._drop_old()

    def _compose(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        params: Mapping[str, int | str] | None,
        body: bytes | None,
    ) -> bytes:
        target = quote(self._prefix + path, safe=_SAFE)
        if params:
            target += f"?{urlencode(params)}"
        lines = [f"{method} {target} HTTP/1.1\r\n{self._common}"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
            return "".join(lines).encode("ascii") + body
        lines.append("\r\n" if method == "GET" else "content-length: 0\r\n\r\n")
        return "".join(lines).encode("ascii")

    def _reuse(self) -> _Connection | None:
        youngest = anyio.current_time() - _IDLE_LIMIT
        while self._idle and self._idle[-1].idle_since > youngest:
            connection = self._idle.pop()
            if connection.is_good():
                return connection
            connection.idle_since = -inf
            self._idle.appendleft(connection)  # dropped after the call
        return None

    async def _drop_old(self) -> None:
        oldest = anyio.current_time() - _IDLE_LIMIT
        while self._idle and self._idle[0].idle_since <= oldest:
            await self._drop(self._idle.popleft())

    async def _connect(self) -> _Connection:
        if self._is_closed:
            raise TransportError(f"the connections to {self._url} have been closed")
        stream: ByteStream
        try:
            with anyio.fail_after(_CONNECT_LIMIT):
                if self._is_secure:
                    stream = await anyio.connect_tcp(self._host, self._port, tls=True)
                else:
                    stream = await anyio.connect_tcp(self._host, self._port)
        except (OSError, UnicodeError) as exc:  # also when it takes too long
            raise TransportError(
                f"cannot connect to {self._url}; is the OpenCode server running there?"
            ) from exc
        connection = _Connection(stream, self._url)
        self._open.add(connection)
        return connection

    async def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        await connection.aclose()
