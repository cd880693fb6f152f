"""Circuit breakers: probes in half-open, memory over rejections, threads at the same time."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
from attrs import frozen
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
    hyx_breaker,
    purgatory,
    purgatory_model,
    pybreaker,
    with_circuitbreaker,
    with_ours,
    with_pybreaker,
)
from benchmarks.frame import Benchmark, Measure, Row
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitState

__all__ = ("BENCHMARKS", "PEERS")


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
        max_rounds=3,
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
