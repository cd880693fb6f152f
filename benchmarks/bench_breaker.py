"""Circuit breakers: what a call costs, and what a rejection costs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st

from benchmarks.breakers import (
    PEERS,
    DownError,
    aiobreaker,
    bare,
    breaker_of_ours,
    circuitbreaker,
    double,
    fail,
    purgatory,
    purgatory_model,
    pybreaker,
    with_aiobreaker,
    with_async_purgatory,
    with_circuitbreaker,
    with_count_window,
    with_hyx,
    with_ours,
    with_purgatory,
    with_pybreaker,
    with_time_window,
)
from benchmarks.frame import Benchmark, Measure, Row
from orchestra.errors import CircuitOpenError

__all__ = ("BENCHMARKS", "PEERS")


@frozen
class Calls:
    """A number of calls with arguments, a few of which fail, but never enough to open a circuit."""

    count: int
    seed: int
    failures: int = 0
    arguments: list[int] = field(init=False, repr=False, eq=False)
    failing: frozenset[int] = field(init=False, repr=False, eq=False)

    @arguments.default
    def _draw_arguments(self) -> list[int]:
        random = Random(self.seed)
        return [random.randrange(1_000_000) for _ in range(self.count)]

    @failing.default
    def _draw_failing(self) -> frozenset[int]:
        """Every tenth call at the most, so that there are successes between two failures."""
        places = Random(self.seed).sample(range(self.count // 10), self.failures)
        return frozenset(10 * place for place in places)


seeds = st.integers(0, 2**32 - 1)


healthy = st.builds(Calls, count=st.integers(2000, 4000), seed=seeds)


shaky = st.builds(Calls, count=st.integers(2000, 4000), seed=seeds, failures=st.integers(20, 100))


async def adouble(value: int) -> int:
    """The same, as a coroutine function."""
    return 2 * value


def sync_success(guard: Callable[..., Callable[..., int]]) -> Callable[[Calls, Measure], None]:
    """Make a row that calls a guarded sync function."""

    def run(calls: Calls, measure: Measure) -> None:
        call = guard(double)
        with measure(calls.count):
            results = [call(argument) for argument in calls.arguments]
        assert results == [2 * argument for argument in calls.arguments]

    return run


def async_success(
    guard: Callable[..., Callable[..., Awaitable[int]]],
) -> Callable[[Calls, Measure], Awaitable[None]]:
    """Make a row that calls a guarded async function."""

    async def run(calls: Calls, measure: Measure) -> None:
        call = guard(adouble)
        with measure(calls.count):
            results = [await call(argument) for argument in calls.arguments]
        assert results == [2 * argument for argument in calls.arguments]

    return run


def block_of_ours(calls: Calls, measure: Measure) -> None:
    """Calls in `with` blocks of ours."""
    breaker = breaker_of_ours()
    results = []
    with measure(calls.count):
        for argument in calls.arguments:
            with breaker:
                results.append(double(argument))
    assert results == [2 * argument for argument in calls.arguments]
    assert breaker.statistics().succeeded == calls.count


def block_of_circuitbreaker(calls: Calls, measure: Measure) -> None:
    """Calls in `with` blocks of circuitbreaker, which count but never reject."""
    breaker = circuitbreaker.CircuitBreaker(expected_exception=DownError, name="benchmark")
    results = []
    with measure(calls.count):
        for argument in calls.arguments:
            with breaker:
                results.append(double(argument))
    assert results == [2 * argument for argument in calls.arguments]


def mixed(guard: Callable[..., Callable[..., int]]) -> Callable[[Calls, Measure], None]:
    """Make a row whose calls sometimes fail."""

    def run(calls: Calls, measure: Measure) -> None:
        def work(number: int) -> int:
            if number in calls.failing:
                raise DownError
            return number

        call = guard(work)
        failed = 0
        with measure(calls.count):
            for number in range(calls.count):
                try:
                    call(number)
                except DownError:
                    failed += 1
        assert failed == calls.failures

    return run


def reject_ours(calls: Calls, measure: Measure) -> None:
    """Calls that an open circuit of ours rejects."""
    breaker = breaker_of_ours()
    for _ in range(5):
        breaker.acquire().record(DownError())
    rejections(breaker(double), CircuitOpenError, calls, measure)
    assert breaker.statistics().rejected == calls.count


def reject_pybreaker(calls: Calls, measure: Measure) -> None:
    """Calls that an open pybreaker rejects."""
    breaker = pybreaker.CircuitBreaker(fail_max=5)
    breaker.open()
    rejections(breaker(double), pybreaker.CircuitBreakerError, calls, measure)


def reject_circuitbreaker(calls: Calls, measure: Measure) -> None:
    """Calls that an open circuitbreaker rejects."""
    breaker = circuitbreaker.CircuitBreaker(expected_exception=TypeError, name="benchmark")
    call = breaker(double)
    fail(call, 5)
    rejections(call, circuitbreaker.CircuitBreakerError, calls, measure)


def reject_purgatory(calls: Calls, measure: Measure) -> None:
    """Calls that an open purgatory breaker rejects."""
    call = purgatory.SyncCircuitBreakerFactory()("benchmark")(double)
    fail(call, 5)
    rejections(call, purgatory_model.OpenedState, calls, measure)


def reject_aiobreaker(calls: Calls, measure: Measure) -> None:
    """Calls that an open aiobreaker rejects."""
    breaker = aiobreaker.CircuitBreaker(fail_max=5)
    breaker.open()
    rejections(breaker(double), aiobreaker.CircuitBreakerError, calls, measure)


def rejections(
    call: Callable[..., Any], error: type[Exception], calls: Calls, measure: Measure
) -> None:
    """Time calls that must all be rejected."""
    rejected = 0
    with measure(calls.count):
        for argument in calls.arguments:
            try:
                call(argument)
            except error:
                rejected += 1
    assert rejected == calls.count


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="breaker-sync-success",
        title="Breaker: a sync call that succeeds",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=sync_success(with_ours)),
            Row(name="circuitbreaker", run=sync_success(with_circuitbreaker), at_most=1.0),
            Row(name="purgatory", run=sync_success(with_purgatory), at_most=0.6),
            Row(name="pybreaker", run=sync_success(with_pybreaker), at_most=0.6),
            Row(name="aiobreaker", run=sync_success(with_aiobreaker), at_most=0.6),
            Row(name="no breaker", run=sync_success(bare)),
        ),
    ),
    Benchmark(
        name="breaker-async-success",
        title="Breaker: an async call that succeeds",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=async_success(with_ours)),
            Row(name="circuitbreaker", run=async_success(with_circuitbreaker), at_most=1.0),
            Row(name="purgatory", run=async_success(with_async_purgatory), at_most=0.6),
            Row(
                name="aiobreaker",
                run=async_success(with_aiobreaker),
                backends=("asyncio",),
                at_most=0.6,
            ),
            Row(name="hyx", run=async_success(with_hyx), backends=("asyncio",)),
            Row(name="no breaker", run=async_success(bare)),
        ),
    ),
    Benchmark(
        name="breaker-block",
        title="Breaker: a call in a with block",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=block_of_ours),
            Row(name="circuitbreaker (never rejects)", run=block_of_circuitbreaker),
        ),
        note=(
            "Here we lose: our block keeps its permit in a context variable, so that it can tell a "
            "late result from a present one, and asks whether it may enter. The block of "
            "circuitbreaker does neither; it lets calls pass while the circuit is open."
        ),
    ),
    Benchmark(
        name="breaker-window",
        title="Breaker: a sync call that succeeds, by a failure rate",
        workload=healthy,
        rows=(
            Row(name="orchestra, last 100 calls", run=sync_success(with_count_window)),
            Row(name="orchestra, last 60 s and slow calls", run=sync_success(with_time_window)),
            Row(name="orchestra, consecutive failures", run=sync_success(with_ours)),
            Row(name="circuitbreaker (no rate)", run=sync_success(with_circuitbreaker)),
            Row(name="pybreaker (no rate)", run=sync_success(with_pybreaker)),
        ),
        note=(
            "Here we lose against the rule without a window: a window must remember every call, "
            "under a lock, and read the clock. None of the peers has such a rule."
        ),
    ),
    Benchmark(
        name="breaker-mixed",
        title="Breaker: sync calls of which one in 40 fails",
        workload=shaky,
        rows=(
            Row(name="orchestra", run=mixed(with_ours)),
            Row(name="circuitbreaker", run=mixed(with_circuitbreaker)),
            Row(name="pybreaker", run=mixed(with_pybreaker)),
            Row(name="no breaker", run=mixed(bare)),
        ),
    ),
    Benchmark(
        name="breaker-reject",
        title="Breaker: a call that is rejected",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=reject_ours),
            Row(name="pybreaker", run=reject_pybreaker, at_most=0.5),
            Row(name="aiobreaker", run=reject_aiobreaker),
            Row(name="circuitbreaker", run=reject_circuitbreaker),
            Row(name="purgatory (one error, raised again)", run=reject_purgatory),
        ),
    ),
)
