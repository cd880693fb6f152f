"""When may the next request start: a shared pause and a rate. Pure: ``now`` is an argument."""

from __future__ import annotations

from typing import final

from attrs import Attribute, field, frozen

from orchestra._core.checks import finite, seconds

__all__ = ("Cooldown", "RateLimit", "RateState")


def _worth_sleeping(seconds: float) -> float:
    # A rounding error is no reason to wait: a clock may not even move for so little.
    return seconds if seconds > 1e-9 else 0.0


@final
class Cooldown:
    """A pause shared by all who talk to one provider; the longest wish wins.

    Resuming is spread out: each request draws its own moment within a tenth of the pause after its
    end, so that siblings do not return all at once and are refused together.

    Attributes:
        until: When the pause ends, in the clock's seconds.
        spread: Over how many seconds the return is spread.
    """

    __slots__ = ("spread", "until")

    def __init__(self) -> None:
        self.until = float("-inf")
        self.spread = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it was ended, or never began."""
        return self.until == float("-inf")

    def end(self) -> None:
        """Forget the pause."""
        self.until = float("-inf")

    def extend(self, now: float, retry_after: float) -> None:
        """Ask for a pause of some seconds from now; a longer one that is on stays."""
        if now + retry_after > self.until:
            self.until = now + retry_after
            self.spread = retry_after / 10

    def delay(self, now: float, draw: float = 0.0) -> float:
        """Return how many seconds a request has to wait, 0.0 when it may start.

        Args:
            now: The clock.
            draw: The request's place in the return, from 0.0 to 1.0.
        """
        return _worth_sleeping(self.until + draw * self.spread - now)


def _optional_rate(_instance: object, attribute: Attribute[float | None], value: object) -> None:
    if value is not None and finite(attribute.name, value) <= 0:
        raise ValueError(f"{attribute.name} must be above 0, not {value!r}")


@final
@frozen(kw_only=True)
class RateLimit:
    """How many requests, and how many model tokens, a provider takes per minute.

    Both are token buckets (Turner 1986) that start full. What a bucket holds at most is what it
    gains in ``burst`` seconds (at least one request): the default lets a minute's worth go at once.
    A request larger than the bucket of model tokens waits for a full one and leaves a debt.

    Attributes:
        requests_per_minute: None: not limited.
        tokens_per_minute: Model tokens; None: not limited.
        burst: Seconds.

    Raises:
        TypeError: A field is not a number.
        ValueError: A field is not above 0, or neither rate is given.
    """

    requests_per_minute: float | None = field(default=None, validator=_optional_rate)
    tokens_per_minute: float | None = field(default=None, validator=_optional_rate)
    burst: float = field(default=60.0, validator=seconds)

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise ValueError("requests_per_minute or tokens_per_minute must be given")


class _Bucket:
    __slots__ = ("_at", "_level", "_per_second", "_size")

    def __init__(self, per_minute: float, burst: float) -> None:
        self._per_second = per_minute / 60
        self._size = max(1.0, self._per_second * burst)
        self._level = self._size
        self._at = float("-inf")

    def delay(self, now: float, amount: float) -> float:
        """Return the seconds until ``amount`` (or a full bucket) is there."""
        # Guarding against a clock that a test sets back is cheaper than explaining the result.
        gained = max(0.0, now - self._at) * self._per_second
        self._level = min(self._size, self._level + gained)
        self._at = now
        missing = min(amount, self._size) - self._level
        return _worth_sleeping(missing / self._per_second)

    def take(self, amount: float) -> None:
        self._level -= amount


@final
class RateState:
    """The buckets of one provider."""

    __slots__ = ("_requests", "_tokens")

    def __init__(self, rate: RateLimit) -> None:
        self._requests = _bucket(rate.requests_per_minute, rate.burst)
        self._tokens = _bucket(rate.tokens_per_minute, rate.burst)

    def delay(self, now: float, tokens: int) -> float:
        """Return how many seconds until one request may start, 0.0 when it may.

        Args:
            now: The clock.
            tokens: How many model tokens it is expected to cost.
        """
        delay = 0.0
        if self._requests is not None:
            delay = self._requests.delay(now, 1)
        if self._tokens is not None:
            delay = max(delay, self._tokens.delay(now, tokens))
        return delay

    def take(self, tokens: int) -> None:
        """Take one request out; to be called when ``delay`` is 0.0."""
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)


def _bucket(per_minute: float | None, burst: float) -> _Bucket | None:
    return None if per_minute is None else _Bucket(per_minute, burst)
