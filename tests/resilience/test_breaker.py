from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import anyio
import pytest
from tests.resilience import support
from tests.resilience.support import (
    Clock,
    Way,
    by_async_block,
    by_async_function,
    by_call,
    every_way,
    fail,
    go,
    half_open,
    make,
    state,
)

from orchestra import CircuitTrip, FailureRate
from orchestra import breaker as breaker_module
from orchestra._core.breaker import TRANSITIONS, Breaker, BreakerConfig
from orchestra.errors import CircuitOpenError, RejectedError
from orchestra.events import CircuitCause, CircuitChanged, CircuitState


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
    monkeypatch.setattr(support, "CircuitBreaker", mutated(old, new).CircuitBreaker)
    with pytest.raises((AssertionError, CircuitOpenError)):
        await test_cancellation_counts_as_nothing(by_async_block, clock)
