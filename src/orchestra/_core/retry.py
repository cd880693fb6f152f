"""When a failed attempt is repeated, and after how long. Pure: time and chance are arguments."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final, final

import attrs

from orchestra._core.checks import finite, not_negative, seconds
from orchestra.events import RetryVerdict

__all__ = ("Backoff", "Budget", "BudgetStatistics", "decide", "retry_after_of")

_SLICES: Final = 10


def retry_after_of(error: BaseException) -> float | None:
    """Read the attribute ``retry_after`` of an error.

    Args:
        error: What was raised.

    Returns:
        Seconds; None when there is no such attribute, or it is not a number from 0 up.
    """
    value = getattr(error, "retry_after", None)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return value
    return None


def _factor(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if finite(attribute.name, value) < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value!r}")


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait before an attempt is repeated: exponentially longer, with full jitter.

    Before the first repetition the wait is a random time between 0 and ``initial``, before each
    further one the range is ``factor`` times as long, up to ``maximum``. Full jitter is the variant
    with the least work in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).

    Args:
        initial: Seconds; above 0.
        factor: At least 1.
        maximum: Seconds; at least ``initial``.

    Raises:
        TypeError: A field is no number.
        ValueError: A field is out of range.
    """

    initial: float = attrs.field(default=0.5, validator=seconds)
    factor: float = attrs.field(default=2.0, validator=_factor)
    maximum: float = attrs.field(default=30.0, validator=seconds)

    def __attrs_post_init__(self) -> None:
        if self.maximum < self.initial:
            raise ValueError(
                f"maximum must be at least initial ({self.initial!r}), not {self.maximum!r}"
            )

    def ceiling(self, attempt: int) -> float:
        """Tell the longest wait after an attempt, in seconds; right for any number of attempts.

        Args:
            attempt: The one that failed, 1 for the first.
        """
        try:
            return min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            return self.maximum


def decide(
    *,
    attempt: int,
    attempts: int,
    backoff: Backoff,
    jitter: float,
    retry_after: float | None,
    elapsed: float,
    deadline: float | None,
) -> tuple[RetryVerdict, float]:
    """Say whether a failed attempt is repeated, and after how many seconds.

    The other side's ``retry_after`` is the least wait, and the jitter comes on top of it: who was
    turned away together shall not come back together.

    Args:
        attempt: The one that failed, 1 for the first.
        attempts: How many are permitted.
        backoff: The range of the wait.
        jitter: From 0.0 up to 1.0, by chance.
        retry_after: Seconds the other side asked for; None when it did not.
        elapsed: Seconds since the first attempt began.
        deadline: Seconds after which no attempt may begin; None for no end.

    Returns:
        The verdict, and the wait in seconds.
    """
    delay = (retry_after or 0.0) + jitter * backoff.ceiling(attempt)
    if attempt >= attempts:
        return RetryVerdict.ATTEMPTS_SPENT, delay
    if deadline is not None and elapsed + delay >= deadline:
        return RetryVerdict.DEADLINE_REACHED, delay
    return RetryVerdict.AGAIN, delay


@attrs.frozen(kw_only=True)
class BudgetStatistics:
    """What a retry budget has seen in its window.

    Attributes:
        calls: Calls that began, first attempts only.
        retries: Repetitions that were granted.
        balance: Repetitions that would be granted now.
    """

    calls: int
    retries: int
    balance: float


@final
@attrs.define(kw_only=True, eq=False)
class Budget:
    """How many repetitions a number of calls may cost, over a moving window of time.

    Args:
        ratio: Repetitions per call.
        per_second: Repetitions per second that are granted whatever the calls.
        seconds: The length of the window, which moves in ten steps.
    """

    ratio: float = attrs.field(validator=not_negative)
    per_second: float = attrs.field(validator=not_negative)
    seconds: float = attrs.field(validator=seconds)
    _calls: int = attrs.field(default=0, init=False)
    _retries: int = attrs.field(default=0, init=False)
    _slices: deque[list[int]] = attrs.field(factory=deque, init=False)

    def deposit(self, now: float) -> None:
        """Count a call that begins.

        Args:
            now: Monotonic seconds.
        """
        self._at(now)[1] += 1
        self._calls += 1

    def withdraw(self, now: float) -> bool:
        """Grant a repetition, or not.

        Args:
            now: Monotonic seconds.
        """
        current = self._at(now)
        if self._balance() < 1:
            return False
        current[2] += 1
        self._retries += 1
        return True

    def statistics(self, now: float) -> BudgetStatistics:
        """Count what is in the window.

        Args:
            now: Monotonic seconds.
        """
        self._at(now)
        return BudgetStatistics(
            calls=self._calls, retries=self._retries, balance=max(self._balance(), 0.0)
        )

    def _balance(self) -> float:
        return self.ratio * self._calls + self.per_second * self.seconds - self._retries

    def _at(self, now: float) -> list[int]:
        number = int(now // (self.seconds / _SLICES))
        slices = self._slices
        while slices and slices[0][0] <= number - _SLICES:
            _, calls, retries = slices.popleft()
            self._calls -= calls
            self._retries -= retries
        if not slices or slices[-1][0] < number:
            slices.append([number, 0, 0])
        return slices[-1]
