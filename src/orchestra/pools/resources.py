"""A pool of what is expensive to make and must be let go of: sessions, processes, connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import random
from typing import Final, Generic, TypeVar, final

import attrs
from anyio import AsyncContextManagerMixin, CancelScope
from attrs import frozen

from orchestra._core.checks import check_callable, finite
from orchestra._core.pool import PoolRules
from orchestra._core.waiters import Priority
from orchestra._listeners import Teller
from orchestra._waiting import checkpoint
from orchestra.background import background_tasks
from orchestra.events import ResourceCreated, ResourceDestroyed
from orchestra.pools._leasing import PoolHolder, PoolLease
from orchestra.pools._stock import Calls, Stock

__all__ = ("PoolHolder", "PoolLease", "PoolStatistics", "ResourcePool")

T = TypeVar("T")


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
        rules = PoolRules(
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
        self.name: Final[str] = name
        self._grace_period: Final = grace_period
        self._is_entered = False
        self._stock: Final[Stock[T]] = Stock(
            name,
            Calls(
                factory=factory,
                reset=reset,
                validate=validate,
                destroy=destroy,
                timeout=call_timeout,
            ),
            rules,
            is_fast=fast_acquire,
            teller=Teller(listener),
            rng=rng,
        )

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
        return PoolLease(self._stock, priority, owner, lifetime)

    async def acquire(
        self, *, priority: Priority = Priority.NORMAL, owner: str = ""
    ) -> PoolLease[T]:
        """Wait for a resource.

        What ``factory`` raises comes out as it is. Prefer `lease`: what this returns to a task that
        has just been given up, as ``asyncio.wait_for`` may do, is held by nobody until the pool is
        left.

        Args:
            priority: How urgent it is.
            owner: What the holder calls itself, for `holders`.

        Returns:
            The lease, which the caller must end.

        Raises:
            CapacityError: The pool is closed.
            RuntimeError: The pool has not been entered.
        """
        lease = PoolLease(self._stock, priority, owner)
        await lease.__aenter__()
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
        lease = PoolLease(self._stock, priority, owner)
        lease._begin_nowait()  # noqa: SLF001 - a lease is half of its pool
        return lease

    async def invalidate(self, resource: T) -> None:
        """Destroy a resource that is of no use any more, and wait until that is done.

        The lease of it, if there is one, is over at once. The destruction begins before anything
        is waited for, and a cancellation ends the wait only. Always a checkpoint.

        Args:
            resource: What a lease gave.

        Raises:
            RuntimeError: It is not in this pool, or not any more.
        """
        await self._stock.invalidate(resource)

    # ---- state ----

    def holders(self) -> tuple[PoolHolder[T], ...]:
        """Tell who has what, since when, and where it was leased; the longest first."""
        leases = [entry.holder for entry in self._stock.entries.values()]
        held = [lease for lease in leases if isinstance(lease, PoolLease)]
        return tuple(
            PoolHolder(
                resource=lease.resource,
                owner=lease.owner,
                held_for=lease.held_for,
                place=lease.place,
            )
            for lease in sorted(held, key=lambda lease: -lease.held_for)
        )

    def statistics(self) -> PoolStatistics:
        """Count what there is and what has been done."""
        stock = self._stock
        entries = stock.entries.values()
        in_use = sum(entry.holder is not None for entry in entries)
        idle = len(stock.plan.idle)
        return PoolStatistics(
            max_size=stock.lane.limit,
            in_use=in_use,
            idle=idle,
            busy=stock.live - in_use - idle,
            tasks_waiting=stock.lane.order.size,
            **attrs.asdict(stock.counts)
            | {"leased": stock.counts.leased + sum(entry.uses for entry in entries)},
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._stock.is_closed else ""
        return (
            f"<ResourcePool {self.name!r}{state} {now.in_use} in use, {now.idle} idle, "
            f"{now.busy} busy of {now.max_size}; {now.tasks_waiting} waiting>"
        )

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ResourcePool[T]]:
        if self._is_entered:
            raise RuntimeError(f"the pool {self.name!r} is entered once; make another one")
        self._is_entered = True
        async with background_tasks() as tasks:
            self._stock.open(tasks)
            try:
                yield self
            finally:
                with CancelScope(shield=True):
                    await self._stock.finish(self._grace_period)

    async def aclose(self) -> None:
        """Refuse who waits and who comes, and wait until every resource is back and destroyed.

        Cancelling it ends the wait only; leaving the pool's block does the rest. Always a
        checkpoint.
        """
        self._stock.close()
        await checkpoint()
        await self._stock.is_empty.wait()


# Users import these from here or from `orchestra`; where they are written is nobody's business.
for _public in (PoolHolder, PoolLease):
    _public.__module__ = __name__
