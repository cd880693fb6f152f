"""Several things together or none of them, without holding one while waiting for another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias, final

import anyio
from attrs import frozen

from orchestra._core.waiters import Priority
from orchestra._lane import ConcurrencyToken, Gate, Lane, closed_error, wait_for_all
from orchestra._waiting import checkpoint
from orchestra.errors import PressureError

if TYPE_CHECKING:
    from orchestra.breaker import CircuitBreaker, CircuitPermit
    from orchestra.pressure import MemoryPressure

__all__ = ("Door", "Tokens")

Tokens: TypeAlias = tuple[ConcurrencyToken, ...]


@final
class Door:
    """What stands before all limiters of a controller: is it open, is memory short.

    Args:
        pressure: Tells whether memory is short.
        rng: Numbers from 0.0 to 1.0.
        is_fast: Whether an admission without a wait is no checkpoint.

    Attributes:
        closing: Set when the controller is closed.
        is_kept: Whether a task reads the memory.
    """

    def __init__(
        self, pressure: MemoryPressure | None, rng: Callable[[], float], *, is_fast: bool
    ) -> None:
        self._pressure: Final = pressure
        self._rng: Final = rng
        self._is_fast: Final = is_fast
        self.closing = anyio.Event()
        self.is_kept = False

    def needs_guard(self, gate: Gate) -> bool:
        """Whether a limiter behind the gate has to ask for more than a free slot."""
        return self._pressure is not None or self.closing.is_set() or not gate.is_quiet()

    def refuse_if_unwelcome(self, lane: Lane, priority: Priority) -> None:
        """Refuse a request that is not even allowed to wait.

        Raises:
            CapacityError: The controller is closed.
            PressureError: The priority is LOW and memory is short.
        """
        if self.closing.is_set():
            raise closed_error(lane.key)
        pressure = self._pressure
        if pressure is None or priority is not Priority.LOW:
            return
        if not self.is_kept:
            pressure.refresh(anyio.current_time())
        if pressure.is_high:
            usage = pressure.statistics().usage
            raise PressureError(
                f"memory is short ({usage:.0%} in use), so work of LOW priority for {lane.key!r} "
                f"was turned away; try again later",
                usage,
                retry_after=pressure.interval,
            )

    async def admit(
        self,
        wants: Mapping[Lane, int],
        priority: Priority,
        model_tokens: int,
        breaker: CircuitBreaker | None = None,
    ) -> tuple[Tokens, CircuitPermit | None]:
        """Get all or nothing; hold nothing while waiting."""
        if not self._is_fast:
            await checkpoint()
        permit = await _Admission(
            wants=wants,
            priority=priority,
            model_tokens=model_tokens,
            draw=self._rng(),
            breaker=breaker,
            door=self,
        ).run()
        for lane in wants:
            lane.guard(is_guarded=self.needs_guard(lane.gate))
        return tuple(lane.token(count) for lane, count in wants.items()), permit


@final
@frozen(kw_only=True)
class _Admission:
    """One request for slots of some limiters.

    Attributes:
        wants: How many slots of which limiter.
        priority: How urgent it is.
        model_tokens: What it is expected to cost.
        draw: Its place in the return from a cooldown, from 0.0 to 1.0.
        breaker: Whose permit it needs.
        door: Whose rules it has to meet.
    """

    wants: Mapping[Lane, int]
    priority: Priority
    model_tokens: int
    draw: float
    breaker: CircuitBreaker | None
    door: Door

    async def run(self) -> CircuitPermit | None:
        """Take all; the slots are counted as in use when it returns."""
        is_owner = False  # the slots are ours: we came out of their queues a moment ago
        passed: Gate | None = None  # it is our turn there: we came out of its line a moment ago
        while True:
            try:
                for lane in self.wants:
                    self.door.refuse_if_unwelcome(lane, self.priority)
                permit = None if self.breaker is None else self.breaker.acquire()
            except BaseException:
                self._give_back(is_owner)
                raise
            # From here to the next wait everything is synchronous, so it is one step for others.
            gate = self._closed_gate(passed)
            if gate is None and (is_owner or self._take()):
                for gate in self._gates():
                    gate.take(self.model_tokens)
                return permit
            if permit is not None:
                permit.ignore()
            self._give_back(is_owner)
            is_owner, passed = False, gate
            if gate is not None:
                await self._pass(gate)
            else:
                await wait_for_all(self.wants, self.priority)
                is_owner = True

    def _give_back(self, is_owner: bool) -> None:  # noqa: FBT001 - private, one meaning
        if is_owner:
            for lane, count in self.wants.items():
                lane.give_back(count)

    def _gates(self) -> list[Gate]:
        return list(dict.fromkeys(lane.gate for lane in self.wants))

    def _closed_gate(self, passed: Gate | None) -> Gate | None:
        for gate in self._gates():
            is_our_turn = gate is passed or gate.line is None or not gate.line.in_use
            if not is_our_turn or gate.delay(self.model_tokens, self.draw):
                return gate
        return None

    def _take(self) -> bool:
        if not all(lane.can_take(count, self.priority) for lane, count in self.wants.items()):
            return False
        for lane, count in self.wants.items():
            lane.take(count, self.priority)
        return True

    async def _pass(self, gate: Gate) -> None:
        """Wait until it is our turn and the gate is open; hold nothing but the place in line."""
        for lane in self.wants:
            lane.delayed += 1
        try:
            line = gate.line
            if line is None:
                await self._sleep(gate)
                return
            if line.can_take(1, self.priority):
                line.take(1, self.priority)
            else:
                await line.wait(self.priority)
            try:
                await self._sleep(gate)
            finally:
                line.give_back(1)
        finally:
            for lane in self.wants:
                lane.delayed -= 1

    async def _sleep(self, gate: Gate) -> None:
        while (
            delay := gate.delay(self.model_tokens, self.draw)
        ) and not self.door.closing.is_set():
            with anyio.move_on_after(delay):
                await self.door.closing.wait()
