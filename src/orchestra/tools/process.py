"""One child process that speaks JSON-RPC 2.0 over its standard input and output."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin
from attrs import frozen

from orchestra._children import Tail
from orchestra._core.checks import check_callable
from orchestra._core.jsonrpc import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    Answer,
    LateAnswer,
    Message,
    Notification,
    Peer,
    Refusal,
    Request,
    ViolationError,
)
from orchestra._listeners import Teller
from orchestra.background import background_tasks
from orchestra.errors import (
    ToolError,
    ToolLostError,
    ToolProtocolError,
    ToolResponseError,
    ToolStartError,
    ToolTimeoutError,
)
from orchestra.tools._child import Child, find_program
from orchestra.tools.command import CancelStyle, ToolCommand

__all__ = ("ToolProcess", "ToolProcessStatistics")

_logger = logging.getLogger("orchestra")
_LINGER = 0.2
"""Seconds in which the last words of a process that is over must have come."""
_LAST_WORDS = 500
_FAREWELL = "repeat the request if doing it twice does no harm"


@frozen(kw_only=True)
class ToolProcessStatistics:
    """What a `ToolProcess` has done.

    Attributes:
        requests: Requests sent.
        answered: Requests that were answered, errors included, late answers not.
        in_flight: Requests that wait for their answer.
        unsettled: Requests that were given up and that it may still work on.
        stderr_bytes: Bytes it wrote to its standard error.
    """

    requests: int
    answered: int
    in_flight: int
    unsettled: int
    stderr_bytes: int


class _Call:
    """A request on its way."""

    __slots__ = ("answer", "is_done")

    def __init__(self) -> None:
        self.is_done = anyio.Event()
        self.answer: Answer | Refusal | None = None  # done without one: the process has failed


@final
class ToolProcess(AsyncContextManagerMixin):
    """A running tool server; entering starts it, leaving ends it with all its children.

    ::

        async with ToolProcess(command) as tool:
            matches = await tool.request("grep", {"pattern": "TODO"})

    Requests may be made by many tasks at once; each gets the answer with its own id. When the
    process dies or breaks the protocol, its group is killed, and the requests that wait fail at
    once, as every later one does. It is not started again: `ToolPool` does that.

    Cancelling a request tells the server so, in the way of ``command.cancel_style``, and does not
    wait for it. A process is entered once, belongs to one event loop, and is not thread-safe.

    Args:
        command: What to start, and how to talk to it.
        on_notification: Called with method and params of each notification of the server, in
            order. When it raises, that is logged and it is not called again. It must not block.
        on_request: Called with method and params of each request of the server; returns the
            result. Raises LookupError for an unknown method, or ToolResponseError to answer with
            its message and code; anything else is logged and answered as an internal error. None:
            every method is unknown. It must not block.

    Attributes:
        command: As given.

    Raises:
        ToolStartError: On entering: there is no such program, or it cannot be started.
    """

    def __init__(
        self,
        command: ToolCommand,
        *,
        on_notification: Callable[[str, Any], object] | None = None,
        on_request: Callable[[str, Any], object] | None = None,
    ) -> None:
        if not isinstance(command, ToolCommand):
            raise TypeError(f"command must be a ToolCommand, not {command!r}")
        for name, function in (("on_notification", on_notification), ("on_request", on_request)):
            if function is not None:
                check_callable(name, function)
        self.command: Final = command
        self._teller: Final[Teller[Notification]] = Teller(
            None
            if on_notification is None
            else lambda told: on_notification(told.method, told.params)
        )
        self._on_request: Final = on_request
        self._peer: Final = Peer(command.framing, limit=command.message_limit)
        self._child: Child | None = None
        self._calls: Final[dict[int, _Call]] = {}
        # When each request was given up that may still be worked on, and which ping proves it.
        self._unsettled: Final[dict[int, float]] = {}
        self._pings: Final[dict[int, int]] = {}
        self._outbox: Final[deque[bytes]] = deque()
        self._queued_bytes = 0
        self._written_bytes = 0
        self._has_mail = anyio.Event()
        self._progress = anyio.Event()
        self._exit = anyio.Event()  # it has ended, or closed a pipe
        self._output_ended = anyio.Event()
        self._errors_ended = anyio.Event()
        self._over = anyio.Event()
        self._ended = anyio.Event()
        self._failure: tuple[type[ToolError], str] | None = None
        self._is_closing = False
        self._stderr: Final = Tail(8192)
        self._stderr_bytes = 0
        self._stderr_since = 0
        self._requests = 0
        self._answered = 0

    # ---- asking ----

    async def request(
        self,
        method: str,
        params: Any = None,
        *,
        timeout: float | Literal["default"] | None = "default",
    ) -> Any:
        """Ask something and wait for the answer. Always a checkpoint.

        Args:
            method: What is asked for.
            params: A dict or a list; None: left out.
            timeout: Seconds until the server must have answered; None: it may take for ever. The
                deadline is part of the request: when it has come, the server is told.

        Returns:
            The result, as JSON has it.

        Raises:
            ToolResponseError: The server answered with an error.
            ToolTimeoutError: It did not answer in time.
            ToolLostError: The process has ended or closed its pipes.
            ToolProtocolError: It wrote what is not its protocol, and was ended for it.
            anyio.ClosedResourceError: The process was closed.
            TypeError: ``params`` is nothing that JSON can express.
            ValueError: The same.
        """
        if timeout == "default":
            timeout = self.command.request_timeout
        call: _Call | None = None
        request_id = 0
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            with anyio.move_on_after(timeout):
                await self._wait_for_room()
                request_id, data = self._peer.request(method, params)
                call = self._calls[request_id] = _Call()
                self._requests += 1
                self._put(data)
                await call.is_done.wait()
        finally:
            if call is not None and not call.is_done.is_set():
                self._give_up(request_id)
        if call is None or not call.is_done.is_set():
            raise ToolTimeoutError(
                self._sentence(
                    f"did not answer {method!r} within {timeout:g} s",
                    "give it more time or less to do",
                ),
                self.stderr,
            )
        if call.answer is None:
            self._raise_if_over()
            raise AssertionError("unreachable")
        return self._result(method, call.answer)

    def _result(self, method: str, answer: Answer | Refusal) -> Any:
        if isinstance(answer, Answer):
            return answer.result
        raise ToolResponseError(
            f"{self.command.label} answered {method!r} with error {answer.code}: {answer.message}",
            answer.code,
            answer.data,
            self.stderr,
        )

    async def notify(self, method: str, params: Any = None) -> None:
        """Tell something, and wait until the server's pipe has it. Always a checkpoint.

        Args:
            method: What it is about.
            params: A dict or a list; None: left out.

        Raises:
            ToolLostError: As `request`.
            ToolProtocolError: As `request`.
            anyio.ClosedResourceError: The process was closed.
            TypeError: As `request`.
            ValueError: As `request`.
        """
        await anyio.lowlevel.checkpoint()
        await self._wait_for_room()
        self._put(self._peer.notify(method, params))
        end = self._queued_bytes
        while self._written_bytes < end:
            await self._progress.wait()
            self._raise_if_over()

    def _give_up(self, request_id: int) -> None:
        """Nobody waits for an answer any more. Synchronous: its caller is being cancelled."""
        del self._calls[request_id]
        if self._over.is_set() or not self._peer.abandon(request_id):
            return
        self._unsettled[request_id] = anyio.current_time()
        style = self.command.cancel_style
        if style is CancelStyle.LANGUAGE_SERVER:
            self._put(self._peer.notify(style.value, {"id": request_id}))
        elif style is CancelStyle.CONTEXT_PROTOCOL:
            self._put(self._peer.notify(style.value, {"requestId": request_id}))
            ping, data = self._peer.request("ping")
            self._pings[ping] = request_id
            self._put(data)

    # ---- state ----

    @property
    def pid(self) -> int | None:
        """The process's number; None before it is started."""
        return None if self._child is None else self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether it can be asked anything."""
        return self._child is not None and not self._over.is_set()

    @property
    def is_stuck(self) -> bool:
        """Whether it has not settled a request that was given up longer than the grace ago."""
        oldest = next(iter(self._unsettled.values()), None)
        return oldest is not None and anyio.current_time() >= oldest + self.command.grace

    @property
    def load(self) -> int:
        """How many requests it may be working on, those that were given up included."""
        return len(self._calls) + len(self._unsettled)

    @property
    def stderr(self) -> str:
        """The end of what it wrote to its standard error."""
        return self._stderr.text()

    def statistics(self) -> ToolProcessStatistics:
        """Return what it has done."""
        return ToolProcessStatistics(
            requests=self._requests,
            answered=self._answered,
            in_flight=len(self._calls),
            unsettled=len(self._unsettled),
            stderr_bytes=self._stderr_bytes,
        )

    def __repr__(self) -> str:
        if self._child is None:
            state = "not started"
        elif self.is_running:
            state = f"pid {self._child.pid}, {self.load} in flight"
        else:
            state = f"pid {self._child.pid}, over"
        return f"<ToolProcess {self.command.label!r} {state}>"

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ToolProcess]:
        if self._child is not None or self._is_closing:
            raise RuntimeError("a tool process can be entered once; make a new one")
        child = self._child = await self._start()
        try:
            async with background_tasks() as tasks:
                for serve in (self._read, self._read_errors, self._write, self._wait, self._bury):
                    tasks.start_soon(serve, child)
                try:
                    yield self
                finally:
                    self.close()
        finally:
            with anyio.CancelScope(shield=True):
                await child.end(0.0 if self._failure else self.command.grace)
            self._ended.set()

    async def _start(self) -> Child:
        command = self.command
        environment = os.environ if command.environment is None else command.environment
        program = find_program(command.argv[0], command.directory, environment)
        if program is None:
            raise ToolStartError(
                f"there is no program {command.argv[0]!r} on PATH outside {command.directory}; "
                "install it or give its absolute path"
            )
        try:
            return await Child.start(
                (program, *command.argv[1:]), directory=command.directory, environment=environment
            )
        except (OSError, ValueError) as exc:
            raise ToolStartError(f"cannot start {program}: {exc}; check its command") from exc

    def close(self) -> None:
        """Refuse new requests and fail those that wait; leaving the block ends the process."""
        self._is_closing = True
        self._finish()

    async def wait_over(self) -> None:
        """Wait until it can be asked nothing more: closed, ended, or killed. A checkpoint."""
        await self._over.wait()

    async def wait_ended(self) -> None:
        """Wait until its block has been left and nothing of it is left. A checkpoint."""
        await self._ended.wait()

    async def wait_settled(self) -> bool:
        """Wait until every request that was given up is settled, at most the grace. A checkpoint.

        Returns:
            Whether they are, and the process runs.
        """
        await anyio.lowlevel.checkpoint()
        while self.is_running and self._unsettled and not self.is_stuck:
            oldest = next(iter(self._unsettled.values()))
            with anyio.CancelScope(deadline=oldest + self.command.grace):
                await self._progress.wait()
        return self.is_running and not self._unsettled

    def _finish(self) -> None:
        self._over.set()
        self._wake()
        for call in self._calls.values():
            call.is_done.set()
        self._calls.clear()
        self._unsettled.clear()

    def _fail(self, kind: type[ToolError], message: str) -> None:
        """Kill it and fail what waits, now; the first reason counts."""
        if not self._over.is_set() and self._child is not None:
            self._failure = (kind, message)
            self._child.kill()
            self._finish()

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            kind, message = self._failure
            raise kind(message, self.stderr)  # a new one each time: a traceback belongs to one
        if self._over.is_set():
            raise anyio.ClosedResourceError
        if self._child is None:
            raise RuntimeError("the tool process was not started; enter it with 'async with'")

    def _sentence(self, fact: str, advice: str) -> str:
        words = " ".join(self.stderr.split())[-_LAST_WORDS:]
        said = f", having said: {words}" if words else ""
        return f"{self.command.label} (pid {self.pid}) {fact}{said}; {advice}"

    # ---- the tasks ----

    @property
    def _is_clogged(self) -> bool:
        return self._queued_bytes - self._written_bytes > self.command.message_limit

    async def _wait_for_room(self) -> None:
        self._raise_if_over()
        while self._is_clogged:
            await self._progress.wait()
            self._raise_if_over()

    def _put(self, data: bytes) -> None:
        self._outbox.append(data)
        self._queued_bytes += len(data)
        self._has_mail.set()

    async def _write(self, child: Child) -> None:
        # One task writes for all: a request that is cancelled must not leave half a message.
        while True:
            await self._has_mail.wait()
            self._has_mail = anyio.Event()
            data = b"".join(self._outbox)
            self._outbox.clear()
            try:
                await child.write(data)
            except OSError:  # it has closed its input, and most likely is about to end
                self._exit.set()
                return
            self._written_bytes += len(data)
            self._wake()

    def _wake(self) -> None:
        progress, self._progress = self._progress, anyio.Event()
        progress.set()

    async def _read(self, child: Child) -> None:
        try:
            while data := await child.read():
                for message in self._peer.receive(data):
                    self._handle(message)
        except ViolationError as exc:
            self._fail(
                ToolProtocolError,
                self._sentence(f"{exc.fact} and was ended", "mend what it writes to its output"),
            )
        self._output_ended.set()
        self._exit.set()

    async def _read_errors(self, child: Child) -> None:
        while data := await child.read_errors():
            self._stderr.add(data)
            self._stderr_bytes += len(data)
            self._stderr_since += len(data)
            if self._stderr_since > self.command.stderr_limit:
                fact = f"wrote more than {self.command.stderr_limit:,} bytes to its standard error"
                self._fail(
                    ToolProtocolError,
                    self._sentence(f"{fact} without a message and was ended", "make it quieter"),
                )
                break
        self._errors_ended.set()

    async def _wait(self, child: Child) -> None:
        await child.wait()
        self._exit.set()

    async def _bury(self, child: Child) -> None:
        """Find out how it ended, once it has begun to, and fail what waits."""
        await self._exit.wait()
        with anyio.move_on_after(_LINGER):
            await child.wait()
        if (code := child.exit_code) is None:
            fact = "closed its pipes and was ended"
        else:
            fact = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        # What it left behind must not hold the pipes open, from which the last words come.
        child.kill()
        with anyio.move_on_after(_LINGER):
            await self._output_ended.wait()
            await self._errors_ended.wait()
        self._fail(ToolLostError, self._sentence(fact, _FAREWELL))

    def _handle(self, message: Message) -> None:
        self._stderr_since = 0
        match message:
            case Answer(id=request_id) | Refusal(id=request_id):
                if request_id in self._pings:
                    self._settle(self._pings.pop(request_id))
                else:
                    call = self._calls.pop(request_id)
                    call.answer = message
                    call.is_done.set()
                    self._answered += 1
            case LateAnswer(id=request_id):
                self._settle(request_id)
            case Notification():
                self._teller.put(message)
                self._teller.deliver()
            case Request():
                self._reply(message)

    def _settle(self, request_id: int) -> None:
        self._unsettled.pop(request_id, None)
        self._wake()

    def _reply(self, request: Request) -> None:
        if self._is_clogged:
            raise ViolationError("asks faster than it reads what it is answered")
        self._put(self._answer(request))

    def _answer(self, request: Request) -> bytes:
        refuse = self._peer.refuse
        if self._on_request is None:
            return refuse(request.id, METHOD_NOT_FOUND, f"method {request.method!r} is unknown")
        try:
            return self._peer.answer(request.id, self._on_request(request.method, request.params))
        except LookupError:
            return refuse(request.id, METHOD_NOT_FOUND, f"method {request.method!r} is unknown")
        except ToolResponseError as exc:
            return refuse(request.id, exc.code, exc.message, exc.data)
        except Exception:
            _logger.exception("answering %r of %s failed", request.method, self.command.label)
            return refuse(request.id, INTERNAL_ERROR, "the client could not answer")
