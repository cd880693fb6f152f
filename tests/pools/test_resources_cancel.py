"""Cancellation at each await of a resource pool, each time followed by one that must succeed.

It is the catalogue of what has gone wrong in other pools: asyncpg#97, #464, #467 and #547 (a
time-out or a cancellation while acquiring or releasing), sqlalchemy#6652 and #12099 (clean-up that
is itself cancelled), httpcore#1093 (cancelled between getting a place and using it), and the tests
of Apache Commons Pool for the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from workshop import Thing, Workshop

from orchestra import ResourcePool
from orchestra.testing import settle, virtual_time_options

Start: TypeAlias = "Callable[[ResourcePool[Thing], TaskGroup], Awaitable[Borrower]]"


class Borrower:
    """A task that leases once, holds it until it is told, and can be cancelled in two ways."""

    def __init__(self, pool: ResourcePool[Thing], *, is_native: bool) -> None:
        self.pool = pool
        self.is_native = is_native
        self.has_it = False
        self.is_over = False
        self.is_started = False
        self.cancel: Callable[[], object] = anyio.CancelScope().cancel
        self.may_leave = anyio.Event()

    async def run(self) -> None:
        self.is_started = True
        try:
            if self.is_native:
                await self._run_natively()
            else:
                with anyio.CancelScope() as scope:
                    self.cancel = scope.cancel
                    await self.use()
        finally:
            self.is_over = True

    async def _run_natively(self) -> None:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        self.cancel = task.cancel
        with suppress(asyncio.CancelledError):  # the test's, not the group's
            await self.use()

    async def use(self) -> None:
        async with self.pool.lease() as thing:
            with thing.used_by(self):
                self.has_it = True
                await self.may_leave.wait()


@pytest.fixture(params=["asyncio", "asyncio native", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """The event loop; "native": tasks are cancelled as asyncio does it, without a scope."""
    return str(request.param)


@pytest.fixture
def anyio_backend(backend: str) -> tuple[str, dict[str, Any]]:
    """In virtual time."""
    name = backend.partition(" ")[0]
    return name, virtual_time_options(name)


@pytest.fixture
def start(backend: str) -> Start:
    """Starts a borrower, and lets it go as far as it can."""

    async def start(pool: ResourcePool[Thing], tasks: TaskGroup) -> Borrower:
        borrower = Borrower(pool, is_native=backend == "asyncio native")
        tasks.start_soon(borrower.run)
        await settle()
        return borrower

    return start


@asynccontextmanager
async def proceeding(shop: Workshop, pool: ResourcePool[Thing]) -> AsyncIterator[None]:
    """Everything that the pool has can be had after the body, at once, and nothing is left over."""
    async with pool:
        yield
        shop.open()
        await settle()
        now = pool.statistics()
        assert (now.in_use, now.busy, now.tasks_waiting) == (0, 0, 0), pool
        with anyio.fail_after(0.5):
            leases = [await pool.acquire() for _ in range(shop.max_size)]
        with pytest.raises(anyio.WouldBlock):
            pool.acquire_nowait()
        for lease in leases:
            lease.release()
    shop.check_over()


async def idle(pool: ResourcePool[Thing]) -> None:
    """Let one resource idle."""
    async with pool.lease():
        pass
    await settle()


async def test_before_it_starts() -> None:
    """Cancelled before its first step, a task takes nothing."""
    shop = Workshop()
    async with proceeding(shop, pool := shop.pool()), anyio.create_task_group() as tasks:
        tasks.start_soon(Borrower(pool, is_native=False).run)
        tasks.cancel_scope.cancel()
        assert shop.made == []


@pytest.mark.parametrize("fast", [False, True])
async def test_entered_while_cancelled(fast: bool) -> None:  # noqa: FBT001 - pytest's way
    """In a scope that is cancelled already, a lease is not begun, or it ends as any other."""
    shop = Workshop()
    pool = shop.pool("reset", "validate", fast_acquire=fast)
    async with proceeding(shop, pool):
        await idle(pool)
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with pool.lease():
                await anyio.lowlevel.checkpoint()


async def test_parked(start: Start) -> None:
    """A waiter that is cancelled leaves the queue, and who is behind it moves up."""
    shop = Workshop()
    async with proceeding(shop, pool := shop.pool()), anyio.create_task_group() as tasks:
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        third = await start(pool, tasks)
        second.cancel()
        await settle()
        assert pool.statistics().tasks_waiting == 1
        first.may_leave.set()
        await settle()
        assert (second.has_it, third.has_it) == (False, True)
        third.may_leave.set()


async def test_granted_and_cancelled_at_once(start: Start) -> None:
    """A waiter that is cancelled in the moment in which it is granted a place passes it on."""
    for is_first in (True, False):
        shop = Workshop()
        async with proceeding(shop, pool := shop.pool()), anyio.create_task_group() as tasks:
            held = await pool.acquire()
            second = await start(pool, tasks)
            third = await start(pool, tasks)
            if is_first:
                held.release()
                second.cancel()
            else:
                second.cancel()
                held.release()
            await settle()
            assert second.is_over
            assert third.has_it
            third.may_leave.set()


async def test_during_create(start: Start) -> None:
    """Cancelled while its resource is created, a task gives its place to the next."""
    shop = Workshop()
    shop.hold("create")
    async with proceeding(shop, pool := shop.pool()), anyio.create_task_group() as tasks:
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        first.cancel()
        await settle()
        assert pool.statistics().busy == 1  # the second one's
        shop.open()
        await settle()
        assert second.has_it
        second.may_leave.set()
    assert not first.has_it


async def test_created_and_cancelled_at_once(start: Start) -> None:
    """What is created in the moment of the cancellation is not lost."""
    shop = Workshop()
    shop.hold("create")
    async with proceeding(shop, pool := shop.pool("reset")), anyio.create_task_group() as tasks:
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        shop.let_go("create")
        first.cancel()
        first.may_leave.set()
        shop.open()
        await settle()
        assert second.has_it
        second.may_leave.set()


async def test_during_validate(start: Start) -> None:
    """Cancelled while its resource is validated, a task leaves it to be destroyed."""
    shop = Workshop()
    pool = shop.pool("validate")
    async with proceeding(shop, pool), anyio.create_task_group() as tasks:
        await idle(pool)
        shop.hold("validate")
        shop.hold("destroy")
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        first.cancel()
        await settle()
        assert first.is_over  # it does not wait for the destruction
        assert not second.has_it
        shop.open()
        await settle()
        assert second.has_it
        second.may_leave.set()


@pytest.mark.parametrize("moment", ["before", "same tick", "after"])
async def test_during_replace(start: Start, moment: str) -> None:
    """Cancelled while an unfit resource is destroyed for it, a task is off at once."""
    shop = Workshop()
    pool = shop.pool("validate")
    async with proceeding(shop, pool), anyio.create_task_group() as tasks:
        await idle(pool)
        shop.made[0].is_fit = False
        shop.hold("destroy")
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        assert shop.calls["destroy"] == 1
        if moment != "before":
            shop.let_go("destroy")
        if moment == "after":
            shop.hold("create")
            await settle()
        first.cancel()
        await settle()
        assert first.is_over
        shop.open()
        await settle()
        assert second.has_it
        assert pool.statistics().destroyed == 1
        second.may_leave.set()


@pytest.mark.parametrize("call", ["reset", "destroy"])
async def test_cancelled_while_holding(start: Start, call: str) -> None:
    """A holder that is cancelled is off at once; reset and destruction go on without it."""
    shop = Workshop()
    shop.hold(call)
    pool = shop.pool(*(["reset"] if call == "reset" else []))
    async with proceeding(shop, pool), anyio.create_task_group() as tasks:
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        assert first.has_it
        first.cancel()
        await settle()
        assert first.is_over
        assert not second.has_it
        assert shop.calls[call] == 1
        shop.open()
        await settle()
        assert second.has_it
        assert shop.made[0].is_destroyed is (call == "destroy")
        second.may_leave.set()


async def test_released_and_cancelled_at_once(start: Start) -> None:
    """A holder that is cancelled in the moment in which it leaves gives back once."""
    shop = Workshop()
    async with proceeding(shop, pool := shop.pool("reset")), anyio.create_task_group() as tasks:
        first = await start(pool, tasks)
        second = await start(pool, tasks)
        first.may_leave.set()
        first.cancel()
        await settle()
        assert second.has_it
        second.may_leave.set()


async def test_cancelled_invalidation() -> None:
    """Who is cancelled while it waits for the end of a resource does not stop that end."""
    shop = Workshop()
    shop.hold("destroy")
    async with proceeding(shop, pool := shop.pool()):
        lease = await pool.acquire()
        with anyio.move_on_after(1) as scope:
            await pool.invalidate(lease.resource)
        assert scope.cancelled_caught
        assert pool.statistics().busy == 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.invalidate(shop.made[0])
        assert scope.cancelled_caught


async def test_cancelled_aclose() -> None:
    """Who is cancelled while the pool drains has closed it nevertheless."""
    shop = Workshop()
    async with shop.pool() as pool:
        lease = await pool.acquire()
        with anyio.move_on_after(1):
            await pool.aclose()
        assert "closed" in repr(pool)
        lease.release()
        await settle()
        assert shop.made[0].is_destroyed
    shop.check_over()


async def test_the_pool_itself_is_cancelled(start: Start) -> None:
    """A cancelled owner leaves nothing: neither what idles, nor what is lent or being reset."""
    shop = Workshop(5)
    borrowers = []

    async def own() -> None:
        pool = shop.pool("reset", "validate", min_idle=3)
        async with pool, anyio.create_task_group() as tasks:
            lease = await pool.acquire()
            borrowers.append(await start(pool, tasks))
            shop.hold("reset")
            lease.release()
            await settle()
            shop.hold("create")
            borrowers.append(await start(pool, tasks))
            borrowers.append(await start(pool, tasks))
            await anyio.sleep_forever()

    with anyio.move_on_after(10):
        await own()
    assert [borrower.is_over for borrower in borrowers] == [True, True, True]
    # The reset that was held hung in a shield, until its time was over.
    assert anyio.current_time() == pytest.approx(40.0)
    shop.check_over()


async def test_tending_is_cancelled_in_the_middle() -> None:
    """A pool that is left while it validates and creates in the background loses neither."""
    shop = Workshop(4)
    async with shop.pool("validate", min_idle=2, idle_timeout=None, max_uses=None) as pool:
        await settle()
        shop.hold("validate")
        await anyio.sleep(61)
        assert pool.statistics().busy == 2
        shop.hold("create")
        with anyio.move_on_after(0.1) as scope:
            await pool.acquire()
        assert scope.cancelled_caught
    shop.check_over()


@pytest.mark.parametrize("backend", ["asyncio native"])
async def test_time_out_in_another_task(backend: str) -> None:
    """``asyncio.wait_for`` around a lease, which may run it in another task, loses nothing."""
    import asyncio

    shop = Workshop(2)

    async def use(seconds: float) -> None:
        async with pool.lease():
            await asyncio.sleep(seconds)

    async def impatient(number: int) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(use(0.01), timeout=0.0001 * (number % 300))

    async with proceeding(shop, pool := shop.pool("reset")), anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(impatient, number)


async def test_no_leak_after_a_churn_of_cancellations(backend: str) -> None:
    """After hundreds of requests that were given up in all stages, everything can be had."""
    shop = Workshop(3)
    pool = shop.pool("reset", "validate", max_uses=3, max_lifetime=0.05)

    async def churn(number: int, tasks: TaskGroup) -> None:
        borrower = Borrower(pool, is_native=backend == "asyncio native")
        tasks.start_soon(borrower.run)
        for _ in range(number % 11):
            await anyio.lowlevel.checkpoint()
        if number % 3:
            await anyio.sleep(0.001 * (number % 7))
        borrower.may_leave.set()
        if number % 4 and borrower.is_started and not borrower.is_over:
            borrower.cancel()

    async with proceeding(shop, pool):
        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(churn, number, tasks)
                if number % 5 == 0:
                    await anyio.sleep(0.002)
        assert len(shop.made) > 10


async def test_who_gives_up_leaves_the_order_of_the_others() -> None:
    """Waiters that give up one after the other leave the order of the others as it was."""
    shop = Workshop()
    order: list[int] = []

    async def use(number: int) -> None:
        with anyio.move_on_after(5 if number % 2 else 100):
            async with pool.lease():
                order.append(number)
                await anyio.sleep(1)

    async with proceeding(shop, pool := shop.pool()):
        holder = await pool.acquire()
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(use, number)
                await settle()
            await anyio.sleep(10)
            assert pool.statistics().tasks_waiting == 3
            holder.release()
    assert order == [0, 2, 4]
