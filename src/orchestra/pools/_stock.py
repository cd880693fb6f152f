"""The inside of a resource pool: who may have a resource, and the life of each from end to end.

What must hold, whatever is cancelled and wherever:

* Each resource that does not idle has a slot of the limiter, and so has each task that is about to
  create one. So there are never more resources than slots, also while some are being destroyed.
* A slot belongs to one of: a task of a borrower, an entry, a task of the pool. Whoever raises has
  passed its slot on, to the next waiter or to the destruction that will.
* A resource is destroyed by `Stock.discard` alone, which does it once; it is synchronous, and the
  destruction runs in a task of the pool's, in a shield.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Generic, TypeVar, final

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from orchestra._admission import Door
from orchestra._core.limits import Fixed, Limit
from orchestra._core.pool import Entry, PoolPlan, PoolRules
from orchestra._core.waiters import Priority
from orchestra._lane import Gate, Lane
from orchestra._lease import Keeper
from orchestra._listeners import Teller
from orchestra._waiting import checkpoint, loop_clock
from orchestra.errors import CapacityError
from orchestra.events import ResourceCreated, ResourceDestroyed, ResourceEnd

__all__ = ("Calls", "Counts", "Stock")

T = TypeVar("T")

_NEVER: Final = float("inf")

_logger = logging.getLogger("orchestra")


@final
@frozen(kw_only=True)
class Calls(Generic[T]):
    """What the pool's owner has given it to call; see ``ResourcePool``."""

    factory: Callable[[], Awaitable[T]]
    reset: Callable[[T], Awaitable[object]] | None
    validate: Callable[[T], Awaitable[bool]] | None
    destroy: Callable[[T], Awaitable[object]] | None
    timeout: float


@final
@define
class Counts:
    """What has happened; see ``PoolStatistics``. Leases of what still lives are not in it yet."""

    leased: int = 0
    created: int = 0
    create_failures: int = 0
    destroyed: int = 0
    destroy_failures: int = 0
    reset_failures: int = 0
    validation_failures: int = 0


@final
@define(eq=False)
class _Destruction:
    """The end of one entry.

    Attributes:
        cause: Why.
        over: Set when it has been destroyed.
        has_heir: Whether a task waits for the slot, and keeps it.
    """

    cause: ResourceEnd
    over: anyio.Event = field(factory=anyio.Event)
    has_heir: bool = False


@final
class Stock(Generic[T]):
    """All resources of one pool.

    Args:
        name: What to call it.
        calls: What creates, resets, validates and destroys.
        rules: How many there may be, and for how long.
        is_fast: Whether taking what idles is no checkpoint.
        teller: Who is told what is created and destroyed.
        rng: Numbers from 0.0 to 1.0.

    Attributes:
        lane: The slots.
        plan: Those that idle.
        entries: All, by the identity of the resource.
        counts: What has happened.
        clock: The event loop's clock; stands at 0.0 before `open`.
        is_closed: Whether nothing is lent any more.
        is_empty: Set when it is closed and nothing is left.
        can_reset: Whether there is something that vouches for a used resource.
    """

    def __init__(
        self,
        name: str,
        calls: Calls[T],
        rules: PoolRules,
        *,
        is_fast: bool,
        teller: Teller[ResourceCreated | ResourceDestroyed],
        rng: Callable[[], float],
    ) -> None:
        self.name: Final[str] = name
        self._calls: Final = calls
        self.plan: Final[PoolPlan[T]] = PoolPlan(rules)
        self._is_fast: Final = is_fast
        self._is_instant: Final = is_fast and calls.validate is None
        self._max_uses: Final = _NEVER if rules.max_uses is None else rules.max_uses
        self._head: Final = rules.head
        self._attention: Final = self.plan.attention
        self._idle: Final = self.plan.idle
        self._teller: Final = teller
        self._rng: Final = rng
        door = Door(None, rng, is_fast=True)
        limit = Limit(rules.max_size, rule=Fixed())
        self.lane: Final[Lane] = Lane(name, limit, Gate(name, door), owner=door)
        self.entries: Final[dict[int, Entry[T]]] = {}
        self.counts: Final[Counts] = Counts()
        self.clock: Callable[[], float] = float
        self.can_reset: Final[bool] = calls.reset is not None
        self.is_closed: bool = False
        self.is_empty: Final[anyio.Event] = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._context = Context()
        self._keeper: Keeper | None = None
        self._destructions: Final[dict[Entry[T], _Destruction]] = {}
        self._preparations: Final[set[CancelScope]] = set()
        self._creating = 0
        self._coming = 0  # being created, or checked, in order to idle
        self._has_minimum: Final = rules.min_idle > 0
        self._changed = anyio.Event()
        self._wakes_at = _NEVER

    @property
    def live(self) -> int:
        """How many there are, those that are being created or destroyed included."""
        return len(self.entries) + self._creating

    def open(self, tasks: TaskGroup) -> None:
        """Begin to lend; ``tasks`` does what is done in the background."""
        self.clock = loop_clock()
        self._context = copy_context()
        self._tasks = tasks
        self._start(self._tend)

    # ---- from idle to leased ----

    def take_at_once(self) -> Entry[T] | None:
        """Take what idles where the pool is fast and there is nothing to be awaited."""
        lane = self.lane
        idle = self._idle
        if not (self._is_instant and idle and lane.free > 0 and lane.is_open):
            return None
        now = self.clock()
        entry = idle[self._head]
        if entry.expires_at <= now:
            return None
        del idle[self._head]
        lane.free -= 1
        if self._has_minimum:
            self._look_short()
        entry.leased_at = now
        return entry

    def take_nowait(self, priority: Priority) -> Entry[T] | None:
        """Take what idles, unvalidated, if nobody is before us."""
        self.check_open()
        while self.lane.can_take(1, priority) and (entry := self.plan.take()) is not None:
            self.lane.take(1, priority)
            entry.leased_at = self.clock()
            if entry.expires_at > entry.leased_at:
                self._look_short()
                return entry
            self.discard(entry, ResourceEnd.OUTDATED)
        return None

    async def take(self, priority: Priority) -> Entry[T]:
        """Wait for a slot, and take what idles or create."""
        self.check_open()
        if not self._is_fast:
            await checkpoint()  # nothing is held yet, so nothing can be lost
            self.check_open()
        lane = self.lane
        if lane.can_take(1, priority):
            lane.take(1, priority)
        else:
            try:
                await lane.wait(priority)
            except CapacityError:
                raise self._closed_error() from None
        entry = self.plan.take()
        self._look_short()
        if entry is None or not self._is_ready(entry):
            entry = await self._prepare(entry)
        entry.leased_at = self.clock()
        return entry

    def _is_ready(self, entry: Entry[T]) -> bool:
        return self._calls.validate is None and entry.expires_at > self.clock()

    async def _prepare(self, entry: Entry[T] | None) -> Entry[T]:
        """Make an entry fit for use, or another one, with a slot that is ours."""
        if self.is_closed:  # since the slot was granted, so nothing idles any more
            self.lane.give_back(1)
            raise self._closed_error()
        with CancelScope() as scope:
            self._preparations.add(scope)
            try:
                entry = await self._find(entry)
            finally:
                self._preparations.discard(scope)
        if not scope.cancel_called and entry is not None:
            return entry
        if not scope.cancelled_caught and entry is not None:
            # What was awaited has swallowed the cancellation; the pool's tasks may be gone by now.
            await self._destroy(entry, _Destruction(ResourceEnd.CLOSED))
        raise self._closed_error()

    async def _find(self, entry: Entry[T] | None) -> Entry[T]:
        while entry is not None:
            cause = ResourceEnd.OUTDATED
            if entry.expires_at > self.clock():
                if not await self._is_fit(entry):
                    cause = ResourceEnd.UNFIT
                elif entry.expires_at > self.clock():
                    return entry
            await self._replace(entry, cause)
            entry = self.plan.take()
        return await self._create()

    async def _is_fit(self, entry: Entry[T]) -> bool:
        validate = self._calls.validate
        if validate is None:
            return True
        try:
            with anyio.move_on_after(self._calls.timeout):
                if await validate(entry.resource):
                    return True
        except Exception:
            _logger.warning("pool %r: %r failed", self.name, validate, exc_info=True)
        except BaseException:
            self.discard(entry, ResourceEnd.INTERRUPTED)
            raise
        self.counts.validation_failures += 1
        return False

    async def _replace(self, entry: Entry[T], cause: ResourceEnd) -> None:
        """Wait until an entry has been destroyed, and keep its slot."""
        destruction = self.discard(entry, cause)
        destruction.has_heir = True
        try:
            await destruction.over.wait()
        except BaseException:
            if destruction.over.is_set():
                self.lane.give_back(1)
            else:
                destruction.has_heir = False
            raise

    async def _create(self) -> Entry[T]:
        self._creating += 1
        began = self.clock()
        try:
            resource = await self._calls.factory()
            if id(resource) in self.entries:
                raise RuntimeError(
                    f"the factory of the pool {self.name!r} gave {resource!r}, which the pool has "
                    f"already; let it make a new one each time"
                )
        except BaseException:
            self.counts.create_failures += 1
            self.lane.give_back(1)
            raise
        finally:
            self._creating -= 1
            self._look_empty()
        now = self.clock()
        entry = self.entries[id(resource)] = self.plan.enter(resource, now, self._rng())
        self.counts.created += 1
        self._tell(ResourceCreated(pool=self.name, elapsed=now - began))
        return entry

    # ---- from leased to idle ----

    def take_back(self, entry: Entry[T]) -> None:
        """End a lease."""
        if self.is_closed:
            self.discard(entry, ResourceEnd.CLOSED)
        elif entry.uses >= self._max_uses:
            self.discard(entry, ResourceEnd.WORN)
        elif self.can_reset:
            entry.holder = None
            self._start(self._recycle, entry)
        else:
            self._let_idle(entry)

    def _let_idle(self, entry: Entry[T]) -> None:
        entry.holder = None
        entry.idle_since = now = self.clock()
        self._idle.append(entry)
        wakes_at = self._wakes_at
        if now + self._attention < wakes_at or entry.expires_at < wakes_at:
            self._changed.set()
        lane = self.lane
        lane.free += 1
        if not lane.is_open:
            lane.settle()

    async def _recycle(self, entry: Entry[T]) -> None:
        is_clean = False
        cause = ResourceEnd.INTERRUPTED
        try:
            is_clean = await self._call(self._calls.reset, entry)
            cause = ResourceEnd.CLOSED if is_clean else ResourceEnd.RESET_FAILED
        finally:
            self.counts.reset_failures += not is_clean
            if is_clean and not self.is_closed:
                self._let_idle(entry)
            else:
                self.discard(entry, cause)

    # ---- the end of a resource ----

    def discard(self, entry: Entry[T], cause: ResourceEnd) -> _Destruction:
        """Begin to destroy an entry that has a slot; the slot goes to the next when it is over."""
        entry.holder = None
        destruction = self._destructions[entry] = _Destruction(cause)
        self._start(self._destroy, entry, destruction)
        return destruction

    async def invalidate(self, resource: T) -> None:
        """As ``ResourcePool.invalidate``."""
        entry = self.entries.get(id(resource))
        if entry is None:
            raise RuntimeError(
                f"{resource!r} is not in the pool {self.name!r}; invalidate what it has lent, once"
            )
        if entry.holder is not None:
            entry.holder._lose(ResourceEnd.INVALIDATED)  # noqa: SLF001 - the lease
        # An idle one, or one that is being validated or reset, is found to be outdated in a moment.
        entry.expires_at = float("-inf")
        self._changed.set()
        destruction = self._destructions.get(entry)
        if destruction is None:
            await checkpoint()
        else:
            await destruction.over.wait()

    async def _destroy(self, entry: Entry[T], destruction: _Destruction) -> None:
        is_clean = False
        try:
            is_clean = await self._call(self._calls.destroy, entry)
        finally:
            self._destructions.pop(entry, None)
            del self.entries[id(entry.resource)]
            self.counts.leased += entry.uses
            self.counts.destroyed += 1
            self.counts.destroy_failures += not is_clean
            destruction.over.set()
            if not destruction.has_heir:
                self.lane.give_back(1)
            self._look_empty()
            self._changed.set()
            age = self.clock() - entry.born
            self._tell(
                ResourceDestroyed(
                    pool=self.name,
                    cause=destruction.cause,
                    uses=entry.uses,
                    age=age,
                    is_clean=is_clean,
                )
            )

    async def _call(
        self, function: Callable[[T], Awaitable[object]] | None, entry: Entry[T]
    ) -> bool:
        """Call what must not be cut off, for a bounded time; tell whether it worked."""
        if function is None:
            return True
        with anyio.move_on_after(self._calls.timeout, shield=True):
            try:
                await function(entry.resource)
            except Exception:
                _logger.warning("pool %r: %r failed", self.name, function, exc_info=True)
                return False
            return True
        _logger.warning("pool %r: %r took too long and was cancelled", self.name, function)
        return False

    # ---- in the background ----

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        if self._tasks is None:
            raise AssertionError("unreachable")  # nothing is lent before `open`
        # In the pool's context, not in that of whoever released: a variable of a borrower's says
        # nothing about the next one. A copy, since an eager task may come here again at once.
        name = f"orchestra pool {self.name}"
        start = partial(self._tasks.start_soon, function, *args, name=name)
        self._context.copy().run(start)

    async def _tend(self) -> None:
        """Destroy what is old, check what idles, create what is missing; until cancelled."""
        while True:
            self._changed = anyio.Event()
            self._wakes_at = self._do_chores()
            with CancelScope(deadline=self._wakes_at):
                await self._changed.wait()

    def _do_chores(self) -> float:
        """Begin what is to be done now; return when there will be more."""
        if self.is_closed:
            return _NEVER
        chores = self.plan.chores(self.clock(), live=self.live, coming=self._coming)
        for entries, cause in (
            (chores.outdated, ResourceEnd.OUTDATED),
            (chores.surplus, ResourceEnd.SURPLUS),
            (chores.unchecked, None),
        ):
            for entry in entries:
                if not self._take_slot():
                    return _NEVER  # who was granted one takes the entry in a moment
                self.plan.idle.remove(entry)
                if cause is not None:
                    self.discard(entry, cause)
                else:
                    self._coming += 1
                    self._start(self._check, entry)
        for _ in range(chores.missing):
            if not self._take_slot():
                return _NEVER
            self._coming += 1
            self._start(self._add)
        return chores.next_at

    def _take_slot(self) -> bool:
        if not self.lane.can_take(1, Priority.LOW):
            return False
        self.lane.take(1, Priority.LOW)
        return True

    async def _check(self, entry: Entry[T]) -> None:
        """Validate an entry that idles."""
        try:
            if not await self._is_fit(entry):
                self.discard(entry, ResourceEnd.UNFIT)
            elif self.is_closed:
                self.discard(entry, ResourceEnd.CLOSED)
            else:
                self.plan.put_back(entry, self.clock())
                self.lane.give_back(1)
        finally:
            self._coming -= 1
            self._changed.set()

    async def _add(self) -> None:
        """Create an entry that is to idle."""
        try:
            with anyio.fail_after(self._calls.timeout):
                entry = await self._prepare(None)
        except Exception:
            if not self.is_closed:
                pause = self.plan.failed(self.clock())
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

    def keeper(self) -> Keeper:
        """Return who ends overdue leases."""
        if self._keeper is None:
            self._keeper = Keeper(None)
            self._start(self._keeper.run)
        return self._keeper

    def _look_short(self) -> None:
        if self._has_minimum and self.plan.is_short(self.live):
            self._changed.set()

    # ---- closing ----

    def close(self) -> None:
        """Refuse who waits and who comes, and begin to destroy what idles."""
        if not self.is_closed:
            self.is_closed = True
            self.lane.refuse_all()
            for scope in self._preparations:
                scope.cancel()
            while (entry := self.plan.take()) is not None:
                self.lane.free -= 1  # the end of it gives back a slot, which it does not have
                self.discard(entry, ResourceEnd.CLOSED)
        self._look_empty()

    async def finish(self, grace_period: float) -> None:
        """Close, wait for who still holds something, then take it away; bounded in time."""
        self.close()
        with anyio.move_on_after(grace_period):
            await self.is_empty.wait()
        for entry in list(self.entries.values()):
            if entry.holder is not None:
                _logger.warning(
                    "pool %r is left and destroys %r, which %r still holds",
                    self.name,
                    entry.resource,
                    entry.holder,
                )
                entry.holder._lose(ResourceEnd.KEPT)  # noqa: SLF001 - the lease
        with anyio.move_on_after(2 * self._calls.timeout):  # a reset and a destruction
            await self.is_empty.wait()

    def check_open(self) -> None:
        """Raise unless resources are lent."""
        if self.is_closed:
            raise self._closed_error()
        if self._tasks is None:
            raise RuntimeError(
                f"the pool {self.name!r} has no tasks to work with; enter it with 'async with'"
            )

    def _closed_error(self) -> CapacityError:
        return CapacityError(f"the pool {self.name!r} is closed; lease inside its own block")

    def _look_empty(self) -> None:
        if self.is_closed and not self.live:
            self.is_empty.set()

    def _tell(self, event: ResourceCreated | ResourceDestroyed) -> None:
        self._teller.put(event)
        self._teller.deliver()
