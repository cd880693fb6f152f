"""Which pooled resource is next, and which has had its time. Pure: the clock and chance come in.

A resource that is leased is in nobody's list: the plan knows the idle ones only. It is the shell
that owns a slot for everything that is not idle, see `orchestra.pools.resources`.

The rules are those of the well-known connection pools: the last one released is the first one
leased, so that what is not needed grows old (Apache Commons Pool); idling ends a resource only
while more than ``min_idle`` of them idle; a lifetime is cut by a random share, so that what was
created together does not have to be replaced together (HikariCP).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, final

from attrs import Attribute, define, field, frozen

from orchestra._core.checks import count, finite, optional_seconds

__all__ = ("Chores", "Entry", "PoolPlan", "PoolRules")

T = TypeVar("T")

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts to create in the background, doubled after each failure."""

_by_age = attrgetter("idle_since")


def _optional_count(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        count(instance, attribute, value)


def _min_idle(instance: PoolRules, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be an int, not {value!r}")
    if not 0 <= value <= instance.max_size:
        raise ValueError(
            f"{attribute.name} must be from 0 to max_size, which is {instance.max_size}, "
            f"not {value!r}"
        )


def _jitter(_instance: object, attribute: Attribute[float], value: object) -> None:
    if not 0 <= finite(attribute.name, value) <= 1:
        raise ValueError(f"{attribute.name} must be from 0 to 1, not {value!r}")


@final
@frozen(kw_only=True)
class PoolRules:
    """How many resources there may be, and how long each is kept; see ``ResourcePool``.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range.
    """

    max_size: int = field(validator=count)
    min_idle: int = field(default=0, validator=_min_idle)
    idle_timeout: float | None = field(default=300.0, validator=optional_seconds)
    max_uses: int | None = field(default=10, validator=_optional_count)
    max_lifetime: float | None = field(default=None, validator=optional_seconds)
    jitter: float = field(default=0.1, validator=_jitter)
    health_interval: float | None = field(default=60.0, validator=optional_seconds)
    fifo: bool = False

    @property
    def head(self) -> int:
        """The index of the idle entry that is leased next."""
        return 0 if self.fifo else -1


@final
@define(eq=False)
class Entry(Generic[T]):
    """One resource and its history.

    Attributes:
        resource: The resource.
        born: When it was created.
        expires_at: When its lifetime ends.
        idle_since: When it was released the last time.
        checked_at: When it was validated in the background the last time.
        leased_at: When its last lease began.
        uses: How often it has been leased.
        holder: Who has it; None: nobody.
    """

    resource: T
    born: float
    expires_at: float
    idle_since: float
    checked_at: float = float("-inf")
    leased_at: float = 0.0
    uses: int = 0
    holder: Any = None

    @property
    def well_at(self) -> float:
        """When it was last known to be well."""
        return max(self.idle_since, self.checked_at)


@final
@frozen(kw_only=True)
class Chores(Generic[T]):
    """What is to be done now.

    Attributes:
        outdated: Idle entries whose lifetime is over.
        surplus: Idle entries that have idled for too long.
        unchecked: Idle entries whose health is to be checked.
        missing: How many entries are to be created.
        next_at: When there will be more to do if nothing happens; infinity: never.
    """

    outdated: Sequence[Entry[T]]
    surplus: Sequence[Entry[T]]
    unchecked: Sequence[Entry[T]]
    missing: int
    next_at: float


@final
class PoolPlan(Generic[T]):
    """The idle resources of one pool.

    Args:
        rules: The pool's configuration.

    Attributes:
        idle: The idle entries, the one that has idled longest first. Who was in use is appended.
        attention: After how many seconds of idling an entry needs attention, if not before.
    """

    __slots__ = ("_create_at", "_pause", "_rules", "attention", "idle")

    def __init__(self, rules: PoolRules) -> None:
        self._rules: Final = rules
        self.idle: list[Entry[T]] = []
        self.attention: Final = min(
            seconds or float("inf") for seconds in (rules.idle_timeout, rules.health_interval)
        )
        self._pause = _FIRST_PAUSE
        self._create_at = float("-inf")

    def enter(self, resource: T, now: float, draw: float) -> Entry[T]:
        """Make the entry of a resource that was created a moment ago; it is not idle yet.

        Args:
            resource: The resource.
            now: The clock.
            draw: From 0.0 to 1.0: how much of the jitter its lifetime is cut by.
        """
        self._pause = _FIRST_PAUSE
        self._create_at = float("-inf")
        lifetime = self._rules.max_lifetime
        expires_at = (
            float("inf") if lifetime is None else now + lifetime * (1 - self._rules.jitter * draw)
        )
        return Entry(resource, now, expires_at, now)

    def take(self) -> Entry[T] | None:
        """Remove and return who is to be leased next; None when nobody idles."""
        if not self.idle:
            return None
        return self.idle.pop(self._rules.head)

    def put_back(self, entry: Entry[T], now: float) -> None:
        """Let an entry go on idling that has been found well."""
        entry.checked_at = now
        insort(self.idle, entry, key=_by_age)

    def failed(self, now: float) -> float:
        """Note that creating in the background failed; return the seconds until the next try."""
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        self._create_at = now + pause
        return pause

    def is_short(self, live: int) -> bool:
        """Whether fewer idle than should, and there is room for more.

        Args:
            live: How many resources there are, those that are being created included.
        """
        rules = self._rules
        return len(self.idle) < rules.min_idle and live < rules.max_size

    def chores(self, now: float, *, live: int, coming: int) -> Chores[T]:
        """Tell what is to be done with those that idle. Changes nothing.

        Args:
            now: The clock.
            live: How many resources there are, those that are being created included.
            coming: How many of them are being created, or checked, in order to idle.
        """
        rules = self._rules
        outdated: list[Entry[T]] = []
        surplus: list[Entry[T]] = []
        unchecked: list[Entry[T]] = []
        next_at = float("inf")
        too_many = len(self.idle) + coming - rules.min_idle
        for entry in self.idle:
            moments = [entry.expires_at]
            if rules.idle_timeout is not None and too_many > 0:
                moments.append(entry.idle_since + rules.idle_timeout)
            if rules.health_interval is not None:
                moments.append(entry.well_at + rules.health_interval)
            if entry.expires_at <= now:
                outdated.append(entry)
                too_many -= 1
            elif (
                rules.idle_timeout is not None
                and too_many > 0
                and entry.idle_since + rules.idle_timeout <= now
            ):
                surplus.append(entry)
                too_many -= 1
            elif rules.health_interval is not None and (
                entry.well_at + rules.health_interval <= now
            ):
                unchecked.append(entry)
            else:
                next_at = min(next_at, *moments)
        staying = len(self.idle) - len(outdated) - len(surplus)
        missing = max(0, min(rules.min_idle - staying - coming, rules.max_size - live))
        if missing and now < self._create_at:
            missing, next_at = 0, min(next_at, self._create_at)
        return Chores(
            outdated=outdated,
            surplus=surplus,
            unchecked=unchecked,
            missing=missing,
            next_at=next_at,
        )
