"""The rules of a circuit breaker: `TRANSITIONS` is the specification, `Breaker` carries it out.

The states are those of resilience4j. Every permit carries the *generation* it was given in, which
is a number that each transition raises; what a call of an earlier generation reports is counted
and decides nothing. So a late result can neither close an open circuit nor open a recovered one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

import attrs

from orchestra._core.checks import count, finite, seconds
from orchestra._core.tally import FAILED, FailureRate, failure_threshold, make_tally
from orchestra.events import CircuitCause, CircuitState

__all__ = (
    "DEFAULT_RECOVERY_TIMEOUT",
    "TRANSITIONS",
    "Breaker",
    "BreakerConfig",
    "CircuitStatistics",
    "CircuitTrip",
    "RecoveryTimeout",
)

DEFAULT_RECOVERY_TIMEOUT: Final = 30.0

_BY_HAND: Final = {
    CircuitCause.ISOLATE: CircuitState.FORCED_OPEN,
    CircuitCause.DISABLE: CircuitState.DISABLED,
    CircuitCause.RESET: CircuitState.CLOSED,
}

TRANSITIONS: Final[Mapping[CircuitState, Mapping[CircuitCause, CircuitState]]] = MappingProxyType(
    {
        CircuitState.CLOSED: {CircuitCause.THRESHOLD_REACHED: CircuitState.OPEN, **_BY_HAND},
        CircuitState.OPEN: {CircuitCause.BREAK_OVER: CircuitState.HALF_OPEN, **_BY_HAND},
        CircuitState.HALF_OPEN: {
            CircuitCause.PROBES_PASSED: CircuitState.CLOSED,
            CircuitCause.PROBE_FAILED: CircuitState.OPEN,
            CircuitCause.PROBES_OVERDUE: CircuitState.OPEN,
            **_BY_HAND,
        },
        CircuitState.FORCED_OPEN: _BY_HAND,
        CircuitState.DISABLED: _BY_HAND,
    }
)
"""Which cause leads from which state to which; what is not in it raises."""

# Looking a member up in its enumeration costs more than the rest of a decision.
_CLOSED: Final = CircuitState.CLOSED
_OPEN: Final = CircuitState.OPEN
_HALF_OPEN: Final = CircuitState.HALF_OPEN
_LET_ALL_PASS: Final = frozenset({CircuitState.CLOSED, CircuitState.DISABLED})


@attrs.frozen(kw_only=True)
class CircuitTrip:
    """Why a circuit opened; what a ``recovery_timeout`` function decides by.

    Attributes:
        attempt: 1 when the circuit was closed before, one more with every failed recovery.
        failures: The failures that opened it when it was closed.
        slow_calls: The slow calls that did.
        calls: The calls they were counted among.
    """

    attempt: int
    failures: int
    slow_calls: int
    calls: int


RecoveryTimeout: TypeAlias = float | Callable[[CircuitTrip], float]


def _recovery_timeout(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        seconds(_instance, attribute, value)


@attrs.frozen(kw_only=True)
class BreakerConfig:
    """How a breaker behaves; the fields are those of `orchestra.CircuitBreaker`."""

    failure_threshold: int | FailureRate = attrs.field(default=5, validator=failure_threshold)
    recovery_timeout: RecoveryTimeout = attrs.field(
        default=DEFAULT_RECOVERY_TIMEOUT, validator=_recovery_timeout
    )
    success_threshold: int = attrs.field(default=2, validator=count)
    half_open_max: int = attrs.field(default=1, validator=count)
    half_open_timeout: float = attrs.field(default=600.0, validator=seconds)


@attrs.frozen(kw_only=True)
class CircuitStatistics:
    """A breaker's state and what it has seen since it was made.

    On an interpreter without a global lock ``succeeded`` and ``rejected`` are lower bounds, because
    two threads may count as one.

    Attributes:
        state: Where it stands; OPEN until the first call after the break.
        retry_after: Seconds until the next probe is let through; None unless ``state`` is OPEN.
        recent_calls: Calls in the window of the present or last closed period; the consecutive
            failures where there is no window.
        recent_failures: Those of them that failed.
        recent_slow_calls: Those of them that were slow.
        probes_out: Probes under way.
        probes_passed: Probes that ended well in this half-open period.
        succeeded: Calls that ended well, ever.
        failed: Calls that failed, ever.
        ignored: Calls that ended by cancellation or by an error the breaker is not about, ever.
        late: Those of all these that were let through in an earlier period, and decided nothing.
        rejected: Calls that were not let through, ever.
        opened: How often the failures opened it.
    """

    state: CircuitState
    retry_after: float | None
    recent_calls: int
    recent_failures: int
    recent_slow_calls: int
    probes_out: int
    probes_passed: int
    succeeded: int
    failed: int
    ignored: int
    late: int
    rejected: int
    opened: int


@final
class Breaker:
    """A circuit breaker without a clock, a lock or a call: time comes in as an argument.

    Attributes:
        state: Where it stands.
        generation: How many transitions it took.
        free_pass: The permit of every call while all may pass; None while `admit` must be asked.
        quiet_pass: The permit whose success would change nothing but `succeeded`; None while
            every outcome must be given to `record`.
        trip: Why it last opened; None while it never has.
        reopens_at: When the break is over, in monotonic seconds.

    Args:
        config: How it behaves.
        on_change: Told of every transition: the previous state, and why.
    """

    __slots__ = (
        "_attempt",
        "_config",
        "_not_before",
        "_on_change",
        "_probed_at",
        "_tally",
        "failed",
        "free_pass",
        "generation",
        "ignored",
        "late",
        "opened",
        "probes_out",
        "probes_passed",
        "quiet_pass",
        "rejected",
        "reopens_at",
        "state",
        "succeeded",
        "trip",
    )

    def __init__(
        self,
        config: BreakerConfig,
        on_change: Callable[[CircuitState, CircuitCause], object] | None = None,
    ) -> None:
        self._config = config
        self._on_change = on_change
        self._tally = make_tally(config.failure_threshold)
        self._attempt = 0
        self._not_before = -inf
        self._probed_at = -inf
        self.state = _CLOSED
        self.generation = 0
        self.free_pass: int | None = 0
        self.quiet_pass: int | None = None
        self.trip: CircuitTrip | None = None
        self.reopens_at = -inf
        self.probes_out = 0
        self.probes_passed = 0
        self.succeeded = 0
        self.failed = 0
        self.ignored = 0
        self.late = 0
        self.rejected = 0
        self.opened = 0

    def admit(self, now: float) -> int | None:
        """Let a call pass, or not.

        Args:
            now: Monotonic seconds.

        Returns:
            The permit, to be given back with `record` or `ignore` exactly once; None when the call
            is rejected.
        """
        if self.free_pass is not None:
            return self.free_pass
        if self.state is _OPEN and now >= self.reopens_at:
            self.take(CircuitCause.BREAK_OVER, now)
        elif self._are_probes_overdue(now):
            self.take(CircuitCause.PROBES_OVERDUE, now)
        if self.state is _HALF_OPEN and self.probes_out < self._config.half_open_max:
            self.probes_out += 1
            self._probed_at = now
            return self.generation
        self.rejected += 1
        return None

    def _are_probes_overdue(self, now: float) -> bool:
        return (
            self.state is _HALF_OPEN
            and self.probes_out == self._config.half_open_max
            and now - self._probed_at >= self._config.half_open_timeout
        )

    def record(
        self, permit: int, outcome: int, now: float, retry_after: float | None = None
    ) -> None:
        """Take a permit back with how the call ended.

        Args:
            permit: From `admit`, or a `free_pass`.
            outcome: `SUCCEEDED`, or bits of `FAILED` and `SLOW`.
            now: Monotonic seconds.
            retry_after: Seconds the other side asked to be left alone; the longest one wins.
        """
        if outcome & FAILED:
            self.failed += 1
        else:
            self.succeeded += 1
        if permit != self.generation:
            self.late += 1
            return
        if retry_after is not None:
            self._not_before = max(self._not_before, now + retry_after)
        if self.state is _CLOSED:
            is_met = self._tally.add(outcome, now)
            self.quiet_pass = permit if self._tally.is_blank else None
            if is_met:
                self.take(CircuitCause.THRESHOLD_REACHED, now)
        elif self.state is _HALF_OPEN:
            self.probes_out -= 1
            if outcome:
                self.take(CircuitCause.PROBE_FAILED, now)
                return
            self.probes_passed += 1
            if self.probes_passed >= self._config.success_threshold:
                self.take(CircuitCause.PROBES_PASSED, now)

    def ignore(self, permit: int) -> None:
        """Take a permit back from a call whose end says nothing: cancelled, or another's error.

        Args:
            permit: From `admit`, or a `free_pass`.
        """
        self.ignored += 1
        if permit != self.generation:
            self.late += 1
        elif self.state is _HALF_OPEN:
            self.probes_out -= 1

    def take(self, cause: CircuitCause, now: float) -> None:
        """Take a transition; by hand only ISOLATE, DISABLE and RESET, which every state permits.

        Args:
            cause: A key of the state's row in `TRANSITIONS`.
            now: Monotonic seconds.

        Raises:
            RuntimeError: The state has no such transition; nothing has changed.
        """
        previous = self.state
        state = TRANSITIONS[previous].get(cause)
        if state is None:
            raise RuntimeError(f"a circuit that is {previous.value} cannot take {cause.value!r}")
        self.state = state
        self.generation += 1
        self.free_pass = self.generation if state in _LET_ALL_PASS else None
        self.quiet_pass = None
        self.probes_out = self.probes_passed = 0
        try:
            if state is _OPEN:
                self._begin_break(now)
            elif state is _CLOSED:
                self._attempt = 0
                self._not_before = -inf
                self._tally = make_tally(self._config.failure_threshold)
        finally:
            if self._on_change is not None:
                self._on_change(previous, cause)

    def _begin_break(self, now: float) -> None:
        self._attempt += 1
        self.opened += 1
        tally = self._tally
        self.trip = CircuitTrip(
            attempt=self._attempt,
            failures=tally.failures,
            slow_calls=tally.slow_calls,
            calls=tally.calls,
        )
        pause = self._config.recovery_timeout
        if callable(pause):
            # Should the function raise, the break must end all the same.
            self.reopens_at = now + DEFAULT_RECOVERY_TIMEOUT
            pause = finite("the value of recovery_timeout()", pause(self.trip))
            if pause < 0:
                raise ValueError(f"the value of recovery_timeout() must be at least 0, not {pause}")
        self.reopens_at = max(now + pause, self._not_before)

    def retry_after(self, now: float) -> float | None:
        """Tell how long the break still lasts.

        Args:
            now: Monotonic seconds.

        Returns:
            Seconds, not below 0; None when the circuit is not OPEN.
        """
        return max(self.reopens_at - now, 0.0) if self.state is _OPEN else None

    def statistics(self, now: float) -> CircuitStatistics:
        """Count what happened so far.

        Args:
            now: Monotonic seconds.
        """
        return CircuitStatistics(
            state=self.state,
            retry_after=self.retry_after(now),
            recent_calls=self._tally.calls,
            recent_failures=self._tally.failures,
            recent_slow_calls=self._tally.slow_calls,
            probes_out=self.probes_out,
            probes_passed=self.probes_passed,
            succeeded=self.succeeded,
            failed=self.failed,
            ignored=self.ignored,
            late=self.late,
            rejected=self.rejected,
            opened=self.opened,
        )
