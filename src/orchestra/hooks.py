"""Hooks: steps that others put before, between and after ours, in an order that all agree on."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, Literal, TypeAlias, TypeVar, final

from attrs import define, field, frozen, setters, validators

from orchestra._core.checks import check_callable, count, finite, function, of_type
from orchestra._core.ordering import HookPhase, Place, put_in_order
from orchestra._functions import is_async
from orchestra.errors import BlockedError, HookError

__all__ = (
    "Block",
    "Hook",
    "HookPhase",
    "HookPoint",
    "HookRegistry",
    "HookStatistics",
    "Modify",
    "RegistryStatistics",
    "SyncHookPoint",
)

T = TypeVar("T")

_logger = logging.getLogger("orchestra")

_FIRST = 16
_SAMPLE = 64
"""The first runs are timed, and then one in so many: a look at the clock may cost more than a
hook that does nothing."""


@final
@frozen
class Block:
    """What a hook returns to stop the matter at hand.

    Attributes:
        reason: Why, for people; not empty.
    """

    reason: str = field(validator=validators.and_(of_type(str), validators.min_len(1)))


@final
@frozen
class Modify(Generic[T]):
    """What a hook returns to put another value in place of the one it was given.

    Attributes:
        value: What the next hook, and in the end the caller, gets.
    """

    value: T


HookResult: TypeAlias = Block | Modify[T] | None

Hook: TypeAlias = Callable[[T], HookResult[T] | Awaitable[HookResult[T]]]
"""A step: gets a value and returns `Block`, `Modify`, or None to let it pass as it is."""


@final
@frozen(eq=False)
class HookPoint(Generic[T]):
    """A place where hooks may step in; they may be async.

    A point says what its hooks get, so that a type checker knows. It holds nothing: what is
    registered is in a `HookRegistry`.

    ::

        BEFORE_DEPLOY = HookPoint[Deployment]("before deploy")

    Args:
        name: What errors and statistics call it.
        can_block: Whether a hook may return `Block`.
    """

    name: str = field(validator=validators.and_(of_type(str), validators.min_len(1)))
    can_block: bool = field(default=True, kw_only=True)


@final
@frozen(eq=False)
class SyncHookPoint(Generic[T]):
    """A place where hooks may step in that must not wait; coroutine functions are refused.

    Args:
        name: What errors and statistics call it.
        can_block: Whether a hook may return `Block`.
    """

    name: str = field(validator=validators.and_(of_type(str), validators.min_len(1)))
    can_block: bool = field(default=True, kw_only=True)


@frozen(kw_only=True)
class HookStatistics:
    """What one hook has done since it was registered.

    Attributes:
        point: The name of its point.
        name: Its name.
        calls: Values that it was given; a repetition after an error does not count again.
        blocked: How often it returned `Block`.
        modified: How often it returned `Modify`.
        errors: How often it raised, or returned what a hook may not.
        seconds: Time spent in it, waiting included. The first 16 runs of its point are measured,
            and then one in 64; it is what they took, scaled up to all calls.
    """

    point: str
    name: str
    calls: int
    blocked: int
    modified: int
    errors: int
    seconds: float


@frozen(kw_only=True)
class RegistryStatistics:
    """What the hooks of a registry have done.

    Attributes:
        hooks: Every hook, by point in order of registration, then in the order in which they run.
    """

    hooks: tuple[HookStatistics, ...]


@define(eq=False, on_setattr=setters.NO_OP)
class _Entry:
    """A hook with its rules and its counters."""

    place: Place
    fn: Callable[[Any], Any] = field(validator=function)
    on_error: str = field(validator=validators.in_(("continue", "stop")))
    attempts: int = field(validator=count)
    is_async: bool = field(init=False)
    calls: int = field(default=0, init=False)
    blocked: int = field(default=0, init=False)
    modified: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    timed: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.is_async = is_async(self.fn)

    def fresh(self) -> _Entry:
        return _Entry(self.place, self.fn, self.on_error, self.attempts)


class _Chain:
    """The hooks of a point, ready to run.

    Counting every call of every hook would cost a third of a call that does nothing, so a sync
    point counts its runs, and takes back what a run that ended early did not get to.
    """

    __slots__ = ("_is_sync", "entries", "pairs", "point", "runs")

    def __init__(
        self, point: HookPoint[Any] | SyncHookPoint[Any], entries: Iterable[_Entry]
    ) -> None:
        self.point = point
        self.entries = tuple(entries)
        self.pairs = tuple((entry.fn, entry) for entry in self.entries)
        self.runs = 0
        self._is_sync = isinstance(point, SyncHookPoint)

    @property
    def uncounted(self) -> int:
        """Calls of each hook that its entry does not know of."""
        return self.runs if self._is_sync else 0

    def compiled(self, entries: list[_Entry]) -> _Chain:
        """Return a chain of these, which are in order of registration, with the counts settled."""
        by_name = {entry.place.name: entry for entry in entries}
        ordered = put_in_order([entry.place for entry in entries])
        for entry in self.entries:
            entry.calls += self.uncounted
        self.runs = 0
        return _Chain(self.point, map(by_name.__getitem__, ordered))

    def end_early(self, entry: _Entry) -> None:
        if self._is_sync:
            for later in self.entries[self.entries.index(entry) + 1 :]:
                later.calls -= 1

    def fail(self, entry: _Entry, exc: Exception) -> None:
        """Do what the hook's error policy wants.

        Raises:
            HookError: Its policy is to stop.
        """
        if entry.on_error == "stop":
            self.end_early(entry)
            raise HookError(self.point.name, entry.place.name, entry.attempts) from exc
        _logger.warning(
            "hook %r of %r raised and is passed over",
            entry.place.name,
            self.point.name,
            exc_info=exc,
        )

    def settle(self, entry: _Entry, result: object, value: Any) -> Any:
        """Take what a hook returned that is not None; return the value that goes on.

        Raises:
            BlockedError: It does not go on.
            HookError: The hook may not return this.
        """
        if isinstance(result, Modify):
            entry.modified += 1
            return result.value
        if isinstance(result, Block) and self.point.can_block:
            entry.blocked += 1
            self.end_early(entry)
            raise BlockedError(self.point.name, entry.place.name, result.reason)
        if inspect.iscoroutine(result):
            result.close()  # or it would complain that nobody has awaited it
        allowed = "Block, Modify or None" if self.point.can_block else "Modify or None"
        entry.errors += 1
        self.fail(
            entry,
            TypeError(f"a hook of {self.point.name!r} must return {allowed}, not {result!r}"),
        )
        return value

    def repeat(self, entry: _Entry, value: Any, exc: Exception) -> Any:
        """Call a hook again that raised, as often as its rules say."""
        entry.errors += 1
        for _ in range(entry.attempts - 1):
            try:
                return entry.fn(value)
            except Exception as again:  # noqa: BLE001  (the policy decides)
                entry.errors += 1
                exc = again
        return self.fail(entry, exc)

    async def repeat_async(self, entry: _Entry, value: Any, exc: Exception) -> Any:
        """The same for a hook that may be async."""
        entry.errors += 1
        for _ in range(entry.attempts - 1):
            try:
                result = entry.fn(value)
                return await result if inspect.isawaitable(result) else result
            except Exception as again:  # noqa: BLE001  (the policy decides)
                entry.errors += 1
                exc = again
        return self.fail(entry, exc)


@final
class HookRegistry:
    """Hooks by point, in an order that is worked out when one is registered.

    ::

        BEFORE_PROMPT = HookPoint[str]("before prompt")

        hooks = HookRegistry()
        hooks.register(BEFORE_PROMPT, no_shouting, name="tone", phase=HookPhase.EARLY)
        hooks.register(BEFORE_PROMPT, add_date, name="date", after=["tone"])
        prompt = await hooks.run(BEFORE_PROMPT, prompt)

    A hook gets the value that the one before it left. It returns None to let it pass, `Modify` to
    replace it, or `Block` to stop it: then the caller gets `BlockedError`, which nobody can forget
    to look at.

    Hooks run by phase (early, normal, late), then as ``before`` and ``after`` want it, then the
    higher ``priority`` first, then in order of registration. ``before`` and ``after`` may name
    hooks that are not there (yet): those do not count. A wish never moves a hook to another phase;
    one that would have to is an error.

    A registry is for one thread; registering while hooks run is safe and concerns the next run.

    Args:
        clock: Gives seconds, for the statistics.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        check_callable("clock", clock)
        self._clock = clock
        self._chains: dict[HookPoint[Any] | SyncHookPoint[Any], _Chain] = {}
        self._entries: dict[HookPoint[Any] | SyncHookPoint[Any], list[_Entry]] = {}

    def register(
        self,
        point: HookPoint[T] | SyncHookPoint[T],
        fn: Hook[T],
        *,
        name: str,
        phase: HookPhase = HookPhase.NORMAL,
        priority: int = 0,
        before: Iterable[str] = (),
        after: Iterable[str] = (),
        on_error: Literal["continue", "stop"] = "stop",
        attempts: int = 1,
    ) -> None:
        """Add a hook to a point.

        Args:
            point: Where it steps in.
            fn: What is called, with one value. At a `HookPoint` it may be async.
            name: Its name, unique at the point.
            phase: Its phase.
            priority: Within the phase the higher one runs first.
            before: Names of hooks that it must run before.
            after: Names of hooks that it must run after.
            on_error: What happens when it has raised: ``stop`` ends the run with `HookError`;
                ``continue`` logs it and goes on as if it had returned None.
            attempts: How often it is called, at once, until it does not raise; the last error is
                the one that counts.

        Raises:
            HookOrderError: No order fits; nothing was registered.
            TypeError: An argument has the wrong type, or ``fn`` is async and the point is not.
            ValueError: The name is taken, or an argument is out of range.
        """
        place = Place(
            name=_name("name", name),
            phase=_phase(phase),
            priority=int(finite("priority", priority)),
            before=_names("before", before),
            after=_names("after", after),
        )
        entry = _Entry(place, fn, on_error, attempts)
        if entry.is_async and isinstance(point, SyncHookPoint):
            raise TypeError(
                f"hook {name!r} is async, and {point.name!r} cannot wait; give it a plain function"
            )
        entries = self._entries.get(point, [])
        if any(each.place.name == name for each in entries):
            raise ValueError(
                f"{point.name!r} has a hook {name!r} already; choose another name, or unregister "
                "the first one"
            )
        self._compile(point, [*entries, entry])

    def unregister(self, point: HookPoint[Any] | SyncHookPoint[Any], name: str) -> None:
        """Remove a hook; a run that is under way still calls it.

        Args:
            point: Where it is registered.
            name: Its name.

        Raises:
            LookupError: There is no such hook.
        """
        entries = self._entries.get(point, [])
        left = [entry for entry in entries if entry.place.name != name]
        if len(left) == len(entries):
            raise LookupError(f"{point.name!r} has no hook {name!r}; it has {self.order(point)}")
        self._compile(point, left)

    def _compile(self, point: HookPoint[Any] | SyncHookPoint[Any], entries: list[_Entry]) -> None:
        chain = self._chains.get(point) or _Chain(point, ())
        self._chains[point] = chain.compiled(entries)
        self._entries[point] = entries

    def order(self, point: HookPoint[Any] | SyncHookPoint[Any]) -> tuple[str, ...]:
        """Return the names of a point's hooks in the order in which they run.

        Args:
            point: The point.
        """
        chain = self._chains.get(point)
        return () if chain is None else tuple(entry.place.name for entry in chain.entries)

    def call(self, point: SyncHookPoint[T], value: T) -> T:
        """Run the hooks of a point that cannot wait.

        Args:
            point: The point.
            value: What the first hook gets.

        Returns:
            What the last hook left.

        Raises:
            BlockedError: A hook does not let it pass; the ones after it were not called.
            HookError: A hook raised, and its policy is to stop; likewise.
        """
        chain = self._chains.get(point)
        if chain is None:
            return value
        runs = chain.runs
        chain.runs = runs + 1
        if runs < _FIRST or runs % _SAMPLE == 0:
            timed: T = self._call_timed(chain, value)
            return timed
        for fn, entry in chain.pairs:
            try:
                result = fn(value)
            except Exception as exc:  # noqa: BLE001  (the policy decides)
                result = chain.repeat(entry, value, exc)
            if result is not None:
                value = chain.settle(entry, result, value)
        return value

    def _call_timed(self, chain: _Chain, value: Any) -> Any:
        clock = self._clock
        for fn, entry in chain.pairs:
            began = clock()
            entry.timed += 1
            try:
                result = fn(value)
            except Exception as exc:  # noqa: BLE001  (the policy decides)
                result = chain.repeat(entry, value, exc)
            finally:
                entry.seconds += clock() - began
            if result is not None:
                value = chain.settle(entry, result, value)
        return value

    async def run(self, point: HookPoint[T], value: T) -> T:
        """Run the hooks of a point, one after the other; a checkpoint where one of them is.

        A cancelled run ends where it is; that is no error of a hook.

        Args:
            point: The point.
            value: What the first hook gets.

        Returns:
            What the last hook left.

        Raises:
            BlockedError: A hook does not let it pass; the ones after it were not called.
            HookError: A hook raised, and its policy is to stop; likewise.
        """
        chain = self._chains.get(point)
        if chain is None:
            return value
        runs = chain.runs
        chain.runs = runs + 1
        clock = self._clock if runs < _FIRST or runs % _SAMPLE == 0 else None
        began = 0.0
        for fn, entry in chain.pairs:
            entry.calls += 1
            if clock is not None:
                entry.timed += 1
                began = clock()
            try:
                result = fn(value)
                if entry.is_async or (result is not None and inspect.isawaitable(result)):
                    result = await result
            except Exception as exc:  # noqa: BLE001  (the policy decides)
                result = await chain.repeat_async(entry, value, exc)
            finally:
                if clock is not None:
                    entry.seconds += clock() - began
            if result is not None:
                value = chain.settle(entry, result, value)
        return value

    def copy(self) -> HookRegistry:
        """Return a registry with the same hooks, and nothing counted yet."""
        copied = HookRegistry(clock=self._clock)
        for point, entries in self._entries.items():
            copied._compile(point, [entry.fresh() for entry in entries])
        return copied

    def statistics(self) -> RegistryStatistics:
        """Count what each hook has done."""
        return RegistryStatistics(
            hooks=tuple(
                _count(chain, entry) for chain in self._chains.values() for entry in chain.entries
            )
        )

    def __repr__(self) -> str:
        points = "; ".join(
            f"{point.name}: {', '.join(self.order(point))}"
            for point, chain in self._chains.items()
            if chain.entries
        )
        return f"<HookRegistry {points or 'no hooks'}>"


def _count(chain: _Chain, entry: _Entry) -> HookStatistics:
    calls = entry.calls + chain.uncounted
    return HookStatistics(
        point=chain.point.name,
        name=entry.place.name,
        calls=calls,
        blocked=entry.blocked,
        modified=entry.modified,
        errors=entry.errors,
        seconds=entry.seconds * calls / entry.timed if entry.timed else 0.0,
    )


def _name(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a text, not {name!r}")
    if not name:
        raise ValueError(f"{what} must not be empty")
    return name


def _names(what: str, names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{what} must be a list of names, not {names!r}")
    return tuple(_name(what, name) for name in names)


def _phase(phase: object) -> HookPhase:
    if not isinstance(phase, HookPhase):
        raise TypeError(f"phase must be a HookPhase, not {phase!r}")
    return phase


for _public in (HookPhase,):
    _public.__module__ = __name__
