"""The resource pool: what a lease costs when something idles, and when many want one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import ResourcePool

PEERS = ("anyio", "trio")


@frozen
class Turns:
    """So many times taking and giving back, one after the other, with resources to spare."""

    count: int
    size: int


turns = st.builds(Turns, count=st.integers(5_000, 10_000), size=st.integers(2, 20))


async def make() -> object:
    """Make a resource that costs nothing."""
    return object()


def pool_of(size: int, *, fast_acquire: bool) -> ResourcePool[object]:
    """A pool of them, none of which is ever worn."""
    return ResourcePool(make, max_size=size, max_uses=None, fast_acquire=fast_acquire)


def ours(*, fast_acquire: bool) -> Callable[[Turns, Measure], Awaitable[None]]:
    """Make a row of ours."""

    async def run(work: Turns, measure: Measure) -> None:
        async with pool_of(work.size, fast_acquire=fast_acquire) as pool:
            async with pool.lease():
                pass
            with measure(work.count):
                for _ in range(work.count):
                    async with pool.lease():
                        pass
            now = pool.statistics()
        assert (now.created, now.leased, now.idle) == (1, work.count + 1, 1)

    return run


async def asyncio_queue(work: Turns, measure: Measure) -> None:
    """The pool that people write themselves: a queue of resources."""
    queue: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(work.size):
        queue.put_nowait(object())
    with measure(work.count):
        for _ in range(work.count):
            resource = await queue.get()
            await queue.put(resource)
    assert queue.qsize() == work.size


async def memory_stream(work: Turns, measure: Measure) -> None:
    """The same with anyio's stream of objects."""
    send, receive = anyio.create_memory_object_stream[object](work.size)
    with send, receive:
        for _ in range(work.size):
            send.send_nowait(object())
        with measure(work.count):
            for _ in range(work.count):
                resource = await receive.receive()
                await send.send(resource)
        assert send.statistics().current_buffer_used == work.size


async def capacity_limiter(work: Turns, measure: Measure) -> None:
    """A limiter alone, which holds no resource."""
    limiter = anyio.CapacityLimiter(work.size)
    with measure(work.count):
        for _ in range(work.count):
            async with limiter:
                pass
    assert limiter.borrowed_tokens == 0


@frozen
class Crowd:
    """Many tasks that each lease several times and yield once while they hold it."""

    tasks: int
    times: int
    size: int


crowds = st.builds(Crowd, tasks=st.integers(200, 400), times=st.just(5), size=st.integers(5, 10))

Use = Callable[[], Awaitable[None]]


async def compete(crowd: Crowd, measure: Measure, use: Use) -> None:
    """Let a crowd use something."""

    async def work() -> None:
        for _ in range(crowd.times):
            await use()

    with measure(crowd.tasks * crowd.times):
        async with anyio.create_task_group() as tasks:
            for _ in range(crowd.tasks):
                tasks.start_soon(work)


async def contended_ours(crowd: Crowd, measure: Measure) -> None:
    """Ours; nobody shares a resource, and no more are made than there may be."""
    users: set[object] = set()
    async with pool_of(crowd.size, fast_acquire=True) as pool:

        async def use() -> None:
            async with pool.lease() as resource:
                assert resource not in users
                users.add(resource)
                await anyio.lowlevel.checkpoint()
                users.remove(resource)

        await compete(crowd, measure, use)
        now = pool.statistics()
    assert (now.created, now.leased) == (crowd.size, crowd.tasks * crowd.times)


async def contended_queue(crowd: Crowd, measure: Measure) -> None:
    """A queue of resources."""
    users: set[object] = set()
    queue: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(crowd.size):
        queue.put_nowait(object())

    async def use() -> None:
        resource = await queue.get()
        try:
            assert resource not in users
            users.add(resource)
            await anyio.lowlevel.checkpoint()
            users.remove(resource)
        finally:
            await queue.put(resource)

    await compete(crowd, measure, use)
    assert queue.qsize() == crowd.size


async def contended_limiter(crowd: Crowd, measure: Measure) -> None:
    """A limiter alone."""
    users: set[object] = set()
    limiter = anyio.CapacityLimiter(crowd.size)

    async def use() -> None:
        async with limiter:
            resource = object()
            users.add(resource)
            await anyio.lowlevel.checkpoint()
            users.remove(resource)

    await compete(crowd, measure, use)
    assert limiter.borrowed_tokens == 0


BENCHMARKS = (
    Benchmark(
        name="resource pool, fast",
        title="Lease a resource that idles, without a checkpoint",
        workload=turns,
        rows=(
            Row(name="ResourcePool, fast_acquire", run=ours(fast_acquire=True)),
            Row(name="asyncio.Queue get, put", run=asyncio_queue, backends=("asyncio",), at_most=3),
            Row(name="anyio memory stream", run=memory_stream),
        ),
        note=(
            "The queue knows neither priorities, ages and uses nor who has what, and loses a "
            "resource whose holder is cancelled between its get and its put."
        ),
    ),
    Benchmark(
        name="resource pool",
        title="Lease a resource that idles, always a checkpoint",
        workload=turns,
        rows=(
            Row(name="ResourcePool", run=ours(fast_acquire=False)),
            Row(name="anyio.CapacityLimiter", run=capacity_limiter, at_most=1.3),
            Row(name="anyio memory stream", run=memory_stream),
        ),
    ),
    Benchmark(
        name="resource pool, contended",
        title="Hundreds of tasks that share a few resources",
        workload=crowds,
        rows=(
            Row(name="ResourcePool, fast_acquire", run=contended_ours),
            Row(name="asyncio.Queue get, put", run=contended_queue, backends=("asyncio",)),
            Row(name="anyio.CapacityLimiter", run=contended_limiter),
        ),
    ),
)
