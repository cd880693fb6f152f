"""The rules of a shutdown: who ends when, and how many seconds everybody gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from signal import Signals
from typing import Final, Generic, TypeVar, final

from attrs import field, frozen

from orchestra._core.checks import finite, seconds
from orchestra.events import HandlerOutcome, ShutdownPhase

__all__ = (
    "LAST_CALL",
    "Budget",
    "HandlerReport",
    "Order",
    "ShutdownReport",
    "ShutdownStatistics",
    "ShutdownTimes",
)

LAST_CALL: Final = 1.0
"""Seconds for what is called after the grace is over, and for what is cancelled to unwind."""

H = TypeVar("H")


@frozen(kw_only=True)
class ShutdownTimes:
    """How long a shutdown may last.

    Attributes:
        grace_period: Seconds from the request to the end.
        drain_share: Which part of them work in flight may use.
    """

    grace_period: float = field(default=30.0, validator=seconds)
    drain_share: float = 0.5

    def __attrs_post_init__(self) -> None:
        if not 0 <= finite("drain_share", self.drain_share) < 1:
            raise ValueError(
                f"drain_share must be at least 0 and below 1, not {self.drain_share!r}"
            )


@frozen(kw_only=True)
class HandlerReport:
    """How one handler ended.

    Attributes:
        name: Its name.
        priority: Its priority; None: it was registered for draining.
        outcome: OK, TIMEOUT or ERROR.
        duration: Seconds it took.
        error: What it raised; a TimeoutError when it was cancelled.
    """

    name: str
    priority: int | None
    outcome: HandlerOutcome
    duration: float
    error: BaseException | None = None


@frozen(kw_only=True)
class ShutdownReport:
    """How a shutdown went.

    Attributes:
        reason: Why it was requested.
        signal: The first signal that came; None: none did.
        duration: Seconds from the request to the end.
        is_drained: Whether all work in flight ended by itself.
        unfinished: The names of the work that did not.
        is_cut: Whether the grace was cut.
        handlers: How each handler ended, in the order in which they did.
    """

    reason: str
    signal: Signals | None
    duration: float
    is_drained: bool
    unfinished: tuple[str, ...]
    is_cut: bool
    handlers: tuple[HandlerReport, ...]

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as a shell expects of the process; 0 without a signal."""
        return 0 if self.signal is None else 128 + self.signal


@frozen(kw_only=True)
class ShutdownStatistics:
    """The state of a shutdown manager.

    Attributes:
        phase: Where it stands.
        handlers: How many handlers have not been called.
        in_flight: How many guards are held.
        outcomes: How many handlers ended how.
    """

    phase: ShutdownPhase
    handlers: int
    in_flight: int
    outcomes: Mapping[HandlerOutcome, int]


@final
class Budget:
    """The seconds of one shutdown.

    Attributes:
        began: When it was requested.
        drain_until: Until when work in flight is waited for.
        deadline: When everything should be over.
        is_cut: Whether somebody was in a hurry.

    Args:
        times: How long everything may last.
        now: When it was requested.
    """

    def __init__(self, times: ShutdownTimes, now: float) -> None:
        self.began: Final = now
        self.drain_until = now + times.grace_period * times.drain_share
        self.deadline = now + times.grace_period
        self.is_cut = False

    def cut(self, now: float) -> None:
        """Leave nothing but the last call."""
        self.is_cut = True
        self.drain_until = min(self.drain_until, now)
        self.deadline = min(self.deadline, now + LAST_CALL)

    def unwind_until(self, now: float, need: float) -> float:
        """Until when the cancelled block is waited for: what handlers need is left to them.

        Args:
            now: When it was cancelled.
            need: How many seconds the handlers want.
        """
        return max(now + LAST_CALL, self.deadline - need)

    def allow_last_call(self, now: float) -> None:
        """Leave at least the last call, when something that resists has used up the rest."""
        self.deadline = max(self.deadline, now + LAST_CALL)

    def share(self, now: float, need: float) -> float:
        """Which part of its own time-out everybody gets: all of it when there is enough for all.

        Args:
            now: The time.
            need: How many seconds those that have not begun want.
        """
        left = max(self.deadline - now, 0.0)
        return left / need if need > left else 1.0


@final
class Order(Generic[H]):
    """Handlers in the order in which they are called: by priority, the highest first.

    Args:
        timeout_of: How many seconds a handler wants.
    """

    def __init__(self, timeout_of: Callable[[H], float]) -> None:
        self._timeout_of = timeout_of
        self._groups: dict[int, dict[H, None]] = {}

    def add(self, handler: H, priority: int) -> None:
        """Put a handler in."""
        self._groups.setdefault(priority, {})[handler] = None

    def remove(self, handler: H, priority: int) -> bool:
        """Take a handler out; False when it is not there (any more)."""
        group = self._groups.get(priority, {})
        if handler not in group:
            return False
        del group[handler]
        if not group:
            del self._groups[priority]
        return True

    def take(self) -> tuple[H, ...]:
        """Take out those of the highest priority, who end side by side; empty when none is left."""
        return tuple(self._groups.pop(max(self._groups))) if self._groups else ()

    @property
    def need(self) -> float:
        """How many seconds all of them want: the longest of each priority, one after the other."""
        return sum(max(map(self._timeout_of, group)) for group in self._groups.values())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))
