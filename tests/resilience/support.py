"""What the tests of the breaker share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from orchestra import CircuitBreaker
from orchestra._core.breaker import Breaker
from orchestra.events import CircuitState


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(clock: Callable[[], float], **options: Any) -> CircuitBreaker:
    defaults: dict[str, Any] = {"on": OSError, "failure_threshold": 2, "recovery_timeout": 10.0}
    return CircuitBreaker("llm", clock=clock, **(defaults | options))


def state(breaker: CircuitBreaker | Breaker) -> CircuitState:
    """The state, read anew: type checkers think that a property stays what it was."""
    return breaker.state


def fail(breaker: CircuitBreaker, times: int = 1, error: Exception | None = None) -> None:
    for _ in range(times):
        breaker.acquire().record(error or OSError("down"))


def half_open(breaker: CircuitBreaker, clock: Clock) -> None:
    """Open a breaker that opens at two failures, and wait for the end of the break."""
    fail(breaker, 2)
    assert state(breaker) is CircuitState.OPEN
    clock.now += 10.0


async def areturn(value: int) -> int:
    await checkpoint()
    return value


async def araise(error: BaseException) -> None:
    await checkpoint()
    raise error


def by_block(breaker: CircuitBreaker, error: BaseException | None) -> None:
    with breaker:
        if error is not None:
            raise error


def by_permit(breaker: CircuitBreaker, error: BaseException | None) -> None:
    with breaker.acquire():
        if error is not None:
            raise error


def by_function(breaker: CircuitBreaker, error: BaseException | None) -> None:
    @breaker
    def work() -> None:
        if error is not None:
            raise error

    work()


async def by_async_block(breaker: CircuitBreaker, error: BaseException | None) -> None:
    with breaker:
        await checkpoint()
        if error is not None:
            raise error


async def by_async_function(breaker: CircuitBreaker, error: BaseException | None) -> None:
    @breaker
    async def work() -> None:
        await checkpoint()
        if error is not None:
            raise error

    await work()


async def by_call(breaker: CircuitBreaker, error: BaseException | None) -> None:
    await breaker.call(areturn if error is None else araise, error)  # type: ignore[arg-type]


Way = Callable[[CircuitBreaker, BaseException | None], Awaitable[None] | None]


WAYS: list[Way] = [by_block, by_permit, by_function, by_async_block, by_async_function, by_call]


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


async def go(way: Way, breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    result = way(breaker, error)
    if result is not None:
        await result


def areturn_sync(value: int) -> int:
    return value
