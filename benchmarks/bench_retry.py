"""Retries and time-outs: what a call costs that needs none, and what the repetitions cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import anyio
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import CircuitBreaker, Pipeline, Retry, RetryBudget, Timeout

PEERS = ("backoff", "hyx", "stamina", "tenacity")

# Without types, and only needed here.
backoff: Any = import_module("backoff")
hyx_retry: Any = import_module("hyx.retry")
stamina: Any = import_module("stamina")
stamina_hooks: Any = import_module("stamina.instrumentation")
tenacity: Any = import_module("tenacity")

stamina_hooks.set_on_retry_hooks([])  # it would log every repetition


class DownError(Exception):
    """What the work raises."""


@frozen
class Calls:
    """Calls of a function, each of which fails some times before it succeeds."""

    count: int
    failures: int = 0


healthy = st.builds(Calls, count=st.integers(500, 1000))
failing = st.builds(Calls, count=st.integers(50, 100), failures=st.just(4))

Guard = Callable[[Callable[..., Any]], Callable[..., Any]]


def no_time() -> float:
    """The shortest jitter, so that what remains is the work of repeating."""
    return 0.0


def ours(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under our policy, with a deadline as stamina's has."""
    return Retry(on=DownError, attempts=10, random=no_time, deadline=60.0)(fn)


def ours_with_budget(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same with a retry budget, which the others do not have."""
    budget = RetryBudget(ratio=10.0)
    return Retry(on=DownError, attempts=10, random=no_time, deadline=60.0, budget=budget)(fn)


def with_stamina(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under stamina, which is tenacity with better defaults."""
    decorate: Guard = stamina.retry(
        on=DownError, attempts=10, timeout=60.0, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0
    )
    return decorate(fn)


def with_tenacity(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under tenacity."""
    decorate: Guard = tenacity.retry(
        retry=tenacity.retry_if_exception_type(DownError),
        stop=tenacity.stop_after_attempt(10),
        wait=tenacity.wait_none(),
    )
    return decorate(fn)


def with_backoff(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under backoff."""
    decorate: Guard = backoff.on_exception(
        backoff.constant, DownError, interval=0, max_tries=10, jitter=None
    )
    return decorate(fn)


def with_hyx(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under hyx."""
    decorate: Guard = hyx_retry.retry(on=DownError, attempts=10)
    return decorate(fn)


def bare(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself."""
    return fn


class Work:
    """A function that fails as often as the workload says, and then succeeds."""

    def __init__(self, calls: Calls) -> None:
        self.failures = calls.failures
        self.left = calls.failures
        self.attempts = 0

    def sync(self, value: int) -> int:
        """Make one attempt."""
        self.attempts += 1
        if self.left:
            self.left -= 1
            raise DownError
        self.left = self.failures
        return value

    async def coroutine(self, value: int) -> int:
        """Make one attempt."""
        return self.sync(value)

    def check(self, calls: Calls, results: list[int]) -> None:
        """Every call came to its result, with exactly the attempts it needed."""
        assert results == list(range(calls.count))
        assert self.attempts == calls.count * (calls.failures + 1)


def sync_row(guard: Guard) -> Callable[[Calls, Measure], None]:
    """Make a row that calls a guarded sync function."""

    def run(calls: Calls, measure: Measure) -> None:
        work = Work(calls)

        def attempt(value: int) -> int:
            return work.sync(value)

        call = guard(attempt)
        with measure(calls.count):
            results = [call(number) for number in range(calls.count)]
        work.check(calls, results)

    return run


def async_row(guard: Guard) -> Callable[[Calls, Measure], Awaitable[None]]:
    """Make a row that calls a guarded async function."""

    async def run(calls: Calls, measure: Measure) -> None:
        work = Work(calls)

        async def attempt(value: int) -> int:
            return work.sync(value)

        call = guard(attempt)
        with measure(calls.count):
            results = [await call(number) for number in range(calls.count)]
        work.check(calls, results)

    return run


async def our_timeout(calls: Calls, measure: Measure) -> None:
    """Calls under our time limit."""
    work = Work(calls)
    call = Timeout(60.0)(work.coroutine)
    with measure(calls.count):
        results = [await call(number) for number in range(calls.count)]
    work.check(calls, results)


async def anyio_fail_after(calls: Calls, measure: Measure) -> None:
    """Calls in a block of anyio's."""
    work = Work(calls)
    results = []
    with measure(calls.count):
        for number in range(calls.count):
            with anyio.fail_after(60.0):
                results.append(await work.coroutine(number))
    work.check(calls, results)


async def asyncio_timeout(calls: Calls, measure: Measure) -> None:
    """Calls in a block of asyncio's."""
    work = Work(calls)
    results = []
    with measure(calls.count):
        for number in range(calls.count):
            async with asyncio.timeout(60.0):
                results.append(await work.coroutine(number))
    work.check(calls, results)


def pipeline_of_three(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under a pipeline."""
    breaker = CircuitBreaker("benchmark", on=DownError)
    return Pipeline(Timeout(60.0), Retry(on=DownError), breaker)(fn)


def decorators_of_three(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under the same policies, one decorator each."""
    breaker = CircuitBreaker("benchmark", on=DownError)
    return Timeout(60.0)(Retry(on=DownError)(breaker(fn)))


def stamina_in_fail_after(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under stamina and anyio's time limit, without a breaker."""
    retried = with_stamina(fn)

    async def call(value: int) -> Any:
        with anyio.fail_after(60.0):
            return await retried(value)

    return call


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="retry-sync-success",
        title="Retry: a sync call that succeeds at once",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=sync_row(ours)),
            Row(name="stamina", run=sync_row(with_stamina), at_most=0.1),
            Row(name="tenacity", run=sync_row(with_tenacity)),
            Row(name="backoff", run=sync_row(with_backoff)),
            Row(name="no retry", run=sync_row(bare)),
        ),
    ),
    Benchmark(
        name="retry-async-success",
        title="Retry: an async call that succeeds at once",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=async_row(ours)),
            Row(name="stamina", run=async_row(with_stamina), at_most=0.1),
            Row(name="tenacity", run=async_row(with_tenacity)),
            Row(name="backoff", run=async_row(with_backoff), backends=("asyncio",)),
            Row(name="hyx", run=async_row(with_hyx), backends=("asyncio",)),
            Row(name="no retry", run=async_row(bare)),
        ),
    ),
    Benchmark(
        name="retry-budget-success",
        title="Retry: an async call that succeeds at once, with a budget",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=async_row(ours_with_budget)),
            Row(name="stamina (no budget)", run=async_row(with_stamina)),
        ),
    ),
    Benchmark(
        name="retry-failures",
        title="Retry: a sync call that fails four times, without waits",
        workload=failing,
        rows=(
            Row(name="orchestra", run=sync_row(ours)),
            Row(name="stamina", run=sync_row(with_stamina)),
            Row(name="tenacity", run=sync_row(with_tenacity)),
            Row(name="backoff", run=sync_row(with_backoff)),
        ),
        note="Most of it is the time.sleep(0) of everybody.",
    ),
    Benchmark(
        name="timeout",
        title="Timeout: an async call that ends in time",
        workload=healthy,
        rows=(
            Row(name="orchestra", run=our_timeout),
            Row(name="anyio.fail_after", run=anyio_fail_after),
            Row(name="asyncio.timeout", run=asyncio_timeout, backends=("asyncio",)),
        ),
        note=(
            "Here we lose against asyncio: the time limit is anyio's cancel scope, which works on "
            "trio too and cancels until the call is over; its cost is nearly all of ours."
        ),
    ),
    Benchmark(
        name="pipeline",
        title="Pipeline: a successful async call under Timeout, Retry and CircuitBreaker",
        workload=healthy,
        rows=(
            Row(name="orchestra, Pipeline", run=async_row(pipeline_of_three)),
            Row(name="orchestra, three decorators", run=async_row(decorators_of_three)),
            Row(name="fail_after and stamina, no breaker", run=async_row(stamina_in_fail_after)),
            Row(name="no policy", run=async_row(bare)),
        ),
        note="A pipeline looks its policies up in every call; decorators look once.",
    ),
)
