"""A pool of sessions, by role and directory, for any backend."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin, CancelScope
from anyio.abc import TaskGroup
from attrs import asdict, frozen

from orchestra._core.pool import PoolRules
from orchestra.abc import Agent, Session, SessionBackend
from orchestra.background import background_tasks
from orchestra.concurrency import ConcurrencyController, Priority
from orchestra.errors import CapacityError
from orchestra.events import ResourceCreated, ResourceDestroyed
from orchestra.pools.resources import PoolHolder, ResourcePool
from orchestra.sessions._leasing import KeptSession, Key, Room, SessionLease

__all__ = ("SessionLease", "SessionPool", "SessionPoolStatistics")


@frozen(kw_only=True)
class SessionPoolStatistics:
    """What a pool of sessions holds now and has done since it was entered.

    Attributes:
        in_use: How many sessions are leased.
        idle: How many wait to be leased.
        busy: How many are being opened, checked, reset or closed.
        tasks_waiting: How many tasks wait for one.
        leased: How many leases began.
        opened: How many sessions were opened.
        open_failures: How often opening one failed or was cancelled.
        closed: How many were closed.
        reset_failures: How many were closed because they could not be proved to be empty.
        unfit: How many were closed because they were not well when they were looked at.
    """

    in_use: int
    idle: int
    busy: int
    tasks_waiting: int
    leased: int
    opened: int
    open_failures: int
    closed: int
    reset_failures: int
    unfit: int


@final
class SessionPool(AsyncContextManagerMixin):
    """Lends sessions of a backend, opened ahead, and ends them in good order.

    ::

        async with SessionPool(backend) as pool:
            await pool.prewarm(directory, ["planner", "worker"])
            async with pool.lease("worker", directory=directory, mission="m1") as session:
                await session.prompt("write the parser")

    What it saves is the time of opening a session and, far more, of the first prompt in a
    directory; see `prewarm`. What it does not do is to let one task see what another has said:

    * Policy ``fresh``: a session is leased once and then closed. New ones are opened ahead.
    * Policy ``reset``: a session that was given back is leased again after `Session.reset` has
      proved that its context is empty, and by the same mission only. One that is busy, in doubt
      or cannot be proved empty is closed.

    At most ``max_size`` sessions of a role are leased at once, over all directories; further
    tasks wait, by priority and then first come, first served. In one directory there are never
    more of a role than that, the idle ones and those that are being closed included.

    **Ending a lease never waits.** The pool's own tasks abort, wait until the session is idle, and
    close it; in a shield and for a bounded time. Cancellation loses no session and no place.

    **Leaving** refuses those who wait with `CapacityError`, closes what idles, waits
    ``grace_period`` seconds for those who hold a session, and then closes it under their hands.
    The backend must stay open for that: enter the pool inside the backend's block.

    A pool belongs to one event loop, is not thread-safe, and is entered once.

    Args:
        backend: Where the sessions run; an open one.
        policy: ``fresh`` or ``reset``.
        max_size: How many sessions of a role there may be; at least 1.
        sizes: The same for single roles, by the agent's name.
        min_idle: How many sessions of a role are kept open ahead in a directory that is in use,
            as far as there is room for them.
        max_uses: How often a session is leased under the policy ``reset``; None: without end.
        idle_timeout: Seconds after which an idle session is closed, down to ``min_idle``; and the
            last ones when for so long nobody has wanted any (looked at as seldom). None: never.
        health_interval: Seconds after which an idle session is looked at with `Session.check`;
            it is looked at before a lease, too, if that was not done in the last half of it.
            None: before each lease only.
        call_timeout: Seconds that a check, a reset or a closing may take.
        grace_period: Seconds that leaving waits for those who hold a session.
        listener: Called with every `ResourceCreated` and `ResourceDestroyed`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        backend: SessionBackend,
        *,
        policy: Literal["fresh", "reset"] = "fresh",
        max_size: int = 5,
        sizes: Mapping[str, int] | None = None,
        min_idle: int = 1,
        max_uses: int | None = 10,
        idle_timeout: float | None = 300.0,
        health_interval: float | None = 60.0,
        call_timeout: float = 30.0,
        grace_period: float = 5.0,
        listener: Callable[[ResourceCreated | ResourceDestroyed], object] | None = None,
    ) -> None:
        if policy not in {"fresh", "reset"}:
            raise ValueError(f"policy must be 'fresh' or 'reset', not {policy!r}")
        self._backend: Final = backend
        self._policy: Final = policy
        self._max_size: Final = max_size
        self._sizes: Final = dict(sizes or {})
        self._seats: Final = ConcurrencyController(self._sizes, default=max_size)
        self._rules: Final = PoolRules(
            max_size=max_size,
            min_idle=min_idle,
            max_uses=max_uses if policy == "reset" else 1,
            idle_timeout=idle_timeout,
            health_interval=health_interval,
        )
        self._call_timeout: Final = call_timeout
        self._grace_period: Final = grace_period
        self._listener: Final = listener
        self._make_pool((Agent("-"), "-", ""), max_size)  # so that what is wrong is said at once
        self._rooms: Final[dict[Key, Room]] = {}
        self._leaving: Final[set[Room]] = set()
        self._past: Final[dict[str, Counter[str]]] = {}
        self._begins: Final[set[CancelScope]] = set()
        self._tasks: TaskGroup | None = None
        self._closing: Final = anyio.Event()
        self._is_empty: Final = anyio.Event()

    # ---- leasing ----

    def lease(
        self,
        agent: Agent | str,
        *,
        directory: Path | str,
        mission: str = "",
        title: str = "",
        metadata: Mapping[str, str] | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> SessionLease:
        """Hold a session for the length of a block.

        Entering is a checkpoint like `acquire`; leaving is none, however the block is left.

        Args:
            agent: Whom to talk to; a string is short for ``Agent(name)``. Its name is the role.
            directory: An existing directory in which the agent works.
            mission: Whom the session works for. Under the policy ``reset`` a session stays with
                its mission; leases that name none share theirs with each other.
            title: A line for people, as for `SessionBackend.open`.
            metadata: Kept with the session where the backend can.
            priority: How urgent it is.

        Returns:
            An async context manager that gives the session.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        key = self._key(agent, directory, mission)
        label = (title, metadata or {}) if title or metadata else None
        return SessionLease(self, key, mission, label, priority)

    async def acquire(
        self,
        agent: Agent | str,
        *,
        directory: Path | str,
        mission: str = "",
        title: str = "",
        metadata: Mapping[str, str] | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> SessionLease:
        """Wait for a session. Always a checkpoint.

        What the backend raises when it cannot open one comes out as it is.

        Args:
            agent: As for `lease`.
            directory: As for `lease`.
            mission: As for `lease`.
            title: As for `lease`.
            metadata: As for `lease`.
            priority: As for `lease`.

        Returns:
            The lease, which the caller must end.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        lease = self.lease(
            agent,
            directory=directory,
            mission=mission,
            title=title,
            metadata=metadata,
            priority=priority,
        )
        await lease._begin()  # noqa: SLF001 - a lease is half of its pool
        return lease

    async def prewarm(
        self, directory: Path | str, agents: Iterable[Agent | str] = (), *, mission: str = ""
    ) -> None:
        """Get a directory ready before it is needed. Always a checkpoint.

        Waits for `SessionBackend.prewarm`; on OpenCode that is most of what a first prompt in a
        new directory takes. Then has the pool open ``min_idle`` sessions for each agent, in the
        background.

        Args:
            directory: The directory.
            agents: For whom to open sessions.
            mission: For whom they are to work, under the policy ``reset``.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        self._check_open()
        await self._backend.prewarm(Path(directory))
        for agent in agents:
            self._leave(self._enter(self._key(agent, directory, mission)))

    # ---- state ----

    def holders(self) -> tuple[PoolHolder[Session], ...]:
        """Tell which mission has what, since when, and where it was leased; the longest first."""
        found = [
            PoolHolder(
                resource=held.resource.session,
                owner=held.owner,
                held_for=held.held_for,
                place=held.place,
            )
            for room in self._live_rooms()
            for held in room.pool.holders()
        ]
        return tuple(sorted(found, key=lambda held: -held.held_for))

    def statistics(self, role: str | None = None) -> SessionPoolStatistics:
        """Count what there is and what has been done.

        Args:
            role: An agent's name; None: all roles together.
        """
        total: Counter[str] = Counter()
        roles = set()
        for room in self._live_rooms():
            if role in {None, room.role}:
                total.update(asdict(room.pool.statistics()))
                roles.add(room.role)
        for past, counts in self._past.items():
            if role in {None, past}:
                total.update(counts)
        waiting = sum(self._seats.statistics(one).tasks_waiting for one in roles)
        return SessionPoolStatistics(
            in_use=total["in_use"],
            idle=total["idle"],
            busy=total["busy"],
            tasks_waiting=total["tasks_waiting"] + waiting,
            leased=total["leased"],
            opened=total["created"],
            open_failures=total["create_failures"],
            closed=total["destroyed"],
            reset_failures=total["reset_failures"],
            unfit=total["validation_failures"],
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._closing.is_set() else ""
        return (
            f"<SessionPool {self._backend.name} {self._policy}{state} {now.in_use} in use, "
            f"{now.idle} idle, {now.busy} busy; {now.tasks_waiting} waiting>"
        )

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[SessionPool]:
        if self._tasks is not None or self._closing.is_set():
            raise RuntimeError("a pool of sessions is entered once; make another one")
        async with background_tasks() as self._tasks:
            try:
                yield self
            finally:
                self._close()
                with CancelScope(shield=True):  # every room leaves in bounded time
                    await self._is_empty.wait()

    async def aclose(self) -> None:
        """Refuse who waits and who comes, and wait until every session is back and closed.

        Those who hold one have ``grace_period`` seconds. Cancelling it ends the wait only; leaving
        the pool's block does the rest. Always a checkpoint.
        """
        self._close()
        await anyio.lowlevel.checkpoint()
        await self._is_empty.wait()

    def _close(self) -> None:
        self._closing.set()
        for scope in self._begins:
            scope.cancel()
        self._look_empty()

    def _look_empty(self) -> None:
        if self._closing.is_set() and not self._rooms and not self._leaving:
            self._is_empty.set()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise self._closed_error()
        if self._tasks is None:
            raise RuntimeError(
                "the pool of sessions has no tasks to work with; enter it with 'async with'"
            )

    def _closed_error(self) -> CapacityError:
        return CapacityError("the pool of sessions is closed; lease inside its own block")

    async def _serve(self, take: Callable[[], Awaitable[None]]) -> None:
        """Wait for what a lease wants, or until the pool is closed."""
        self._check_open()
        with CancelScope() as scope:
            self._begins.add(scope)
            try:
                await take()
            finally:
                self._begins.discard(scope)
        if scope.cancelled_caught:
            raise self._closed_error()

    # ---- rooms ----

    def _key(self, agent: Agent | str, directory: Path | str, mission: str) -> Key:
        wanted = Agent(agent) if isinstance(agent, str) else agent
        place = str(Path(directory).absolute())
        return wanted, place, mission if self._policy == "reset" else ""

    def _live_rooms(self) -> Iterable[Room]:
        yield from self._rooms.values()
        yield from self._leaving

    def _enter(self, key: Key) -> Room:
        """Find or make the room of a key, and count a user of it."""
        self._check_open()
        assert self._tasks is not None  # noqa: S101 - checked a line above
        room = self._rooms.get(key)
        if room is None:
            role = key[0].name
            pool = self._make_pool(key, self._sizes.get(role, self._max_size))
            room = self._rooms[key] = Room(pool, role, anyio.current_time())
            self._tasks.start_soon(self._keep, key, room, name=f"orchestra sessions {pool.name}")
        room.users += 1
        return room

    def _leave(self, room: Room) -> None:
        room.users -= 1
        room.used_at = anyio.current_time()

    async def _keep(self, key: Key, room: Room) -> None:
        """Keep a room open until nobody wants it any more."""
        try:
            async with room.pool:
                room.is_open.set()
                await self._wait_unused(room)
                # From here on who wants the key gets another room.
                self._leaving.add(self._rooms.pop(key))
        finally:
            room.is_open.set()
            self._rooms.pop(key, None)
            self._leaving.discard(room)
            self._past.setdefault(room.role, Counter()).update(asdict(room.pool.statistics()))
            self._look_empty()

    async def _wait_unused(self, room: Room) -> None:
        patience = self._rules.idle_timeout or math.inf
        is_wanted = True
        while is_wanted and not self._closing.is_set():
            with anyio.move_on_after(patience):
                await self._closing.wait()
            is_wanted = room.users > 0 or anyio.current_time() - room.used_at < patience

    def _make_pool(self, key: Key, size: int) -> ResourcePool[KeptSession]:
        agent, directory, mission = key

        async def open_one() -> KeptSession:
            session = await self._backend.open(agent, directory=Path(directory))
            return KeptSession(session, anyio.current_time())

        async def close(kept: KeptSession) -> None:
            await kept.session.aclose()

        rules = self._rules
        return ResourcePool(
            open_one,
            reset=_empty if self._policy == "reset" else None,
            validate=self._is_fit,
            destroy=close,
            max_size=size,
            min_idle=min(rules.min_idle, size),
            max_uses=rules.max_uses,
            idle_timeout=rules.idle_timeout,
            health_interval=rules.health_interval,
            call_timeout=self._call_timeout,
            grace_period=self._grace_period,
            name=f"{agent.name} in {directory}" + (f" for {mission}" if mission else ""),
            listener=self._listener,
        )

    async def _is_fit(self, kept: KeptSession) -> bool:
        now = anyio.current_time()
        half = (self._rules.health_interval or 0.0) / 2
        # A used session is looked at again even if it has just been emptied: what was written
        # late would be seen by its next holder.
        if self._policy == "fresh" and now - kept.seen_at < half:
            return True
        kept.seen_at = now
        return await kept.session.check()


async def _empty(kept: KeptSession) -> None:
    if not await kept.session.reset():
        raise _NotEmptyError(
            f"{kept.session!r} could not be proved to be empty; it is closed instead"
        )


class _NotEmptyError(Exception):
    """A session is in no state to be used for another task."""


# Users import it from here or from `orchestra`; where it is written is nobody's business.
SessionLease.__module__ = __name__
