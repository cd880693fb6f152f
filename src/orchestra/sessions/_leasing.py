"""What a pool of sessions keeps and hands out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, final

from attrs import define, frozen

from orchestra.abc import Agent, Session
from orchestra.concurrency import Priority
from orchestra.pools.resources import PoolLease

if TYPE_CHECKING:
    from orchestra.sessions.pool import SessionPool

__all__ = ("LABEL", "WANTED", "KeptSession", "Label", "Place", "SessionLease")


@frozen
class Place:
    """Where a session is, and whose."""

    agent: Agent
    directory: str
    mission: str


WANTED: Final[ContextVar[Place | None]] = ContextVar("orchestra_wanted_session", default=None)
"""What the lease wants that the resource pool serves in this task; it knows nothing of places.
None in the pool's own tasks."""


Label: TypeAlias = tuple[str, Mapping[str, str]]
"""A session's title and metadata."""

LABEL: Final[ContextVar[Label | None]] = ContextVar("orchestra_session_label", default=None)
"""What the session is to be called that is opened for a lease in this task."""


@define(eq=False, repr=False)
class KeptSession:
    """A session of a pool.

    Attributes:
        session: The session.
        place: Where it was opened, and for which mission.
        seen_at: When it was last known to be well.
        label: What it was called when it was opened; None: nothing yet.
        is_used: Whether it has been leased.
    """

    session: Session
    place: Place
    seen_at: float
    label: Label | None = None
    is_used: bool = False

    def __repr__(self) -> str:
        return repr(self.session)

    def suits(self, place: Place) -> bool:
        """Whether it may be leased there; one that was never used has no mission yet."""
        mine = self.place
        is_same = mine.agent == place.agent and mine.directory == place.directory
        return is_same and (not self.is_used or mine.mission == place.mission)


@final
class SessionLease(AbstractAsyncContextManager[Session]):
    """The right to use one session; comes from `SessionPool` only.

    As a block it is entered once and gives the session. From ``SessionPool.acquire`` it comes
    acquired, and is to be ended: by any task, with `release` or `invalidate`; whatever comes after
    the first does nothing. Ending it is never a checkpoint: aborting, emptying and closing is
    what the pool's own tasks do, so it is safe under cancellation.

    Attributes:
        agent: Whose session it is.
        directory: Where the agent works.
        mission: Whom the session works for.
    """

    __slots__ = (
        "_inner",
        "_is_used",
        "_label",
        "_place",
        "_pool",
        "_priority",
        "agent",
        "directory",
        "mission",
    )

    agent: Agent
    directory: Path
    mission: str

    def __init__(
        self,
        pool: SessionPool,
        place: Place,
        label: Label | None,
        priority: Priority,
    ) -> None:
        self.agent = place.agent
        self.directory = Path(place.directory)
        self.mission = place.mission
        self._place: Final = place
        self._label: Final = label
        self._priority: Final = priority
        self._pool: Final = pool
        self._is_used = False
        self._inner: PoolLease[KeptSession] | None = None

    @property
    def session(self) -> Session:
        """The session.

        Raises:
            RuntimeError: The lease has not begun or is over.
        """
        if self._inner is None or not self._inner.is_held:
            raise RuntimeError("the lease is not held; use its session between begin and end only")
        return self._inner.resource.session

    @property
    def is_held(self) -> bool:
        """Whether the session is the holder's."""
        return self._inner is not None and self._inner.is_held

    def release(self) -> None:
        """Give the session back, to be closed or, under the policy ``reset``, to be emptied."""
        if self._inner is not None:
            self._inner.release()

    def invalidate(self) -> None:
        """Give the session back as of no use any more: it is closed."""
        if self._inner is not None:
            self._inner.invalidate()

    async def __aenter__(self) -> Session:
        await self._begin()
        return self.session

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "held" if self.is_held else "over" if self._is_used else "not begun"
        mission = f" for {self.mission!r}" if self.mission else ""
        return f"<SessionLease of {self.agent.name!r} in {self.directory}{mission} {state}>"

    async def _begin(self) -> None:
        if self._is_used:
            raise RuntimeError("a lease is entered once; ask the pool for another one")
        self._is_used = True
        sessions = await self._pool._enter(self._place)  # noqa: SLF001 - half of its pool
        before, label = WANTED.set(self._place), LABEL.set(self._label)
        try:
            self._inner = await sessions.acquire(priority=self._priority, owner=self.mission)
        finally:
            LABEL.reset(label)
            WANTED.reset(before)
        kept = self._inner.resource
        kept.place = self._place
        kept.is_used = True
        if self._label is not None and kept.label is not self._label:
            title, metadata = kept.label = self._label
            try:
                await kept.session.relabel(title=title, metadata=metadata)
            except BaseException:
                self.invalidate()
                raise
