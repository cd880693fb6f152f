"""A pool of sessions, by role and directory, for any backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, cast, final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin, CancelScope
from anyio.abc import TaskGroup
from attrs import asdict, define, field, frozen

from orchestra._core.pool import PoolRules
from orchestra.abc import Agent, Session, SessionBackend
from orchestra.background import background_tasks
from orchestra.concurrency import Priority
from orchestra.errors import CapacityError
from orchestra.events import ResourceCreated, ResourceDestroyed
from orchestra.pools.resources import PoolHolder, ResourcePool
from orchestra.sessions._leasing import LABEL, WANTED, KeptSession, Place, SessionLease

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
        misplaced: How many were closed because the next lease was for another place or mission.
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
    misplaced: int


@define(eq=False)
class _Role:
    """The sessions of one role.

    Attributes:
        pool: The sessions.
        place: Where the role was last wanted, and is expected to be wanted next.
        sessions: Those that are open.
        misplaced: How many sessions were closed for being elsewhere.
        mismatches: How many of them when a lease came across them.
        is_open: Set when ``pool`` can be used.
        is_over: Whether everything in it has been closed.
    """

    pool: ResourcePool[KeptSession]
    place: Place
    sessions: set[KeptSession] = field(factory=set)
    misplaced: int = 0
    mismatches: int = 0
    is_open: anyio.Event = field(factory=anyio.Event)
    is_over: bool = False

    async def move(self, place: Place) -> None:
        """Close what idles elsewhere, so that it can be opened here."""
        held = {id(holder.resource) for holder in self.pool.holders()}
        for kept in list(self.sessions):
            if kept in self.sessions and id(kept) not in held and not kept.suits(place):
                self.misplaced += 1
                await self.pool.invalidate(kept)


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

    At no time are there more than ``max_size`` sessions of a role, over all directories and
    missions, those that are being opened, emptied or closed included. Further tasks wait, by
    priority and then first come, first served. An idle session that was opened for another
    directory, agent or mission than the next lease wants makes room for one that suits.

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
        min_idle: How many sessions of a role are kept open ahead, where that role was last
            wanted, as far as there is room for them.
        max_uses: How often a session is leased under the policy ``reset``; None: without end.
        idle_timeout: Seconds after which an idle session is closed, down to ``min_idle``. None:
            never.
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
        self._sizes: Final = _checked_sizes(sizes or {})
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
        self._roles: Final[dict[str, _Role]] = {}
        self._make_role("-")  # so that what is wrong is said at once
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
        label = (title, metadata or {}) if title or metadata else None
        return SessionLease(self, _place(agent, directory, mission), label, priority)

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

    async def prewarm(self, directory: Path | str, agents: Iterable[Agent | str] = ()) -> None:
        """Get a directory ready before it is needed. Always a checkpoint.

        Waits for `SessionBackend.prewarm`; on OpenCode that is most of what a first prompt in a
        new directory takes. Then has the pool open ``min_idle`` sessions of each role there, in
        the background, in the place of those that idle elsewhere.

        Args:
            directory: The directory.
            agents: For whom to open sessions.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        self._check_open()
        await self._backend.prewarm(Path(directory))
        for agent in agents:
            place = _place(agent, directory, "")
            await self._enter(place)
            await self._roles[place.agent.name].move(place)

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
            for role in self._roles.values()
            for held in role.pool.holders()
        ]
        return tuple(sorted(found, key=lambda held: -held.held_for))

    def statistics(self, role: str | None = None) -> SessionPoolStatistics:
        """Count what there is and what has been done.

        Args:
            role: An agent's name; None: all roles together.
        """
        total: Counter[str] = Counter()
        for name, one in self._roles.items():
            if role in {None, name}:
                total.update(asdict(one.pool.statistics()))
                total["misplaced"] += one.misplaced
                total["mismatches"] += one.mismatches
        return SessionPoolStatistics(
            in_use=total["in_use"],
            idle=total["idle"],
            busy=total["busy"],
            tasks_waiting=total["tasks_waiting"],
            leased=total["leased"],
            opened=total["created"],
            open_failures=total["create_failures"],
            closed=total["destroyed"],
            reset_failures=total["reset_failures"],
            unfit=total["validation_failures"] - total["mismatches"],
            misplaced=total["misplaced"],
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
        self._look_empty()

    def _look_empty(self) -> None:
        if self._closing.is_set() and all(role.is_over for role in self._roles.values()):
            self._is_empty.set()

    def _check_open(self) -> TaskGroup:
        if self._closing.is_set():
            raise CapacityError("the pool of sessions is closed; lease inside its own block")
        if self._tasks is None:
            raise RuntimeError(
                "the pool of sessions has no tasks to work with; enter it with 'async with'"
            )
        return self._tasks

    # ---- roles ----

    async def _enter(self, place: Place) -> ResourcePool[KeptSession]:
        """The sessions of a role, which from now on are opened at this place."""
        tasks = self._check_open()
        name = place.agent.name
        role = self._roles.get(name)
        if role is None:
            role = self._roles[name] = self._make_role(name)
            tasks.start_soon(self._keep, role, name=f"orchestra sessions of {name}")
        role.place = place
        await role.is_open.wait()
        return role.pool

    async def _keep(self, role: _Role) -> None:
        """Keep the sessions of a role until the pool is left; an owner that is one task."""
        LABEL.set(None)
        WANTED.set(None)  # whoever wanted the role first is not what its own tasks work for
        try:
            # Leaving the pool is what ends it: who is cancelled may still need to end their turns.
            with CancelScope(shield=True):
                async with role.pool:
                    role.is_open.set()
                    await self._closing.wait()
        finally:
            role.is_open.set()
            role.is_over = True
            self._look_empty()

    def _make_role(self, name: str) -> _Role:
        rules = self._rules
        size = self._sizes.get(name, rules.max_size)

        async def open_one() -> KeptSession:
            place, label = WANTED.get() or role.place, LABEL.get()
            title, metadata = label or ("", None)
            session = await self._backend.open(
                place.agent, directory=Path(place.directory), title=title, metadata=metadata
            )
            kept = KeptSession(session, place, anyio.current_time(), label)
            role.sessions.add(kept)
            return kept

        async def close_one(kept: KeptSession) -> None:
            role.sessions.discard(kept)
            await kept.session.aclose()

        async def is_fit(kept: KeptSession) -> bool:
            place = WANTED.get()
            if place is not None and not kept.suits(place):
                role.misplaced += 1
                role.mismatches += 1
                return False
            return await self._is_well(kept)

        pool = ResourcePool(
            open_one,
            reset=_empty if self._policy == "reset" else None,
            validate=is_fit,
            destroy=close_one,
            max_size=size,
            min_idle=min(rules.min_idle, size),
            max_uses=rules.max_uses,
            idle_timeout=rules.idle_timeout,
            health_interval=rules.health_interval,
            call_timeout=self._call_timeout,
            grace_period=self._grace_period,
            name=name,
            listener=self._listener,
        )
        role = _Role(pool, _place(name, ".", ""))  # the place comes with who wants it first
        return role

    async def _is_well(self, kept: KeptSession) -> bool:
        now = anyio.current_time()
        half = (self._rules.health_interval or 0.0) / 2
        # A used session is looked at again even if it has just been emptied: what was written
        # late would be seen by its next holder.
        if not kept.is_used and now - kept.seen_at < half:
            return True
        kept.seen_at = now
        return await kept.session.check()


def _checked_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    for role, size in cast("Mapping[str, object]", sizes).items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"sizes[{role!r}] must be an int, not {size!r}")
        if size < 1:
            raise ValueError(f"sizes[{role!r}] must be at least 1, not {size!r}")
    return dict(sizes)


def _place(agent: Agent | str, directory: Path | str, mission: str) -> Place:
    wanted = Agent(agent) if isinstance(agent, str) else agent
    return Place(wanted, str(Path(directory).absolute()), mission)


async def _empty(kept: KeptSession) -> None:
    if not await kept.session.reset():
        raise _NotEmptyError(
            f"{kept.session!r} could not be proved to be empty; it is closed instead"
        )


class _NotEmptyError(Exception):
    """A session is in no state to be used for another task."""


# Users import it from here or from `orchestra`; where it is written is nobody's business.
SessionLease.__module__ = __name__
