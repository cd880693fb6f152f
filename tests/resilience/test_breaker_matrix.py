"""What circuit breakers do in the cases that matter: ours must, the peers are documented.

The rows of the peers were seen with the versions that ``pyproject.toml`` names; a row that fails
after an update of a peer is news about the peer.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from orchestra import CircuitBreaker, FailureRate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peers

Work = Callable[[], Awaitable[None]]


class DownError(Exception):
    """What the protected work raises."""


class Breaker:
    """What the implementations have in common: a call under the breaker, and its state."""

    def __init__(self, threshold: int, recovery: float) -> None:
        raise NotImplementedError

    async def call(self, work: Work) -> None:
        raise NotImplementedError

    @property
    def state(self) -> str:
        raise NotImplementedError


class Orchestra(Breaker):
    """Ours, counting consecutive failures."""

    def __init__(self, threshold: int, recovery: float) -> None:
        self.breaker = CircuitBreaker(
            "matrix",
            on=DownError,
            failure_threshold=threshold,
            recovery_timeout=recovery,
            success_threshold=1,
        )

    async def call(self, work: Work) -> None:
        await self.breaker.call(work)

    @property
    def state(self) -> str:
        return self.breaker.state.value


class OrchestraRate(Orchestra):
    """Ours, by a failure rate."""

    def __init__(self, threshold: int, recovery: float) -> None:
        rule = FailureRate(0.5, calls=20, minimum_calls=threshold)
        self.breaker = CircuitBreaker(
            "matrix",
            on=DownError,
            failure_threshold=rule,
            recovery_timeout=recovery,
            success_threshold=1,
        )


class AioBreaker(Breaker):
    """The package aiobreaker, asyncio only."""

    def __init__(self, threshold: int, recovery: float) -> None:
        module: Any = pytest.importorskip("aiobreaker")
        self.breaker = module.CircuitBreaker(
            fail_max=threshold, timeout_duration=timedelta(seconds=recovery)
        )

    async def call(self, work: Work) -> None:
        await self.breaker.call_async(work)

    @property
    def state(self) -> str:
        return str(self.breaker.current_state.name).lower().replace("_", "-")


class Decorated(Breaker):
    """A breaker that can only decorate."""

    guard: Callable[..., Any]

    async def call(self, work: Work) -> None:
        @self.guard
        async def guarded() -> None:
            await work()

        await guarded()


class CircuitbreakerPackage(Decorated):
    """The package circuitbreaker."""

    def __init__(self, threshold: int, recovery: float) -> None:
        module: Any = pytest.importorskip("circuitbreaker")
        self.breaker = module.CircuitBreaker(threshold, recovery, DownError, name="matrix")
        self.guard = self.breaker

    @property
    def state(self) -> str:
        return str(self.breaker.state).replace("_", "-")


class Purgatory(Decorated):
    """The package purgatory."""

    def __init__(self, threshold: int, recovery: float) -> None:
        module: Any = pytest.importorskip("purgatory")
        factory = module.AsyncCircuitBreakerFactory(threshold, recovery)
        self.guard = factory("matrix")
        self.contexts = factory.uow.contexts

    @property
    def state(self) -> str:
        name = str(self.contexts.breakers["matrix"].state)
        return {"opened": "open", "half-opened": "half-open"}.get(name, name)


class Hyx(Decorated):
    """The package hyx, asyncio only."""

    def __init__(self, threshold: int, recovery: float) -> None:
        module: Any = pytest.importorskip("hyx.circuitbreaker")
        self.guard = self.breaker = module.consecutive_breaker(DownError, threshold, recovery, 1)

    @property
    def state(self) -> str:
        names = {"working": "closed", "failing": "open", "recovering": "half-open"}
        return names[self.breaker.state.name]


Make = Callable[[int, float], Breaker]
LONG, SHORT = 3600.0, 0.03


async def succeed() -> None:
    await checkpoint()


async def fail() -> None:
    await checkpoint()
    raise DownError


async def error_of(breaker: Breaker, work: Work) -> Exception | None:
    """Call, and give what was raised."""
    try:
        await breaker.call(work)
    except Exception as error:  # noqa: BLE001 - each has errors of its own
        return error
    return None


async def trip(breaker: Breaker, threshold: int) -> None:
    for _ in range(threshold):
        await error_of(breaker, fail)


async def cancel(breaker: Breaker) -> None:
    """Make a call and cancel it while it runs."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(breaker.call, anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def cancelled_calls_open_it(make: Make) -> bool:
    breaker = make(2, LONG)
    await error_of(breaker, succeed)
    for _ in range(2):
        await cancel(breaker)
    return breaker.state == "open"


async def probes_of_20_callers(make: Make) -> int:
    breaker = make(2, SHORT)
    await trip(breaker, 2)
    await anyio.sleep(2 * SHORT)
    inside = 0
    done = anyio.Event()

    async def probe() -> None:
        nonlocal inside
        inside += 1
        await done.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(error_of, breaker, probe)
        await anyio.wait_all_tasks_blocked()
        done.set()
    return inside


async def late_success_closes_it(make: Make) -> bool:
    breaker = make(2, LONG)
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(breaker.call, done.wait)
        await anyio.wait_all_tasks_blocked()
        await trip(breaker, 2)
        assert breaker.state == "open"
        done.set()
    return breaker.state == "closed"


async def late_failures_open_it_again(make: Make) -> bool:
    breaker = make(2, SHORT)
    down = anyio.Event()

    async def late() -> None:
        await down.wait()
        raise DownError

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(error_of, breaker, late)
        await anyio.wait_all_tasks_blocked()
        await trip(breaker, 2)
        await anyio.sleep(2 * SHORT)
        assert await error_of(breaker, succeed) is None
        assert breaker.state == "closed"
        down.set()
    return breaker.state == "open"


async def after_a_cancelled_probe(make: Make) -> str:
    breaker = make(2, SHORT)
    await trip(breaker, 2)
    await anyio.sleep(2 * SHORT)
    await cancel(breaker)
    return breaker.state


async def every_second_call_failing_opens_it(make: Make) -> bool:
    breaker = make(10, LONG)
    for number in range(40):
        await error_of(breaker, fail if number % 2 else succeed)
    return breaker.state == "open"


async def caller_that_trips_it_sees_its_own_error(make: Make) -> bool:
    breaker = make(2, LONG)
    await error_of(breaker, fail)
    return isinstance(await error_of(breaker, fail), DownError)


async def rejections_grow_a_traceback(make: Make) -> bool:
    breaker = make(2, LONG)
    await trip(breaker, 2)
    depths = []
    for _ in range(20):
        error = await error_of(breaker, succeed)
        assert error is not None
        depths.append(len(traceback.extract_tb(error.__traceback__)))
    return depths[-1] > depths[0]


BEHAVIOURS: tuple[Callable[[Make], Awaitable[Any]], ...] = (
    cancelled_calls_open_it,
    probes_of_20_callers,
    late_success_closes_it,
    late_failures_open_it_again,
    after_a_cancelled_probe,
    every_second_call_failing_opens_it,
    caller_that_trips_it_sees_its_own_error,
    rejections_grow_a_traceback,
)

# In the order of the behaviours.
MATRIX: dict[type[Breaker], tuple[Any, ...]] = {
    Orchestra: (False, 1, False, False, "half-open", False, True, False),
    OrchestraRate: (False, 1, False, False, "half-open", True, True, False),
    AioBreaker: (False, 20, False, True, "half-open", False, False, False),
    CircuitbreakerPackage: (False, 20, True, True, "closed", False, True, False),
    Purgatory: (True, 20, False, True, "open", False, True, True),
    Hyx: (False, 20, False, True, "half-open", False, True, False),
}
ASYNCIO_ONLY = {AioBreaker, Hyx}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
@pytest.mark.parametrize(
    "implementation", MATRIX, ids=lambda implementation: implementation.__name__
)
async def test_behaviour(
    implementation: type[Breaker],
    behaviour: Callable[[Make], Awaitable[Any]],
    anyio_backend_name: str,
) -> None:
    """Each implementation does what its row of the matrix says."""
    if implementation in ASYNCIO_ONLY and anyio_backend_name != "asyncio":
        pytest.skip("runs on asyncio only")
    expected = MATRIX[implementation][BEHAVIOURS.index(behaviour)]
    assert await behaviour(implementation) == expected


def ours(work: Callable[[], object]) -> Callable[[], object]:
    return CircuitBreaker("matrix", on=DownError)(work)


def circuitbreaker_package(work: Callable[[], object]) -> Callable[[], object]:
    pytest.importorskip("circuitbreaker")
    guarded: Callable[[], object] = import_module("circuitbreaker").circuit(work)
    return guarded


def pybreaker(work: Callable[[], object]) -> Callable[[], object]:
    pytest.importorskip("pybreaker")
    return partial(import_module("pybreaker").CircuitBreaker().call, work)


@pytest.mark.parametrize(
    ("guard", "expected"), [(ours, True), (circuitbreaker_package, True), (pybreaker, False)]
)
def test_threads_are_inside_together(
    guard: Callable[[Callable[[], object]], Callable[[], object]], *, expected: bool
) -> None:
    """Two threads can be in the protected call at once, unless a lock is held during it."""
    second_is_in = threading.Event()
    inside = 0
    met = []

    def work() -> None:
        nonlocal inside
        inside += 1
        if inside == 2:
            second_is_in.set()
        met.append(second_is_in.wait(5.0 if expected else 0.1))

    call = guard(work)
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (met[0] and met[1]) is expected
