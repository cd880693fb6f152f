"""One event stream per directory, kept alive: watchdog, reconnect, back-off."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import final

import anyio
from attrs import field, frozen, validators

from orchestra.errors import ConfigurationError, ServerError, TransportError
from orchestra.opencode.client import wire
from orchestra.opencode.client.http import WIRE_ERRORS, HttpClient

__all__ = ("EventStream", "StreamTiming")

_LOG = logging.getLogger(__name__)


@frozen(kw_only=True)
class StreamTiming:
    """When a stream counts as broken, and how it is mended; seconds.

    Attributes:
        silence: Without a byte for so long, the stream is broken; the server's heartbeat comes
            every 10 s.
        window: How long reconnecting is tried before a server that does not answer otherwise
            either counts as lost.
        first_delay: Before the first reconnect; doubled for each further one.
        longest_delay: The most between two.
    """

    silence: float = field(default=25.0, validator=validators.gt(0))
    window: float = field(default=10.0, validator=validators.gt(0))
    first_delay: float = field(default=0.1, validator=validators.gt(0))
    longest_delay: float = field(default=2.0, validator=validators.gt(0))


@final
class EventStream:
    """A directory's events, delivered to one function as they come.

    What happened while it was disconnected is lost, since the server replays nothing; whoever
    listens must ask for the state when ``reconnected`` is called. While the server itself answers,
    reconnecting is tried for ever: whoever listens can do without events for as long as it takes.

    Args:
        http: The server.
        directory: Whose events.
        deliver: Called with each event; must not raise.
        broken: Called when the stream breaks.
        reconnected: Called when it is mended.
        lost: Called once, with the last error, when it could not be mended in time and the server
            does not answer either.
        timing: When to give up on what.
    """

    def __init__(
        self,
        http: HttpClient,
        directory: str,
        *,
        deliver: Callable[[wire.Event], None],
        broken: Callable[[], None],
        reconnected: Callable[[], None],
        lost: Callable[[Exception], None],
        timing: StreamTiming | None = None,
    ) -> None:
        self.directory = directory
        self.reconnects: int = 0
        self.malformed: int = 0
        self._http = http
        self._deliver = deliver
        self._broken = broken
        self._reconnected = reconnected
        self._lost = lost
        self._timing = timing or StreamTiming()
        self._is_connected = False
        self._was_connected = False
        self._is_missed = False
        self._failure: Exception | None = None
        self._changed = anyio.Event()

    @property
    def mark(self) -> tuple[int, int] | None:
        """Where the stream is; the same one later: no event was missed. None: it is down."""
        return (self.reconnects, self.malformed) if self._is_connected else None

    @property
    def is_connected(self) -> bool:
        """Whether events come in now."""
        return self._is_connected

    def __repr__(self) -> str:
        if self._is_connected:
            state = "connected"
        elif self._failure is not None:
            state = "lost"
        else:
            state = "missed" if self._is_missed else "connecting"
        return f"<EventStream {self.directory} {state}, {self.reconnects} reconnects>"

    async def wait_connected(self) -> None:
        """Wait until events come in, or it is plain that one must do without. Always a checkpoint.

        Raises:
            SessionError: The stream is lost.
            ConfigurationError: The server's configuration is wrong.
        """
        await anyio.lowlevel.checkpoint()
        while not (self._is_connected or self._is_missed):
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            await self._changed.wait()

    async def run(self) -> None:
        """Keep the stream alive until cancelled or lost."""
        timing = self._timing
        deadline = anyio.current_time() + timing.window
        delay = timing.first_delay
        while True:
            failure, connected_at = await self._listen()
            now = anyio.current_time()
            if self._is_connected:
                _LOG.info("the event stream of %s broke: %s", self.directory, failure)
                self._set(is_connected=False)
                self._broken()
            if connected_at is not None:
                deadline = now + timing.window
                if now - connected_at > timing.longest_delay:
                    delay = timing.first_delay
            elif _is_permanent(failure) or (now >= deadline and not await self._is_answering()):
                self._failure = failure
                self._is_missed = False
                self._set(is_connected=False)
                self._lost(failure)
                return
            elif now >= deadline and not self._is_missed:
                _LOG.warning("no events of %s; its turns are polled: %s", self.directory, failure)
                self._is_missed = True
                self._set(is_connected=False)
            await anyio.sleep(delay * random.uniform(0.75, 1.25))  # noqa: S311 - not a secret
            delay = min(delay * 2, timing.longest_delay)

    async def _listen(self) -> tuple[Exception, float | None]:
        """Deliver events until they end; why they did, and when the stream opened, if it did."""
        connected_at = None
        silence = self._timing.silence
        try:
            async with self._http.events(self.directory, silence=silence) as events:
                async for data in events:
                    if self._take(data):
                        connected_at = anyio.current_time()
        except WIRE_ERRORS as exc:
            return exc, connected_at
        # So it does when the directory's instance is thrown away.
        return TransportError(f"{self._http.url} closed the event stream"), connected_at

    async def _is_answering(self) -> bool:
        """Whether the server is there, although it opens no stream."""
        try:
            await self._http.health()
        except WIRE_ERRORS:
            return False
        return True

    def _take(self, data: bytes) -> bool:
        """Deliver an event; whether it was the one that opens a stream."""
        try:
            event = wire.decode_event(data)
        except wire.MalformedError as exc:
            self.malformed += 1
            _LOG.debug("skipped an event of unknown shape: %s", exc)
            return False
        if isinstance(event, wire.ServerConnected):
            is_first = not self._was_connected
            self._was_connected = True
            self._is_missed = False
            self._set(is_connected=True)
            if not is_first:
                self.reconnects += 1
                self._reconnected()
            return True
        if event is not None:
            self._deliver(event)
        return False

    def _set(self, *, is_connected: bool) -> None:
        self._is_connected = is_connected
        self._changed.set()
        self._changed = anyio.Event()


def _is_permanent(failure: Exception) -> bool:
    """Whether trying again is useless."""
    is_refused = isinstance(failure, ServerError) and 400 <= failure.status < 500
    return is_refused or isinstance(failure, ConfigurationError)
