"""What a pool of sessions keeps and hands out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, final

import anyio
from attrs import define, field

from orchestra.abc import Agent, Session
from orchestra.concurrency import ConcurrencyToken, Priority
from orchestra.pools.resources import PoolLease, ResourcePool

if TYPE_CHECKING:
    from orchestra.sessions.pool import SessionPool

__all__ = ("KeptSession", "Key", "Room", "SessionLease")

Key: TypeAlias = tuple[Agent, str, str]
"""Agent, directory, and under the policy ``reset`` the mission."""


@define(eq=False)
class KeptSession:
    """A session, and when it was last known to be well."""

    session: Session
    seen_at: float


@define(eq=False)
class Room:
    """The sessions of one key, and how many want them.

    Attributes:
        pool: The sessions.
        role: Whose they are.
        users: Leases that are held or being waited for.
        used_at: When the last of them ended.
        is_open: Set when ``pool`` can be used.
    """

    pool: ResourcePool[KeptSession]
    role: str
    used_at: float
    users: int = 0
    is_open: anyio.Event = field(factory=anyio.Event)


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
        "_key",
        "_label",
        "_pool",
        "_priority",
        "_room",
        "_token",
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
        key: Key,
        mission: str,
        label: tuple[str, Mapping[str, str]] | None,
        priority: Priority,
    ) -> None:
        self.agent = key[0]
        self.directory = Path(key[1])
        self.mission = mission
        self._key: Final = key
        self._label: Final = label
        self._priority: Final = priority
        self._pool: Final = pool
        self._is_used = False
        self._token: ConcurrencyToken | None = None
        self._room: Room | None = None
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
        self._leave()

    def invalidate(self) -> None:
        """Give the session back as of no use any more: it is closed."""
        if self._inner is not None:
            self._inner.invalidate()
        self._leave()

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
        await self._pool._serve(self._take)  # noqa: SLF001 - a lease is half of its pool

    async def _take(self) -> None:
        """Get a seat of the role, then a session; all or nothing."""
        pool = self._pool
        try:
            self._token = await pool._seats.acquire(  # noqa: SLF001
                self.agent.name, priority=self._priority
            )
            self._room = room = pool._enter(self._key)  # noqa: SLF001
            await room.is_open.wait()
            self._inner = await room.pool.acquire(priority=self._priority, owner=self.mission)
            if self._label is not None:
                title, metadata = self._label
                await self.session.relabel(title=title, metadata=metadata)
        except BaseException:
            self.invalidate()
            raise

    def _leave(self) -> None:
        if self._room is not None:
            self._pool._leave(self._room)  # noqa: SLF001
            self._room = None
        if self._token is not None:
            self._token.release()
            self._token = None
