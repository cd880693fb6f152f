"""A directory on the server: its event stream, its sessions, and the requests of their agents."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import isawaitable
from math import inf
from typing import Protocol, final

import anyio

from orchestra.abc import PermissionPolicy
from orchestra.errors import ServerError
from orchestra.events import (
    FinishReason,
    PermissionAsked,
    PermissionPending,
    PermissionReply,
    PermissionRequest,
    QuestionAsked,
    SessionEvent,
    TurnError,
)
from orchestra.opencode.client import wire
from orchestra.opencode.client.http import WIRE_ERRORS, HttpClient
from orchestra.opencode.client.lineage import Lineage
from orchestra.opencode.client.session import OpenCodeSession, Turn
from orchestra.opencode.client.stream import EventStream, StreamTiming
from orchestra.opencode.client.turn import TurnTiming
from orchestra.opencode.client.verdict import interrupted

__all__ = ("Host", "Workspace")

_LOG = logging.getLogger(__name__)

NOBODY = "Nobody is here to answer. Decide for yourself what is best and go on."
"""What an agent that asks a question is told."""

_DEPTH = 20
"""Generations of sub-agents that are followed."""
_REMEMBERED = 1000
_PATIENCE = 2.0
"""Seconds that what was aborted gets to become idle before it is deleted."""


class Host(Protocol):
    """What a workspace needs of the backend."""

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a function beside everything else until the backend is left."""

    def turn_started(self) -> None:
        """Count a turn."""

    def turn_finished(self) -> None:
        """Count its end."""


@final
class Workspace:
    """One directory on a server.

    Args:
        host: The backend.
        http: The server.
        directory: The absolute path.
        policy: Answers permission requests.
        stream_timing: For the event stream.
        turn_timing: For the turns.
    """

    def __init__(
        self,
        host: Host,
        http: HttpClient,
        directory: str,
        *,
        policy: PermissionPolicy,
        stream_timing: StreamTiming,
        turn_timing: TurnTiming,
    ) -> None:
        self.host = host
        self.http = http
        self.directory = directory
        self.turn_timing = turn_timing
        self.window: float = stream_timing.window
        self.failure: Exception | None = None
        self.make_id: wire.IdMaker = wire.IdMaker(time.time)
        self.sessions: dict[str, OpenCodeSession] = {}
        self.is_warm: bool = False
        """Whether the server has all it needs for the directory in memory."""
        self.warming: anyio.Lock = anyio.Lock()
        self._policy = policy
        self._halts: dict[str, anyio.Event] = {}
        self._lineage = Lineage()
        self._answered: dict[str, None] = {}
        self._polled_at = -inf
        self.stream: EventStream = EventStream(
            http,
            directory,
            deliver=self._deliver,
            broken=self._break_off,
            reconnected=self._reconcile,
            lost=self.lose,
            timing=stream_timing,
        )

    def __repr__(self) -> str:
        return f"<Workspace {self.directory}, {len(self.sessions)} sessions>"

    def add(
        self,
        session: OpenCodeSession,
        *,
        metadata: Mapping[str, str],
        subagent_depth: int | None = None,
    ) -> None:
        """Route events to a session from now on.

        Args:
            session: The session.
            metadata: What it was opened with.
            subagent_depth: How many generations below it are let live; None: any number.
        """
        self.sessions[session.id] = session
        self._lineage.add_root(
            session.id, agent=session.agent, limit=subagent_depth, metadata=metadata
        )

    def relabel(self, session: OpenCodeSession, metadata: Mapping[str, str]) -> None:
        """Note that a session has other metadata now."""
        self._lineage.relabel(session.id, metadata)

    def remove(self, session: OpenCodeSession) -> None:
        """Tell a session nothing any more."""
        self.sessions.pop(session.id, None)

    async def find_busy(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those sessions of ours that are busy, or have a busy one below them.

        Args:
            session_ids: Sessions that were opened here; others are left out.
        """
        ours = frozenset(session_ids) & self._lineage.roots_of(session_ids)
        if not ours:
            return frozenset()
        busy = await self.http.statuses(self.directory)
        for session_id in busy:  # perhaps a child whose start we did not hear of
            await self._find_root(session_id)
        return ours & self._lineage.roots_of(busy)

    def lose(self, exc: Exception) -> None:
        """Say that the server is gone; ends every turn."""
        if self.failure is None:
            self.failure = exc
        error = TurnError(name=type(exc).__name__, message=str(exc))
        for session in tuple(self.sessions.values()):
            if session.turn is not None:
                session.turn.end(FinishReason.LOST, error)

    # --- the tree of a session ---

    async def descendants(self, session_id: str) -> list[str]:
        """The ids of a session's children, their children, and so on."""
        found: list[str] = []
        layer = [session_id]
        for _ in range(_DEPTH):
            layer = [child.id for one in layer for child in await self.http.children(one)]
            if not layer:
                break
            found += layer
        return found

    def is_childless(self, session_id: str, since: tuple[int, int] | None) -> bool:
        """Whether the stream, which has missed nothing, told of no child of a session of ours.

        Args:
            session_id: The session.
            since: The stream's mark when it was opened.
        """
        is_whole = since is not None and since == self.stream.mark
        return is_whole and not self._lineage.has_children(session_id)

    async def abort_tree(self, session: OpenCodeSession) -> None:
        """Ask the server to abort a session, then its children one by one; reject what they ask.

        The session first, so that it starts no further children.
        """
        try:
            await self.http.abort(session.id)
            children = await self.descendants(session.id)
            for child in children:
                await self.http.abort(child)
            await self._reject_requests({session.id, *children})
        except WIRE_ERRORS as exc:
            _LOG.info("aborting session %s failed: %s", session.id, exc)

    async def quiet_children(self, session_id: str) -> bool:
        """Abort a session's children, and wait for a while until they are idle; whether they are."""
        children = await self.descendants(session_id)
        if not children:
            return True
        for child in children:
            await self.http.abort(child)
        await self._reject_requests(set(children))
        with anyio.move_on_after(_PATIENCE):
            while children := await self._busy_of(children):  # noqa: ASYNC110 - no event says it
                await anyio.sleep(0.05)
        return not children

    async def is_idle(self, session_id: str) -> bool:
        """Whether a session does nothing."""
        return not await self._busy_of([session_id])

    async def empty(self, session_id: str) -> bool:
        """Delete an idle session's messages and children; whether nothing is left, not even todos.

        The answer is what a look after the last deletion has shown.
        """
        http = self.http
        if not await self.is_idle(session_id):
            return False
        if not await self.quiet_children(session_id):
            return False
        for child in await http.children(session_id):
            await http.delete_session(child.id)
        for message in await http.messages(session_id, limit=None):
            await http.delete_message(session_id, message.info.id)
        return not (
            await http.messages(session_id, limit=1)
            or await http.todos(session_id)
            or await http.children(session_id)
            or not await self.is_idle(session_id)
        )

    async def discard(self, session_id: str) -> None:
        """Abort a session that has no object here, wait for a while until it is idle, delete it."""
        await self.http.abort(session_id)
        with anyio.move_on_after(_PATIENCE):
            while not await self.is_idle(session_id):  # noqa: ASYNC110 - no event says it
                await anyio.sleep(0.02)
        await self.http.delete_session(session_id)

    @contextmanager
    def watching(self, session_id: str) -> Iterator[anyio.Event]:
        """Set an event when a session that has no object here ends its run, or waits in it."""
        self._halts[session_id] = halted = anyio.Event()
        try:
            yield halted
        finally:
            del self._halts[session_id]

    async def _busy_of(self, session_ids: list[str]) -> list[str]:
        busy = await self.http.statuses(self.directory)
        return [session_id for session_id in session_ids if session_id in busy]

    async def _reject_requests(self, tree: set[str]) -> None:
        """Turn down what waits; an abort leaves it waiting."""
        for asked in await self.http.permissions(self.directory):
            if asked.session_id in tree:
                await self._send_reply(asked, PermissionReply(is_allowed=False))
        for question in await self.http.questions(self.directory):
            if question.session_id in tree:
                await self.http.reject_question(self.directory, question.id)

    # --- events ---

    def _deliver(self, event: wire.Event) -> None:
        match event:
            case wire.SessionCreated(info=info):
                self._adopt(info)
            case wire.SessionDeleted(info=info):
                session = self.sessions.get(info.id)
                if session is not None and session.turn is not None:
                    error = interrupted("somebody deleted the session")
                    session.turn.end(FinishReason.INTERRUPTED, error)
            case wire.PermissionAsked() | wire.QuestionAsked():
                self._take_request(event)
            case wire.PartUpdated(part=part):
                self._feed(self._lineage.root(part.session_id) or part.session_id, event)
            case wire.MessageUpdated(info=info):
                self._feed(event.session_id or info.session_id, event)
            case wire.ServerConnected() | wire.InstanceDisposed():
                pass
            case _:
                self._feed(event.session_id, event)

    def _feed(self, session_id: str, event: wire.Event) -> None:
        session = self.sessions.get(session_id)
        if session is not None and session.turn is not None:
            session.turn.feed(event)
        elif session_id in self._halts and _is_halt(event):
            self._halts[session_id].set()
        elif (
            self._lineage.is_refused(session_id)
            and isinstance(event, wire.SessionStatus)
            and event.status.type == "busy"
        ):
            self._refuse(session_id)

    def _adopt(self, info: wire.SessionInfo) -> None:
        """Note whose child a session is; one that is deeper than it may be is aborted."""
        started = self._lineage.adopt(info)
        if started is None:
            return
        session = self.sessions.get(started.session_id)
        if session is not None and session.turn is not None:
            session.turn.tell([started])
        if started.is_refused:
            self._refuse(info.id)

    def _refuse(self, session_id: str) -> None:
        """Abort a session that should not be; what was not begun yet is aborted when it begins."""

        async def abort() -> None:
            try:
                await self.http.abort(session_id)
            except WIRE_ERRORS as exc:
                _LOG.info("could not abort session %s, which is too deep: %s", session_id, exc)

        self.host.spawn(abort)

    def _break_off(self) -> None:
        """Go on by looking, since no events come in."""
        self.is_warm = False  # the server may have been started again
        for session in self.sessions.values():
            if session.turn is not None:
                session.turn.stream_broke()

    def _reconcile(self) -> None:
        """Catch up after events were lost."""
        self.is_warm = False
        for session in self.sessions.values():
            if session.turn is not None:
                session.turn.stream_mended()
        self.host.spawn(self.fetch_requests)

    async def poll_requests(self) -> None:
        """Look for what agents ask, since no event tells of it; not oftener than turns look."""
        now = anyio.current_time()
        if now - self._polled_at >= self.turn_timing.poll:
            self._polled_at = now
            await self.fetch_requests()

    async def fetch_requests(self) -> None:
        """Answer the requests that wait: nobody will tell us of them again."""
        if not any(session.turn for session in self.sessions.values()):
            return
        try:
            for asked in await self.http.permissions(self.directory):
                self._take_request(asked)
            for question in await self.http.questions(self.directory):
                self._take_request(question)
        except WIRE_ERRORS as exc:
            # The stream is about to break too, and will bring us back here.
            _LOG.info("could not fetch the open requests of %s: %s", self.directory, exc)

    # --- requests of agents ---

    def _take_request(self, asked: wire.PermissionAsked | wire.QuestionAsked) -> None:
        if asked.id in self._answered:
            return
        self._answered[asked.id] = None
        while len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

        async def answer() -> None:
            root = await self._find_root(asked.session_id)
            session = self.sessions.get(root or "")
            if session is None:
                # The request of somebody else's session: not ours to answer, as long as it is his.
                self._answered.pop(asked.id, None)
                return
            try:
                if isinstance(asked, wire.PermissionAsked):
                    await self._answer_permission(asked, session)
                else:
                    await self._answer_question(asked, session)
            except WIRE_ERRORS as exc:
                self._answered.pop(asked.id, None)
                _LOG.info("could not answer request %s: %s", asked.id, exc)

        self.host.spawn(answer)

    async def _find_root(self, session_id: str) -> str | None:
        """The session of ours that a session is, or descends from."""
        asked = session_id
        line: list[wire.SessionInfo] = []
        try:
            while session_id and self._lineage.root(session_id) is None and len(line) < _DEPTH:
                line.append(await self.http.session(session_id))
                session_id = line[-1].parent_id or ""
        except WIRE_ERRORS:
            return None
        for info in reversed(line):
            self._adopt(info)
        return self._lineage.root(asked)

    async def _answer_permission(
        self, asked: wire.PermissionAsked, session: OpenCodeSession
    ) -> None:
        request = PermissionRequest(
            id=asked.id,
            session_id=asked.session_id,
            agent=self._lineage.agent(asked.session_id),
            permission=asked.permission,
            patterns=asked.patterns,
            metadata=asked.metadata or {},
            session_metadata=self._lineage.metadata(asked.session_id),
        )
        turn = session.turn
        reply = PermissionReply(is_allowed=False)
        if turn is not None and not turn.is_aborting:
            with anyio.CancelScope() as scope:
                turn.requests[asked.id] = scope
                reply = await self._decide(request, turn)
            del turn.requests[asked.id]
            event = PermissionAsked(session_id=session.id, request=request, reply=reply)
            turn.tell([event])
        await self._send_reply(asked, reply)

    async def _decide(self, request: PermissionRequest, turn: Turn) -> PermissionReply:
        try:
            answer = self._policy(request)
            if not isawaitable(answer):
                return answer
            turn.tell([PermissionPending(session_id=turn.session.id, request=request)])
            return await answer
        except Exception:  # noqa: BLE001 - a policy is the caller's code and may raise anything
            _LOG.exception("the permission policy failed; %s is refused", request.permission)
            message = "The request could not be considered; go on without it."
            return PermissionReply(is_allowed=False, message=message)

    async def _send_reply(self, asked: wire.PermissionAsked, reply: PermissionReply) -> None:
        word = "once" if reply.is_allowed else "reject"
        try:
            await self.http.reply_permission(
                self.directory, asked.id, reply=word, message=reply.message
            )
        except ServerError as exc:
            if exc.status != 404:
                raise
            _LOG.debug("somebody else answered request %s", asked.id)

    async def _answer_question(self, asked: wire.QuestionAsked, session: OpenCodeSession) -> None:
        turn = session.turn
        if turn is None or turn.is_aborting:
            await self.http.reject_question(self.directory, asked.id)
            return
        events: list[SessionEvent] = [
            QuestionAsked(session_id=session.id, question=question.question, answer=NOBODY)
            for question in asked.questions
        ]
        turn.tell(events)
        answers = [[NOBODY] for _ in asked.questions]
        await self.http.reply_question(self.directory, asked.id, answers=answers)


def _is_halt(event: wire.Event) -> bool:
    """Whether a run goes no further by itself, or not for now."""
    if isinstance(event, wire.SessionStatus):
        return event.status.type != "busy"
    return isinstance(event, wire.SessionIdle | wire.SessionFailed)
