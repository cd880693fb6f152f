"""The concurrency controller: what a slot costs, free, contended and given up."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import ConcurrencyController, Priority
from orchestra.testing import virtual_time_options

PEERS = ("anyio", "trio")


@frozen
class Turns:
    """So many times taking and giving back, one after the other, with slots to spare."""

    count: int
    limit: int


turns = st.builds(Turns, count=st.integers(10_000, 20_000), limit=st.integers(2, 100))


async def by_handle(work: Turns, measure: Measure) -> None:
    """Ours, one key as an object."""
    controller = ConcurrencyController({"worker": work.limit})
    acquire_nowait = controller.at("worker").acquire_nowait
    with measure(work.count):
        for _ in range(work.count):
            token = acquire_nowait()
            token.release()
    assert controller.statistics("worker").in_use == 0


async def by_key(work: Turns, measure: Measure) -> None:
    """Ours, by key."""
    controller = ConcurrencyController({"worker": work.limit})
    with measure(work.count):
        for _ in range(work.count):
            token = controller.acquire_nowait("worker")
            token.release()
    assert controller.statistics("worker").in_use == 0


def ours(*, fast_acquire: bool) -> Callable[[Turns, Measure], Awaitable[None]]:
    """Make a row of ours that waits if it must."""

    async def run(work: Turns, measure: Measure) -> None:
        controller = ConcurrencyController({"worker": work.limit}, fast_acquire=fast_acquire)
        with measure(work.count):
            for _ in range(work.count):
                token = await controller.acquire("worker")
                token.release()
        assert controller.statistics("worker").in_use == 0

    return run


def peer(make: Callable[[int], Any]) -> Callable[[Turns, Measure], Awaitable[None]]:
    """Make a row of something with acquire() and release()."""

    async def run(work: Turns, measure: Measure) -> None:
        semaphore = make(work.limit)
        with measure(work.count):
            for _ in range(work.count):
                await semaphore.acquire()
                semaphore.release()

    return run


def fast_semaphore(limit: int) -> anyio.Semaphore:
    """The anyio semaphore without a checkpoint."""
    return anyio.Semaphore(limit, fast_acquire=True)


asyncio_semaphore = peer(asyncio.Semaphore)
capacity_limiter = peer(anyio.CapacityLimiter)


@frozen
class Crowd:
    """Many tasks that each take a slot several times and yield once while they hold it."""

    tasks: int
    times: int
    limit: int


Pair = tuple[Callable[[], Awaitable[Any]], Callable[[Any], object]]


def pair_of_ours(limit: int) -> Pair:
    """Acquire and release of ours."""
    controller = ConcurrencyController({"worker": limit})
    return controller.at("worker").acquire, lambda token: token.release()


def pair_of(make: Callable[[int], Any]) -> Callable[[int], Pair]:
    """Acquire and release of a peer."""

    def pair(limit: int) -> Pair:
        semaphore = make(limit)
        return semaphore.acquire, lambda _: semaphore.release()

    return pair


def pair_alone(limit: int) -> Pair:
    """No queue at all: the first one passes, everybody else waits for an event of its own."""
    is_first = [True] * limit

    async def acquire() -> None:
        if is_first:
            is_first.pop()
        else:
            await anyio.Event().wait()

    return acquire, lambda _: None


def contended(
    make: Callable[[int], Pair],
) -> Callable[[Crowd, Measure], Awaitable[None]]:
    """Make a row that lets a crowd compete; nobody is lost, nobody too many, all in turn."""

    async def run(crowd: Crowd, measure: Measure) -> None:
        acquire, release = make(crowd.limit)
        holders = most = done = 0
        first_round: list[int] = []

        async def work(number: int) -> None:
            nonlocal holders, most, done
            for turn in range(crowd.times):
                token = await acquire()
                holders += 1
                most = max(most, holders)
                if turn == 0:
                    first_round.append(number)
                await anyio.lowlevel.checkpoint()
                holders -= 1
                release(token)
                done += 1

        with measure(crowd.tasks * crowd.times):
            async with anyio.create_task_group() as tasks:
                for number in range(crowd.tasks):
                    tasks.start_soon(work, number)
        assert most == crowd.limit
        assert done == crowd.tasks * crowd.times
        assert sorted(first_round) == list(range(crowd.tasks))

    return run


@frozen
class Queue:
    """So many tasks that wait for one slot and give up, the newest first."""

    count: int


AT_ONCE = 1000
"""How many give up before they get to run, so that it is only the queue that differs in length."""


def given_up(
    make: Callable[[int], Pair], *, share: int = 1
) -> Callable[[Queue, Measure], Awaitable[None]]:
    """Make a row that cancels every waiter, from the newest to the oldest.

    Args:
        make: What they wait for.
        share: The queue is divided by this.
    """

    async def run(queue: Queue, measure: Measure) -> None:
        acquire, release = make(1)
        held = await acquire()
        scopes = [anyio.CancelScope() for _ in range(queue.count // share)]
        parked = gone = 0

        async def wait(scope: anyio.CancelScope) -> None:
            nonlocal parked, gone
            parked += 1
            with scope:
                await acquire()
            gone += scope.cancelled_caught

        async with anyio.create_task_group() as tasks:
            for scope in scopes:
                tasks.start_soon(wait, scope)
            while parked < len(scopes):
                await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            # Collecting garbage costs more the more tasks there are, whatever they wait for.
            gc.disable()
            with measure(len(scopes)):
                for end in range(len(scopes), 0, -AT_ONCE):
                    begin = max(0, end - AT_ONCE)
                    for scope in reversed(scopes[begin:end]):
                        scope.cancel()
                    while gone < len(scopes) - begin:
                        await anyio.lowlevel.checkpoint()
            gc.enable()
        release(held)

    return run


@frozen
class Flood:
    """Unimportant work that waits, and urgent work that comes now and then."""

    low: int
    high: int
    slots: int
    every: float


SERVICE_SECONDS = 0.01


def urgent(*, has_priorities: bool) -> Callable[[Flood, Measure], None]:
    """Make a row that reports the 99th percentile of the wait of urgent work, in service times."""

    async def main(flood: Flood) -> float:
        controller = ConcurrencyController({"worker": flood.slots})
        waits: list[float] = []
        done = 0

        async def work(priority: Priority) -> None:
            nonlocal done
            begin = anyio.current_time()
            used = priority if has_priorities else Priority.NORMAL
            async with controller.lease("worker", priority=used):
                if priority is Priority.HIGH:
                    waits.append((anyio.current_time() - begin) / SERVICE_SECONDS)
                await anyio.sleep(SERVICE_SECONDS)
            done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(flood.low):
                tasks.start_soon(work, Priority.LOW)
            for _ in range(flood.high):
                await anyio.sleep(flood.every)
                tasks.start_soon(work, Priority.HIGH)
        assert done == flood.low + flood.high
        p99 = statistics.quantiles(waits, n=100, method="inclusive")[98]
        assert p99 <= 3 or not has_priorities, f"HIGH waited {p99} service times"
        return p99

    def run(flood: Flood, measure: Measure) -> None:
        options = virtual_time_options("asyncio")
        measure.report(anyio.run(main, flood, backend_options=options))

    return run


def on_asyncio(
    name: str,
    run: Callable[[Any, Measure], Awaitable[None]],
    *,
    at_most: float | None = None,
) -> Row[Any]:
    """A row that exists on asyncio only."""
    return Row(name=name, run=run, backends=("asyncio",), at_most=at_most)


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="slot-nowait",
        title="acquire_nowait() and release(), a slot is free",
        workload=turns,
        rows=(
            Row(name="orchestra, at(key)", run=by_handle),
            Row(name="orchestra, by key", run=by_key),
            on_asyncio("asyncio.Semaphore", asyncio_semaphore, at_most=0.6),
            Row(name="anyio.CapacityLimiter", run=capacity_limiter),
        ),
    ),
    Benchmark(
        name="slot-fast",
        title="acquire() and release() without a checkpoint, a slot is free",
        workload=turns,
        rows=(
            Row(name="orchestra, fast_acquire", run=ours(fast_acquire=True)),
            on_asyncio("asyncio.Semaphore", asyncio_semaphore, at_most=1.0),
            Row(name="anyio.CapacityLimiter", run=capacity_limiter, at_most=0.2),
            Row(name="anyio.Semaphore, fast_acquire", run=peer(fast_semaphore)),
        ),
    ),
    Benchmark(
        name="slot-checkpoint",
        title="acquire() and release(), a slot is free",
        workload=turns,
        note="asyncio.Semaphore does not let other tasks run; the others do.",
        rows=(
            Row(name="orchestra", run=ours(fast_acquire=False)),
            Row(name="anyio.CapacityLimiter", run=capacity_limiter, at_most=1.1),
            Row(name="anyio.Semaphore", run=peer(anyio.Semaphore)),
            on_asyncio("asyncio.Semaphore", asyncio_semaphore),
        ),
    ),
    Benchmark(
        name="slot-contended",
        title="1,000 tasks take one of 10 slots, 10 times each",
        workload=st.builds(
            Crowd, tasks=st.integers(900, 1100), times=st.just(10), limit=st.just(10)
        ),
        rows=(
            Row(name="orchestra", run=contended(pair_of_ours)),
            on_asyncio("asyncio.Semaphore", contended(pair_of(asyncio.Semaphore)), at_most=1.2),
            Row(
                name="anyio.CapacityLimiter",
                run=contended(pair_of(anyio.CapacityLimiter)),
                at_most=0.9,
            ),
        ),
    ),
    Benchmark(
        name="slot-given-up",
        title="16,000 waiters give up, the newest first",
        workload=st.builds(Queue, count=st.just(16_000)),
        note=(
            "Compared with ourselves at 1,000 waiters: the cost of one must not grow with the queue. "
            'The garbage collector is off while it is measured. "No queue" are tasks that wait '
            "for an event of their own: what their number alone costs the event loop."
        ),
        rows=(
            Row(name="orchestra", run=given_up(pair_of_ours)),
            Row(name="orchestra, 1,000", run=given_up(pair_of_ours, share=16), at_most=1.3),
            Row(name="anyio.CapacityLimiter", run=given_up(pair_of(anyio.CapacityLimiter))),
            Row(name="no queue", run=given_up(pair_alone)),
            Row(name="no queue, 1,000", run=given_up(pair_alone, share=16)),
            on_asyncio("asyncio.Semaphore", given_up(pair_of(asyncio.Semaphore))),
        ),
    ),
    Benchmark(
        name="slot-urgent",
        title="Wait of HIGH behind 2,000 LOW, 99th percentile",
        workload=st.builds(
            Flood,
            low=st.just(2000),
            high=st.integers(200, 400),
            slots=st.just(10),
            every=st.floats(0.004, 0.006),
        ),
        unit="service times",
        note="In virtual time. Ours asserts at most 3 in every round.",
        rows=(
            Row(name="orchestra", run=urgent(has_priorities=True)),
            Row(name="orchestra without priorities", run=urgent(has_priorities=False)),
        ),
    ),
)
