"""Contracts for what others may plug in. The docstrings are the requirements.

A backend is proved against them by `orchestra.testing.check_session_backend`, which is the suite
that the built-in backends pass too; a store by `orchestra.testing.check_store`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Literal, NotRequired, ParamSpec, Protocol, Self, TypeAlias, TypedDict, TypeVar

import anyio
import anyio.lowlevel
from attrs import field, frozen, validators

from orchestra.errors import SessionLostError
from orchestra.events import Finished, PermissionReply, PermissionRequest, SessionEvent
from orchestra.storage import Codec, MVCCStore, Reader, Snapshot, Transaction

__all__ = (
    "Agent",
    "BackendStatistics",
    "Codec",
    "MVCCStore",
    "PermissionPolicy",
    "PermissionRule",
    "Policy",
    "Rates",
    "Reader",
    "Session",
    "SessionBackend",
    "Snapshot",
    "Transaction",
    "deny_all",
)

P = ParamSpec("P")
T = TypeVar("T")

PermissionPolicy: TypeAlias = Callable[
    [PermissionRequest], PermissionReply | Awaitable[PermissionReply]
]
"""Answers a request on behalf of the person who is not there; must come to an answer."""


def deny_all(request: PermissionRequest) -> PermissionReply:
    """Refuse every request, and say so: the default policy.

    Args:
        request: What the agent wants to do.
    """
    return PermissionReply(
        is_allowed=False,
        message=f"{request.permission} is not permitted in this mission; go on without it.",
    )


@frozen(kw_only=True)
class PermissionRule:
    """One rule about what an agent may do; in a list of rules the last match wins.

    Attributes:
        permission: The kind of act (``bash``, ``edit``, ...), with ``*`` as a wildcard.
        pattern: What the act is about, with ``*`` as a wildcard.
        action: ``allow``, ``deny`` (the tool is hidden or refuses) or ``ask`` (the policy decides).
    """

    permission: str = field(validator=validators.min_len(1))
    pattern: str = "*"
    action: Literal["allow", "deny", "ask"] = field(
        default="allow", validator=validators.in_(("allow", "deny", "ask"))
    )


@frozen
class Agent:
    """Whom a session talks to.

    Attributes:
        name: The name under which the backend knows, or shall know, the agent.
        prompt: The agent's standing instructions (system text). Empty: the backend's own.
        model: ``provider/model``. None: the backend's own default.
        permissions: What the agent may do, last match wins. Empty: the backend's own.
        subagent_depth: How many generations of sessions below its own an agent may start by means
            of its backend; deeper ones are aborted. None: the backend's own limit.
    """

    name: str = field(validator=validators.and_(validators.instance_of(str), validators.min_len(1)))
    prompt: str = field(default="", kw_only=True)
    model: str | None = field(default=None, kw_only=True)
    permissions: tuple[PermissionRule, ...] = field(default=(), kw_only=True)
    subagent_depth: int | None = field(
        default=None, kw_only=True, validator=validators.optional(validators.ge(0))
    )


class Rates(TypedDict):
    """What a model costs, in US dollars per million tokens: the fields of an `orchestra.Price`."""

    input: float
    output: float
    cache_read: NotRequired[float]
    cache_write: NotRequired[float]


@frozen(kw_only=True)
class BackendStatistics:
    """What a backend holds now and has done since it was entered.

    Attributes:
        sessions_open: Sessions opened and not closed.
        sessions_opened: Sessions ever opened.
        turns_running: Prompts under way.
        turns_finished: Prompts whose turn is over, however it ended.
    """

    sessions_open: int
    sessions_opened: int
    turns_running: int
    turns_finished: int


class Session(ABC):
    """A conversation with one agent in one working directory, one prompt at a time.

    Sessions come from `SessionBackend.open` and `SessionBackend.reopen` only.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """The session's id, unique within its backend."""

    def new_prompt_id(self) -> str:
        """Return an id for the next prompt, to be written down before it is sent. Never blocks.

        A backend whose prompt ids have a form of their own returns one of those.
        """
        return f"prompt_{token_hex(12)}"

    @abstractmethod
    def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[SessionEvent]]:
        """Send one prompt and iterate over what comes of it: a *turn*.

        ::

            async with session.stream("write the parser") as events:
                async for event in events:
                    ...

        A backend must see to all of this:

        * The first event is `Started`, the last is `Finished`, and there is exactly one of each.
          The iterator ends after `Finished`.
        * Whatever happens to the agent, its model or the backend is told by ``Finished.reason``;
          iterating never raises for it.
        * At the moment `Finished` is delivered the session is idle: the next prompt may be sent.
        * Leaving the block before `Finished`, also by cancellation, aborts the turn and waits (in
          a shield, for a bounded time) until the session is idle again.
        * The joined `TextReceived` texts end with ``Finished.text`` unless it was truncated, and
          the `UsageReported` sum is ``Finished.usage``.
        * No request of the agent (permission, question) may hang the turn: it is answered by the
          backend's policy, and the answer is told.
        * A prompt is sent once. Under an id that this session knows already nothing is sent: the
          turn that runs under it is followed to its end, and of one that is over the end is told
          again, with the same reason and text (an end that nobody recorded, for the backend was
          killed, is INTERRUPTED). What came before the end may be told again or be left out.

        Entering the block and every step of the iteration are checkpoints.

        Args:
            prompt: What the agent shall do; not empty.
            prompt_id: Names the prompt, from `new_prompt_id`; None: a new one. `Started` tells it.

        Raises:
            ValueError: The prompt is empty.
            anyio.BusyResourceError: A prompt of this session is already running.
            anyio.ClosedResourceError: The session has been closed.
        """

    async def prompt(
        self,
        prompt: str,
        *,
        listener: Callable[[SessionEvent], object] | None = None,
        prompt_id: str | None = None,
    ) -> Finished:
        """Send one prompt and wait for its end. Always a checkpoint.

        Args:
            prompt: What the agent shall do; not empty.
            listener: Called with each event, the last one included; what it raises ends the turn.
            prompt_id: As for `stream`.

        Returns:
            The last event of the turn. A turn that did not end well does not raise; look at
            ``reason`` and ``error``.

        Raises:
            ValueError: The prompt is empty.
            anyio.BusyResourceError: A prompt of this session is already running.
            anyio.ClosedResourceError: The session has been closed.
        """
        async with self.stream(prompt, prompt_id=prompt_id) as events:
            async for event in events:
                if listener is not None:
                    listener(event)
                if isinstance(event, Finished):
                    return event
        raise AssertionError("unreachable")

    @abstractmethod
    async def abort(self) -> None:
        """End the running turn with ``FinishReason.ABORTED`` and wait until the session is idle.

        May be called from any task, any number of times; does nothing on an idle or closed
        session. A turn that ends by itself in the same moment may keep its own reason. Always a
        checkpoint.
        """

    async def check(self) -> bool:
        """Ask whether the session could take a prompt now. Always a checkpoint.

        That is: the backend can be reached, still has the session, and it is idle. If the session
        has no prompt behind it, or none since its `reset`, its context must also still be empty.
        Whatever is wrong makes the answer False; nothing is raised for it.

        A backend whose sessions cannot get lost need not implement it; the answer is then True.
        """
        await anyio.lowlevel.checkpoint()
        return True

    async def reset(self) -> bool:
        """Empty the session's context, and prove that it is empty. Always a checkpoint.

        After True the session is as good as new: nothing that was said to it, by it or by a tool
        is left in the backend, and no notes of the agent's. It says True only when it has seen
        that; a session for which it says anything else should be closed. Files are left alone.

        A backend that cannot prove it need not implement it; the answer is then False.

        Returns:
            Whether the context is empty. False for a session that is busy or closed.
        """
        await anyio.lowlevel.checkpoint()
        return False

    async def relabel(
        self,
        *,
        title: str,  # noqa: ARG002  (as in `prewarm`)
        metadata: Mapping[str, str],  # noqa: ARG002
    ) -> None:
        """Give a session that was opened ahead of its use its title and metadata; a checkpoint.

        Optional as the two are in `SessionBackend.open`. Those given before are replaced.

        Args:
            title: A line for people.
            metadata: Kept with the session where the backend can.

        Raises:
            SessionLostError: The backend does not know the session any more.
            TransportError: The backend cannot be reached.
            ServerError: The backend answered with an error.
        """
        await anyio.lowlevel.checkpoint()

    async def detach(self) -> None:
        """Let go of the session and leave it, and what runs in it, as it is. Always a checkpoint.

        For sessions that somebody else goes on with, after `SessionBackend.reopen`. Here it counts
        as closed. Where nobody else could reach it, it is closed indeed.
        """
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Abort what runs, wait until it is idle, and give back what the session holds.

        Idempotent. Afterwards `stream` raises ``anyio.ClosedResourceError``. Works under
        cancellation: the clean-up is shielded and bounded in time. Always a checkpoint.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()


class SessionBackend(ABC):
    """A place where agent sessions run.

    An async context manager: what it needs (a server, a connection, a task group) lives from
    entering to leaving. Leaving aborts and closes every session that is still open, and leaves no
    task and no process behind. A backend is entered once.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call this backend, e.g. ``embedded``."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the backend has been entered and not been left."""

    @abstractmethod
    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Open a session: a new conversation that knows nothing of any other. Always a checkpoint.

        Sessions are independent: they run at the same time, and what happens to one does not
        touch another.

        Args:
            agent: Whom to talk to; a string is short for ``Agent(name)``.
            directory: An existing directory in which the agent works.
            title: A line for people.
            metadata: Kept with the session where the backend can, for finding it again.

        Raises:
            AgentNotFoundError: The backend does not have the agent.
            ModelNotFoundError: The backend does not have the agent's model.
            TransportError: The backend cannot be reached.
            ServerError: The backend answered with an error.
            NotADirectoryError: ``directory`` does not exist or is not a directory.
            anyio.ClosedResourceError: The backend has not been entered, or has been left.
        """

    async def reopen(
        self,
        session_id: str,
        agent: Agent | str,
        *,
        directory: Path,
    ) -> Session:
        """Return a session that was opened earlier, perhaps by a process that is gone; a checkpoint.

        One that is open here is returned itself. What runs in it goes on: `Session.stream` with
        the running prompt's id follows it, `Session.aclose` ends it.

        Args:
            session_id: `Session.id`.
            agent: As for `open`; whom it was opened for.
            directory: As for `open`; where it was opened.

        Raises:
            SessionLostError: The session is not there any more; so it is where sessions do not
                outlive their process.
            AgentNotFoundError: As for `open`; and everything else that it raises.
        """
        del agent, directory
        await anyio.lowlevel.checkpoint()
        raise SessionLostError(
            f"the {self.name} backend does not keep session {session_id}; open a new one"
        )

    async def find_sessions(
        self,
        metadata: Mapping[str, str],  # noqa: ARG002  (as in `prewarm`)
        *,
        directory: Path,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return the ids of a directory's sessions that carry these metadata; a checkpoint.

        For closing what a process that is gone has left behind. Where sessions do not outlive
        their process, none need be found.

        Args:
            metadata: What `open` was given; a session may carry more.
            directory: As for `open`.

        Raises:
            TransportError: The backend cannot be reached; and everything else that `open` raises.
        """
        await anyio.lowlevel.checkpoint()
        return ()

    async def find_busy(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those sessions that are not known to do nothing. Always a checkpoint.

        This is the proof that what was cancelled has ended, so it must come from where the agents
        run: a session also counts as busy while one that it has started itself is. Sessions that
        were closed may be asked about. Here: all of them as long as any turn of the backend runs.

        Args:
            session_ids: `Session.id` of sessions that were opened here.

        Raises:
            SessionError: Nobody can tell.
        """
        await anyio.lowlevel.checkpoint()
        return frozenset(session_ids) if self.statistics().turns_running else frozenset()

    @asynccontextmanager
    async def lease(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Session]:
        """`open` a session for the length of a block, and close it in any case.

        Args:
            agent: As for `open`.
            directory: As for `open`.
            title: As for `open`.
            metadata: As for `open`.
        """
        session = await self.open(agent, directory=directory, title=title, metadata=metadata)
        async with session:
            yield session

    async def prewarm(self, directory: Path) -> None:  # noqa: ARG002  (a hint, not taken here)
        """Get a directory ready, so that the first prompt in it is as quick as later ones.

        A hint: it opens nothing that anybody has to close, costs no model call, and may be given
        any number of times. A backend without such costs need not implement it. Always a
        checkpoint.

        Args:
            directory: As for `open`.

        Raises:
            TransportError: The backend cannot be reached.
            ServerError: The backend answered with an error.
            NotADirectoryError: ``directory`` does not exist or is not a directory.
            anyio.ClosedResourceError: The backend has not been entered, or has been left.
        """
        await anyio.lowlevel.checkpoint()

    @property
    def model(self) -> str | None:
        """The model of agents that name none, as ``provider/model``; None: not known."""
        return None

    async def prices(self, directory: Path) -> Mapping[str, Rates]:  # noqa: ARG002  (as above)
        """Return what the models cost that can be used in a directory. Always a checkpoint.

        A backend that does not know need not implement it.

        Args:
            directory: As for `open`.

        Returns:
            The prices by ``provider/model``; a model without one is left out.

        Raises:
            TransportError: The backend cannot be reached.
            ServerError: The backend answered with an error.
            NotADirectoryError: ``directory`` does not exist or is not a directory.
            anyio.ClosedResourceError: The backend has not been entered, or has been left.
        """
        await anyio.lowlevel.checkpoint()
        return {}

    @abstractmethod
    def statistics(self) -> BackendStatistics:
        """Count what the backend holds and has done."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


class Policy(Protocol):
    """Something that stands around a call: a time limit, a breaker, a slot, a repetition.

    `orchestra.Pipeline` puts policies together. A policy must see to this:

    * It returns what the function returns and raises what the function raises, or an error of its
      own; it never swallows or replaces cancellation.
    * When it does not call the function at all, it raises a `RejectedError`.
    * Whatever it holds during the call is given back however the call ends.
    * It may be used by many tasks at the same time.
    """

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function under this policy.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """
        ...
