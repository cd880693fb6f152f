"""A session on the server, and the task that drives its running turn."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, final

import anyio
from attrs import evolve

from orchestra.abc import Session
from orchestra.errors import (
    ConfigurationError,
    ServerError,
    SessionError,
    SessionLostError,
    TransportError,
)
from orchestra.events import Finished, FinishReason, SessionEvent, Started, TurnError
from orchestra.opencode.client import wire
from orchestra.opencode.client.http import WIRE_ERRORS
from orchestra.opencode.client.outbox import Outbox
from orchestra.opencode.client.resuming import find_prompt
from orchestra.opencode.client.turn import VAIN_STEPS, Snapshot, TurnMachine
from orchestra.opencode.client.verdict import interrupted

if TYPE_CHECKING:
    from orchestra.opencode.client.workspace import Workspace

__all__ = ("OpenCodeSession", "Turn")

_LOG = logging.getLogger(__name__)

_ABORT_AGAIN = 1.0
"""Seconds after which a run that was aborted and is still busy is aborted again."""
_ABORT_LIMIT = 10.0
"""Seconds after which an aborted turn ends whether or not the server says that it is idle."""
_CLOSE_LIMIT = 20.0
"""Seconds that closing may take."""
_RETRY_DELAY = 0.5
_OCCUPIED = "the session is at work on somebody else's prompt"
_SOUND = {
    FinishReason.DONE,
    FinishReason.STOPPED,
    FinishReason.LENGTH,
    FinishReason.BLOCKED,
    FinishReason.ABORTED,
}
"""How a turn ends in a session that may be used for another task. After anything else nobody knows
what the server holds of it; a model that does not exist, for one, is remembered."""


@final
class OpenCodeSession(Session):
    """A session of an OpenCode server. Comes from `OpenCodeBackend.open` only.

    Args:
        workspace: Where it lives.
        session_id: The server's id of it.
        agent: The agent's name, for people.
        template: What every prompt's body has in common.
        is_new: Whether it was opened just now, so that nothing was ever said in it.
    """

    def __init__(
        self,
        workspace: Workspace,
        session_id: str,
        *,
        agent: str,
        template: Mapping[str, object],
        is_new: bool = True,
    ) -> None:
        self.agent = agent
        self._id = session_id
        self._workspace = workspace
        self._template = template
        self._known_prompts: set[str] = set()
        self._turn: Turn | None = None
        self.is_sound: bool = True
        """Whether no turn of it ended in a way that leaves it in doubt."""
        self.is_uncut: bool = True
        """Whether no turn of it was ended before its agent was through."""
        self._is_empty = is_new
        self._is_new = is_new
        self._mark = workspace.stream.mark if is_new else None
        self._is_resetting = False
        self._closing: anyio.Event | None = None

    @property
    def id(self) -> str:
        """The server's id of the session."""
        return self._id

    @property
    def turn(self) -> Turn | None:
        """The running turn, if there is one."""
        turn = self._turn
        return None if turn is None or turn.is_finished else turn

    def __repr__(self) -> str:
        if self._closing is not None:
            state = "closed"
        else:
            state = "idle" if self.turn is None else repr(self.turn)
        return f"<OpenCodeSession {self._id} {self.agent!r} {state}>"

    def new_prompt_id(self) -> str:
        """Return an id in the server's form, by which prompts are in the order of time."""
        return self._workspace.make_id("msg")

    def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[SessionEvent]]:
        """Send one prompt and iterate over what comes of it; see `Session.stream`.

        With an id, the server is asked first whether it has the prompt.

        Args:
            prompt: What the agent shall do; not empty.
            prompt_id: Names the prompt; from `new_prompt_id`.
        """
        return self._stream(prompt, prompt_id)

    @asynccontextmanager
    async def _stream(
        self, prompt: str, prompt_id: str | None
    ) -> AsyncGenerator[AsyncIterator[SessionEvent]]:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        await anyio.lowlevel.checkpoint()
        if self._closing is not None:
            raise anyio.ClosedResourceError
        if self.turn is not None or self._is_resetting:
            raise anyio.BusyResourceError("sending a prompt to")
        is_fresh = self._is_empty
        self._is_empty = False
        turn = Turn(
            self,
            self._workspace,
            prompt,
            self._template,
            self._known_prompts,
            prompt_id=prompt_id,
            is_asked_first=prompt_id is not None and not is_fresh,
        )
        self._turn = turn
        self._workspace.host.turn_started()
        self._workspace.host.spawn(turn.run)
        try:
            yield turn.events
        finally:
            if not turn.is_finished:
                with anyio.CancelScope(shield=True):
                    await turn.abort()

    async def abort(self) -> None:
        """End the running turn; see `Session.abort`."""
        turn = self.turn
        if turn is None:
            await anyio.lowlevel.checkpoint()
        else:
            await turn.abort()

    async def check(self) -> bool:
        """Look whether the session is there, idle, and empty if it should be; see `Session.check`."""
        await anyio.lowlevel.checkpoint()
        workspace = self._workspace
        if not self._is_free() or workspace.failure is not None:
            return False
        is_empty = self._is_empty
        try:
            messages = await workspace.http.messages(self._id, limit=1)
            is_idle = await workspace.is_idle(self._id)
        except WIRE_ERRORS as exc:
            _LOG.info("session %s is not well: %s", self._id, exc)
            return False
        return self._is_free() and is_idle and not (is_empty and messages)

    async def reset(self) -> bool:
        """Delete every message and sub-agent, and look that none is left; see `Session.reset`.

        A session whose agent has written a to-do list cannot be reset, since the server offers no
        way to clear it; nor can one with a turn that failed, was refused, interrupted or lost.
        """
        await anyio.lowlevel.checkpoint()
        if not self._is_free() or not self.is_sound:
            return False
        self._is_resetting = True
        try:
            self._is_empty = await self._workspace.empty(self._id)
        except WIRE_ERRORS as exc:
            _LOG.info("session %s was not reset: %s", self._id, exc)
            return False
        finally:
            self._is_resetting = False
        return self._is_empty

    async def relabel(self, *, title: str, metadata: Mapping[str, str]) -> None:
        """Replace title and metadata on the server; see `Session.relabel`.

        Args:
            title: A line for people.
            metadata: Kept with the session on the server.
        """
        await self._workspace.http.update_session(
            self._id, title=title or f"orchestra: {self.agent}", metadata=metadata
        )
        self._workspace.relabel(self, metadata)

    def _is_free(self) -> bool:
        return self._closing is None and self.turn is None and not self._is_resetting

    async def detach(self) -> None:
        """Forget the session here, and leave it alone on the server; see `Session.detach`."""
        if self._closing is None:
            self._closing = anyio.Event()
            if (turn := self.turn) is not None:
                turn.end(FinishReason.LOST, _detached())
            self._workspace.remove(self)
            self._closing.set()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Abort what runs, wait until it is idle, delete the session; see `Session.aclose`."""
        if self._closing is not None:
            await self._closing.wait()
        else:
            self._closing = anyio.Event()
            try:
                with anyio.move_on_after(_CLOSE_LIMIT, shield=True) as scope:
                    await self._close()
                if scope.cancelled_caught:
                    _LOG.warning("session %s could not be closed in time", self._id)
            finally:
                self._workspace.remove(self)
                self._closing.set()
        await anyio.lowlevel.checkpoint()

    async def _close(self) -> None:
        if (turn := self.turn) is not None:
            await turn.abort()
        if self._workspace.failure is not None:
            return
        try:
            if not (self.is_uncut and self._workspace.is_childless(self._id, self._mark)):
                await self._workspace.quiet_children(self._id)
            if self._is_new:
                await self._workspace.http.delete_session(self._id)
            else:  # it may be at work on what others have told it
                await self._workspace.discard(self._id)
        except WIRE_ERRORS as exc:
            _LOG.debug("session %s was not deleted: %s", self._id, exc)


@final
class Turn:
    """One prompt under way: sends it, looks when it is time, aborts it when asked to.

    Args:
        session: Where it is sent.
        workspace: Where that lives.
        prompt: What is sent.
        template: What every prompt's body has in common.
        known_prompts: Ids of the session's earlier prompts.
        prompt_id: Its name; None: a new one.
        is_asked_first: Whether the server may have the prompt already.
    """

    def __init__(
        self,
        session: OpenCodeSession,
        workspace: Workspace,
        prompt: str,
        template: Mapping[str, object],
        known_prompts: set[str],
        *,
        prompt_id: str | None = None,
        is_asked_first: bool = False,
    ) -> None:
        prompt_id = prompt_id or workspace.make_id("msg")
        # The same part each time: the server would store another one as a further text.
        part = {"id": f"prt{prompt_id.removeprefix('msg')}", "type": "text", "text": prompt}
        self.session = session
        self._known_prompts = known_prompts
        self.requests: dict[str, anyio.CancelScope] = {}
        """Requests of the agent that wait for the policy's answer."""
        self._workspace = workspace
        self._body = {**template, "messageID": prompt_id, "parts": [part]}
        self._machine = TurnMachine(
            session_id=session.id,
            prompt_id=prompt_id,
            now=anyio.current_time(),
            known_prompts=known_prompts,
            timing=workspace.turn_timing,
        )
        if not workspace.stream.is_connected:
            self._machine.stream_broke(now=anyio.current_time())
        self._outbox = Outbox()
        self._wake = anyio.Event()
        self._finished = anyio.Event()
        self._scope = anyio.CancelScope()
        self._failing_since = inf
        self._is_aborting = False
        self._is_spinning = False
        self._is_asked_first = is_asked_first
        self._abort_at = inf
        self._give_up_at = inf
        self._outbox.put([Started(session_id=session.id, prompt_id=prompt_id)])

    def __repr__(self) -> str:
        return repr(self._machine)

    @property
    def is_finished(self) -> bool:
        """Whether the last event is out."""
        return self._machine.is_finished

    @property
    def is_aborting(self) -> bool:
        """Whether somebody wants it to end."""
        return self._is_aborting

    @property
    def events(self) -> AsyncIterator[SessionEvent]:
        """The events, up to the last; to be iterated over once."""
        return self._outbox

    # --- what others call ---

    def feed(self, event: wire.Event) -> None:
        """Take in an event of the stream."""
        self.tell(self._machine.feed(event, now=anyio.current_time(), wall=time.time()))
        self._wake.set()

    def tell(self, events: list[SessionEvent]) -> None:
        """Pass events on; the last one ends the turn."""
        if self._finished.is_set():
            return
        if self._is_spinning:
            events = [_blame_spinning(event) for event in events]
        self._outbox.put(events)
        for event in events:
            if isinstance(event, Finished):
                self.session.is_sound &= event.reason in _SOUND
                self.session.is_uncut &= event.reason in _SOUND - {FinishReason.ABORTED}
        if self._machine.is_finished:
            self._finished.set()
            self._wake.set()
            for scope in self.requests.values():
                scope.cancel()
            self._workspace.host.turn_finished()

    def stream_broke(self) -> None:
        """Say that no events come in from here on."""
        self._machine.stream_broke(now=anyio.current_time())
        self._wake.set()

    def stream_mended(self) -> None:
        """Say that events come in again, and that some are missing."""
        self._machine.stream_mended(now=anyio.current_time())
        self._wake.set()

    def end(self, reason: FinishReason, error: TurnError) -> None:
        """End the turn at once, without asking the server."""
        self.tell(self._machine.finish(reason, error))
        self._scope.cancel()

    async def abort(self) -> None:
        """Abort the run and wait until the session is idle. Bounded in time."""
        self._begin_abort()
        await self._finished.wait()

    def _begin_abort(self) -> None:
        if not self._is_aborting:
            self._is_aborting = True
            self._abort_at = anyio.current_time()
            self._give_up_at = self._abort_at + _ABORT_LIMIT
            self._wake.set()

    # --- the driver ---

    async def run(self) -> None:
        """Drive the turn to its end."""
        with self._scope:
            try:
                await self._drive()
            finally:
                if not self.is_finished:
                    self.end(FinishReason.LOST, _left())

    async def _drive(self) -> None:
        machine = self._machine
        if not self._is_asked_first or not await self._find():
            await self._send()
        while not machine.is_finished:
            now = anyio.current_time()
            if now >= self._give_up_at:
                _LOG.warning("session %s did not become idle after its abort", self.session.id)
                self.end(FinishReason.ABORTED, _aborted())
            elif now >= self._abort_at:
                self._abort_at = now + _ABORT_AGAIN
                with anyio.move_on_at(self._give_up_at):
                    await self._workspace.abort_tree(self.session)
                machine.abort(now=anyio.current_time())
            elif machine.is_spinning and not self._is_aborting:
                self._is_spinning = True
                self._begin_abort()
            elif now >= machine.look_at:
                await self._look()
            else:
                self._wake = anyio.Event()
                due = min(machine.look_at, self._abort_at, self._give_up_at)
                with anyio.CancelScope(deadline=due):
                    await self._wake.wait()

    async def _find(self) -> bool:
        """Look for the prompt on the server; whether it must not be sent.

        One that is stored there, and that nobody works on, is sent again: the server was killed
        before it could begin. Under the same id it is stored once.
        """
        session_id, http = self.session.id, self._workspace.http
        while not self.is_finished and not self._is_aborting:
            try:
                messages = await http.messages(session_id, limit=None)
                is_idle = await self._workspace.is_idle(session_id)
            except SessionLostError:
                self.end(FinishReason.INTERRUPTED, interrupted("the session is gone"))
            except WIRE_ERRORS as exc:
                await self._bear(exc)
            else:
                found = find_prompt(messages, self._machine.prompt_id)
                self._known_prompts |= found.others
                if not is_idle and not found.is_stored:
                    self.end(FinishReason.INTERRUPTED, interrupted(_OCCUPIED))
                elif found.is_begun or not is_idle:
                    self._workspace.host.spawn(self._workspace.fetch_requests)
                    self._machine.lose_events(now=anyio.current_time())
                else:
                    return False
                return True
        return self.is_finished

    async def _send(self) -> None:
        """Post the prompt; again while the connection fails, which the ids make harmless."""
        deadline = anyio.current_time() + self._workspace.window
        while not self.is_finished:
            if self._is_aborting:
                self.end(FinishReason.ABORTED, _aborted())
                return
            try:
                await self._workspace.http.prompt(self.session.id, self._body)
            except TransportError as exc:
                if anyio.current_time() >= deadline:
                    self.end(FinishReason.LOST, _told(exc))
                await anyio.sleep(_RETRY_DELAY)
            except (SessionLostError, ConfigurationError) as exc:
                self.end(FinishReason.REFUSED, _told(exc, is_retryable=False))
            except ServerError as exc:
                is_ours = exc.status < 500
                reason = FinishReason.REFUSED if is_ours else FinishReason.FAILED
                self.end(reason, _told(exc, is_retryable=not is_ours))
            except SessionError as exc:
                self.end(FinishReason.FAILED, _told(exc))
            else:
                return

    async def _look(self) -> None:
        """Fetch what the machine needs in order to go on."""
        machine, http, session_id = self._machine, self._workspace.http, self.session.id
        is_whole, needs_status = machine.needs_whole, machine.needs_status
        machine.begin_look()
        if machine.is_polling:
            await self._workspace.poll_requests()
        try:
            # First the status: a session that was idle then has written its last message.
            directory = self._workspace.directory
            statuses = await http.statuses(directory) if needs_status else {}
            messages = await http.messages(session_id, limit=None if is_whole else 1)
            children: list[wire.Message] = []
            if is_whole:
                for child in await self._workspace.descendants(session_id):
                    children += await http.messages(child, limit=None)
        except SessionLostError:
            self.end(FinishReason.INTERRUPTED, interrupted("somebody deleted the session"))
            return
        except WIRE_ERRORS as exc:
            await self._bear(exc)
            return
        self._failing_since = inf
        snapshot = Snapshot(
            status=statuses.get(session_id),
            messages=messages,
            is_whole=is_whole,
            children=tuple(children),
            is_status_known=needs_status,
        )
        self.tell(machine.resolve(snapshot, now=anyio.current_time(), wall=time.time()))
        if machine.needs_resend:
            await self._send()

    async def _bear(self, exc: Exception) -> None:
        """Try a failed look again, for a while."""
        now = anyio.current_time()
        self._failing_since = min(self._failing_since, now)
        if now - self._failing_since < self._workspace.window:
            await anyio.sleep(_RETRY_DELAY)
            self._machine.look_failed(now=anyio.current_time())
        elif isinstance(exc, TransportError):
            self.end(FinishReason.LOST, _told(exc))
        else:
            self.end(FinishReason.FAILED, _told(exc))


def _told(exc: Exception, *, is_retryable: bool = True) -> TurnError:
    status = exc.status if isinstance(exc, ServerError) else None
    return TurnError(
        name=type(exc).__name__, message=str(exc), status=status, is_retryable=is_retryable
    )


def _blame_spinning(event: SessionEvent) -> SessionEvent:
    """Say of a turn that we have ended why we did."""
    if not isinstance(event, Finished) or event.reason is not FinishReason.ABORTED:
        return event
    message = f"the model was called {VAIN_STEPS} times in a row without saying or doing anything"
    return evolve(
        event,
        reason=FinishReason.FAILED,
        error=TurnError(name="EmptyAnswers", message=message),
    )


def _aborted() -> TurnError:
    return TurnError(name="Aborted", message="the turn was aborted")


def _detached() -> TurnError:
    return TurnError(name="Detached", message="the session was left to somebody else")


def _left() -> TurnError:
    return TurnError(name="BackendLeft", message="the backend was left while the turn ran")
