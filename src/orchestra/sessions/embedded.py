"""Agents that are Python callables or command lines: no server, no key, no network."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, final

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from orchestra.abc import (
    Agent,
    BackendStatistics,
    PermissionPolicy,
    Session,
    SessionBackend,
    deny_all,
)
from orchestra.background import background_tasks
from orchestra.errors import AgentNotFoundError, SessionLostError
from orchestra.events import (
    Finished,
    FinishReason,
    PermissionAsked,
    PermissionPending,
    PermissionReply,
    PermissionRequest,
    SessionEvent,
    Started,
    TextReceived,
    ToolCalled,
    ToolStatus,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.sessions._telling import Replay, TurnRecord

__all__ = ("EmbeddedAgent", "EmbeddedBackend", "Turn")

_BUFFER = 256
"""Events that wait for a reader before the agent has to."""


@final
class Turn:
    """What an embedded agent gets: one prompt, and the means to tell how it goes.

    The async methods belong to the event loop; a plain function, which runs in a worker thread,
    calls them as ``anyio.from_thread.run(turn.text, "...")``. Each of them is a checkpoint.

    Attributes:
        prompt: What the agent shall do.
        directory: Where it shall do it.
        agent: The agent that the session was opened for.
        metadata: What the session was opened with.
        session_id: The session.
        number: 1 for the session's first prompt, and for the first after a reset.
        memory: The agent's own notes, kept for the length of the session, or until a reset.
    """

    def __init__(
        self,
        session: _EmbeddedSession,
        prompt: str,
        number: int,
        record: TurnRecord,
    ) -> None:
        self.prompt = prompt
        self.directory: Path = session.directory
        self.agent: Agent = session.agent
        self.metadata: Mapping[str, str] = session.metadata
        self.session_id: str = session.id
        self.number = number
        self.memory: dict[str, Any] = session.memory
        self._policy = session.host.policy
        self._record = record
        self._calls = itertools.count(1)

    async def text(self, text: str) -> None:
        """Show a piece of the answer.

        Args:
            text: The piece; an empty one is not told.
        """
        if text:
            await self._record.tell(TextReceived(session_id=self.session_id, text=text))

    async def tool_call(
        self,
        tool: str,
        input: Mapping[str, object] | None = None,  # noqa: A002  (the field's word)
        *,
        output: str = "",
        error: str = "",
    ) -> None:
        """Tell that the agent has used a tool.

        Args:
            tool: The tool's name.
            input: What it was called with.
            output: What it gave.
            error: Why it failed; empty when it did not.
        """
        await self._record.tell(
            ToolCalled(
                session_id=self.session_id,
                call_id=f"call_{next(self._calls)}",
                tool=tool,
                status=ToolStatus.FAILED if error else ToolStatus.COMPLETED,
                input=dict(input or {}),
                output=output,
                error=error,
            )
        )

    async def usage(self, usage: Usage) -> None:
        """Tell what a model call consumed.

        Args:
            usage: This call's share; the turn adds them up.
        """
        await self._record.tell(UsageReported(session_id=self.session_id, usage=usage))

    async def ask_permission(
        self, permission: str, *patterns: str, metadata: Mapping[str, object] | None = None
    ) -> PermissionReply:
        """Ask the backend's policy whether the agent may do something.

        Args:
            permission: What kind of act.
            patterns: What it is about.
            metadata: Further details for the policy.

        Returns:
            The policy's answer.
        """
        request = PermissionRequest(
            id=f"{self.session_id}.permission_{next(self._calls)}",
            session_id=self.session_id,
            agent=self.agent.name,
            permission=permission,
            patterns=patterns,
            metadata=dict(metadata or {}),
            session_metadata=self.metadata,
        )
        reply = self._policy(request)
        if inspect.isawaitable(reply):
            await self._record.tell(PermissionPending(session_id=self.session_id, request=request))
            reply = await reply
        await self._record.tell(
            PermissionAsked(session_id=self.session_id, request=request, reply=reply)
        )
        return reply

    def __repr__(self) -> str:
        return f"<Turn {self.number} of {self.session_id} agent={self.agent.name!r}>"


EmbeddedAgent: TypeAlias = Callable[[Turn], Awaitable[str | None] | str | None]
"""An agent as a callable. It returns its answer; None: the text that it told since its last tool
call. What it raises ends the turn with ``FinishReason.FAILED``. A coroutine function runs on the
event loop, any other callable in a worker thread; what that returns to be awaited is awaited on
the loop."""


def _is_async(agent: EmbeddedAgent) -> bool:
    call = getattr(agent, "__call__", None)  # noqa: B004  (the method, for instances)
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(call)


class _Run:
    """One turn under way: the agent's task on one side, the reader on the other."""

    __slots__ = ("_receive", "finished", "idle", "is_over", "scope")

    def __init__(self, receive: MemoryObjectReceiveStream[SessionEvent]) -> None:
        self.scope = anyio.CancelScope()
        self.idle = anyio.Event()
        self.finished: Finished | None = None
        self.is_over = False
        self._receive = receive

    def __aiter__(self) -> _Run:
        return self

    async def __anext__(self) -> SessionEvent:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self.finished is None or self.is_over:
                raise StopAsyncIteration from None
            await self.idle.wait()
            self.is_over = True
            return self.finished

    def close(self) -> None:
        self._receive.close()


class _Host:
    """What a backend and its sessions share: the tasks, the counters, the policy."""

    def __init__(self, tasks: TaskGroup, policy: PermissionPolicy, thread_grace: float) -> None:
        self.policy = policy
        self.sessions: dict[str, _EmbeddedSession] = {}
        self.opened = 0
        self.running: int = 0
        self.ended: int = 0
        self.threads: dict[object, str] = {}
        """The session of each thread that is at work, also of those that were given up."""
        self._tasks = tasks
        self._thread_grace = thread_grace

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        self.running += 1
        self._tasks.start_soon(work, *args)

    def end(self) -> None:
        self.running -= 1
        self.ended += 1

    async def run_in_thread(self, call: EmbeddedAgent, turn: Turn) -> Any:
        """Run a plain function; when cancelled, wait ``thread_grace`` for it, then let it go."""
        # An event of threads: telling the loop would wait for ever when the loop is just closing,
        # and the thread would keep the process from ending.
        done = threading.Event()
        is_started = is_given_up = False

        def work() -> tuple[Any]:  # trio refuses a coroutine that is not wrapped
            nonlocal is_started
            is_started = True
            self.threads[done] = turn.session_id
            try:
                return (None if is_given_up else call(turn),)
            finally:
                del self.threads[done]
                done.set()

        try:
            # How many work at once is the caller's decision: no second limit here.
            (answer,) = await anyio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except anyio.get_cancelled_exc_class():
            is_given_up = True
            if is_started:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(
                        done.wait, self._thread_grace, limiter=anyio.CapacityLimiter(1)
                    )
            raise
        return answer


class _EmbeddedSession(Session):
    def __init__(
        self,
        host: _Host,
        session_id: str,
        agent: Agent,
        call: EmbeddedAgent,
        directory: Path,
        metadata: Mapping[str, str],
    ) -> None:
        self.host = host
        self.agent = agent
        self.directory = directory
        self.metadata: Mapping[str, str] = metadata
        self.memory: dict[str, Any] = {}
        self._id = session_id
        self._call = call
        self._prompts = 0
        self._turns = 0
        self._run: _Run | None = None
        self._ends: dict[str, Finished] = {}  # of prompts that were named
        self._is_closed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def is_busy(self) -> bool:
        return self._run is not None

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[SessionEvent]]:
        if not prompt:
            raise ValueError("the prompt is empty: say what the agent shall do")
        if self._is_closed:
            raise anyio.ClosedResourceError(f"session {self._id} is closed: open a new one")
        if self._run is not None:
            raise anyio.BusyResourceError(f"using session {self._id}")
        if prompt_id is not None and (end := self._ends.get(prompt_id)) is not None:
            await anyio.lowlevel.checkpoint()
            yield Replay(prompt_id, end)
            return
        self._prompts += 1
        self._turns += 1
        send, receive = anyio.create_memory_object_stream[SessionEvent](_BUFFER)
        name = prompt_id or f"{self._id}.{self._prompts}"
        send.send_nowait(Started(session_id=self._id, prompt_id=name))
        run = self._run = _Run(receive)
        record = TurnRecord(self._id, send)
        self.host.start(self._work, run, Turn(self, prompt, self._turns, record), record)
        try:
            await anyio.lowlevel.checkpoint()
            yield run
        finally:
            run.scope.cancel()
            run.close()
            with anyio.CancelScope(shield=True):
                await run.idle.wait()
            if prompt_id is not None and run.finished is not None:
                self._ends[prompt_id] = run.finished

    async def _work(self, run: _Run, turn: Turn, record: TurnRecord) -> None:
        run.finished = record.finish(FinishReason.ABORTED)
        try:
            with run.scope:
                run.finished = await self._answer(turn, record)
            if run.scope.cancelled_caught:
                run.finished = record.finish(FinishReason.ABORTED)
        finally:
            record.close()
            self._run = None
            self.host.end()
            run.idle.set()

    async def _answer(self, turn: Turn, record: TurnRecord) -> Finished:
        try:
            answer: Any = (
                self._call(turn)
                if _is_async(self._call)
                else await self.host.run_in_thread(self._call, turn)
            )
            text = await answer if inspect.isawaitable(answer) else answer
            if text is not None and not isinstance(text, str):
                raise TypeError(f"the agent returned {type(text).__name__}, not a string")
            if text:
                await record.tell(TextReceived(session_id=self._id, text=text))
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # On asyncio what the agent awaited may have been cancelled by others. As a task's end
            # it would cancel the whole backend.
            message = "the agent awaited something that was cancelled"
            error = TurnError(name="CancelledError", message=message)
            return record.finish(FinishReason.FAILED, error=error)
        except Exception as exc:  # noqa: BLE001  (whatever an agent raises is its turn's failure)
            error = TurnError(
                name=type(exc).__name__.lstrip("_"),
                message=(str(exc) or repr(exc))[:2000],
                retry_after=getattr(exc, "retry_after", None),
            )
            return record.finish(FinishReason.FAILED, error=error)
        return record.finish(FinishReason.DONE, text)

    async def abort(self) -> None:
        run = self._run
        if run is None:
            await anyio.lowlevel.checkpoint()
            return
        run.scope.cancel()
        await run.idle.wait()

    async def check(self) -> bool:
        await anyio.lowlevel.checkpoint()
        return not self._is_closed and self._run is None

    async def reset(self) -> bool:
        await anyio.lowlevel.checkpoint()
        if self._is_closed or self._run is not None:
            return False
        self._ends.clear()
        self.memory = {}  # a new one: a thread that was given up may still write into the old one
        self._turns = 0
        return True

    async def relabel(self, *, title: str, metadata: Mapping[str, str]) -> None:  # noqa: ARG002
        await anyio.lowlevel.checkpoint()
        self.metadata = dict(metadata)

    async def aclose(self) -> None:
        self._is_closed = True
        self.host.sessions.pop(self._id, None)
        run = self._run
        if run is not None:
            run.scope.cancel()
            with anyio.CancelScope(shield=True):
                await run.idle.wait()
        await anyio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "busy" if self.is_busy else "idle"
        return f"<EmbeddedSession {self._id} agent={self.agent.name!r} {state}>"


@final
class EmbeddedBackend(AsyncContextManagerMixin, SessionBackend):
    """Runs agents in this process: Python callables, and command lines as `CommandAgent`.

    ::

        async def worker(turn: Turn) -> str:
            return turn.prompt.upper()

        async with EmbeddedBackend({"worker": worker}) as backend:
            async with backend.lease("worker", directory=Path()) as session:
                finished = await session.prompt("hello")

    Each turn has its own cancel scope: aborting it cancels a coroutine at its next checkpoint and
    ends a command's process group. A plain function cannot be interrupted; it is given
    ``thread_grace`` seconds to come back, then its thread is left to itself and what it still
    tells is refused. ``anyio.from_thread.check_cancelled()`` lets it notice.

    `Session.reset` forgets ``Turn.memory``. It cannot know of notes that an agent keeps elsewhere, so
    an agent that is to be reset keeps none under its session's id.

    The agent's ``prompt``, ``model`` and ``permissions`` are not interpreted: the callable finds them in
    ``turn.agent``.

    Args:
        agents: The callables by agent name.
        permission_policy: Answers `Turn.ask_permission`.
        thread_grace: Seconds that an aborted plain function may take to return.
    """

    def __init__(
        self,
        agents: Mapping[str, EmbeddedAgent],
        *,
        permission_policy: PermissionPolicy = deny_all,
        thread_grace: float = 5.0,
    ) -> None:
        for name, agent in agents.items():
            if not callable(agent):
                raise TypeError(f"agent {name!r} must be callable, not {type(agent).__name__}")
        if thread_grace < 0:
            raise ValueError(f"thread_grace must not be negative, but is {thread_grace!r}")
        self._agents = dict(agents)
        self._permission_policy = permission_policy
        self._thread_grace = thread_grace
        # Another process must not take one of its sessions for one of ours.
        self._name = f"embedded_{secrets.token_hex(4)}"
        self._ids = itertools.count(1)
        self._host: _Host | None = None
        self._is_open = False

    @property
    def name(self) -> str:
        return "embedded"

    @property
    def is_open(self) -> bool:
        return self._is_open

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[EmbeddedBackend]:
        if self._host is not None:
            raise RuntimeError("the embedded backend has been entered before: make a new one")
        async with background_tasks() as tasks:
            host = self._host = _Host(tasks, self._permission_policy, self._thread_grace)
            self._is_open = True
            try:
                yield self
            finally:
                self._is_open = False
                with anyio.CancelScope(shield=True):
                    for session in list(host.sessions.values()):
                        await session.aclose()

    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",  # noqa: ARG002  (the contract's; nobody looks at it here)
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        await anyio.lowlevel.checkpoint()
        host = self._host
        if host is None or not self._is_open:
            raise anyio.ClosedResourceError("the embedded backend is not open: use 'async with'")
        wanted = Agent(agent) if isinstance(agent, str) else agent
        call = self._agents.get(wanted.name)
        if call is None:
            known = ", ".join(sorted(self._agents)) or "none"
            raise AgentNotFoundError(
                f"the embedded backend has no agent {wanted.name!r}; it has: {known}"
            )
        if not os.path.isdir(directory):  # noqa: PTH112, ASYNC240  (one stat, faster than a thread)
            raise NotADirectoryError(f"the agent's directory {directory} does not exist")
        session = _EmbeddedSession(
            host,
            f"{self._name}_{next(self._ids)}",
            wanted,
            call,
            Path(directory),
            dict(metadata or {}),
        )
        host.sessions[session.id] = session
        host.opened += 1
        return session

    async def reopen(self, session_id: str, agent: Agent | str, *, directory: Path) -> Session:
        del agent, directory
        await anyio.lowlevel.checkpoint()
        session = self._host.sessions.get(session_id) if self._host is not None else None
        if session is None:
            raise SessionLostError(
                f"the embedded backend has no session {session_id}: its sessions end with their "
                "process; open a new one"
            )
        return session

    async def find_sessions(
        self, metadata: Mapping[str, str], *, directory: Path
    ) -> tuple[str, ...]:
        await anyio.lowlevel.checkpoint()
        return tuple(
            session.id
            for session in (self._host.sessions.values() if self._host is not None else ())
            if session.directory == directory and metadata.items() <= session.metadata.items()
        )

    async def find_busy(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those that have a turn under way, or a thread that was left to itself.

        Args:
            session_ids: The sessions.
        """
        await anyio.lowlevel.checkpoint()
        host = self._host
        if host is None:
            return frozenset()
        busy = {session.id for session in host.sessions.values() if session.is_busy}
        busy.update(tuple(host.threads.values()))
        return frozenset(busy & frozenset(session_ids))

    def statistics(self) -> BackendStatistics:
        host = self._host
        if host is None:
            return BackendStatistics(
                sessions_open=0, sessions_opened=0, turns_running=0, turns_finished=0
            )
        return BackendStatistics(
            sessions_open=len(host.sessions),
            sessions_opened=host.opened,
            turns_running=host.running,
            turns_finished=host.ended,
        )

    def __repr__(self) -> str:
        statistics = self.statistics()
        return (
            f"<EmbeddedBackend agents={sorted(self._agents)} "
            f"sessions_open={statistics.sessions_open} turns_running={statistics.turns_running}>"
        )
