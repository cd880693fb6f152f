"""Stop calling what is failing anyway, and find out when it works again."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast, final

from orchestra._core.breaker import (
    TRANSITIONS,
    Breaker,
    BreakerConfig,
    CircuitStatistics,
    CircuitTrip,
    RecoveryTimeout,
)
from orchestra._core.checks import check_callable, exception_types
from orchestra._core.retry import retry_after_of
from orchestra._core.tally import FAILED, SLOW, SUCCEEDED, FailureRate
from orchestra._functions import is_async, refuse_generator
from orchestra._listeners import Teller
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitCause, CircuitChanged, CircuitState

__all__ = (
    "TRANSITIONS",
    "CircuitBreaker",
    "CircuitPermit",
    "CircuitStatistics",
    "CircuitTrip",
    "FailureRate",
)

_OPEN = CircuitState.OPEN

P = ParamSpec("P")
T = TypeVar("T")

# The `with` blocks around this point of the program: breaker, generation, start, and the blocks
# further out. One breaker is entered by many tasks and threads at a time, and only the context
# tells them apart.
_Blocks: TypeAlias = "tuple[CircuitBreaker, int, float, _Blocks] | None"
_blocks: ContextVar[_Blocks] = ContextVar("orchestra.breaker", default=None)


@final
class CircuitPermit:
    """The right to make one call; comes from `CircuitBreaker.acquire` only.

    It must be given back exactly once, by any task or thread: leave its ``with`` block, or call
    one of the methods; what is called after the first one does nothing.
    """

    __slots__ = ("_breaker", "_generation", "_started")

    def __init__(self, breaker: CircuitBreaker, generation: int, started: float) -> None:
        self._breaker = breaker
        self._generation: int | None = generation
        self._started = started

    @property
    def is_released(self) -> bool:
        """Whether it has been given back."""
        return self._generation is None

    def record(self, error: BaseException | None) -> None:
        """Give it back with how the call ended, judged as a ``with`` block judges it.

        Args:
            error: What the call raised; None when it succeeded.
        """
        generation, self._generation = self._generation, None
        if generation is None:
            return
        if error is None:
            self._breaker._succeed(generation, self._started)  # noqa: SLF001 - its other half
        else:
            self._breaker._fail(generation, self._started, error)  # noqa: SLF001 - the same

    def success(self) -> None:
        """Give it back: the call succeeded."""
        self.record(None)

    def ignore(self) -> None:
        """Give it back: the call says nothing about the other side, or was not made."""
        generation, self._generation = self._generation, None
        if generation is not None:
            self._breaker._ignore(generation)  # noqa: SLF001 - its other half

    def __enter__(self) -> CircuitPermit:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.record(exc)

    def __repr__(self) -> str:
        state = "released" if self.is_released else "held"
        return f"<CircuitPermit of {self._breaker.name!r} {state}>"


@final
class CircuitBreaker:
    """Rejects calls while what they call is failing, and lets a few probes find out when it works.

    ::

        breaker = CircuitBreaker("llm", on=(OSError, TransportError))

        with breaker:                                # a block, sync or async
            reply = await session.prompt("hello")

        @breaker                                     # a function, sync or async
        async def ask(prompt: str) -> str: ...

        reply = await breaker.call(ask, "hello")     # one call

    An error that is an instance of ``on`` is a failure and no error is a success. Any other error
    says nothing about the other side, and neither does cancellation, an interrupt or the closing
    of a generator: the permit is given back and nothing is counted. A hanging call is therefore no
    failure as long as the time-out is *around* the breaker: put it inside.

    Entering never blocks. No lock is held during a call, so one breaker may be used by many tasks
    and threads at once. A ``with breaker:`` block finds its permit through the context, so it must
    be left in the context it was entered in. Where that is not sure (generators, exit stacks that
    are handed from one task to another) write ``with breaker.acquire():``, which keeps it itself.

    It counts failures, it does not bound how many calls run at once (`ConcurrencyController`) and
    repeats nothing (`Retry`). States and vocabulary are those of resilience4j and Polly.

    Args:
        name: What errors, events and people call it.
        on: The exception types that are failures. There is no right default.
        failure_threshold: So many failures without a success between them open the circuit, or a
            `FailureRate`.
        recovery_timeout: Seconds the circuit stays open, or a quick function that gives them for a
            `CircuitTrip`. Where a failure carried a ``retry_after``, the break lasts at least
            until then; the longest one counts.
        success_threshold: So many probes must succeed to close the circuit. One that fails, or is
            slow, opens it again.
        half_open_max: At most so many probes are under way at once.
        half_open_timeout: When all probes have been out for so many seconds, they are given up
            and the circuit opens again.
        listener: Called with every `CircuitChanged`, in order, outside of any lock; one that
            raises is logged and dropped.
        retry_after: Reads from a failure the seconds for which the other side wants to be left
            alone; None where it did not say.
        clock: Gives monotonic seconds.

    Raises:
        TypeError: A field has the wrong type, e.g. ``on`` is no exception type.
        ValueError: A field is out of range.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_config",
        "_is_timed",
        "_lock",
        "_name",
        "_on",
        "_retry_after",
        "_teller",
    )

    def __init__(
        self,
        name: str,
        *,
        on: type[Exception] | tuple[type[Exception], ...],
        failure_threshold: int | FailureRate = 5,
        recovery_timeout: RecoveryTimeout = 30.0,
        success_threshold: int = 2,
        half_open_max: int = 1,
        half_open_timeout: float = 600.0,
        listener: Callable[[CircuitChanged], object] | None = None,
        retry_after: Callable[[BaseException], float | None] = retry_after_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r}")
        check_callable("retry_after", retry_after)
        check_callable("clock", clock)
        self._name = name
        self._on = exception_types("on", on)
        self._config = BreakerConfig(
            failure_threshold=failure_threshold,
            recovery_timeout=recovery_timeout,
            success_threshold=success_threshold,
            half_open_max=half_open_max,
            half_open_timeout=half_open_timeout,
        )
        # Only a window must know when a call succeeded, and how long it took.
        self._is_timed = isinstance(failure_threshold, FailureRate)
        self._retry_after = retry_after
        self._clock = clock
        self._teller = Teller(listener)
        self._breaker = Breaker(self._config, self._note)
        # Held for a few instructions, never during a call. Re-entrant, because the collector may
        # close a generator that holds a permit while this thread is inside.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """What errors, events and people call it."""
        return self._name

    @property
    def state(self) -> CircuitState:
        """Where it stands; a circuit whose break is over is OPEN until the next call."""
        return self._breaker.state

    def acquire(self) -> CircuitPermit:
        """Take the right to make one call; it must be given back. Never blocks.

        Raises:
            CircuitOpenError: The circuit does not let the call pass; a fresh error every time.
        """
        generation = self._breaker.free_pass
        if generation is None:
            generation = self._ask()
        return CircuitPermit(self, generation, self._clock() if self._is_timed else 0.0)

    def _ask(self) -> int:
        now = self._clock()
        breaker = self._breaker
        state, reopens_at = breaker.state, breaker.reopens_at
        if state is _OPEN and now < reopens_at:
            breaker.rejected += 1  # nothing else changes, so that this needs no lock
        else:
            with self._lock:
                generation = breaker.admit(now)
                state, reopens_at = breaker.state, breaker.reopens_at
            if self._teller.events:
                self._teller.deliver()
            if generation is not None:
                return generation
        trip = breaker.trip
        # Not kept in a variable: the traceback would make a cycle of it and this frame.
        raise CircuitOpenError(
            self._name,
            state,
            max(reopens_at - now, 0.0) if state is _OPEN else None,
            trip.failures if trip is not None else 0,
        )

    def _succeed(self, generation: int, started: float) -> None:
        if generation == self._breaker.quiet_pass:
            self._breaker.succeeded += 1
            return
        outcome = SUCCEEDED
        now = 0.0
        if self._is_timed:
            now = self._clock()
            if self._is_slow(started, now):
                outcome = SLOW
        with self._lock:
            self._breaker.record(generation, outcome, now)
        if self._teller.events:
            self._teller.deliver()

    def _fail(self, generation: int, started: float, error: BaseException) -> None:
        if not isinstance(error, self._on):
            self._ignore(generation)
            return
        now = self._clock()
        outcome = FAILED | SLOW if self._is_slow(started, now) else FAILED
        retry_after = None
        try:
            retry_after = self._retry_after(error)
        finally:
            try:
                with self._lock:
                    self._breaker.record(generation, outcome, now, retry_after)
            finally:
                self._teller.deliver()

    def _is_slow(self, started: float, now: float) -> bool:
        rule = self._config.failure_threshold
        return (
            isinstance(rule, FailureRate)
            and rule.slow_after is not None
            and now - started >= rule.slow_after
        )

    def _ignore(self, generation: int) -> None:
        with self._lock:
            self._breaker.ignore(generation)

    def _note(self, previous: CircuitState, cause: CircuitCause) -> None:
        breaker = self._breaker
        self._teller.put(
            CircuitChanged(
                name=self._name,
                previous=previous,
                state=breaker.state,
                cause=cause,
                retry_after=breaker.retry_after(self._clock()),
            )
        )

    def __enter__(self) -> None:
        generation = self._breaker.free_pass
        if generation is None:
            generation = self._ask()
        started = self._clock() if self._is_timed else 0.0
        _blocks.set((self, generation, started, _blocks.get()))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        block = _blocks.get()
        if block is not None and block[0] is self:
            _, generation, started, outer = block
            _blocks.set(outer)
        else:
            generation, started = self._leave_out_of_order()
        if exc is None:
            self._succeed(generation, started)
        else:
            self._fail(generation, started, exc)

    def _leave_out_of_order(self) -> tuple[int, float]:
        """Find this breaker's block further out: one task may run two guarded generators."""
        inner = []
        block = _blocks.get()
        while block is not None and block[0] is not self:
            inner.append(block)
            block = block[3]
        if block is None:
            raise RuntimeError(
                f"this block of circuit {self._name!r} was entered in another context; use "
                "acquire() and keep the permit"
            )
        _, generation, started, outer = block
        for other in reversed(inner):
            outer = (*other[:3], outer)
        _blocks.set(outer)
        return generation, started

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function under this breaker; a checkpoint where the function is one.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Raises:
            CircuitOpenError: The circuit does not let the call pass.
        """
        with self.acquire():
            return await fn(*args, **kwargs)

    def __call__(self, fn: Callable[P, T], /) -> Callable[P, T]:
        """Decorate a function, sync or async; the signature stays.

        Args:
            fn: Not a generator function: its call ends before its work begins.

        Raises:
            TypeError: ``fn`` is a generator function or cannot be called.
        """
        refuse_generator(fn)
        breaker, clock, is_timed = self._breaker, self._clock, self._is_timed
        ask, succeed, fail = self._ask, self._succeed, self._fail
        if is_async(fn):
            work = cast("Callable[P, Awaitable[Any]]", fn)

            @wraps(work)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                generation = breaker.free_pass
                if generation is None:
                    generation = ask()
                started = clock() if is_timed else 0.0
                try:
                    result = await work(*args, **kwargs)
                except BaseException as error:
                    fail(generation, started, error)
                    raise
                succeed(generation, started)
                return result

            return cast("Callable[P, T]", guarded_async)

        @wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            generation = breaker.free_pass
            if generation is None:
                generation = ask()
            started = clock() if is_timed else 0.0
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                fail(generation, started, error)
                raise
            succeed(generation, started)
            return result

        return guarded

    def isolate(self) -> None:
        """Reject every call until `reset` or `disable`."""
        self._take(CircuitCause.ISOLATE)

    def disable(self) -> None:
        """Let every call pass and decide nothing until `reset` or `isolate`."""
        self._take(CircuitCause.DISABLE)

    def reset(self) -> None:
        """Close the circuit and forget the failures; calls under way decide nothing any more."""
        self._take(CircuitCause.RESET)

    def _take(self, cause: CircuitCause) -> None:
        with self._lock:
            self._breaker.take(cause, self._clock())
        self._teller.deliver()

    def statistics(self) -> CircuitStatistics:
        """Count what happened so far."""
        with self._lock:
            return self._breaker.statistics(self._clock())

    def __repr__(self) -> str:
        now = self.statistics()
        detail = {
            CircuitState.CLOSED: f", {now.recent_failures} recent failures",
            CircuitState.OPEN: f", next probe in {now.retry_after or 0.0:.1f} s",
            CircuitState.HALF_OPEN: (
                f", {now.probes_out} of {self._config.half_open_max} probes out, "
                f"{now.probes_passed} of {self._config.success_threshold} passed"
            ),
        }.get(now.state, "")
        return f"<CircuitBreaker {self._name!r} {now.state.value}{detail}>"


for _public in (CircuitStatistics, CircuitTrip, FailureRate):
    _public.__module__ = __name__
