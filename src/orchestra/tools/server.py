"""A tool server: answers JSON-RPC 2.0 requests in the style of the Model Context Protocol.

Methods: ``initialize``, ``ping``, ``tools/list``, ``tools/call`` with ``name`` and ``arguments``.
``notifications/cancelled`` with ``requestId`` stops a request, which then gets no answer;
``$/cancelRequest`` with ``id`` stops it too, and it is answered with error -32800. Other
notifications are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import field, frozen

from orchestra._core.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Framing,
    Id,
    Message,
    Notification,
    Peer,
    Request,
    ViolationError,
)
from orchestra._version import __version__
from orchestra.tools._stdio import Pipes
from orchestra.tools.catalog import ArgumentError, Tool

__all__ = ("ToolServer", "ToolServerStatistics")

_logger = logging.getLogger("orchestra")

_PROTOCOLS = ("2025-06-18", "2025-03-26", "2024-11-05")
_CANCELLED = -32800
_BUSY = -32000
_MAX_MESSAGE = 16 << 20
_MAX_PENDING = 1_000
_MAX_AT_ONCE = 8


@frozen(kw_only=True)
class ToolServerStatistics:
    """What a `ToolServer` has done.

    Attributes:
        requests: Requests that came.
        pending: Those that are worked on or wait.
        answered: Those that were answered, errors included.
        cancelled: Those that the client stopped.
        violations: Messages that were none.
    """

    requests: int
    pending: int
    answered: int
    cancelled: int
    violations: int


@frozen(eq=False)
class _Job:
    request: Request
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)


@final
class ToolServer:
    """Serves tools to one client until it closes the input.

    Requests are answered as they are done, 8 at a time; of more than 1,000 the rest is refused. A
    message that is none is answered with an error, and the next one is read. After the end of the
    input what is being worked on may go on for ``linger`` seconds, and the client take as long to
    read the rest.

    Args:
        tools: What is served.
        pipes: Where the client is.
        framing: How messages are told apart.
        linger: Seconds.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        pipes: Pipes,
        *,
        framing: Framing = Framing.LINES,
        linger: float = 1.0,
    ) -> None:
        self._tools: Final = {tool.name: tool for tool in tools}
        self._pipes: Final = pipes
        self._linger: Final = linger
        self._peer: Final = Peer(framing, limit=_MAX_MESSAGE)
        self._jobs: Final[dict[Id, _Job]] = {}
        self._slots: Final = anyio.CapacityLimiter(_MAX_AT_ONCE)
        self._requests = 0
        self._answered = 0
        self._cancelled = 0
        self._violations = 0
        self._outbox: MemoryObjectSendStream[bytes]
        self._mail: MemoryObjectReceiveStream[bytes]
        self._outbox, self._mail = anyio.create_memory_object_stream[bytes](_MAX_AT_ONCE)

    async def serve(self) -> None:
        """Serve until the input ends or nobody reads the output. Call it once."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._write, group.cancel_scope)
            async with self._outbox, anyio.create_task_group() as jobs:
                await self._read(jobs)
                jobs.cancel_scope.deadline = anyio.current_time() + self._linger
            group.cancel_scope.deadline = anyio.current_time() + self._linger

    def statistics(self) -> ToolServerStatistics:
        """Count what was done."""
        return ToolServerStatistics(
            requests=self._requests,
            pending=len(self._jobs),
            answered=self._answered,
            cancelled=self._cancelled,
            violations=self._violations,
        )

    def __repr__(self) -> str:
        tools = ", ".join(self._tools)
        return f"<ToolServer {tools}: {len(self._jobs)} pending, {self._answered} answered>"

    # ---- the tasks ----

    async def _write(self, everything: anyio.CancelScope) -> None:
        """Write for all: a request that is cancelled must not leave half a message."""
        with self._mail:
            async for data in self._mail:
                try:
                    await self._pipes.write(data)
                except OSError:  # nobody reads any more
                    everything.cancel()
                    return

    async def _read(self, jobs: anyio.abc.TaskGroup) -> None:
        while data := await self._pipes.read():
            while True:
                try:
                    for message in self._peer.receive(data):
                        await self._handle(message, jobs)
                    break
                except ViolationError as exc:
                    self._violations += 1
                    fact = f"the client {exc.fact}; send one JSON-RPC 2.0 message at a time"
                    await self._outbox.send(self._peer.refuse(None, exc.code, fact))
                    if exc.is_fatal:  # where the next message begins is not known
                        return
                    data = b""

    async def _handle(self, message: Message, jobs: anyio.abc.TaskGroup) -> None:
        if isinstance(message, Notification):
            await self._note(message)
        elif isinstance(message, Request):
            self._requests += 1
            if message.id in self._jobs:
                fact = f"id {message.id!r} is of a request that is not answered yet; take another"
                await self._refuse(message.id, INVALID_REQUEST, fact)
            elif len(self._jobs) >= _MAX_PENDING:
                fact = f"{_MAX_PENDING:,} requests wait already; repeat it later"
                await self._refuse(message.id, _BUSY, fact)
            else:
                job = self._jobs[message.id] = _Job(message)
                jobs.start_soon(self._work, job)

    async def _note(self, message: Notification) -> None:
        params = message.params if isinstance(message.params, dict) else {}
        name = {"notifications/cancelled": "requestId", "$/cancelRequest": "id"}.get(message.method)
        request_id = params.get(name) if name is not None else None
        if not isinstance(request_id, int | str) or request_id not in self._jobs:
            return
        self._jobs.pop(request_id).scope.cancel()
        self._cancelled += 1
        if name == "id":
            await self._refuse(request_id, _CANCELLED, "the request was cancelled by the client")

    async def _refuse(self, request_id: Id, code: int, fact: str) -> None:
        self._answered += 1
        await self._outbox.send(self._peer.refuse(request_id, code, fact))

    async def _work(self, job: _Job) -> None:
        request = job.request
        with job.scope:
            data = await self._answer(request)
            if self._jobs.get(request.id) is job:  # else it was stopped, and nobody waits
                await self._outbox.send(data)
                self._answered += 1
        if self._jobs.get(request.id) is job:
            del self._jobs[request.id]

    # ---- the methods ----

    async def _answer(self, request: Request) -> bytes:
        refuse = self._peer.refuse
        params = {} if request.params is None else request.params
        if not isinstance(params, dict):
            return refuse(request.id, INVALID_PARAMS, "params must be an object; name them")
        try:
            match request.method:
                case "initialize":
                    result = self._initialize(params)
                case "ping":
                    result = {}
                case "tools/list":
                    result = {"tools": [tool.describe() for tool in self._tools.values()]}
                case "tools/call":
                    result = await self._call(params)
                case _:
                    fact = f"method {request.method[:80]!r} is unknown"
                    return refuse(request.id, METHOD_NOT_FOUND, fact)
            return self._peer.answer(request.id, result)
        except ArgumentError as exc:
            return refuse(request.id, INVALID_PARAMS, str(exc))
        except Exception:
            _logger.exception("answering %r failed", request.method[:80])
            fact = "the tool has failed; its standard error says how"
            return refuse(request.id, INTERNAL_ERROR, fact)

    def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params.get("protocolVersion")
        return {
            "protocolVersion": wanted if wanted in _PROTOCOLS else _PROTOCOLS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "orchestra", "version": __version__},
        }

    async def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params.get("name")
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            known = ", ".join(self._tools)
            raise ArgumentError(f"there is no tool {name!r:.80}; there are {known}")
        arguments = tool.complete(params.get("arguments"))
        try:
            async with self._slots:
                record, text = await tool.call(arguments)
        except (ValueError, OSError, ImportError) as exc:  # what the caller can do something about
            return {"content": [{"type": "text", "text": str(exc)}], "isError": True}
        return {
            "content": [{"type": "text", "text": text}],
            "structuredContent": record,
            "isError": False,
        }
