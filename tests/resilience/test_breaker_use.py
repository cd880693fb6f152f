from __future__ import annotations

import contextvars
import functools
import gc
import inspect
import logging
import pickle
import threading
import traceback
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from tests.resilience.support import (
    Clock,
    Way,
    areturn,
    areturn_sync,
    every_way,
    fail,
    go,
    half_open,
    make,
    state,
)

from orchestra import CircuitBreaker, FailureRate
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitCause, CircuitChanged, CircuitState


@every_way
async def test_every_rejection_is_a_fresh_error(way: Way, clock: Clock) -> None:
    """No error object is raised twice, and its traceback does not grow."""
    breaker = make(clock)
    fail(breaker, 2)
    errors: list[CircuitOpenError] = []
    depths = set()
    for _ in range(50):
        try:
            await go(way, breaker)
        except CircuitOpenError as error:
            errors.append(error)
            depths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len({id(error) for error in errors}) == 50
    assert len(depths) == 1


def test_memory_is_flat_over_rejections(clock: Clock) -> None:
    """100,000 rejected calls leave nothing behind, and need no collector to do so."""
    breaker = make(clock, listener=lambda _: None)
    fail(breaker, 2)
    work = breaker(areturn_sync)

    def reject(times: int) -> None:
        for _ in range(times):
            try:
                work(1)
            except CircuitOpenError:
                pass
            else:
                pytest.fail("not rejected")

    tracemalloc.start()
    gc.disable()
    try:
        reject(100)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        reject(100_000)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        gc.enable()
        tracemalloc.stop()
    assert after - before < 10_000
    assert peak - before < 20_000
    assert breaker.statistics().rejected == 100_100


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CircuitOpenError("llm", CircuitState.OPEN, 12.34, 5),
            "circuit 'llm' is open after 5 failures; next probe in 12.3 s",
        ),
        (
            CircuitOpenError("llm", state=CircuitState.OPEN, retry_after=12.34),
            "circuit 'llm' is open after slow calls; next probe in 12.3 s",
        ),
        (
            CircuitOpenError("llm", CircuitState.HALF_OPEN),
            "circuit 'llm' is half-open and its probes are out; call again when they have ended",
        ),
        (
            CircuitOpenError("llm", CircuitState.FORCED_OPEN),
            "circuit 'llm' is held open by isolate(); call reset() to close it",
        ),
    ],
)
def test_error_says_what_to_do_and_pickles(error: CircuitOpenError, message: str) -> None:
    """The sentence states the facts and what to do; all of it survives pickling."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    for each in (error, copy):
        assert str(each) == each.message == message
        assert each.breaker_name == "llm"
        assert (each.state, each.retry_after, each.failures) == (
            error.state,
            error.retry_after,
            error.failures,
        )


def test_listener_hears_every_change_in_order(clock: Clock) -> None:
    """The listener gets each transition once, with its cause and the length of the break."""
    events: list[CircuitChanged] = []
    breaker = make(clock, listener=events.append, success_threshold=1)
    half_open(breaker, clock)
    breaker.acquire().success()
    breaker.isolate()
    closed, opened = CircuitState.CLOSED, CircuitState.OPEN
    half, forced = CircuitState.HALF_OPEN, CircuitState.FORCED_OPEN
    assert [(e.name, e.previous, e.state, e.cause, e.retry_after) for e in events] == [
        ("llm", closed, opened, CircuitCause.THRESHOLD_REACHED, 10.0),
        ("llm", opened, half, CircuitCause.BREAK_OVER, None),
        ("llm", half, closed, CircuitCause.PROBES_PASSED, None),
        ("llm", closed, forced, CircuitCause.ISOLATE, None),
    ]


def test_listener_is_called_outside_of_the_lock(clock: Clock) -> None:
    """While the listener runs, another thread can use the breaker."""
    seen: list[bool] = []

    def listener(event: CircuitChanged) -> None:
        thread = threading.Thread(target=breaker.statistics, daemon=True)
        thread.start()
        thread.join(5.0)
        seen.append(thread.is_alive())

    breaker = make(clock, listener=listener)
    half_open(breaker, clock)
    breaker.acquire().success()
    breaker.reset()
    assert seen == [False, False, False]


def test_listener_may_act_on_the_breaker(clock: Clock) -> None:
    """What a listener causes is told after what it was told, not inside of it."""
    events: list[CircuitState] = []
    depth = 0

    def listener(event: CircuitChanged) -> None:
        nonlocal depth
        depth += 1
        assert depth == 1
        events.append(event.state)
        if event.state is CircuitState.OPEN:
            breaker.isolate()
        depth -= 1

    breaker = make(clock, listener=listener)
    fail(breaker, 2)
    assert events == [CircuitState.OPEN, CircuitState.FORCED_OPEN]


def test_listener_that_raises_is_logged_and_dropped(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a listener does not reach the caller, is logged once, and is not repeated."""
    calls: list[CircuitChanged] = []

    def listener(event: CircuitChanged) -> None:
        calls.append(event)
        breaker.disable()  # one more event is on its way when the listener is dropped
        raise KeyError("bug")

    breaker = make(clock, listener=listener)
    with caplog.at_level(logging.ERROR, logger="orchestra"):
        fail(breaker, 2)
        breaker.reset()
    assert [event.state for event in calls] == [CircuitState.OPEN]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_permit_is_given_back_once(clock: Clock) -> None:
    """After the first outcome a permit does nothing, from whichever thread."""
    breaker = make(clock)
    half_open(breaker, clock)
    permit = breaker.acquire()
    assert repr(permit) == "<CircuitPermit of 'llm' held>"
    thread = threading.Thread(target=permit.ignore)
    thread.start()
    thread.join()
    permit.record(OSError("too late"))
    permit.success()
    permit.ignore()
    with permit as same:
        assert same is permit
    assert permit.is_released
    assert repr(permit) == "<CircuitPermit of 'llm' released>"
    statistics = breaker.statistics()
    assert (statistics.state, statistics.ignored) == (CircuitState.HALF_OPEN, 1)
    assert (statistics.succeeded, statistics.failed) == (0, 2)


def test_blocks_nest(clock: Clock) -> None:
    """Blocks of one breaker and of several nest, and each gives back its own permit."""
    outer, inner = make(clock), make(clock, on=KeyError, half_open_max=2)
    half_open_inner = [KeyError("down"), KeyError("down")]
    for error in half_open_inner:
        inner.acquire().record(error)
    clock.now += 10.0
    with outer, inner:
        with inner:
            assert inner.statistics().probes_out == 2
        assert inner.statistics().probes_out == 1
    assert state(inner) is CircuitState.CLOSED
    assert outer.statistics().succeeded == 1


async def test_blocks_of_generators_may_end_in_any_order(clock: Clock) -> None:
    """Two guarded streams read by one task give back the right permits, whichever ends first."""
    first, second = make(clock), make(clock)

    async def stream(breaker: CircuitBreaker) -> AsyncGenerator[int, None]:
        with breaker:
            yield 1
            yield 2

    async with aclosing(stream(first)) as a, aclosing(stream(second)) as b:
        assert [await anext(a), await anext(b)] == [1, 1]
        assert [item async for item in a] == [2]
        with pytest.raises(OSError, match="thrown"):
            await b.athrow(OSError("thrown"))
    assert (first.statistics().succeeded, first.statistics().failed) == (1, 0)
    assert (second.statistics().succeeded, second.statistics().failed) == (0, 1)


def test_block_left_in_another_context_is_refused(clock: Clock) -> None:
    """A block that was entered elsewhere cannot be left here, and the error names the remedy."""
    breaker = make(clock)
    contextvars.copy_context().run(breaker.__enter__)
    with pytest.raises(RuntimeError, match=r"entered in another context; use acquire\(\)"):
        breaker.__exit__(None, None, None)


def test_generator_that_is_thrown_away_gives_its_permit_back(clock: Clock) -> None:
    """Closing a generator inside a block counts as nothing, and the probe may be made again."""
    breaker = make(clock)
    half_open(breaker, clock)

    def stream() -> Iterator[int]:
        with breaker.acquire():
            yield 1
            yield 2

    items = stream()
    next(items)
    assert breaker.statistics().probes_out == 1
    del items
    gc.collect()
    statistics = breaker.statistics()
    assert (statistics.state, statistics.probes_out) == (CircuitState.HALF_OPEN, 0)


class AsyncCallable:
    """An object whose call gives a coroutine."""

    async def __call__(self, value: int) -> int:
        return await areturn(value)


@pytest.mark.parametrize("fn", [areturn, functools.partial(areturn), AsyncCallable()])
async def test_async_functions_are_recognised(fn: Any, clock: Clock) -> None:
    """A coroutine function, a partial of one and an async callable are judged by their end."""
    breaker = make(clock)
    half_open(breaker, clock)
    guarded = functools.partial(breaker(fn), 3)
    coroutine = guarded()
    assert breaker.statistics().probes_out == 0  # nothing has begun
    assert await coroutine == 3
    assert breaker.statistics().probes_passed == 1


def test_decorated_function_keeps_its_signature(clock: Clock) -> None:
    """Name, docstring, parameters and kind of the function stay what they were."""
    breaker = make(clock)
    guarded, guarded_async = breaker(fail), breaker(areturn)
    assert inspect.signature(guarded) == inspect.signature(fail)
    assert guarded.__name__ == "fail"
    assert inspect.iscoroutinefunction(guarded_async)
    assert not inspect.iscoroutinefunction(guarded)
    assert guarded_async.__qualname__ == "areturn"


def numbers() -> Iterator[int]:
    yield 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("fn", [numbers, async_numbers, 7])
def test_what_cannot_be_guarded_is_refused(fn: Any, clock: Clock) -> None:
    """A generator function, whose work begins after its call, is refused when decorated."""
    with pytest.raises(TypeError, match="cannot decorate"):
        make(clock)(fn)


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"on": str}, TypeError, "on"),
        ({"on": ()}, TypeError, "on"),
        ({"on": (OSError, "x")}, TypeError, "on"),
        ({"on": BaseException}, TypeError, "on"),
        ({"on": (KeyboardInterrupt,)}, TypeError, "on"),
        ({"failure_threshold": 0}, ValueError, "failure_threshold"),
        ({"failure_threshold": 2.5}, TypeError, "failure_threshold"),
        ({"failure_threshold": True}, TypeError, "failure_threshold"),
        ({"recovery_timeout": 0}, ValueError, "recovery_timeout"),
        ({"recovery_timeout": float("inf")}, ValueError, "recovery_timeout"),
        ({"recovery_timeout": "30"}, TypeError, "recovery_timeout"),
        ({"success_threshold": 0}, ValueError, "success_threshold"),
        ({"half_open_max": 0}, ValueError, "half_open_max"),
        ({"half_open_timeout": -1.0}, ValueError, "half_open_timeout"),
        ({"listener": 3}, TypeError, "listener"),
        ({"retry_after": 3}, TypeError, "retry_after"),
        ({"clock": 3.0}, TypeError, "clock"),
    ],
)
def test_bad_configuration_names_the_field(
    options: dict[str, Any], error: type[Exception], field: str
) -> None:
    """What cannot work is refused at construction, with the name of the field."""
    with pytest.raises(error, match=rf"^{field} must "):
        CircuitBreaker("llm", **({"on": OSError} | options))


def test_name_and_on_are_required() -> None:
    """A breaker without a text for a name, or without ``on``, cannot be made."""
    with pytest.raises(TypeError, match="name must be a str"):
        CircuitBreaker(OSError, on=OSError)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'on'"):
        CircuitBreaker("llm")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({}, ValueError, "calls"),
        ({"calls": 10, "seconds": 10.0}, ValueError, "calls"),
        ({"calls": 0}, ValueError, "calls"),
        ({"calls": 5}, ValueError, "minimum_calls"),
        ({"calls": 50, "minimum_calls": 0}, ValueError, "minimum_calls"),
        ({"seconds": 0.0}, ValueError, "seconds"),
        ({"seconds": "60"}, TypeError, "seconds"),
        ({"rate": 0.0, "calls": 50}, ValueError, "rate"),
        ({"rate": 1.5, "calls": 50}, ValueError, "rate"),
        ({"rate": "half", "calls": 50}, TypeError, "rate"),
        ({"calls": 50, "slow_after": 0.0}, ValueError, "slow_after"),
        ({"calls": 50, "slow_rate": -0.5}, ValueError, "slow_rate"),
    ],
)
def test_bad_rate_names_the_field(
    options: dict[str, Any], error: type[Exception], field: str
) -> None:
    """What cannot work as a failure rate is refused at construction, with the field's name."""
    with pytest.raises(error, match=rf"^{field} (must|is)"):
        FailureRate(**options)


def test_repr_shows_the_state(clock: Clock) -> None:
    """The representation tells where the breaker stands and what it waits for."""
    breaker = make(clock)
    fail(breaker)
    assert repr(breaker) == "<CircuitBreaker 'llm' closed, 1 recent failures>"
    fail(breaker)
    clock.now += 0.5
    assert repr(breaker) == "<CircuitBreaker 'llm' open, next probe in 9.5 s>"
    clock.now += 9.5
    with breaker:
        assert repr(breaker) == "<CircuitBreaker 'llm' half-open, 1 of 1 probes out, 0 of 2 passed>"
    breaker.isolate()
    assert repr(breaker) == "<CircuitBreaker 'llm' forced open>"
    breaker.disable()
    assert repr(breaker) == "<CircuitBreaker 'llm' disabled>"
    assert breaker.name == "llm"
