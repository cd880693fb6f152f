"""Repeat what failed, as often as it helps and no oftener."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from types import NoneType
from typing import Any, ParamSpec, TypeVar, cast, final

import anyio
import attrs

from orchestra._core.checks import (
    check_callable,
    count,
    exception_types,
    function,
    of_type,
    optional_seconds,
)
from orchestra._core.retry import Backoff, Budget, BudgetStatistics, decide, retry_after_of
from orchestra._functions import is_async, refuse_generator
from orchestra._listeners import Teller
from orchestra.events import AttemptFailed, RetryVerdict

__all__ = ("Backoff", "BudgetStatistics", "Retry", "RetryBudget", "RetryStatistics")

P = ParamSpec("P")
T = TypeVar("T")


@final
class RetryBudget:
    """A bound on the repetitions of many calls together, so that retrying cannot double an outage.

    In any ``seconds`` it grants ``ratio`` repetitions per call and ``per_second`` per second. Give
    one budget to every `Retry` that calls the same service. The rule is that of Finagle's
    ``RetryBudget``, whose defaults these are. May be used from any task or thread.

    Args:
        ratio: Repetitions per call; not negative.
        per_second: Repetitions per second that are granted whatever the calls; not negative.
        seconds: The length of the window, which moves in ten steps; above 0.
        clock: Gives monotonic seconds.

    Raises:
        TypeError: A field is no number.
        ValueError: A field is out of range.
    """

    __slots__ = ("_budget", "_clock", "_lock")

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        per_second: float = 10.0,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = Budget(ratio=ratio, per_second=per_second, seconds=seconds)
        check_callable("clock", clock)
        self._clock = clock
        self._lock = threading.RLock()

    def deposit(self) -> None:
        """Count a call that begins; `Retry` does it."""
        now = self._clock()
        with self._lock:
            self._budget.deposit(now)

    def withdraw(self) -> bool:
        """Take one repetition, if there is one; `Retry` does it."""
        now = self._clock()
        with self._lock:
            return self._budget.withdraw(now)

    def statistics(self) -> BudgetStatistics:
        """Count what is in the window."""
        now = self._clock()
        with self._lock:
            return self._budget.statistics(now)

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<RetryBudget {now.retries} retries of {now.calls} calls in {self._budget.seconds:g} s"
            f", {now.balance:g} left>"
        )


@attrs.frozen(kw_only=True)
class RetryStatistics:
    """What a `Retry` has done since it was made.

    Attributes:
        retried: Repetitions it began or is about to begin.
        given_up: Calls whose error it let through because nothing was left to spend.
    """

    retried: int
    given_up: int


@final
@attrs.define(eq=False)
class _Counts:
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    retried: int = 0
    given_up: int = 0


def _on(value: object) -> tuple[type[Exception], ...]:
    return exception_types("on", value)


@final
@attrs.frozen(kw_only=True, eq=False)
class Retry:
    """Repeats a call that failed with an error worth repeating it for.

    ::

        retry = Retry(on=(RejectedError, TransportError), attempts=4, deadline=120.0)

        @retry                                       # a function, sync or async
        async def ask(prompt: str) -> str: ...

        reply = await retry.call(ask, "hello")       # one call

    After the last attempt the error is raised as it is. Only instances of ``on`` are repeated,
    which cancellation never is. The call must be safe to repeat: `RejectedError` always is, because
    the work was not started.

    Args:
        on: The exception types to repeat for. There is no right default.
        attempts: How often the call is made at most, the first time included.
        backoff: How long to wait between them.
        deadline: Seconds from the beginning of the first attempt, the waits included, after which
            none begins. A wait that would end later is not begun, the error is raised at once. An
            attempt under way is not interrupted, which is what `Timeout` is for.
        budget: Shared with others; when it has nothing left the error is raised.
        retry_after: Reads from an error the seconds for which the other side wants to be left
            alone, which is the least wait; None where it did not say.
        listener: Called with every `AttemptFailed`, in order; one that raises is logged and
            dropped.
        clock: Gives monotonic seconds.
        random: Gives the jitter, from 0.0 up to 1.0.
        sleep: Waits in async functions.
        block: Waits in sync functions; it blocks the thread.

    Raises:
        TypeError: A field has the wrong type, e.g. ``on`` is no exception type.
        ValueError: A field is out of range.
    """

    on: tuple[type[Exception], ...] = attrs.field(converter=_on)
    attempts: int = attrs.field(default=4, validator=count)
    backoff: Backoff = attrs.field(factory=Backoff, validator=of_type(Backoff))
    deadline: float | None = attrs.field(default=None, validator=optional_seconds)
    budget: RetryBudget | None = attrs.field(default=None, validator=of_type(RetryBudget, NoneType))
    retry_after: Callable[[BaseException], float | None] = attrs.field(
        default=retry_after_of, repr=False, validator=function
    )
    listener: Callable[[AttemptFailed], object] | None = attrs.field(default=None, repr=False)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, repr=False, validator=function)
    random: Callable[[], float] = attrs.field(default=random.random, repr=False, validator=function)
    sleep: Callable[[float], Awaitable[object]] = attrs.field(
        default=anyio.sleep, repr=False, validator=function
    )
    block: Callable[[float], object] = attrs.field(
        default=time.sleep, repr=False, validator=function
    )
    _counts: _Counts = attrs.field(factory=_Counts, init=False, repr=False)
    _teller: Teller[AttemptFailed] = attrs.field(init=False, repr=False)

    @_teller.default
    def _make_teller(self) -> Teller[AttemptFailed]:
        return Teller(self.listener)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function, repeatedly if need be; a checkpoint where the function is one.

        Args:
            fn: What to call.
            *args: Its arguments, the same every time.
            **kwargs: Its keyword arguments.
        """
        started = self._begin()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await fn(*args, **kwargs)
            except self.on as error:
                delay = self._judge(error, attempt, started)
                if delay is None:
                    raise
            # Outside of the handler, so that the next error does not drag this one along.
            await self.sleep(delay)

    def __call__(self, fn: Callable[P, T], /) -> Callable[P, T]:
        """Decorate a function, sync or async; the signature stays.

        Args:
            fn: Not a generator function: its call ends before its work begins.

        Raises:
            TypeError: ``fn`` is a generator function or cannot be called.
        """
        refuse_generator(fn)
        if is_async(fn):
            work = cast("Callable[P, Awaitable[Any]]", fn)

            @wraps(work)
            async def retried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self.call(work, *args, **kwargs)

            return cast("Callable[P, T]", retried_async)

        @wraps(fn)
        def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            started = self._begin()
            attempt = 0
            while True:
                attempt += 1
                try:
                    return fn(*args, **kwargs)
                except self.on as error:
                    delay = self._judge(error, attempt, started)
                    if delay is None:
                        raise
                self.block(delay)

        return retried

    def _begin(self) -> float:
        if self.budget is not None:
            self.budget.deposit()
        return 0.0 if self.deadline is None else self.clock()

    def _judge(self, error: Exception, attempt: int, started: float) -> float | None:
        """Give the seconds to wait; None to give up."""
        verdict, delay = decide(
            attempt=attempt,
            attempts=self.attempts,
            backoff=self.backoff,
            jitter=self.random(),
            retry_after=self.retry_after(error),
            elapsed=0.0 if self.deadline is None else self.clock() - started,
            deadline=self.deadline,
        )
        again = verdict is RetryVerdict.AGAIN
        if again and self.budget is not None and not self.budget.withdraw():
            verdict, again = RetryVerdict.BUDGET_SPENT, False
        counts = self._counts
        with counts.lock:
            counts.retried += again
            counts.given_up += not again
        wait = delay if again else None
        if self.listener is not None:
            self._teller.put(
                AttemptFailed(attempt=attempt, error=error, verdict=verdict, delay=wait)
            )
            self._teller.deliver()
        return wait

    def statistics(self) -> RetryStatistics:
        """Count what it did so far."""
        with self._counts.lock:
            return RetryStatistics(retried=self._counts.retried, given_up=self._counts.given_up)


for _public in (Backoff, BudgetStatistics):
    _public.__module__ = __name__
