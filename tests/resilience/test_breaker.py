from __future__ import annotations

import contextvars
import functools
import gc
import inspect
import logging
import pickle
import sys
import threading
import traceback
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from random import Random
from types import ModuleType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import CircuitBreaker, CircuitPermit, CircuitTrip, FailureRate
from orchestra import breaker as breaker_module
from orchestra._core.breaker import TRANSITIONS, Breaker, BreakerConfig
from orchestra.errors import CircuitOpenError, RejectedError
from orchestra.events import CircuitCause, CircuitChanged, CircuitState


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


# Every way to make a call under a breaker; each takes the breaker and what the call raises.


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


@every_way
async def test_failures_open_and_probes_close(way: Way, clock: Clock) -> None:
    """Two failures open the circuit, it rejects until the break is over, two probes close it."""
    breaker = make(clock)
    for _ in range(2):
        await go(way, breaker)
        with pytest.raises(OSError, match="down"):
            await go(way, breaker, OSError("down"))
    assert state(breaker) is CircuitState.CLOSED
    with pytest.raises(OSError, match="down"):
        await go(way, breaker, OSError("down"))
    assert state(breaker) is CircuitState.OPEN
    clock.now += 9.5
    with pytest.raises(CircuitOpenError) as caught:
        await go(way, breaker)
    assert caught.value.retry_after == 0.5
    clock.now += 0.5
    await go(way, breaker)
    assert state(breaker) is CircuitState.HALF_OPEN
    await go(way, breaker)
    assert state(breaker) is CircuitState.CLOSED
    statistics = breaker.statistics()
    assert (statistics.succeeded, statistics.failed, statistics.rejected) == (4, 3, 1)


@every_way
async def test_failed_probe_opens_again(way: Way, clock: Clock) -> None:
    """One probe that fails begins a new break."""
    breaker = make(clock)
    half_open(breaker, clock)
    await go(way, breaker)
    with pytest.raises(OSError, match="still down"):
        await go(way, breaker, OSError("still down"))
    assert state(breaker) is CircuitState.OPEN
    assert breaker.statistics().opened == 2


@every_way
@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt(), GeneratorExit()])
async def test_other_errors_count_as_nothing(way: Way, error: BaseException, clock: Clock) -> None:
    """What is not in ``on`` passes, gives the permit back, and is neither failure nor success."""
    breaker = make(clock)
    fail(breaker)
    with pytest.raises(type(error)):
        await go(way, breaker, error)
    assert breaker.statistics().recent_failures == 1
    fail(breaker)
    clock.now += 10.0
    for _ in range(3):
        with pytest.raises(type(error)):
            await go(way, breaker, error)
    statistics = breaker.statistics()
    assert statistics.state is CircuitState.HALF_OPEN
    assert (statistics.probes_out, statistics.probes_passed, statistics.ignored) == (0, 0, 4)


@pytest.mark.parametrize("way", [by_async_block, by_async_function, by_call])
async def test_cancellation_counts_as_nothing(way: Way, clock: Clock) -> None:
    """A cancelled call gives its permit back; it neither opens nor closes the circuit."""
    breaker = make(clock, failure_threshold=1)
    for _ in range(2):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await go(way, breaker)
        assert scope.cancelled_caught
    assert state(breaker) is CircuitState.CLOSED
    fail(breaker)
    clock.now += 10.0
    for _ in range(3):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await go(way, breaker)
        assert scope.cancelled_caught
        statistics = breaker.statistics()
        assert statistics.state is CircuitState.HALF_OPEN
        assert (statistics.probes_out, statistics.probes_passed) == (0, 0)
    assert breaker.statistics().ignored == 5


@pytest.mark.parametrize("probes", [1, 3])
async def test_half_open_admits_exactly_the_configured_probes(probes: int, clock: Clock) -> None:
    """Of 20 concurrent callers in half-open exactly the configured number get through."""
    breaker = make(clock, half_open_max=probes, success_threshold=probes)
    half_open(breaker, clock)
    admitted = rejected = 0
    let_go = anyio.Event()

    async def caller() -> None:
        nonlocal admitted, rejected
        try:
            with breaker:
                admitted += 1
                await let_go.wait()
        except CircuitOpenError:
            rejected += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        assert (admitted, rejected) == (probes, 20 - probes)
        let_go.set()
    assert state(breaker) is CircuitState.CLOSED


def test_half_open_admits_exactly_the_configured_probes_to_threads(clock: Clock) -> None:
    """Of 20 threads that call at the same moment in half-open exactly two get through."""
    breaker = make(clock, half_open_max=2)
    half_open(breaker, clock)
    start = threading.Barrier(20)
    permits: list[CircuitPermit] = []

    def caller() -> None:
        start.wait(10)
        try:
            permits.append(breaker.acquire())
        except CircuitOpenError:
            return

    threads = [threading.Thread(target=caller) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(permits) == 2
    assert breaker.statistics().rejected == 18


def test_threads_call_at_the_same_time(clock: Clock) -> None:
    """Eight threads are inside the protected call at once, so no lock is held during it."""
    breaker = make(clock)
    everybody_is_inside = threading.Barrier(8)

    @breaker
    def work() -> None:
        everybody_is_inside.wait(10)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.statistics().succeeded == 8


def test_results_of_an_earlier_period_decide_nothing(clock: Clock) -> None:
    """Calls begun before the circuit opened neither close it, nor open it after its recovery."""
    breaker = make(clock, success_threshold=1)
    old = [breaker.acquire() for _ in range(6)]
    fail(breaker, 2)
    old[0].success()
    assert state(breaker) is CircuitState.OPEN
    clock.now += 10.0
    with breaker.acquire():
        old[1].success()
        old[2].record(OSError("late"))
        assert state(breaker) is CircuitState.HALF_OPEN
        assert breaker.statistics().probes_out == 1
    assert state(breaker) is CircuitState.CLOSED
    old[3].record(OSError("late"))
    old[4].record(OSError("late"))
    old[5].ignore()
    statistics = breaker.statistics()
    assert statistics.state is CircuitState.CLOSED
    assert (statistics.late, statistics.recent_failures) == (6, 0)


def test_lost_probe_is_given_up(clock: Clock) -> None:
    """Probes that are out too long open the circuit again, and their late results are ignored."""
    breaker = make(clock, half_open_timeout=60.0)
    half_open(breaker, clock)
    lost = breaker.acquire()
    clock.now += 59.0
    with pytest.raises(CircuitOpenError, match="half-open and its probes are out"):
        breaker.acquire()
    clock.now += 1.0
    with pytest.raises(CircuitOpenError, match=r"is open after 2 failures; next probe in 10\.0 s"):
        breaker.acquire()
    clock.now += 10.0
    with breaker.acquire():
        lost.record(OSError("after all"))
    assert state(breaker) is CircuitState.HALF_OPEN


def test_failure_rate_opens_where_a_run_of_failures_would_not(clock: Clock) -> None:
    """Every second call failing opens a rate window, and never a count of consecutive failures."""
    by_rate = make(clock, failure_threshold=FailureRate(0.5, calls=40, minimum_calls=20))
    by_run = make(clock)
    for call in range(40):
        for breaker in (by_rate, by_run):
            if state(breaker) is CircuitState.CLOSED:
                breaker.acquire().record(OSError() if call % 2 else None)
    assert (state(by_rate), state(by_run)) == (CircuitState.OPEN, CircuitState.CLOSED)
    assert by_rate.statistics().recent_calls == 20


def test_time_window_forgets(clock: Clock) -> None:
    """Failures older than the window's seconds do not open the circuit."""
    rule = FailureRate(0.5, seconds=60.0, minimum_calls=3)
    breaker = make(clock, failure_threshold=rule)
    fail(breaker, 2)
    clock.now += 60.0
    fail(breaker, 2)
    assert state(breaker) is CircuitState.CLOSED
    assert breaker.statistics().recent_failures == 2
    fail(breaker)
    assert state(breaker) is CircuitState.OPEN


async def test_slow_calls_open(clock: Clock) -> None:
    """Calls that succeed slowly open the circuit, and a slow probe opens it again."""
    rule = FailureRate(calls=10, minimum_calls=2, slow_after=5.0, slow_rate=1.0)
    breaker = make(clock, failure_threshold=rule)

    @breaker
    async def work(seconds: float) -> None:
        clock.now += seconds

    await work(4.9)
    await work(5.0)
    assert state(breaker) is CircuitState.CLOSED
    breaker.reset()
    await work(5.0)
    with breaker:
        clock.now += 5.0
    assert state(breaker) is CircuitState.OPEN
    with pytest.raises(CircuitOpenError, match="is open after slow calls; next probe in"):
        await work(1.0)
    clock.now += 10.0
    await work(5.0)
    assert state(breaker) is CircuitState.OPEN


def test_break_lasts_as_the_function_says(clock: Clock) -> None:
    """A function decides each break by what opened the circuit and how often it was tried."""
    trips: list[CircuitTrip] = []

    def longer(trip: CircuitTrip) -> float:
        trips.append(trip)
        return 10.0 * trip.attempt

    breaker = make(clock, recovery_timeout=longer, success_threshold=1)
    fail(breaker, 2)
    assert breaker.statistics().retry_after == 10.0
    clock.now += 10.0
    fail(breaker)
    assert breaker.statistics().retry_after == 20.0
    clock.now += 20.0
    breaker.acquire().success()
    fail(breaker, 2)
    assert breaker.statistics().retry_after == 10.0
    assert [trip.attempt for trip in trips] == [1, 2, 1]
    assert trips[0] == CircuitTrip(attempt=1, failures=2, slow_calls=0, calls=2)


@pytest.mark.parametrize(
    ("recovery_timeout", "error"),
    [
        (lambda _: 1 / 0, ZeroDivisionError),
        (lambda _: float("nan"), ValueError),
        (lambda _: -1.0, ValueError),
        (lambda _: "soon", TypeError),
    ],
    ids=["raises", "nan", "negative", "text"],
)
def test_function_that_fails_opens_the_circuit_all_the_same(
    recovery_timeout: Any, error: type[Exception], clock: Clock
) -> None:
    """A bug in the function is raised, and the break lasts the default time."""
    events: list[CircuitChanged] = []
    breaker = make(
        clock, recovery_timeout=recovery_timeout, failure_threshold=1, listener=events.append
    )
    with pytest.raises(error):
        fail(breaker)
    assert breaker.statistics().retry_after == 30.0
    assert [event.state for event in events] == [CircuitState.OPEN]


def test_longest_retry_after_lengthens_the_break(clock: Clock) -> None:
    """The break lasts at least until the latest moment that any of the failures asked for."""
    breaker = make(clock, failure_threshold=3)
    fail(breaker, error=RejectedError("busy", 1.0))
    assert breaker.statistics().failed == 0  # not in `on`
    breaker = make(clock, on=RejectedError, failure_threshold=3)
    fail(breaker, error=RejectedError("busy", 60.0))
    clock.now += 20.0
    fail(breaker, error=RejectedError("busy", 15.0))
    fail(breaker, error=RejectedError("busy"))
    assert breaker.statistics().retry_after == 40.0
    clock.now += 40.0
    breaker.reset()
    fail(breaker, 3, error=RejectedError("busy"))
    assert breaker.statistics().retry_after == 10.0


def test_retry_after_may_be_read_by_a_function(clock: Clock) -> None:
    """A function reads the wait from any error; where it raises, the failure still counts."""
    breaker = make(clock, failure_threshold=1, retry_after=lambda error: float(error.args[0]))
    fail(breaker, error=OSError("70"))
    assert breaker.statistics().retry_after == 70.0
    clock.now += 70.0
    with pytest.raises(ValueError, match="could not convert"):
        fail(breaker, error=OSError("soon"))
    assert state(breaker) is CircuitState.OPEN


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


def areturn_sync(value: int) -> int:
    return value


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


def test_isolate_disable_and_reset(clock: Clock) -> None:
    """By hand: isolated rejects whatever the time, disabled decides nothing, reset forgets."""
    breaker = make(clock)
    breaker.isolate()
    clock.now += 1e6
    with pytest.raises(CircuitOpenError) as caught:
        breaker.acquire()
    assert (caught.value.state, caught.value.retry_after) == (CircuitState.FORCED_OPEN, None)
    breaker.disable()
    fail(breaker, 20)
    assert state(breaker) is CircuitState.DISABLED
    breaker.reset()
    fail(breaker)
    breaker.reset()
    fail(breaker)
    assert state(breaker) is CircuitState.CLOSED
    fail(breaker)
    assert state(breaker) is CircuitState.OPEN
    breaker.reset()
    breaker.acquire().success()


def test_transitions_that_are_not_in_the_table_change_nothing() -> None:
    """Every pair of state and cause either leads where the table says or raises and does nothing."""
    ways = {
        CircuitState.CLOSED: (),
        CircuitState.OPEN: (CircuitCause.THRESHOLD_REACHED,),
        CircuitState.HALF_OPEN: (CircuitCause.THRESHOLD_REACHED, CircuitCause.BREAK_OVER),
        CircuitState.FORCED_OPEN: (CircuitCause.ISOLATE,),
        CircuitState.DISABLED: (CircuitCause.DISABLE,),
    }
    for start, way in ways.items():
        for cause in CircuitCause:
            breaker = Breaker(BreakerConfig())
            for step in way:
                breaker.take(step, 0.0)
            assert state(breaker) is start
            before = (breaker.generation, breaker.statistics(0.0))
            if cause in TRANSITIONS[start]:
                breaker.take(cause, 0.0)
                assert state(breaker) is TRANSITIONS[start][cause]
            else:
                with pytest.raises(RuntimeError, match=f"is {start.value} cannot take"):
                    breaker.take(cause, 0.0)
                assert (breaker.generation, breaker.statistics(0.0)) == before


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


class Call:
    """A task that makes one call and ends it as it is told."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.step = ""

    async def run(self, breaker: CircuitBreaker, running: list[Call], ended: Counter[str]) -> None:
        try:
            with self.scope, breaker:
                running.append(self)
                await self.done.wait()
                if self.step == "fail":
                    raise OSError("down")
        except CircuitOpenError:
            self.step = "rejected"
        except OSError:
            assert self.step == "fail"
        ended[self.step] += 1

    def end(self, step: str) -> None:
        self.step = step
        if step == "cancel":
            self.scope.cancel()
        else:
            self.done.set()


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "succeed", "fail", "cancel", "wait"]),
        st.integers(0, 7),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=60)
@given(steps=steps, half_open_max=st.integers(1, 3))
async def test_random_schedules(steps: list[tuple[str, int]], half_open_max: int) -> None:
    """However tasks start, end and are cancelled: probes are bounded, no permit is lost."""
    clock = Clock()
    breaker = make(clock, half_open_max=half_open_max)
    running: list[Call] = []
    ended: Counter[str] = Counter()

    async with anyio.create_task_group() as tasks:
        for step, number in steps:
            if step == "start":
                tasks.start_soon(Call().run, breaker, running, ended)
            elif step == "wait":
                clock.now += 2.0 * number
            elif running:
                running.pop(number % len(running)).end(step)
            await anyio.wait_all_tasks_blocked()
            now = breaker.statistics()
            assert now.probes_out <= min(half_open_max, len(running))
            assert (now.succeeded, now.failed) == (ended["succeed"], ended["fail"])
            assert (now.ignored, now.rejected) == (ended["cancel"], ended["rejected"])
        tasks.cancel_scope.cancel()
    assert breaker.statistics().probes_out == 0


def test_threads_in_every_state(clock: Clock) -> None:
    """Whatever many threads do at once: probes stay bounded, and every call is counted once."""
    breaker = make(clock, half_open_max=2, success_threshold=3)
    counted: list[Counter[str]] = []
    too_many: list[int] = []

    def work(seed: int) -> None:
        random = Random(seed)
        mine: Counter[str] = Counter()
        counted.append(mine)
        for _ in range(400):
            clock.now += random.random()
            try:
                permit = breaker.acquire()
            except CircuitOpenError:
                mine["rejected"] += 1
                continue
            if breaker.statistics().probes_out > 2:
                too_many.append(seed)
            outcome = random.choice(["succeeded", "succeeded", "failed", "ignored"])
            mine[outcome] += 1
            if outcome == "ignored":
                permit.ignore()
            else:
                permit.record(OSError() if outcome == "failed" else None)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    statistics = breaker.statistics()
    total = sum(counted, Counter[str]())
    assert too_many == []
    assert statistics.probes_out == 0
    assert statistics.opened > 5
    assert total == Counter(
        succeeded=statistics.succeeded,
        failed=statistics.failed,
        ignored=statistics.ignored,
        rejected=statistics.rejected,
    )


def mutated(old: str, new: str) -> Any:
    """The module of the breaker with a bug planted in its source."""
    source = inspect.getsource(breaker_module)
    assert source.count(old) == 1
    mutant: Any = ModuleType(breaker_module.__name__)
    exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)  # noqa: S102 - ours
    return mutant


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "if not isinstance(error, self._on):",
            "if isinstance(error, KeyError):",
            id="cancellation counted",
        ),
        pytest.param(
            "self._breaker.ignore(generation)", "pass", id="cancelled probe keeps its permit"
        ),
        pytest.param(
            "            self._fail(generation, started, exc)",
            "            self._succeed(generation, started)",
            id="cancelled probe closes",
        ),
    ],
)
async def test_planted_bug_is_caught(
    old: str, new: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of cancellation fails when one of these bugs is planted in the shell."""
    await test_cancellation_counts_as_nothing(by_async_block, clock)
    monkeypatch.setitem(globals(), "CircuitBreaker", mutated(old, new).CircuitBreaker)
    with pytest.raises((AssertionError, CircuitOpenError)):
        await test_cancellation_counts_as_nothing(by_async_block, clock)


def test_a_transition_is_not_interrupted(clock: Clock) -> None:
    """While one thread opens the circuit, another cannot move it: it waits for the first."""
    is_waiting: list[bool] = []

    def pause(_trip: CircuitTrip) -> float:
        thread.start()
        thread.join(0.1)
        is_waiting.append(thread.is_alive())
        return 10.0

    breaker = make(clock, recovery_timeout=pause)
    thread = threading.Thread(target=breaker.isolate)
    fail(breaker, 2)
    thread.join()
    assert is_waiting == [True]
    assert state(breaker) is CircuitState.FORCED_OPEN
