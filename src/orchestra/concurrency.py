"""How many may work at once, by key."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, final

import anyio
from anyio import AsyncContextManagerMixin
from attrs import frozen

from orchestra._admission import Door, Tokens
from orchestra._core.checks import exception_types, finite
from orchestra._core.gates import RateLimit
from orchestra._core.limits import AIMD, Fixed, Limit, LimitRule, LimitState, Streak
from orchestra._core.waiters import Priority
from orchestra._lane import ConcurrencyToken, Gate, Lane
from orchestra._lease import Admission, Keeper, Lease
from orchestra.bulkhead import Bulkhead
from orchestra.pressure import MemoryPressure

if TYPE_CHECKING:
    from orchestra.breaker import CircuitBreaker

__all__ = (
    "AIMD",
    "Bulkhead",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "Fixed",
    "Limit",
    "LimitRule",
    "LimitState",
    "Priority",
    "RateLimit",
    "Streak",
)


@frozen(kw_only=True)
class ConcurrencyStatistics:
    """One key's state.

    Attributes:
        limit: How many slots may be in use at once now.
        in_use: How many are; more than the limit after it was lowered, until they are released.
        tasks_waiting: How many tasks wait, for a slot, a cooldown or a rate.
        dropped: How many requests the other side refused for overload.
        cooldown: For how many seconds nobody starts; 0.0 when there is no cooldown.
    """

    limit: int
    in_use: int
    tasks_waiting: int
    dropped: int = 0
    cooldown: float = 0.0


@final
class ConcurrencyController(AsyncContextManagerMixin):
    """A keyed set of concurrency limiters (a bulkhead for each key) with priorities.

    ::

        controller = ConcurrencyController({"commander": 1, "worker": Limit(10, maximum=50)})
        async with controller.lease("worker", priority=Priority.HIGH) as token:
            ...

    It bounds how many work *at once*; how many start per minute is bounded by ``rates``.

    The limit of a key is looked up in ``limits``, then in ``models``; then the part before its
    first ``/`` in ``providers``, then the key in ``roles``; else it is ``default``. A limit from
    ``providers`` is one limit for all keys of the provider, every other limit is the key's own. A
    cooldown (see `ConcurrencyToken.dropped`) holds for all keys of a provider.

    **Order.** First come, first served within a priority; `Priority` states how long the others
    may have to wait. Nobody overtakes: who comes while others wait queues up behind them. Slots
    are handed over before their new owner wakes up, and those of a task that was cancelled in
    between go to the next.

    **Checkpoints.** Acquiring always is one, also when a slot is free, unless the controller was
    made with ``fast_acquire``. Releasing never is.

    A controller belongs to one event loop at a time and is not thread-safe. It works without being
    entered; as ``async with controller:`` it runs one task of its own that ends overdue leases and
    watches memory. On leaving, those who wait are refused with `CapacityError`, and so is every
    later request; leases of the body should have ended by then.

    Args:
        limits: Limits by key, `Limit` or an int, which means a fixed one.
        models: Limits by model, such as ``"anthropic/claude-opus"``.
        providers: Limits by provider, such as ``"anthropic"``.
        roles: Limits by role, such as ``"worker"``.
        default: The limit of each other key; None: other keys are an error.
        rates: Rate limits by provider.
        pressure: When memory is short, requests of LOW priority are refused with `PressureError`.
        lifetime: How many seconds a lease may last, when it does not say itself; None: for ever.
            Leases with a lifetime need an entered controller.
        dropped_on: Exceptions that leave a lease as "refused for overload"; their ``retry_after``,
            if they have one, starts a cooldown.
        fast_acquire: Do not yield to other tasks (and take in no cancellation) when a slot is free.
        trace_leaks: Report tokens that are never released; None: in Python's development mode.
        rng: Numbers from 0.0 to 1.0, for the jitter after a cooldown.

    Raises:
        TypeError: A limit, a rate or an exception type is something else.
        ValueError: A limit is below 1, or ``lifetime`` is not above 0.
    """

    def __init__(
        self,
        limits: Mapping[str, int | Limit] | None = None,
        *,
        models: Mapping[str, int | Limit] | None = None,
        providers: Mapping[str, int | Limit] | None = None,
        roles: Mapping[str, int | Limit] | None = None,
        default: int | Limit | None = 10,
        rates: Mapping[str, RateLimit] | None = None,
        pressure: MemoryPressure | None = None,
        lifetime: float | None = None,
        dropped_on: type[Exception] | tuple[type[Exception], ...] = (),
        fast_acquire: bool = False,
        trace_leaks: bool | None = None,
        rng: Callable[[], float] = random,
    ) -> None:
        self._limits = _checked_limits("limits", limits)
        self._models = _checked_limits("models", models)
        self._providers = _checked_limits("providers", providers)
        self._roles = _checked_limits("roles", roles)
        self._default = None if default is None else _checked_limit("default", default)
        self._rates = dict(rates or {})
        for provider, rate in self._rates.items():
            if not isinstance(rate, RateLimit):
                raise TypeError(f"rates[{provider!r}] must be a RateLimit, not {rate!r}")
        self._lifetime = _checked_lifetime(lifetime)
        self._dropped_on = exception_types("dropped_on", dropped_on) if dropped_on != () else ()
        if pressure is not None and not isinstance(pressure, MemoryPressure):
            raise TypeError(f"pressure must be a MemoryPressure or None, not {pressure!r}")
        self._pressure = pressure
        self._door = Door(pressure, rng, is_fast=fast_acquire)
        self._fast_acquire = fast_acquire
        self._is_traced = sys.flags.dev_mode if trace_leaks is None else trace_leaks
        self._lanes: dict[str, Lane] = {}
        self._shared: dict[str, Lane] = {}
        self._gates: dict[str, Gate] = {}
        self._keeper: Keeper | None = None

    # ---- acquiring ----

    def acquire(
        self, key: str, *, priority: Priority = Priority.NORMAL, model_tokens: int = 0
    ) -> Coroutine[Any, Any, ConcurrencyToken]:
        """Wait for a slot.

        Args:
            key: Whose slots.
            priority: How urgent it is.
            model_tokens: How many model tokens the work is expected to cost, for a rate limit.

        Returns:
            A coroutine, to be awaited, that gives the token; the caller must end it.

        Raises:
            CapacityError: Too many wait already, or the controller is closed.
            PressureError: The priority is LOW and memory is short.
            ValueError: The key has no limit.
        """
        try:
            lane = self._lanes[key]
        except KeyError:
            lane = self._lane(key)
        return lane.acquire(priority, model_tokens)

    async def acquire_many(
        self,
        key: str,
        count: int,
        *,
        priority: Priority = Priority.NORMAL,
        model_tokens: int = 0,
    ) -> ConcurrencyToken:
        """Wait for several slots, all or none; nothing is held while waiting.

        While it is next nobody behind may pass, however little that one wants.

        Args:
            key: Whose slots.
            count: How many; at least 1, at most the key's highest limit.
            priority: How urgent it is.
            model_tokens: How many model tokens the work is expected to cost, for a rate limit.

        Returns:
            One token for all of them.

        Raises:
            CapacityError: The limit is below ``count`` now, too many wait already, or the
                controller is closed.
            PressureError: The priority is LOW and memory is short.
            ValueError: ``count`` could never be granted, or the key has no limit.
        """
        lane = self._lane(key)
        lane.check(count)
        tokens, _ = await self._door.admit({lane: count}, priority, model_tokens)
        return tokens[0]

    def acquire_nowait(
        self,
        key: str,
        *,
        count: int = 1,
        priority: Priority = Priority.NORMAL,
        model_tokens: int = 0,
    ) -> ConcurrencyToken:
        """Take slots that are free and that nobody waits for.

        Args:
            key: Whose slots.
            count: How many, all or none.
            priority: How urgent it is.
            model_tokens: How many model tokens the work is expected to cost, for a rate limit.

        Returns:
            One token for all of them; the caller must end it.

        Raises:
            anyio.WouldBlock: It would have to wait.
            CapacityError: The limit is below ``count`` now, or the controller is closed.
            PressureError: The priority is LOW and memory is short.
            ValueError: ``count`` could never be granted, or the key has no limit.
        """
        try:
            lane = self._lanes[key]
        except KeyError:
            lane = self._lane(key)
        return lane.acquire_nowait(count, priority, model_tokens)

    def lease(
        self,
        key: str,
        *,
        priority: Priority = Priority.NORMAL,
        model_tokens: int = 0,
        lifetime: float | None = None,
    ) -> AbstractAsyncContextManager[ConcurrencyToken]:
        """Hold a slot for the length of a block.

        A block that ends normally ends the token as `ConcurrencyToken.success`; one that ends
        with an exception of ``dropped_on`` as `ConcurrencyToken.dropped`, with any other or a
        cancellation as `ConcurrencyToken.ignore`. The block may end it earlier.

        Entering is a checkpoint like `acquire`; leaving is none.

        Args:
            key: Whose slots.
            priority: How urgent it is.
            model_tokens: How many model tokens the work is expected to cost, for a rate limit.
            lifetime: Seconds after which the *holder* is cancelled; the slot is free when it has
                let go. None: as the controller says.

        Raises:
            CapacityError: As `acquire`.
            PressureError: As `acquire`.
            RuntimeError: A lifetime needs an entered controller, and this one is not.
            TimeoutError: On leaving, when the holder was cancelled because its time was up.
            ValueError: The key has no limit, or ``lifetime`` is not above 0.
        """
        acquire = partial(self.acquire, key, priority=priority, model_tokens=model_tokens)
        lifetime = self._lifetime if lifetime is None else _checked_lifetime(lifetime)
        if lifetime is None:
            return Lease(acquire, self._dropped_on, None, 0.0)
        if self._keeper is None:
            raise RuntimeError(
                "a lease with a lifetime needs the controller's own task; "
                "enter the controller with 'async with' first"
            )
        return Lease(acquire, self._dropped_on, self._keeper, lifetime)

    def admit(
        self,
        *keys: str,
        breaker: CircuitBreaker | None = None,
        priority: Priority = Priority.NORMAL,
        model_tokens: int = 0,
    ) -> AbstractAsyncContextManager[Tokens]:
        """Hold a slot of each key, and a breaker's permit, for the length of a block: all or none.

        Nothing is held while anything is waited for, so two admissions cannot block each other.
        It waits in the queue of each key and is served when it is next in one of them and all
        slots are free at once; until then nobody behind it passes where it is next. A breaker that
        is open rejects at once, also after the wait.

        The block's outcome goes to every token as in `lease`, and to the breaker. Entering is a
        checkpoint like `acquire`; leaving is none.

        Args:
            keys: Whose slots; a key that is named twice gives two.
            breaker: Whose permit.
            priority: How urgent it is.
            model_tokens: How many model tokens the work is expected to cost, for the rate limits.

        Raises:
            CapacityError: As `acquire_many`.
            CircuitOpenError: The breaker is open.
            PressureError: As `acquire`.
            TypeError: No key is given.
            ValueError: A key has no limit, or is named more often than its limit allows.
        """
        if not keys:
            raise TypeError("keys must not be empty")
        wants = dict(Counter(map(self._lane, keys)))
        for lane, count in wants.items():
            lane.check(count)
        return Admission(
            partial(self._door.admit, wants, priority, model_tokens, breaker), self._dropped_on
        )

    def at(self, key: str, *, priority: Priority = Priority.NORMAL) -> Bulkhead:
        """Return one key's slots as an object, to be passed on or used as a policy.

        Args:
            key: The key.
            priority: How urgent its calls are.

        Raises:
            ValueError: The key has no limit.
        """
        return Bulkhead(self, self._lane(key), key, priority)

    # ---- configuration and state ----

    def set_limit(self, key: str, limit: int | Limit) -> None:
        """Change the limit that counts for a key, from now on.

        A higher limit wakes the next waiters at once. A lower one revokes nothing: no slot is
        granted until enough were released.

        Args:
            key: The key; if its provider's limit counts, that one is changed.
            limit: The new limit; an int means a fixed one.

        Raises:
            TypeError: It is neither an int nor a `Limit`.
            ValueError: It is below 1, or the key has no limit that could be changed.
        """
        self._lane(key).change(_checked_limit("limit", limit))

    def statistics(self, key: str) -> ConcurrencyStatistics:
        """Return the state of one key.

        Args:
            key: The key; if its provider's limit counts, the state of that one.

        Raises:
            ValueError: The key has no limit.
        """
        lane = self._lane(key)
        return ConcurrencyStatistics(
            limit=lane.limit,
            in_use=lane.in_use,
            tasks_waiting=lane.order.size + lane.delayed,
            dropped=lane.dropped,
            cooldown=lane.gate.remaining(),
        )

    def __repr__(self) -> str:
        lanes = [*self._lanes.values(), *self._shared.values()]
        used = ", ".join(f"{lane.key}={lane.in_use}/{lane.limit}" for lane in dict.fromkeys(lanes))
        return f"<ConcurrencyController {used or 'unused'}>"

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ConcurrencyController]:
        self._keeper = Keeper(self._pressure)
        self._door.is_kept = True
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keeper.run, name="orchestra controller")
                try:
                    yield self
                except Exception as exc:  # noqa: BLE001 - raised below, not inside a group
                    failure = exc
                tasks.cancel_scope.cancel()
        finally:
            self._keeper = None
            self._door.is_kept = False
            self._close()
        if failure is not None:
            raise failure

    def _close(self) -> None:
        self._door.closing.set()
        for gate in self._gates.values():
            for lane in gate.lanes:
                lane.guard()
                lane.refuse_all()
            if gate.line is not None:
                gate.line.refuse_all()

    # ---- the inside ----

    def _lane(self, key: str) -> Lane:
        lane = self._lanes.get(key)
        if lane is not None:
            return lane
        if not isinstance(key, str):
            raise TypeError(f"key must be a str, not {key!r}")
        provider = key.partition("/")[0]
        limit = self._limits.get(key) or self._models.get(key)
        if limit is None and provider in self._providers:
            lane = self._shared.get(provider)
            if lane is None:
                lane = self._new_lane(provider, provider, self._providers[provider])
                self._shared[provider] = lane
        else:
            limit = limit or self._roles.get(key) or self._default
            if limit is None:
                raise ValueError(f"key {key!r} has no limit and there is no default; name it")
            lane = self._new_lane(key, provider, limit)
        self._lanes[key] = lane
        return lane

    def _new_lane(self, name: str, provider: str, limit: Limit) -> Lane:
        gate = self._gates.get(provider)
        if gate is None:
            gate = self._gates[provider] = Gate(provider, self._door, self._rates.get(provider))
        lane = Lane(
            name,
            limit,
            gate,
            owner=self._door,
            is_fast=self._fast_acquire,
            is_traced=self._is_traced,
        )
        lane.guard(is_guarded=self._door.needs_guard(gate))
        return lane


def _checked_limits(field: str, limits: Mapping[str, int | Limit] | None) -> dict[str, Limit]:
    return {
        key: _checked_limit(f"{field}[{key!r}]", limit) for key, limit in (limits or {}).items()
    }


def _checked_limit(field: str, limit: object) -> Limit:
    if isinstance(limit, Limit):
        return limit
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"{field} must be an int or a Limit, not {limit!r}")
    if limit < 1:
        raise ValueError(f"{field} must be at least 1, not {limit!r}")
    return Limit(limit, rule=Fixed())


def _checked_lifetime(lifetime: float | None) -> float | None:
    if lifetime is not None and finite("lifetime", lifetime) <= 0:
        raise ValueError(f"lifetime must be above 0 seconds, not {lifetime!r}")
    return lifetime


# Users import these from here or from `orchestra`; where they are written is nobody's business.
for _public in (
    AIMD,
    ConcurrencyToken,
    Fixed,
    Limit,
    LimitRule,
    LimitState,
    Priority,
    RateLimit,
    Streak,
):
    _public.__module__ = __name__
