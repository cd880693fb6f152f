"""A pool of what is expensive to make and must be let go of: sessions, processes, connections."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from random import random
from typing import Any, Final, Generic, TypeVar, final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin, CancelScope, WouldBlock
from anyio.abc import TaskGroup
from attrs import frozen

from orchestra._admission import Door
from orchestra._core.checks import check_callable, finite
from orchestra._core.limits import Fixed, Limit
from orchestra._core.pool import Entry, PoolPlan, PoolRules
from orchestra._core.waiters import Priority
from orchestra._lane import Gate, Lane
from orchestra._lease import Keeper
from orchestra._listeners import Teller
from orchestra._waiting import checkpoint, loop_clock
from orchestra.background import background_tasks
from orchestra.errors import CapacityError
from orchestra.events import ResourceCreated, ResourceDestroyed, ResourceEnd
from orchestra.pools._leasing import PoolHolder, PoolLease

__all__ = ("PoolHolder", "PoolLease", "PoolStatistics", "ResourcePool")

T = TypeVar("T")

_logger = logging.getLogger("orchestra")


@frozen(kw_only=True)
class PoolStatistics:
    """The state of a pool, and what it has done.

    Attributes:
        max_size: How many resources there may be at once.
        in_use: How many are leased.
        idle: How many wait to be leased.
        busy: How many are being created, validated, reset or destroyed.
        tasks_waiting: How many tasks wait for one.
        leased: How many leases began.
        created: How many resources were created.
        create_failures: How often creating one failed or was cancelled.
        destroyed: How many were destroyed, in whatever way it ended.
        destroy_failures: How often destroying one failed or took too long.
        reset_failures: How often resetting one failed or took too long.
        validation_failures: How often one was found unfit.
    """

    max_size: int
    in_use: int
    idle: int
    busy: int
    tasks_waiting: int
    leased: int
    created: int
    create_failures: int
    destroyed: int
    destroy_failures: int
    reset_failures: int
    validation_failures: int


class _End:
    """The end of one resource.

    Attributes:
        cause: Why.
        over: Set when it is destroyed.
        has_heir: Whether a task waits for the slot, and keeps it.
    """

    __slots__ = ("cause", "has_heir", "over")

    def __init__(self, cause: ResourceEnd) -> None:
        self.cause = cause
        self.over = anyio.Event()
        self.has_heir = False


@final
class ResourcePool(AsyncContextManagerMixin, Generic[T]):
    """Lends resources that are expensive to make, and makes and ends them as needed.

    ::

        async with ResourcePool(connect, destroy=Connection.aclose, max_size=5) as pool:
            async with pool.lease(owner="report") as connection:
                ...

    It creates a resource when none idles and there are fewer than ``max_size``; else the task
    waits, by priority and then first come, first served, as at a `ConcurrencyController`. The
    resource that was released last is leased first.

    **Ending a lease never waits.** The pool's own tasks reset and destroy, in a shield and for a
    bounded time, so no cancellation of a holder can lose a resource or its place. The place is
    free when that is done: at no time are there more than ``max_size`` resources, those that are
    being created, reset or destroyed included.

    **What fails.** When ``factory`` fails, the lease fails with its error and the place goes to the
    next. A failed ``reset`` or ``validate`` ends the resource, and nobody else notices. A resource
    whose block is left by an exception or a cancellation is used again only if there is a
    ``reset`` to vouch for it; else it is destroyed.

    **Leaving** refuses those who wait with `CapacityError`, and cancels what they are having
    created; destroys what idles; waits ``grace_period`` seconds for those who still hold a
    resource; and then destroys it under their hands and logs who they are. However it is left,
    every resource that was created has been destroyed exactly once.

    **Checkpoints.** Acquiring always is one, unless the pool was made with ``fast_acquire`` and a
    resource idles that need not be validated. Ending a lease never is.

    A pool belongs to one event loop, is not thread-safe, and is entered once.

    Args:
        factory: Creates a resource. It runs in the task that asks and is cancelled with it: then
            it must not leave anything behind.
        reset: Makes a released resource as good as new, or raises.
        validate: Tells whether an idle resource is fit for use; asked before each lease of one,
            and every ``health_interval``. Raising means no.
        destroy: Ends a resource; called once for each.
        max_size: How many resources there may be; at least 1.
        min_idle: How many the pool keeps idle, creating them in the background.
        idle_timeout: Seconds after which an idle resource is destroyed, while more than
            ``min_idle`` idle; None: never.
        max_uses: How often a resource is leased; None: without end.
        max_lifetime: Seconds after which a resource is not leased any more; None: without end.
        jitter: By up to which part a lifetime is cut at random, from 0 to 1.
        health_interval: Seconds after which an idle resource is validated; None: never.
        call_timeout: Seconds that a call of ``reset``, ``validate`` or ``destroy`` may take, and
            one of ``factory`` in the background. A lease has no limit but the caller's.
        grace_period: Seconds that leaving waits for those who hold a resource.
        fifo: Lease first what has idled longest, so that all stay in use.
        name: What errors, events and logs call it.
        fast_acquire: Do not yield to other tasks (and take in no cancellation) when a resource
            idles.
        listener: Called with every `ResourceCreated` and `ResourceDestroyed`, in order; one that
            raises is logged and dropped.
        rng: Numbers from 0.0 to 1.0, for the jitter.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        factory: Callable[[], Awaitable[T]],
        *,
        reset: Callable[[T], Awaitable[object]] | None = None,
        validate: Callable[[T], Awaitable[bool]] | None = None,
        destroy: Callable[[T], Awaitable[object]] | None = None,
        max_size: int = 10,
        min_idle: int = 0,
        idle_timeout: float | None = 300.0,
        max_uses: int | None = 10,
        max_lifetime: float | None = None,
        jitter: float = 0.1,
        health_interval: float | None = 60.0,
        call_timeout: float = 30.0,
        grace_period: float = 5.0,
        fifo: bool = False,
        name: str = "pool",
        fast_acquire: bool = False,
        listener: Callable[[ResourceCreated | ResourceDestroyed], object] | None = None,
        rng: Callable[[], float] = random,
    ) -> None:
        self._rules = PoolRules(
            max_size=max_size,
            min_idle=min_idle,
            idle_timeout=idle_timeout,
            max_uses=max_uses,
            max_lifetime=max_lifetime,
            jitter=jitter,
            health_interval=None if validate is None else health_interval,
            fifo=fifo,
        )
        check_callable("factory", factory)
        for argument, function in (("reset", reset), ("validate", validate), ("destroy", destroy)):
            if function is not None:
                check_callable(argument, function)
        if finite("call_timeout", call_timeout) <= 0:
            raise ValueError(f"call_timeout must be above 0 seconds, not {call_timeout!r}")
        if finite("grace_period", grace_period) < 0:
            raise ValueError(f"grace_period must be at least 0 seconds, not {grace_period!r}")
        self.name: Final = name
        self._factory: Final = factory
        self._reset: Final = reset
        self._validate: Final = validate
        self._destroy: Final = destroy
        self._call_timeout: Final = call_timeout
        self._grace_period: Final = grace_period
        self._is_fast: Final = fast_acquire
        self._can_reset: Final = reset is not None
        self._teller: Final[Teller[ResourceCreated | ResourceDestroyed]] = Teller(listener)
        self._rng: Final = rng
        door = Door(None, rng, is_fast=True)
        self._lane: Final = Lane(name, Limit(max_size, rule=Fixed()), Gate(name, door), owner=door)
        self._plan: Final[PoolPlan[T]] = PoolPlan(self._rules)
        # Each of these has a slot of the limiter, unless it idles; a task that has a slot and no
        # resource yet may create one. So there are never more resources than slots.
        self._entries: Final[dict[int, Entry[T]]] = {}
        self._ends: Final[dict[Entry[T], _End]] = {}
        self._creating = 0
        self._coming = 0  # being created or checked in the background, in order to idle
        self._fetches: Final[set[CancelScope]] = set()
        self._tasks: TaskGroup | None = None
        self._keeper: Keeper | None = None
        self._clock: Callable[[], float] = float
        self._is_closed = False
        self._is_empty: Final = anyio.Event()
        self._changed = anyio.Event()
        self._wakes_at = float("inf")
        self._leased = self._created = self._create_failures = 0
        self._destroyed = self._destroy_failures = 0
        self._reset_failures = self._validation_failures = 0

    # ---- leasing ----

    def lease(
        self,
        *,
        priority: Priority = Priority.NORMAL,
        owner: str = "",
        lifetime: float | None = None,
    ) -> PoolLease[T]:
        """Hold a resource for the length of a block.

        Entering is a checkpoint like `acquire`; leaving is none.

        Args:
            priority: How urgent it is.
            owner: What the holder calls itself, for `holders`.
            lifetime: Seconds after which the *holder* is cancelled; None: never.

        Returns:
            An async context manager that gives the resource.

        Raises:
            CapacityError: As `acquire`.
            RuntimeError: As `acquire`.
            TimeoutError: On leaving, when the holder was cancelled because its time was up.
            ValueError: ``lifetime`` is not above 0.
        """
        if lifetime is not None and finite("lifetime", lifetime) <= 0:
            raise ValueError(f"lifetime must be above 0 seconds, not {lifetime!r}")
        return PoolLease(self, priority, owner, lifetime)

    async def acquire(
        self, *, priority: Priority = Priority.NORMAL, owner: str = ""
    ) -> PoolLease[T]:
        """Wait for a resource.

        What ``factory`` raises comes out as it is.

        Args:
            priority: How urgent it is.
            owner: What the holder calls itself, for `holders`.

        Returns:
            The lease, which the caller must end.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        lease = PoolLease(self, priority, owner, None)
        await lease._begin()  # noqa: SLF001 - a lease is half of its pool
        return lease

    def acquire_nowait(
        self, *, priority: Priority = Priority.NORMAL, owner: str = ""
    ) -> PoolLease[T]:
        """Take a resource that idles and that nobody waits for. It is not validated.

        Args:
            priority: How urgent it is.
            owner: What the holder calls itself, for `holders`.

        Returns:
            The lease, which the caller must end.

        Raises:
            anyio.WouldBlock: None idles, or somebody is before us.
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        self._check_open()
        lane = self._lane
        while lane.can_take(1, priority) and (entry := self._plan.take()) is not None:
            lane.take(1, priority)
            if entry.expires_at > self._clock():
                lease = PoolLease(self, priority, owner, None)
                self._hand_over(entry, lease)
                return lease
            self._discard(entry, ResourceEnd.OUTDATED)
        raise WouldBlock

    async def invalidate(self, resource: T) -> None:
        """Destroy a resource that is of no use any more, and wait until that is done.

        The lease of it, if there is one, is over at once. The destruction begins before anything
        is waited for, and a cancellation ends the wait only. Always a checkpoint.

        Args:
            resource: What a lease gave.

        Raises:
            RuntimeError: It is not in this pool, or not any more.
        """
        entry = self._entries.get(id(resource))
        if entry is None:
            raise RuntimeError(
                f"{resource!r} is not in the pool {self.name!r}; invalidate what it has lent, once"
            )
        lease = entry.holder
        if isinstance(lease, PoolLease):
            lease.invalidate()
        # An idle one, or one that is being validated or reset, is found to be outdated in a moment.
        entry.expires_at = float("-inf")
        self._changed.set()
        end = self._ends.get(entry)
        if end is None:
            await checkpoint()
        else:
            await end.over.wait()

    # ---- state ----

    def holders(self) -> tuple[PoolHolder[T], ...]:
        """Tell who has what, since when, and where it was leased; the longest first."""
        now = self._clock()
        leases = [entry.holder for entry in self._entries.values()]
        held = [lease for lease in leases if isinstance(lease, PoolLease)]
        return tuple(
            PoolHolder(
                resource=lease.resource,
                owner=lease.owner,
                held_for=now - lease.since,
                place=lease.place,
            )
            for lease in sorted(held, key=lambda lease: lease.since)
        )

    def statistics(self) -> PoolStatistics:
        """Count what there is and what has been done."""
        in_use = sum(entry.holder is not None for entry in self._entries.values())
        idle = len(self._plan.idle)
        return PoolStatistics(
            max_size=self._rules.max_size,
            in_use=in_use,
            idle=idle,
            busy=self._live - in_use - idle,
            tasks_waiting=self._lane.order.size,
            leased=self._leased,
            created=self._created,
            create_failures=self._create_failures,
            destroyed=self._destroyed,
            destroy_failures=self._destroy_failures,
            reset_failures=self._reset_failures,
            validation_failures=self._validation_failures,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._is_closed else ""
        return (
            f"<ResourcePool {self.name!r}{state} {now.in_use} in use, {now.idle} idle, "
            f"{now.busy} busy of {now.max_size}; {now.tasks_waiting} waiting>"
        )

    @property
    def _live(self) -> int:
        return len(self._entries) + self._creating

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ResourcePool[T]]:
        if self._tasks is not None or self._is_closed:
            raise RuntimeError(f"the pool {self.name!r} is entered once; make another one")
        self._clock = loop_clock()
        async with background_tasks() as self._tasks:
            self._tasks.start_soon(self._tend, name=f"orchestra pool {self.name}")
            try:
                yield self
            finally:
                with CancelScope(shield=True):
                    await self._finish()

    async def aclose(self) -> None:
        """Refuse who waits and who comes, and wait until every resource is back and destroyed.

        Cancelling it ends the wait only; leaving the pool's block does the rest. Always a
        checkpoint.
        """
        self._close()
        await checkpoint()
        await self._is_empty.wait()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._lane.refuse_all()
            for scope in self._fetches:
                scope.cancel()
            while (entry := self._plan.take()) is not None:
                self._lane.free -= 1  # it gets back what it never had
                self._discard(entry, ResourceEnd.CLOSED)
        self._look_empty()

    def _look_empty(self) -> None:
        if self._is_closed and not self._live:
            self._is_empty.set()

    async def _finish(self) -> None:
        self._close()
        with anyio.move_on_after(self._grace_period):
            await self._is_empty.wait()
        for entry in list(self._entries.values()):
            if isinstance(lease := entry.holder, PoolLease):
                _logger.warning(
                    "pool %r is left while %s holds %r, leased at %s; it is destroyed now",
                    self.name,
                    lease.owner or "somebody",
                    entry.resource,
                    lease.place,
                )
                lease._end(ResourceEnd.KEPT)  # noqa: SLF001 - a lease is half of its pool
        with anyio.move_on_after(2 * self._call_timeout):  # a reset and a destruction
            await self._is_empty.wait()

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._closed_error()
        if self._tasks is None:
            raise RuntimeError(
                f"the pool {self.name!r} has no tasks to work with; enter it with 'async with'"
            )

    def _closed_error(self) -> CapacityError:
        return CapacityError(f"the pool {self.name!r} is closed; lease inside its own block")

    # ---- from idle to leased ----

    def _serve(self, lease: PoolLease[T]) -> bool:
        """Lease what idles, where nothing has to be awaited."""
        lane = self._lane
        plan = self._plan
        if not (self._is_fast and lane.is_open and lane.free > 0 and plan.idle):
            return False
        entry = plan.idle[plan.head]
        if self._validate is not None or entry.expires_at <= self._clock():
            return False
        del plan.idle[plan.head]
        lane.free -= 1
        self._hand_over(entry, lease)
        return True

    async def _wait_and_serve(self, lease: PoolLease[T]) -> None:
        self._check_open()
        if not self._is_fast:
            await checkpoint()  # nothing is held yet, so nothing can be lost
            self._check_open()
        lane = self._lane
        if lane.can_take(1, lease.priority):
            lane.take(1, lease.priority)
        else:
            try:
                await lane.wait(lease.priority)
            except CapacityError:
                raise self._closed_error() from None
        self._hand_over(await self._fetch(self._plan.take()), lease)

    def _hand_over(self, entry: Entry[T], lease: PoolLease[T]) -> None:
        entry.uses += 1
        entry.holder = lease
        lease._entry = entry  # noqa: SLF001 - a lease is half of its pool
        lease._is_used = True  # noqa: SLF001
        lease.since = self._clock()
        self._leased += 1
        if self._rules.min_idle and self._plan.is_short(self._live):
            self._changed.set()

    async def _fetch(self, entry: Entry[T] | None) -> Entry[T]:
        """Make an entry ready, or create one, for a slot that is ours; if it raises, it was."""
        if entry is not None and self._validate is None and entry.expires_at > self._clock():
            return entry
        if self._is_closed:  # since the slot was granted, so nothing idles any more
            self._lane.give_back(1)
            raise self._closed_error()
        with CancelScope() as scope:
            self._fetches.add(scope)
            try:
                entry = await self._prepare(entry)
            finally:
                self._fetches.discard(scope)
        if not scope.cancel_called and entry is not None:
            return entry
        if not scope.cancelled_caught and entry is not None:
            # What was awaited has swallowed the cancellation; the pool's tasks may be gone by now.
            await self._destroy_now(entry, _End(ResourceEnd.CLOSED))
        raise self._closed_error()

    async def _prepare(self, entry: Entry[T] | None) -> Entry[T]:
        while entry is not None:
            cause = ResourceEnd.OUTDATED
            if entry.expires_at > self._clock():
                if not await self._is_fit(entry):
                    cause = ResourceEnd.UNFIT
                elif entry.expires_at > self._clock():
                    return entry
            await self._replace(entry, cause)
            entry = self._plan.take()
        return await self._create()

    async def _is_fit(self, entry: Entry[T]) -> bool:
        """Validate; when it raises, the entry is being destroyed and takes its slot along."""
        if self._validate is None:
            return True
        try:
            with anyio.move_on_after(self._call_timeout):
                if await self._validate(entry.resource):
                    return True
        except Exception:
            _logger.warning("pool %r: validation failed", self.name, exc_info=True)
        except BaseException:
            self._discard(entry, ResourceEnd.INTERRUPTED)
            raise
        self._validation_failures += 1
        return False

    async def _replace(self, entry: Entry[T], cause: ResourceEnd) -> None:
        """Destroy an entry and keep its slot; when it raises, the slot goes to the next."""
        end = self._discard(entry, cause)
        end.has_heir = True
        try:
            await end.over.wait()
        except BaseException:
            if end.over.is_set():
                self._lane.give_back(1)
            else:
                end.has_heir = False
            raise

    async def _create(self) -> Entry[T]:
        """Create a resource; when it raises, the slot goes to the next."""
        self._creating += 1
        began = self._clock()
        try:
            resource = await self._factory()
            if id(resource) in self._entries:
                raise RuntimeError(
                    f"the factory of the pool {self.name!r} gave {resource!r}, which the pool has "
                    f"already; let it make a new one each time"
                )
        except BaseException:
            self._create_failures += 1
            self._lane.give_back(1)
            raise
        finally:
            self._creating -= 1
            self._look_empty()
        now = self._clock()
        entry = self._plan.enter(resource, now, self._rng())
        self._entries[id(resource)] = entry
        self._created += 1
        self._tell(ResourceCreated(pool=self.name, elapsed=now - began))
        return entry

    # ---- from leased to idle ----

    def _take_back(self, entry: Entry[T]) -> None:
        """End a lease."""
        entry.holder = None
        if self._is_closed:
            self._discard(entry, ResourceEnd.CLOSED)
        elif self._plan.is_worn(entry):
            self._discard(entry, ResourceEnd.WORN)
        elif self._reset is not None:
            self._start(self._recycle, entry)
        else:
            self._let_idle(entry)

    def _let_idle(self, entry: Entry[T]) -> None:
        due = self._plan.put(entry, self._clock())
        if due < self._wakes_at:
            self._wakes_at = due
            self._changed.set()
        self._lane.give_back(1)

    async def _recycle(self, entry: Entry[T]) -> None:
        assert self._reset is not None  # noqa: S101 - for the type checker
        try:
            is_clean = await self._shielded(self._reset, entry)
        except BaseException:
            self._discard(entry, ResourceEnd.INTERRUPTED)
            raise
        if not is_clean:
            self._reset_failures += 1
            self._discard(entry, ResourceEnd.RESET_FAILED)
        elif self._is_closed:
            self._discard(entry, ResourceEnd.CLOSED)
        else:
            self._let_idle(entry)

    # ---- the end of a resource ----

    def _discard(self, entry: Entry[T], cause: ResourceEnd) -> _End:
        """Begin to destroy an entry that has a slot."""
        end = self._ends.get(entry)
        if end is None:
            entry.holder = None
            end = self._ends[entry] = _End(cause)
            self._start(self._destroy_now, entry, end)
        return end

    async def _destroy_now(self, entry: Entry[T], end: _End) -> None:
        is_clean = False
        try:
            is_clean = self._destroy is None or await self._shielded(self._destroy, entry)
        finally:
            self._ends.pop(entry, None)
            del self._entries[id(entry.resource)]
            self._destroyed += 1
            self._destroy_failures += not is_clean
            end.over.set()
            if not end.has_heir:
                self._lane.give_back(1)
            self._look_empty()
            self._changed.set()
            self._tell(
                ResourceDestroyed(
                    pool=self.name,
                    cause=end.cause,
                    uses=entry.uses,
                    age=self._clock() - entry.born,
                    is_clean=is_clean,
                )
            )

    async def _shielded(self, call: Callable[[T], Awaitable[object]], entry: Entry[T]) -> bool:
        """Call something that must not be cut off, for a bounded time; tell whether it worked."""
        with anyio.move_on_after(self._call_timeout, shield=True):
            try:
                await call(entry.resource)
            except Exception:
                _logger.warning("pool %r: %r failed", self.name, call, exc_info=True)
                return False
            return True
        _logger.warning("pool %r: %r took too long and was cancelled", self.name, call)
        return False

    # ---- in the background ----

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        assert self._tasks is not None  # noqa: S101 - nothing is lent by a pool that is not entered
        self._tasks.start_soon(function, *args)

    async def _tend(self) -> None:
        """Destroy what is old, check what idles, create what is missing."""
        while True:
            self._changed = anyio.Event()
            self._wakes_at = self._do_chores()
            with CancelScope(deadline=self._wakes_at):
                await self._changed.wait()

    def _do_chores(self) -> float:
        if self._is_closed:
            return float("inf")
        plan = self._plan
        lane = self._lane
        chores = plan.chores(self._clock(), live=self._live, coming=self._coming)
        for entries, cause in (
            (chores.outdated, ResourceEnd.OUTDATED),
            (chores.surplus, ResourceEnd.SURPLUS),
            (chores.unchecked, None),
        ):
            for entry in entries:
                if not lane.can_take(1, Priority.LOW):
                    return float("inf")  # who was given a slot takes the entry in a moment
                lane.take(1, Priority.LOW)
                plan.idle.remove(entry)
                if cause is not None:
                    self._discard(entry, cause)
                else:
                    self._coming += 1
                    self._start(self._check, entry)
        for _ in range(chores.missing):
            if not lane.can_take(1, Priority.LOW):
                return float("inf")
            lane.take(1, Priority.LOW)
            self._coming += 1
            self._start(self._stock)
        return chores.next_at

    async def _check(self, entry: Entry[T]) -> None:
        """Validate an entry that idles."""
        try:
            if not await self._is_fit(entry):
                self._discard(entry, ResourceEnd.UNFIT)
            elif self._is_closed:
                self._discard(entry, ResourceEnd.CLOSED)
            else:
                self._plan.put_back(entry, self._clock())
                self._lane.give_back(1)
        finally:
            self._coming -= 1
            self._changed.set()

    async def _stock(self) -> None:
        """Create an entry that is to idle."""
        try:
            with anyio.fail_after(self._call_timeout):
                entry = await self._fetch(None)
        except Exception:
            if not self._is_closed:
                pause = self._plan.failed(self._clock())
                _logger.warning(
                    "pool %r: creating a resource failed; the next try is in %g s",
                    self.name,
                    pause,
                    exc_info=True,
                )
        else:
            self._let_idle(entry)
        finally:
            self._coming -= 1
            self._changed.set()

    # ---- small things ----

    def _watch(self, scope: CancelScope, lifetime: float) -> None:
        if self._keeper is None:
            self._keeper = Keeper(None)
            self._start(self._keeper.run)
        self._keeper.watch(scope, lifetime)

    def _forget(self, scope: CancelScope, lifetime: float) -> None:
        if self._keeper is not None:
            self._keeper.forget(scope, lifetime)

    def _tell(self, event: ResourceCreated | ResourceDestroyed) -> None:
        self._teller.put(event)
        self._teller.deliver()


# Users import these from here or from `orchestra`; where they are written is nobody's business.
for _public in (PoolHolder, PoolLease):
    _public.__module__ = __name__
