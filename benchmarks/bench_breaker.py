"""Circuit breakers: what a call costs, what a rejection costs, and what half-open lets through."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib import import_module
from random import Random
from typing import Any

import anyio
from attrs import field, frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import CircuitBreaker, FailureRate
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitState

PEERS = ("aiobreaker", "circuitbreaker", "hyx", "purgatory", "pybreaker")

# Without types, and only needed here.
aiobreaker: Any = import_module("aiobreaker")
circuitbreaker: Any = import_module("circuitbreaker")
hyx_breaker: Any = import_module("hyx.circuitbreaker")
hyx_errors: Any = import_module("hyx.circuitbreaker.exceptions")
purgatory: Any = import_module("purgatory")
purgatory_model: Any = import_module("purgatory.domain.model")
pybreaker: Any = import_module("pybreaker")


class DownError(Exception):
    """What the protected service raises."""


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


def double(value: int) -> int:
    """The protected work: next to nothing, so that what remains is the breaker."""
    return 2 * value


async def adouble(value: int) -> int:
    """The same, as a coroutine function."""
    return 2 * value


def breaker_of_ours(**options: Any) -> CircuitBreaker:
    """Ours, with the same rule as the peers unless told otherwise."""
    return CircuitBreaker("benchmark", on=DownError, **options)


def with_aiobreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under an aiobreaker."""
    guarded: Callable[..., Any] = aiobreaker.CircuitBreaker(fail_max=5)(fn)
    return guarded


def with_circuitbreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a circuitbreaker."""
    breaker = circuitbreaker.CircuitBreaker(expected_exception=DownError, name="benchmark")
    guarded: Callable[..., Any] = breaker(fn)
    return guarded


def with_pybreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a pybreaker."""
    guarded: Callable[..., Any] = pybreaker.CircuitBreaker(fail_max=5)(fn)
    return guarded


def with_purgatory(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The sync function under a purgatory breaker."""
    guarded: Callable[..., Any] = purgatory.SyncCircuitBreakerFactory()("benchmark")(fn)
    return guarded


def with_async_purgatory(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under a purgatory breaker."""
    guarded: Callable[..., Any] = purgatory.AsyncCircuitBreakerFactory()("benchmark")(fn)
    return guarded


def with_hyx(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under a hyx breaker."""
    guarded: Callable[..., Any] = hyx_breaker.consecutive_breaker(exceptions=DownError)(fn)
    return guarded


def bare(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself."""
    return fn


def with_ours(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours, counting consecutive failures as the peers do."""
    return breaker_of_ours()(fn)


def with_count_window(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours with a failure rate over the last 100 calls."""
    return breaker_of_ours(failure_threshold=FailureRate(0.5, calls=100))(fn)


def with_time_window(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours with a failure rate and slow calls over the last minute."""
    rule = FailureRate(0.5, seconds=60.0, slow_after=30.0)
    return breaker_of_ours(failure_threshold=rule)(fn)


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


def fail(call: Callable[..., Any], times: int) -> None:
    """Call a sync function that fails, through its guard."""
    for _ in range(times):
        try:
            call(None)  # the work cannot double it
        except Exception:  # noqa: BLE001, S112 - the peers wrap what they count
            continue


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


@frozen
class Crowd:
    """Callers that arrive at the same moment, when the break is over."""

    callers: int
    probes: int


crowds = st.builds(Crowd, callers=st.just(20), probes=st.integers(1, 5))


async def admitted(crowd: Crowd, call: Callable[..., Awaitable[Any]]) -> int:
    """How many of the callers are inside at the same time."""
    inside = 0
    let_go = anyio.Event()

    async def work() -> None:
        nonlocal inside
        inside += 1
        await let_go.wait()

    async def caller() -> None:
        try:
            await call(work)
        except Exception:  # noqa: BLE001 - each has its own error for a rejection
            return

    async with anyio.create_task_group() as tasks:
        for _ in range(crowd.callers):
            tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        seen = inside
        let_go.set()
    return seen


async def down() -> None:
    """Work that fails."""
    raise DownError


async def open_circuit(call: Callable[..., Awaitable[Any]]) -> None:
    """Fail until the circuit is open, and wait until its break of 20 ms is over."""
    for _ in range(5):
        try:
            await call(down)
        except Exception:  # noqa: BLE001, S112 - the peers wrap what they count
            continue
    await anyio.sleep(0.04)


async def probes_of_ours(crowd: Crowd, measure: Measure) -> None:
    """Probes that ours lets through: exactly the configured ones, or this is an error."""
    breaker = breaker_of_ours(
        recovery_timeout=0.02, half_open_max=crowd.probes, success_threshold=crowd.probes
    )
    await open_circuit(breaker.call)
    seen = await admitted(crowd, breaker.call)
    assert seen == crowd.probes
    assert breaker.state is CircuitState.CLOSED
    measure.report(seen)


async def probes_of_aiobreaker(crowd: Crowd, measure: Measure) -> None:
    """Probes that aiobreaker lets through."""
    breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=0.02))
    await open_circuit(breaker.call_async)
    measure.report(await admitted(crowd, breaker.call_async))


async def probes_of_circuitbreaker(crowd: Crowd, measure: Measure) -> None:
    """Probes that circuitbreaker lets through."""
    breaker = circuitbreaker.CircuitBreaker(
        expected_exception=DownError, recovery_timeout=0.02, name="benchmark"
    )

    @breaker  # type: ignore[untyped-decorator]
    async def call(fn: Callable[[], Awaitable[None]]) -> None:
        await fn()

    await open_circuit(call)
    measure.report(await admitted(crowd, call))


async def probes_of_purgatory(crowd: Crowd, measure: Measure) -> None:
    """Probes that purgatory lets through."""
    factory = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=0.02)

    @factory("benchmark")  # type: ignore[untyped-decorator]
    async def call(fn: Callable[[], Awaitable[None]]) -> None:
        await fn()

    await open_circuit(call)
    measure.report(await admitted(crowd, call))


async def probes_of_hyx(crowd: Crowd, measure: Measure) -> None:
    """Probes that hyx lets through."""
    breaker = hyx_breaker.consecutive_breaker(
        exceptions=DownError, failure_threshold=5, recovery_time_secs=0.02
    )

    @breaker  # type: ignore[untyped-decorator]
    async def call(fn: Callable[[], Awaitable[None]]) -> None:
        await fn()

    await open_circuit(call)
    measure.report(await admitted(crowd, call))


async def limit_of_probes(crowd: Crowd, measure: Measure) -> None:
    """The configured number, as the measure of the others."""
    measure.report(crowd.probes)


@frozen
class Storm:
    """Calls that come while the circuit is open."""

    rejections: int


storms = st.builds(Storm, rejections=st.just(100_000) | st.integers(90_000, 110_000))


def growth(call: Callable[[], None], error: type[Exception], storm: Storm) -> float:
    """Bytes per call that are held after many rejections and were not after a few."""

    def reject(times: int) -> int:
        rejected = 0
        for _ in range(times):
            try:
                call()
            except error:
                rejected += 1
        gc.collect()
        assert rejected == times
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = reject(1000)
        return max(reject(storm.rejections) - before, 1) / storm.rejections
    finally:
        tracemalloc.stop()


def memory_of_ours(storm: Storm, measure: Measure) -> None:
    """What ours holds on to."""
    breaker = breaker_of_ours()
    for _ in range(5):
        breaker.acquire().record(DownError())
    measure.report(growth(breaker(lambda: None), CircuitOpenError, storm))
    assert breaker.statistics().rejected == storm.rejections + 1000


def memory_of_pybreaker(storm: Storm, measure: Measure) -> None:
    """What pybreaker holds on to."""
    breaker = pybreaker.CircuitBreaker(fail_max=5)
    breaker.open()
    measure.report(growth(breaker(lambda: None), pybreaker.CircuitBreakerError, storm))


def memory_of_circuitbreaker(storm: Storm, measure: Measure) -> None:
    """What circuitbreaker holds on to."""
    breaker = circuitbreaker.CircuitBreaker(expected_exception=TypeError, name="benchmark")
    call = breaker(double)
    fail(call, 5)
    measure.report(growth(lambda: call(1), circuitbreaker.CircuitBreakerError, storm))


def memory_of_purgatory(storm: Storm, measure: Measure) -> None:
    """What purgatory holds on to, from a fiftieth of the calls, for it gets slower and slower."""
    call = purgatory.SyncCircuitBreakerFactory()("benchmark")(double)
    fail(call, 5)
    part = Storm(storm.rejections // 50)
    measure.report(growth(lambda: call(1), purgatory_model.OpenedState, part))


def memory_limit(_storm: Storm, measure: Measure) -> None:
    """What counts as flat: a tenth of a byte per call, 10 kB in all."""
    measure.report(0.1)


@frozen
class Threads:
    """Threads that call at the same time, and how long each call takes."""

    threads: int
    seconds: float


def threaded(guard: Callable[..., Callable[..., Any]]) -> Callable[[Threads, Measure], None]:
    """Make a row in which threads call a function that waits."""

    def run(work: Threads, measure: Measure) -> None:
        pause = threading.Event()
        done: list[None] = []

        def wait() -> None:
            pause.wait(work.seconds)
            done.append(None)

        call = guard(wait)
        threads = [threading.Thread(target=call) for _ in range(work.threads)]
        with measure(1, waits=True):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(done) == work.threads

    return run


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
    Benchmark(
        name="breaker-probes",
        title="Breaker: let through of 20 concurrent callers in half-open",
        unit="calls",
        workload=crowds,
        rows=(
            Row(name="orchestra", run=probes_of_ours),
            Row(name="configured", run=limit_of_probes, at_most=1.0, at_least=1.0),
            Row(name="circuitbreaker", run=probes_of_circuitbreaker),
            Row(name="purgatory", run=probes_of_purgatory),
            Row(name="aiobreaker", run=probes_of_aiobreaker, backends=("asyncio",)),
            Row(name="hyx", run=probes_of_hyx, backends=("asyncio",)),
        ),
        note="The peers have nothing to configure: all 20 callers get through.",
    ),
    Benchmark(
        name="breaker-memory",
        title="Breaker: memory held per rejected call, of 100,000",
        unit="bytes",
        workload=storms,
        rows=(
            Row(name="orchestra", run=memory_of_ours),
            Row(name="flat: 10 kB in all", run=memory_limit, at_most=1.0),
            Row(name="pybreaker", run=memory_of_pybreaker),
            Row(name="circuitbreaker", run=memory_of_circuitbreaker),
            Row(name="purgatory (of 2,000 calls)", run=memory_of_purgatory),
        ),
    ),
    Benchmark(
        name="breaker-threads",
        title="Breaker: 8 threads that each wait 20 ms through one breaker",
        unit="s",
        workload=st.builds(Threads, threads=st.just(8), seconds=st.just(0.02)),
        rows=(
            Row(name="orchestra", run=threaded(with_ours)),
            Row(name="circuitbreaker", run=threaded(with_circuitbreaker)),
            Row(name="pybreaker (a lock during the call)", run=threaded(with_pybreaker)),
            Row(name="no breaker", run=threaded(bare)),
        ),
    ),
)
