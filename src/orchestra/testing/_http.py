"""The server side of one HTTP/1.1 connection, on h11."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Literal, TypeAlias

import anyio
import h11
from anyio.abc import SocketStream
from attrs import frozen

_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@frozen(kw_only=True)
class Request:
    """One request.

    Attributes:
        method: The method.
        path: The target without its query.
        headers: The headers, with names in lower case.
        body: The body, or None when it is larger than the server takes.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None


@frozen(kw_only=True)
class Response:
    """One response, and how it goes wrong.

    Attributes:
        status: The status.
        headers: The headers.
        pieces: The body, in the pieces to send.
        delay: Seconds before the headers.
        pause: Seconds between two pieces.
        ending: ``complete``; or after the last piece ``cut`` breaks the connection inside a chunk
            and ``silent`` sends nothing more; ``never`` does not even send the headers.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    pieces: tuple[bytes, ...] = ()
    delay: float = 0.0
    pause: float = 0.0
    ending: Literal["complete", "cut", "silent", "never"] = "complete"


Handler: TypeAlias = Callable[[Request], AbstractAsyncContextManager[Response]]
"""Its context lasts until the response is sent, or until the client is gone."""


async def serve_connection(stream: SocketStream, handler: Handler, *, max_body: int) -> None:
    """Answer the requests of one connection until either side closes it.

    A client that goes away cancels the handler of its request.

    Args:
        stream: The connection; closed at the end.
        handler: Answers a request.
        max_body: The most bytes of a body that are kept.
    """
    connection = h11.Connection(h11.SERVER)
    async with stream:
        while (request := await _receive(stream, connection, max_body)) is not None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, stream, connection, tasks.cancel_scope)
                async with handler(request) as response:
                    await _send(stream, connection, response)
                tasks.cancel_scope.cancel()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()


async def _receive(
    stream: SocketStream, connection: h11.Connection, max_body: int
) -> Request | None:
    head: h11.Request | None = None
    body: bytearray | None = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            text = f"{exc}; send HTTP/1.1\n".encode()
            await _send(stream, connection, Response(status=400, pieces=(text,)))
            return None
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                with suppress(*_GONE):
                    await stream.send(connection.send(go_on) or b"")
            connection.receive_data(await _read(stream))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            # What is too large is read to its end all the same: a client that is still writing
            # would see a broken connection in place of the answer.
            if body is not None:
                body += event.data
                if len(body) > max_body:
                    body = None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Request(
                method=head.method.decode(),
                path=head.target.decode().partition("?")[0],
                headers={k.decode("latin-1"): v.decode("latin-1") for k, v in head.headers},
                body=None if body is None else bytes(body),
            )
        else:
            return None


async def _watch(
    stream: SocketStream, connection: h11.Connection, scope: anyio.CancelScope
) -> None:
    if data := await _read(stream):
        connection.receive_data(data)  # the start of the next request
    else:
        scope.cancel()


async def _send(stream: SocketStream, connection: h11.Connection, response: Response) -> None:
    if response.ending == "never":
        await anyio.sleep_forever()
    await anyio.sleep(response.delay)
    head = h11.Response(status_code=response.status, headers=list(response.headers))
    try:
        await stream.send(connection.send(head) or b"")
        for number, piece in enumerate(response.pieces):
            if number:
                await anyio.sleep(response.pause)
            await stream.send(connection.send(h11.Data(data=piece)) or b"")
        if response.ending == "silent":
            await anyio.sleep_forever()
        elif response.ending == "cut":
            await stream.send(b"1000\r\ndata: {")  # announces 4096 bytes
            connection.send_failed()
        else:
            await stream.send(connection.send(h11.EndOfMessage()) or b"")
    except _GONE:
        connection.send_failed()  # nobody is left to answer


async def _read(stream: SocketStream) -> bytes:
    try:
        return await stream.receive()
    except _GONE:
        return b""
