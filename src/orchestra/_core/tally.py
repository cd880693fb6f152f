"""What a closed circuit remembers of its calls, and when that is enough to open it."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol, final

import attrs

from orchestra._core.checks import count, optional_seconds, share

__all__ = (
    "FAILED",
    "SLOW",
    "SUCCEEDED",
    "ConsecutiveFailures",
    "CountWindow",
    "FailureRate",
    "Tally",
    "TimeWindow",
    "failure_threshold",
    "make_tally",
)

SUCCEEDED: Final = 0
FAILED: Final = 1
SLOW: Final = 2
"""An outcome is a set of bits: a call may have failed, been slow, both or neither."""

_SLICES: Final = 10


@attrs.frozen
class FailureRate:
    """Open a circuit by the share of calls that failed, over the last calls or the last seconds.

    ::

        FailureRate(0.5, calls=100)
        FailureRate(0.5, seconds=60.0, minimum_calls=20, slow_after=30.0, slow_rate=0.8)

    The vocabulary is that of resilience4j's sliding windows and Polly's sampling duration.

    Args:
        rate: The share of failed calls that opens the circuit; above 0, at most 1.
        calls: Look at this many of the last calls. Exactly one of ``calls`` and ``seconds``.
        seconds: Look at the calls that ended in the last so many seconds. They are kept in ten
            slices, so a call is forgotten between 0.9 and 1.0 of the time.
        minimum_calls: With fewer calls in the window the circuit stays closed; at most ``calls``.
        slow_after: A call that takes at least this many seconds is slow; None: none is.
        slow_rate: The share of slow calls that opens the circuit; above 0, at most 1.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range; not exactly one of ``calls`` and ``seconds``.
    """

    rate: float = attrs.field(default=0.5, validator=share)
    calls: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(count)
    )
    seconds: float | None = attrs.field(default=None, kw_only=True, validator=optional_seconds)
    minimum_calls: int = attrs.field(default=10, kw_only=True, validator=count)
    slow_after: float | None = attrs.field(default=None, kw_only=True, validator=optional_seconds)
    slow_rate: float = attrs.field(default=1.0, kw_only=True, validator=share)

    def __attrs_post_init__(self) -> None:
        if (self.calls is None) == (self.seconds is None):
            raise ValueError(
                f"calls is {self.calls!r} and seconds is {self.seconds!r}; give exactly one of them"
            )
        if self.calls is not None and self.minimum_calls > self.calls:
            raise ValueError(
                f"minimum_calls must be at most calls ({self.calls}), not {self.minimum_calls}"
            )


class Tally(Protocol):
    """The memory of a closed circuit.

    Attributes:
        calls: Calls that count now.
        failures: Those of them that failed.
        slow_calls: Those of them that were slow.
        is_blank: Whether adding a success would change nothing.
    """

    calls: int
    failures: int
    slow_calls: int
    is_blank: bool

    def add(self, outcome: int, now: float) -> bool:
        """Count a call that ended; tell whether the circuit must open.

        Args:
            outcome: `SUCCEEDED`, or bits of `FAILED` and `SLOW`.
            now: Monotonic seconds.
        """
        ...


@final
class ConsecutiveFailures:
    """Opens after a number of failures with no success between them.

    Args:
        threshold: That number.
    """

    __slots__ = ("calls", "failures", "is_blank", "slow_calls", "threshold")

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.calls = 0
        self.failures = 0
        self.slow_calls = 0
        self.is_blank = True

    def add(self, outcome: int, now: float) -> bool:  # noqa: ARG002 - windows need it
        """Count a call that ended; see `Tally.add`."""
        self.is_blank = not outcome & FAILED
        if outcome & FAILED:
            self.failures += 1
            self.calls += 1
            return self.failures >= self.threshold
        self.failures = self.calls = 0
        return False


class _Window:
    __slots__ = ("calls", "failures", "is_blank", "rule", "slow_calls")

    def __init__(self, rule: FailureRate) -> None:
        self.rule = rule
        self.calls = 0
        self.failures = 0
        self.slow_calls = 0
        self.is_blank = False

    def _is_met(self) -> bool:
        rule = self.rule
        return self.calls >= rule.minimum_calls and (
            self.failures / self.calls >= rule.rate
            or self.slow_calls / self.calls >= rule.slow_rate
        )


@final
class CountWindow(_Window):
    """The last calls, two bits each, in a ring.

    Args:
        rule: With ``calls`` set.
    """

    __slots__ = ("_next", "_ring")

    def __init__(self, rule: FailureRate) -> None:
        super().__init__(rule)
        self._ring = bytearray(rule.calls or 0)
        self._next = 0

    def add(self, outcome: int, now: float) -> bool:  # noqa: ARG002 - `TimeWindow` needs it
        """Count a call that ended; see `Tally.add`."""
        place, ring = self._next, self._ring
        if self.calls == len(ring):
            forgotten = ring[place]
            self.failures -= forgotten & 1
            self.slow_calls -= forgotten >> 1
        else:
            self.calls += 1
        ring[place] = outcome
        self._next = (place + 1) % len(ring)
        self.failures += outcome & 1
        self.slow_calls += outcome >> 1
        return self._is_met()


@final
class TimeWindow(_Window):
    """The calls of the last seconds, in ten slices of time.

    Args:
        rule: With ``seconds`` set.
    """

    __slots__ = ("_slice", "_slices")

    def __init__(self, rule: FailureRate) -> None:
        super().__init__(rule)
        self._slice = (rule.seconds or 0.0) / _SLICES
        self._slices: deque[list[int]] = deque()

    def add(self, outcome: int, now: float) -> bool:
        """Count a call that ended; see `Tally.add`."""
        number = int(now // self._slice)
        slices = self._slices
        while slices and slices[0][0] <= number - _SLICES:
            _, calls, failures, slow_calls = slices.popleft()
            self.calls -= calls
            self.failures -= failures
            self.slow_calls -= slow_calls
        if not slices or slices[-1][0] < number:
            slices.append([number, 0, 0, 0])
        current = slices[-1]
        current[1] += 1
        current[2] += outcome & 1
        current[3] += outcome >> 1
        self.calls += 1
        self.failures += outcome & 1
        self.slow_calls += outcome >> 1
        return self._is_met()


def make_tally(threshold: int | FailureRate) -> Tally:
    """Begin an empty memory for a rule.

    Args:
        threshold: Consecutive failures, or a rate.
    """
    if isinstance(threshold, int):
        return ConsecutiveFailures(threshold)
    return CountWindow(threshold) if threshold.calls is not None else TimeWindow(threshold)


def failure_threshold(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is a count or a `FailureRate`.

    Args:
        attribute: The field.
        value: What it shall hold.

    Raises:
        TypeError: It is neither.
        ValueError: It is a count below 1.
    """
    if not isinstance(value, FailureRate):
        count(_instance, attribute, value)
