"""What type checkers must see of breakers, retries and pipelines; mypy and pyright read it.

Nothing here is run. Every ``type: ignore`` is an error that must be found: where one is not, the
checker reports the comment as unused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, assert_type

from orchestra import (
    CircuitBreaker,
    CircuitPermit,
    CircuitTrip,
    FailureRate,
    Pipeline,
    Policy,
    Retry,
    Timeout,
)
from orchestra.errors import CircuitOpenError, RejectedError
from orchestra.events import CircuitState

P = ParamSpec("P")
T = TypeVar("T")


def add(a: int, *, b: str = "") -> float:
    return a + len(b)


async def aadd(a: int, *, b: str = "") -> float:
    return a + len(b)


breaker = CircuitBreaker("llm", on=(OSError, RejectedError))
retry = Retry(on=OSError)
timeout = Timeout(5.0)
pipeline = Pipeline(timeout, retry, breaker)


async def decorators_keep_the_signature() -> None:
    assert_type(breaker(add)(1, b="x"), float)
    assert_type(retry(add)(1, b="x"), float)
    assert_type(await breaker(aadd)(1, b="x"), float)
    assert_type(await retry(aadd)(1, b="x"), float)
    assert_type(await timeout(aadd)(1, b="x"), float)
    assert_type(await pipeline(aadd)(1, b="x"), float)

    breaker(add)("x")  # type: ignore[arg-type]
    breaker(add)(1, c=2)  # type: ignore[call-arg]
    retry(add)("x")  # type: ignore[arg-type]
    await pipeline(aadd)("x")  # type: ignore[arg-type]
    timeout(add)  # type: ignore[arg-type]
    pipeline(add)  # type: ignore[arg-type]


async def call_checks_the_arguments() -> None:
    for policy in (breaker, retry, timeout, pipeline):
        assert_type(await policy.call(aadd, 1, b="x"), float)
    await breaker.call(aadd, "x")  # type: ignore[arg-type]
    await retry.call(aadd, 1, c=2)  # type: ignore[call-arg]
    await timeout.call(add, 1)  # type: ignore[arg-type]
    await pipeline.call(aadd)  # type: ignore[call-arg]


class Method:
    """Decorated methods stay methods."""

    @breaker
    async def ask(self, prompt: str) -> int:
        return len(prompt)

    @retry
    def read(self, path: str) -> bytes:
        return path.encode()


async def methods_stay_methods(thing: Method) -> None:
    assert_type(await thing.ask("x"), int)
    assert_type(thing.read("x"), bytes)
    await thing.ask(1)  # type: ignore[arg-type]


async def blocks_and_permits() -> int:
    with breaker:
        pass
    with breaker.acquire() as permit:
        assert_type(permit, CircuitPermit)
    with breaker:
        return 1  # a block swallows nothing, so that no return is missing below


def rules(trip: CircuitTrip) -> float:
    assert_type(trip.attempt, int)
    return 1.0


CircuitBreaker("llm", on=OSError, failure_threshold=FailureRate(0.5, calls=10))
CircuitBreaker("llm", on=OSError, recovery_timeout=rules)
CircuitBreaker("llm", on=OSError, recovery_timeout="x")  # type: ignore[arg-type]
CircuitBreaker("llm", on=KeyboardInterrupt)  # type: ignore[arg-type]
CircuitBreaker("llm")  # type: ignore[call-arg]
FailureRate(0.5, 100)  # type: ignore[call-arg]
Retry()  # type: ignore[call-arg]
Pipeline(3)  # type: ignore[arg-type]


class Own:
    """A policy of a user's: nothing to inherit from."""

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await fn(*args, **kwargs)


policies: tuple[Policy, ...] = (Own(), breaker, retry, timeout, pipeline)
Pipeline(Own())


def errors(error: CircuitOpenError, fn: Callable[[], Coroutine[Any, Any, int]]) -> None:
    assert_type(error.retry_after, float | None)
    assert_type(error.state, CircuitState)
    assert_type(breaker(fn), Callable[[], Coroutine[Any, Any, int]])
