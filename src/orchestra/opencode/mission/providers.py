"""Whether a model's provider can be asked now: one cooldown and one breaker for all its turns.

Workers share a provider, so what it tells one of them counts for all: when it wants to be left
alone (``Retry-After``), nobody asks it before; when it fails again and again, one turn finds out
whether it works and the others wait. Neither at the end of a cooldown nor after such a probe do
they all come at once: they go one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, final

import anyio
import anyio.lowlevel

from orchestra import CircuitBreaker, CircuitPermit
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitChanged, CircuitState, RetryScheduled
from orchestra.opencode.mission.allowances import ProviderSettings
from orchestra.opencode.mission.orders import AgentAnswered
from orchestra.opencode.mission.recovery import MAX_RETRY_AFTER, ErrorClass, asks_for_rest, classify
from orchestra.opencode.mission.waits import Cause

__all__ = (
    "Cooldown",
    "Passage",
    "ProviderAwayError",
    "ProviderGate",
    "ProviderGates",
    "provider_of",
)

_FAILURES = {ErrorClass.RATE_LIMIT, ErrorClass.QUOTA, ErrorClass.NETWORK}
_LINGER = 1.0
"""Seconds after a cooldown in which turns still go one after the other."""


class ProviderAwayError(Exception):
    """A provider cannot be asked for longer than somebody has patience.

    Args:
        message: One sentence.
        retry_after: Seconds until it can, as far as is known.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _CallFailedError(Exception):
    """What the breaker counts."""


def provider_of(model: str | None, default: str) -> str:
    """Return the provider of a model.

    Args:
        model: ``provider/model``; None: the backend's own.
        default: The provider of that.
    """
    return model.partition("/")[0] if model else default


@final
class Cooldown:
    """When a provider may be asked again, and who is next; pure.

    Args:
        spacing: Seconds between two that go, on average.
        random: Returns numbers from 0.0 to below 1.0.

    Attributes:
        until: When the last cooldown ends, in the clock's seconds.
    """

    def __init__(self, spacing: float, random: Callable[[], float]) -> None:
        self._spacing = spacing
        self._random = random
        self._next = -math.inf
        self._is_row_until = -math.inf
        self.until: float = -math.inf

    def begin(self, now: float, seconds: float) -> None:
        """Leave the provider alone for so long; the longest counts.

        Args:
            now: The clock.
            seconds: 0.0: nobody has to wait, but all go one after the other.
        """
        self.until = max(self.until, now + max(0.0, min(seconds, MAX_RETRY_AFTER)))
        self._next = max(self._next, self.until + self._random() * self._spacing)
        self._is_row_until = max(self._is_row_until, self._next, self.until + _LINGER)

    def place(self, now: float) -> float:
        """Return when the caller may go; nobody else gets the same place.

        Args:
            now: The clock.
        """
        if now > self._is_row_until:
            return now
        place = max(self._next, now)
        self._next = place + self._spacing * (0.5 + self._random())
        self._is_row_until = max(self._is_row_until, self._next)
        return place

    def __repr__(self) -> str:
        return f"<Cooldown until {self.until:.3f}>"


@final
class ProviderGate:
    """The way to one provider.

    Args:
        name: The provider.
        settings: How it is treated.
        random: Returns numbers from 0.0 to below 1.0.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        settings: ProviderSettings,
        *,
        random: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.name: str = name
        self._clock = clock
        self._cooldown = Cooldown(settings.spacing, random)
        self._breaker = CircuitBreaker(
            f"provider {name}",
            on=_CallFailedError,
            failure_threshold=settings.failure_threshold,
            recovery_timeout=settings.recovery_timeout,
            success_threshold=1,
            half_open_max=1,
            listener=self._on_changed,
            clock=clock,
        )
        self._has_changed = anyio.Event()

    @property
    def is_open(self) -> bool:
        """Whether a turn could begin now."""
        return self._closed_for() <= 0 and self._clock() >= self._cooldown.until

    @property
    def why(self) -> str:
        """Why no turn could begin now; empty when one could."""
        now = self._clock()
        if now < self._cooldown.until:
            return f"provider {self.name!r} wants to be left alone"
        return f"provider {self.name!r} fails again and again" if self._closed_for() > 0 else ""

    def _on_changed(self, event: CircuitChanged) -> None:
        if event.state is CircuitState.CLOSED:
            self._cooldown.begin(self._clock(), 0.0)
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        self._has_changed.set()
        self._has_changed = anyio.Event()

    def _closed_for(self) -> float:
        """Return the seconds until the breaker lets a turn try; infinity while one is trying."""
        state = self._breaker.state
        if state is CircuitState.CLOSED:
            return 0.0
        now = self._breaker.statistics()
        if state is CircuitState.OPEN:
            return now.retry_after or 0.0
        return math.inf if now.probes_out else 0.0

    async def wait_open(
        self,
        patience: float = math.inf,
        *,
        told: Callable[[Cause, float | None], object] = lambda _cause, _seconds: None,
    ) -> None:
        """Wait until a turn may begin; what was waited for is checked again by `enter`.

        A checkpoint.

        Args:
            patience: Seconds to wait at most.
            told: Called with what is waited for, and for how long as far as is known.

        Raises:
            ProviderAwayError: It takes longer.
        """
        await anyio.lowlevel.checkpoint()
        latest = self._clock() + patience
        place: float | None = None
        while True:
            now = self._clock()
            if (left := self._closed_for()) > 0:
                if now >= latest or (now + left > latest and math.isfinite(left)):
                    raise ProviderAwayError(self.why, left if math.isfinite(left) else None)
                told(Cause.BREAKER, left if math.isfinite(left) else None)
                with anyio.move_on_after(min(left, latest - now)):
                    await self._has_changed.wait()
                continue
            if place is None or place < self._cooldown.until:
                if self._cooldown.until > latest:
                    raise ProviderAwayError(self.why, self._cooldown.until - now)
                place = self._cooldown.place(now)
            if place <= now:
                return
            told(Cause.COOLDOWN, place - now)
            await anyio.sleep(place - now)

    def enter(self) -> Passage | None:
        """Begin a turn; None when the provider may not be asked now. Never blocks."""
        if self._clock() < self._cooldown.until:
            return None
        try:
            return Passage(self, self._breaker.acquire())
        except CircuitOpenError:
            return None

    def rest(self, seconds: float) -> None:
        """Let nobody begin for so long, at most 600; the longest counts.

        Args:
            seconds: What the provider has asked for.
        """
        self._cooldown.begin(self._clock(), seconds)

    def count(self, permit: CircuitPermit, *, is_failed: bool) -> None:
        """Tell the breaker how a model call went.

        Args:
            permit: The turn's; it may be used up, since a turn makes many calls.
            is_failed: Whether it failed.
        """
        if permit.is_released:
            try:
                permit = self._breaker.acquire()
            except CircuitOpenError:
                return
        permit.record(_CallFailedError() if is_failed else None)

    def __repr__(self) -> str:
        return f"<ProviderGate {self.name!r} {self._breaker.state.value} {self._cooldown!r}>"


@final
class Passage:
    """One turn at a provider; leaving it without a word says nothing about the provider.

    Args:
        gate: The way in.
        permit: The breaker's leave.
    """

    def __init__(self, gate: ProviderGate, permit: CircuitPermit) -> None:
        self._gate = gate
        self._permit = permit
        self._is_failure_counted = False

    def answered(self) -> None:
        """A model call came to its end."""
        self._is_failure_counted = False
        self._gate.count(self._permit, is_failed=False)

    def _failed(self) -> None:
        # The server's own repetitions of one call, and its giving up, are one failure.
        if not self._is_failure_counted:
            self._is_failure_counted = True
            self._gate.count(self._permit, is_failed=True)

    def retrying(self, event: RetryScheduled) -> None:
        """The server repeats a model call that failed: an early sign for all the others.

        Args:
            event: What it told.
        """
        self._failed()
        if asks_for_rest(event.message):
            self._gate.rest(event.delay)

    def ended(self, answer: AgentAnswered) -> None:
        """The turn has ended, and not well: count it if that is the provider's fault.

        Args:
            answer: How it ended.
        """
        error = answer.error
        if error is None or classify(answer) not in _FAILURES:
            return
        # The way to the backend is not the provider's; what it answers has a status.
        if error.status is None and error.name != "APIError":
            return
        self._failed()
        if error.retry_after is not None:
            self._gate.rest(error.retry_after)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._permit.is_released:
            self._permit.ignore()
            self._gate.wake()  # it may have been the one that tried

    def __repr__(self) -> str:
        return f"<Passage of {self._gate!r}>"


@final
class ProviderGates:
    """The ways to all providers of a mission.

    Args:
        settings: How they are treated.
        default: What the provider of the backend's own model is called.
        random: Returns numbers from 0.0 to below 1.0.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        default: str,
        *,
        random: Callable[[], float],
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._settings = settings
        self._default = default
        self._random = random
        self._clock = clock
        self._gates: dict[str, ProviderGate] = {}

    def of(self, model: str | None) -> ProviderGate:
        """Return the way to a model's provider.

        Args:
            model: ``provider/model``; None: the backend's own.
        """
        name = provider_of(model, self._default)
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = ProviderGate(
                name, self._settings, random=self._random, clock=self._clock
            )
        return gate

    def patience(self, model: str | None, others: Iterable[str]) -> float:
        """Return how long a turn waits for its provider.

        Args:
            model: The model that it wants.
            others: The models that it could fall back on.
        """
        mine = self.of(model)
        gates = (self.of(other) for other in others)
        can_go = any(gate is not mine and gate.is_open for gate in gates)
        return self._settings.patience if can_go else math.inf

    def __repr__(self) -> str:
        return f"<ProviderGates {', '.join(map(repr, self._gates.values())) or 'none'}>"
