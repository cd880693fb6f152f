"""How a limit follows what the other side can bear: rules as pure objects.

A rule is told how requests ended and answers with the limit. `AIMD` is the congestion control of
TCP (slow start, one additive step per round, one multiplicative cut per congestion epoch; Jacobson
1988, RFC 5681) with the "no growth while the limit is not the bottleneck" of Netflix
concurrency-limits. `Streak` counts answers in a row; it is simple, and refuses a large part of its
own calls under saturation: see the simulation in ``benchmarks``.

An epoch is the time between two cuts. A request carries the epoch in which it began; how it ended
says nothing about the limit of a later epoch, so twenty refusals of one overload cut once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, final

from attrs import Attribute, field, frozen

from orchestra._core.checks import count, finite

__all__ = ("AIMD", "Fixed", "Limit", "LimitRule", "LimitState", "Streak")


class LimitState(ABC):
    """The moving limit of one key.

    Attributes:
        limit: How many may be in use now.
        epoch: How often the limit was cut.
    """

    __slots__ = ("_maximum", "_minimum", "epoch", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit: int = limit.initial
        self.epoch: int = 0
        self._minimum = limit.minimum
        self._maximum = limit.ceiling

    @abstractmethod
    def succeeded(self, *, epoch: int, in_use: int) -> None:
        """Take in that a request went well.

        Args:
            epoch: The epoch in which it began.
            in_use: How many were in use when it ended, itself included.
        """

    @abstractmethod
    def dropped(self, *, epoch: int) -> None:
        """Take in that a request was refused for overload.

        Args:
            epoch: The epoch in which it began.
        """


class LimitRule(ABC):
    """How a limit moves; immutable, so one rule serves many keys."""

    @abstractmethod
    def start(self, limit: Limit) -> LimitState:
        """Return a fresh state for one key."""


def _is_int_from(lowest: int, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


class _FixedState(LimitState):
    __slots__ = ()

    def succeeded(self, *, epoch: int, in_use: int) -> None:
        """Ignore it."""

    def dropped(self, *, epoch: int) -> None:
        """Ignore it."""


@final
@frozen
class Fixed(LimitRule):
    """The limit stays where it is."""

    def start(self, limit: Limit) -> LimitState:
        """Return a state that never moves."""
        return _FixedState(limit)


class _AIMDState(LimitState):
    __slots__ = ("_backoff", "_is_slow_start", "_peak", "_successes")

    def __init__(self, limit: Limit, backoff: float) -> None:
        super().__init__(limit)
        self._backoff = backoff
        self._is_slow_start = True
        self._successes = 0
        self._peak = 0

    def succeeded(self, *, epoch: int, in_use: int) -> None:
        """Add one for it in slow start, else for a full round; only if the limit was reached."""
        if epoch != self.epoch:
            return
        if self._is_slow_start:
            self._grow(in_use)
            return
        self._successes += 1
        self._peak = max(self._peak, in_use)
        if self._successes >= self.limit:
            self._grow(self._peak)
            self._successes = 0
            self._peak = 0

    def _grow(self, in_use: int) -> None:
        if in_use >= self.limit:
            self.limit = min(self.limit + 1, self._maximum)

    def dropped(self, *, epoch: int) -> None:
        """Cut the limit, unless it was cut since the request began."""
        if epoch != self.epoch:
            return
        self.epoch += 1
        self.limit = max(self._minimum, min(self.limit - 1, int(self.limit * self._backoff)))
        self._is_slow_start = False
        self._successes = 0
        self._peak = 0


@final
@frozen(kw_only=True)
class AIMD(LimitRule):
    """Add one per round, cut by a factor once per congestion epoch; the default for agents.

    A round is as many successes as the limit is high. A round in which the limit was not reached
    does not raise it. Until the first cut every success adds one (slow start).

    Attributes:
        backoff: The factor of a cut, above 0 and below 1.

    Raises:
        ValueError: ``backoff`` is not between 0 and 1.
    """

    backoff: float = field(default=0.7)

    @backoff.validator
    def _check_backoff(self, attribute: Attribute[float], value: float) -> None:
        if not 0 < finite(attribute.name, value) < 1:
            raise ValueError(f"{attribute.name} must be above 0 and below 1, not {value!r}")

    def start(self, limit: Limit) -> LimitState:
        """Return a state in slow start."""
        return _AIMDState(limit, self.backoff)


class _StreakState(LimitState):
    __slots__ = ("_down_after", "_drops", "_successes", "_up_after")

    def __init__(self, limit: Limit, up_after: int, down_after: int) -> None:
        super().__init__(limit)
        self._up_after = up_after
        self._down_after = down_after
        self._successes = 0
        self._drops = 0

    def succeeded(self, *, epoch: int, in_use: int) -> None:  # noqa: ARG002 - it needs neither
        """Lengthen the streak; a full one adds one."""
        self._drops = 0
        self._successes += 1
        if self._successes >= self._up_after:
            self._successes = 0
            self.limit = min(self.limit + 1, self._maximum)

    def dropped(self, *, epoch: int) -> None:  # noqa: ARG002 - it needs none
        """Break the streak; enough drops in a row take one away."""
        self._successes = 0
        self._drops += 1
        if self._drops >= self._down_after:
            self._drops = 0
            self.limit = max(self.limit - 1, self._minimum)


@final
@frozen(kw_only=True)
class Streak(LimitRule):
    """Add one after some successes in a row, take one away after some drops in a row.

    It has no epochs and grows whether or not the limit was used: where `AIMD` settles below the
    point of refusal, this rule hovers at it. Kept for its simplicity and for comparison.

    Attributes:
        up_after: Successes in a row that add one; at least 1.
        down_after: Drops in a row that take one away; at least 1.

    Raises:
        TypeError: One of them is not an int.
        ValueError: One of them is below 1.
    """

    up_after: int = field(default=3, validator=count)
    down_after: int = field(default=2, validator=count)

    def start(self, limit: Limit) -> LimitState:
        """Return a state without a streak."""
        return _StreakState(limit, self.up_after, self.down_after)


_DEFAULT_RULE: Final = AIMD()


@final
@frozen
class Limit:
    """How many may be in use at once, and how that number moves.

    ::

        Limit(10)                            # 10, less after an overload, never more
        Limit(10, maximum=50)                # starts at 10, finds its place between 1 and 50
        Limit(10, rule=Fixed())              # always 10; so is a plain 10 in a mapping

    Attributes:
        initial: Where it starts; at least 1.
        minimum: It never falls below; at least 1.
        maximum: It never rises above; None: the initial limit.
        rule: How it moves.
        max_waiting: How many may wait; more are rejected with `CapacityError`. None: no bound.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is below 1 (``max_waiting``: below 0), or not
            ``minimum <= initial <= maximum``.
    """

    initial: int = field(validator=count)
    minimum: int = field(default=1, kw_only=True, validator=count)
    maximum: int | None = field(default=None, kw_only=True)
    rule: LimitRule = field(default=_DEFAULT_RULE, kw_only=True)
    max_waiting: int | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.maximum is not None and not _is_int_from(self.initial, self.maximum):
            raise ValueError(
                f"maximum must be an int of at least the initial {self.initial}, "
                f"not {self.maximum!r}"
            )
        if self.minimum > self.initial:
            raise ValueError(
                f"minimum must be at most the initial {self.initial}, not {self.minimum!r}"
            )
        if self.max_waiting is not None and not _is_int_from(0, self.max_waiting):
            raise ValueError(f"max_waiting must be an int of at least 0, not {self.max_waiting!r}")
        if not isinstance(self.rule, LimitRule):
            raise TypeError(f"rule must be a LimitRule such as AIMD(), not {self.rule!r}")

    @property
    def ceiling(self) -> int:
        """The highest limit it can reach."""
        return self.initial if self.maximum is None else self.maximum
