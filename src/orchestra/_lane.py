"""One limiter: its slots, its waiters, and the token that stands for slots in use."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Final, Literal, Protocol, TypeAlias, final

import anyio
from anyio import WouldBlock

from orchestra._core.gates import Cooldown, RateLimit, RateState
from orchestra._core.limits import Fixed, Limit
from orchestra._core.waiters import Priority
from orchestra._waiting import WaitQueue, checkpoint, park
from orchestra.errors import CapacityError

__all__ = ("ConcurrencyToken", "Gate", "Lane", "Owner", "closed_error", "wait_for_all")

_new = object.__new__

Need: TypeAlias = "Literal[1] | Mapping[Lane, int]"
"""What a waiter wants: one slot of the limiter in whose queue it is, or these slots together."""


class Owner(Protocol):
    """What a guarded limiter needs from its controller."""

    def refuse_if_unwelcome(self, lane: Lane, priority: Priority) -> None:
        """Raise when a request is not even allowed to wait."""
        ...

    async def admit(
        self, wants: Mapping[Lane, int], priority: Priority, model_tokens: int
    ) -> tuple[tuple[ConcurrencyToken, ...], object]:
        """Get slots behind a gate."""
        ...


@final
class Lane:
    """The slots of one key.

    The count changes only in synchronous code, so no lock is needed; and the slots of a waiter are
    counted before it wakes up, so there is never a free slot that somebody is about to take.

    Args:
        key: Whose slots they are.
        limit: How many.
        gate: What it shares with the other keys of its provider.
        owner: Knows what a guarded limiter has to look at.
        is_fast: Whether taking a free slot is no checkpoint.
        is_traced: Whether a token that is never released is reported.

    Attributes:
        limit: How many may be in use now.
        free: How many of them are not; negative after the limit was lowered.
        is_open: Whether a newcomer may take a free slot as it is: nothing is guarded or traced and
            nobody waits.
        epoch: The limit's congestion epoch.
        delayed: How many requests wait for the gate.
        dropped: How many requests ended as dropped.
    """

    __slots__ = (
        "_is_fast",
        "_is_guarded",
        "_is_traced",
        "_limit",
        "_most",
        "_orders",
        "_owner",
        "_queue",
        "_state",
        "delayed",
        "dropped",
        "epoch",
        "free",
        "gate",
        "is_open",
        "key",
        "limit",
        "order",
    )

    def __init__(
        self,
        key: str,
        limit: Limit,
        gate: Gate,
        *,
        owner: Owner,
        is_fast: bool = True,
        is_traced: bool = False,
    ) -> None:
        self.key: Final = key
        self.gate: Final = gate
        self._owner: Final = owner
        self._is_fast: Final = is_fast
        self._is_traced: Final = is_traced
        self._is_guarded = False
        self._queue: Final[WaitQueue[Need]] = WaitQueue()
        self.order: Final = self._queue.order
        self._orders: Final = (self.order,)
        self.is_open: bool = not is_traced
        self.delayed: int = 0
        self.dropped: int = 0
        self.epoch: int = 0
        self.limit: int = 0
        self.free: int = 0
        self._configure(limit)
        gate.lanes.append(self)

    def _configure(self, limit: Limit) -> None:
        self._limit = limit
        self._most = limit.max_waiting
        # Most limits never move; then an outcome costs nothing but a look.
        self._state = None if isinstance(limit.rule, Fixed) else limit.rule.start(limit)
        self._move(limit.initial)

    def _move(self, limit: int) -> None:
        self.free += limit - self.limit
        self.limit = limit

    @property
    def in_use(self) -> int:
        """How many slots are in use."""
        return self.limit - self.free

    def guard(self, *, is_guarded: bool = True) -> None:
        """Say whether a request has to look at more than the count."""
        self._is_guarded = is_guarded
        self._set_open()

    def _set_open(self) -> None:
        self.is_open = not (self._is_guarded or self._is_traced or self.order.size)

    # ---- taking ----

    async def acquire(self, priority: Priority, model_tokens: int) -> ConcurrencyToken:
        """Wait for a slot; see ``ConcurrencyController.acquire``."""
        if self.is_open and self.free > 0:
            self.free -= 1
            token = _new(ConcurrencyToken)
            token._lane = self  # noqa: SLF001 - its __init__, which would cost a quarter of it all
            token._epoch = self.epoch  # noqa: SLF001
            token.count = 1
        elif self._is_guarded:
            return await self._acquire_guarded(priority, model_tokens)
        elif self.free > 0 and self.can_take(1, priority):
            self.take(1, priority)
            token = self.token(1)
        else:
            if self._most is not None:
                self.check_room()
            self.is_open = False
            if not await park(self._orders, 1, priority, self.give_back):
                raise closed_error(self.key)
            if self._is_guarded:  # since a moment ago: it must not start during a cooldown
                self.give_back(1)
                return await self._acquire_guarded(priority, model_tokens)
            return self.token(1)
        if not self._is_fast:
            try:
                await checkpoint()
            except BaseException:
                token.release()
                raise
        return token

    def acquire_nowait(
        self, count: int = 1, priority: Priority = Priority.NORMAL, model_tokens: int = 0
    ) -> ConcurrencyToken:
        """Take what is free; see ``ConcurrencyController.acquire_nowait``."""
        if self.is_open and self.free >= count > 0:
            self.free -= count
            token = _new(ConcurrencyToken)
            token._lane = self  # noqa: SLF001 - its __init__, as above
            token._epoch = self.epoch  # noqa: SLF001
            token.count = count
            return token
        self.check(count)
        if self._is_guarded:
            self._owner.refuse_if_unwelcome(self, priority)
            if self.gate.is_busy(model_tokens):
                raise WouldBlock
        if not self.can_take(count, priority):
            raise WouldBlock
        self.take(count, priority)
        self.gate.take(model_tokens)
        return self.token(count)

    async def _acquire_guarded(self, priority: Priority, model_tokens: int) -> ConcurrencyToken:
        tokens, _ = await self._owner.admit({self: 1}, priority, model_tokens)
        return tokens[0]

    def token(self, count: int) -> ConcurrencyToken:
        """Return a token for slots that are counted already."""
        token = _new(ConcurrencyToken)
        token._lane = self  # noqa: SLF001 - its __init__
        token._epoch = self.epoch  # noqa: SLF001
        token.count = count
        if self._is_traced:
            token._trace = _Trace(self.key)  # noqa: SLF001
        return token

    def check(self, count: int) -> None:
        """Refuse what could never be granted.

        Raises:
            ValueError: ``count`` is below 1 or above the highest limit.
            CapacityError: ``count`` is above the limit of now.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        if count > self._limit.ceiling:
            raise ValueError(
                f"count must be at most {self._limit.ceiling}, the highest limit of "
                f"{self.key!r}, not {count!r}"
            )
        if count > self.limit:
            raise CapacityError(
                f"{count} slots of {self.key!r} were asked for and its limit is {self.limit} now; "
                f"ask for fewer or try later"
            )

    def can_take(self, count: int, priority: Priority) -> bool:
        """Whether slots are free and nobody is before us."""
        if self.free < count:
            return False
        return not self.order.size or self._queue.lets_pass(priority, 1)

    def take(self, count: int, priority: Priority) -> None:
        """Take slots of which `can_take` is true."""
        self.free -= count
        if self.order.size:
            self._queue.let_pass(priority, 1)

    def check_room(self) -> None:
        """Refuse one more waiter where there are enough.

        Raises:
            CapacityError: As many as may wait do.
        """
        if self._most is not None and self.order.size >= self._most:
            raise CapacityError(
                f"{self._most} tasks wait for {self.key!r} already, its max_waiting; try later"
            )

    async def wait(self, priority: Priority) -> None:
        """Park until one slot is ours. Always a checkpoint.

        Raises:
            CapacityError: Too many wait already, or the controller was closed.
        """
        self.check_room()
        self.is_open = False
        if not await park(self._orders, 1, priority, self.give_back):
            raise closed_error(self.key)

    # ---- giving back ----

    def give_back(self, count: int) -> None:
        """Free slots, and hand them to whom is next.

        Args:
            count: How many; from `park`, whether the one slot had been granted.
        """
        self.free += count
        if not self.is_open:
            self.settle()

    def settle(self, ended: ConcurrencyToken | None = None) -> None:
        """Hand free slots to whom is next.

        Args:
            ended: A token that ended a moment ago, which freed them.
        """
        if self._is_traced and ended is not None:
            ended._trace.is_due = False  # noqa: SLF001 - a token is half of its limiter
        queue = self._queue
        while self.free > 0 and (need := queue.next()) is not None:
            if isinstance(need, int):
                self.free -= 1
                queue.wake_next()
            elif not self._grant_all(need):
                return
        if not self.order.size:
            self._set_open()

    def _grant_all(self, needs: Mapping[Lane, int]) -> bool:
        """Serve the next waiter, which wants slots of several limiters, if all are free."""
        if not all(lane.has(count) for lane, count in needs.items()):
            return False  # nobody behind it may pass: else it might never find all free at once
        for lane, count in needs.items():
            lane.free -= count
        waiter = self._queue.wake_next()
        for lane in needs:
            lane.order.discard(waiter)
        for lane in needs:
            if lane is not self:
                lane.give_back(0)  # somebody else is its next one now
        return True

    def has(self, count: int) -> bool:
        """Whether there are slots enough for the next waiter."""
        # A request above a lowered limit goes alone: else it would block all behind it for ever.
        return self.free >= count or (self.free == self.limit < count)

    def refuse_all(self) -> None:
        """Turn every waiter away."""
        while (need := self._queue.next()) is not None:
            waiter = self._queue.wake_next(granted=False)
            for lane in () if isinstance(need, int) else need:
                lane.order.discard(waiter)

    # ---- the limit ----

    def change(self, limit: Limit) -> None:
        """Replace the limit; wakes whom a higher one lets in, revokes nothing."""
        self._configure(limit)
        # Whoever began under the old limit says nothing about the new one.
        self.epoch += 1
        if self._state is not None:
            self._state.epoch = self.epoch
        self.settle()

    def succeeded(self, epoch: int) -> None:
        """Tell the rule about a success; to be called before the slots are given back."""
        state = self._state
        if state is not None:
            state.succeeded(epoch=epoch, in_use=self.in_use)
            self._move(state.limit)

    def refused(self, epoch: int) -> None:
        """Tell the rule about an overload; to be called before the slots are given back."""
        self.dropped += 1
        state = self._state
        if state is not None:
            state.dropped(epoch=epoch)
            self._move(state.limit)
            self.epoch = state.epoch


@final
class Gate:
    """What the keys of one provider share: a cooldown, and a rate with a line of its own.

    Args:
        provider: The provider's name.
        owner: What the limiters behind it belong to.
        rate: Its rate limit, if it has one.

    Attributes:
        lanes: The limiters behind it.
        line: Those who wait for the rate; it has one slot, so only the first watches the clock.
    """

    __slots__ = ("_cooldown", "_rate", "lanes", "line")

    def __init__(self, provider: str, owner: Owner, rate: RateLimit | None = None) -> None:
        self.lanes: Final[list[Lane]] = []
        self.line: Lane | None = None
        self._cooldown: Final = Cooldown()
        self._rate: Final = None if rate is None else RateState(rate)
        if rate is not None:
            line_gate = Gate(provider, owner)
            self.line = Lane(provider, Limit(1, rule=Fixed()), line_gate, owner=owner)

    def pause(self, retry_after: float) -> None:
        """Let nobody start for some seconds."""
        self._cooldown.extend(anyio.current_time(), retry_after)
        for lane in self.lanes:
            lane.guard()

    def delay(self, model_tokens: int, draw: float) -> float:
        """Return how many seconds a request has to wait, 0.0 when it may start."""
        if self.is_quiet():
            return 0.0
        now = anyio.current_time()
        delay = self._cooldown.delay(now, draw)
        if self._rate is not None:
            delay = max(delay, self._rate.delay(now, model_tokens))
        return delay

    def is_busy(self, model_tokens: int) -> bool:
        """Whether a request that must not wait has come at a bad time."""
        is_crowded = self.line is not None and self.line.in_use > 0
        return is_crowded or self.delay(model_tokens, 1.0) > 0

    def take(self, model_tokens: int) -> None:
        """Start a request; to be called when there is no delay."""
        if self._rate is not None:
            self._rate.take(model_tokens)

    def remaining(self) -> float:
        """Return how many seconds the cooldown still lasts."""
        return 0.0 if self._cooldown.is_over else self._cooldown.delay(anyio.current_time())

    def is_quiet(self) -> bool:
        """Whether there is neither a rate nor a cooldown, its return included."""
        if self._rate is not None:
            return False
        cooldown = self._cooldown
        if not cooldown.is_over and not cooldown.delay(anyio.current_time(), 1.0):
            cooldown.end()
        return cooldown.is_over


async def wait_for_all(needs: Mapping[Lane, int], priority: Priority) -> None:
    """Park until slots of several limiters are ours, all at once. Always a checkpoint.

    It waits in all their queues and holds nothing; it is served when it is next in one of them and
    all slots are free. Until then nobody behind it passes where it is next.

    Raises:
        CapacityError: Too many wait already, or the controller was closed.
    """
    for lane in needs:
        lane.check_room()
    for lane in needs:
        lane.is_open = False

    def returned(was_granted: bool) -> None:  # noqa: FBT001 - called by `park` alone
        for lane, count in needs.items():
            lane.give_back(count if was_granted else 0)

    if not await park([lane.order for lane in needs], needs, priority, returned):
        raise closed_error(next(iter(needs)).key)


def closed_error(key: str) -> CapacityError:
    """Return what a request meets at a closed controller."""
    return CapacityError(f"the controller of {key!r} is closed; use it inside its own block")


@final
class ConcurrencyToken:
    """The right to do one bounded piece of work; comes from `ConcurrencyController` only.

    It ends once, by any task: with `success`, `ignore`, `dropped` or `release`, which all give the
    slots back; whatever comes after the first does nothing. The outcome moves an adaptive limit.

    A token that is garbage-collected before its end emits a ``ResourceWarning`` with the place
    where it was taken, if its controller traces leaks. It keeps its slots: nobody knows whether
    the work still runs.

    Attributes:
        count: How many slots it stands for.
    """

    __slots__ = ("_epoch", "_lane", "_trace", "count")

    # Made by the limiter, field by field: a call of __init__ would cost a quarter of it all.
    _lane: Lane
    _epoch: int | None  # in which epoch it began; None once it has ended
    _trace: _Trace
    count: int

    def __init__(self) -> None:
        raise TypeError("a ConcurrencyToken comes from a ConcurrencyController: acquire one")

    @property
    def key(self) -> str:
        """The key whose slots they are, or its provider if the limit is the provider's."""
        return self._lane.key

    @property
    def is_released(self) -> bool:
        """Whether the slots have been given back."""
        return self._epoch is None

    def release(self) -> None:
        """Give the slots back without an outcome; the same as `ignore`."""
        if self._epoch is not None:
            self._epoch = None
            lane = self._lane
            lane.free += self.count
            if not lane.is_open:
                lane.settle(self)

    def ignore(self) -> None:
        """Give the slots back; how the work ended says nothing about the limit."""
        self.release()

    def success(self) -> None:
        """Give the slots back; the other side answered in time."""
        if self._epoch is not None:
            self._lane.succeeded(self._epoch)
            self.release()

    def dropped(self, *, retry_after: float | None = None) -> None:
        """Give the slots back; the other side refused the work for overload.

        Args:
            retry_after: For how many seconds nobody shall start work of the same provider; the
                longest of several wishes wins.

        Raises:
            ValueError: ``retry_after`` is negative or not finite.
        """
        if retry_after is not None and not 0 <= retry_after < float("inf"):
            raise ValueError(f"retry_after must be at least 0 and finite, not {retry_after!r}")
        if self._epoch is not None:
            self._lane.refused(self._epoch)
            if retry_after:
                self._lane.gate.pause(retry_after)
            self.release()

    def __repr__(self) -> str:
        state = "released" if self.is_released else "held"
        slots = "" if self.count == 1 else f" {self.count} slots"
        return f"<ConcurrencyToken {self.key!r}{slots} {state}>"


class _Trace:
    """Where a token was taken; dies with it, and then tells whether somebody forgot it."""

    __slots__ = ("_key", "_site", "is_due")

    def __init__(self, key: str) -> None:
        self._key = key
        self.is_due = True
        frame = sys._getframe(1)  # noqa: SLF001 - a whole stack would cost a hundred times as much
        while frame.f_back is not None and frame.f_globals["__name__"].startswith("orchestra."):
            frame = frame.f_back
        self._site = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def __del__(self) -> None:
        if self.is_due:
            warnings.warn(
                f"a token of {self._key!r} taken at {self._site} was never released; use "
                f"lease(), or release() in a finally block",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
