"""The pool from event loops, on asyncio and trio: threads are real, so is the clock."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from time import sleep

import anyio
import pytest

from orchestra import WorkStealingPool

pytestmark = pytest.mark.usefixtures("pools")

variable: ContextVar[str] = ContextVar("variable")


class Gate:
    """A call that says when it has begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, *_: object) -> str:
        self.begun.set()
        assert self.go.wait(30)
        return "done"


def release(gate: Gate, when: Callable[[], bool]) -> None:
    """Let a gate's call end once a condition holds, however busy the loop is."""

    def wait() -> None:
        while not when():
            sleep(0.001)
        gate.go.set()

    threading.Thread(target=wait, daemon=True).start()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - the condition is set by a thread
            await anyio.sleep(0.001)


async def test_run_returns_and_raises() -> None:
    """run() gives back what the call returns, and raises what it raises."""
    async with WorkStealingPool(2) as pool:
        assert await pool.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 7, 0)
        assert await pool.run_many(str, range(100)) == [str(number) for number in range(100)]
        with pytest.raises(ZeroDivisionError):
            await pool.run_many(lambda number: 1 / number, [1, 0, 2])


async def test_call_sees_the_context() -> None:
    """The call has a copy of the context: it reads it, and cannot change the caller's."""

    def swap() -> str:
        before = variable.get()
        variable.set("thread's")
        return before

    variable.set("caller's")
    async with WorkStealingPool(1) as pool:
        assert await pool.run(swap) == "caller's"
    assert variable.get() == "caller's"


async def test_loop_is_free_meanwhile() -> None:
    """Other tasks run while a call does, and calls run beside each other."""
    gates = [Gate(), Gate()]
    async with WorkStealingPool(2) as pool, anyio.create_task_group() as group:
        for gate in gates:
            group.start_soon(pool.run, gate)
        await until(lambda: all(gate.begun.is_set() for gate in gates))
        for gate in gates:
            gate.go.set()


async def test_many_calls_at_once() -> None:
    """Hundreds of concurrent calls on a few workers all come back with their own result."""
    results: dict[int, int] = {}

    async def call(number: int) -> None:
        results[number] = await pool.run(lambda: number * number)

    async with WorkStealingPool(3) as pool, anyio.create_task_group() as group:
        for number in range(300):
            group.start_soon(call, number)
    assert results == {number: number * number for number in range(300)}


async def test_cancelled_before_it_starts() -> None:
    """In a cancelled scope run() calls nothing."""
    calls: list[int] = []
    async with WorkStealingPool(1) as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.run(calls.append, 1)
        assert scope.cancelled_caught
        assert await pool.run(len, calls) == 0


async def test_cancelled_while_queued() -> None:
    """A call that waits for a worker is withdrawn at once, and the next one proceeds."""
    calls: list[int] = []
    gate = Gate()
    async with WorkStealingPool(1) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.run, gate)
        await until(gate.begun.is_set)
        with anyio.move_on_after(0.01) as scope:
            await pool.run(calls.append, 1)
        assert scope.cancelled_caught
        assert not gate.go.is_set()  # it came back although the worker was busy
        gate.go.set()
        await pool.run(calls.append, 2)
        assert calls == [2]


async def test_cancelled_while_it_runs() -> None:
    """A call that has begun is waited for, and then the cancellation is delivered."""
    gate = Gate()
    ended = []

    def call() -> None:
        gate()
        ended.append(True)

    async with WorkStealingPool(1) as pool:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, call)
                await until(gate.begun.is_set)
                scope.cancel()
                gate.go.set()
        assert scope.cancelled_caught
        assert ended == [True]
        assert await pool.run(abs, -1) == 1


async def test_error_of_a_cancelled_call_is_not_lost() -> None:
    """What a call raises after its task was cancelled is raised."""
    gate = Gate()

    def fail() -> None:
        gate()
        raise LookupError("lost?")

    async def cancelled_call() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, fail)
                await until(gate.begun.is_set)
                scope.cancel()
                gate.go.set()

    async with WorkStealingPool(1) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await cancelled_call()
        assert caught.group_contains(LookupError, match="lost?")


async def test_finished_and_cancelled_in_the_same_moment() -> None:
    """Cancelled when the call has ended but the task has not woken: the pool stays sound."""
    for _ in range(50):
        async with WorkStealingPool(1) as pool:
            done = threading.Event()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.run, done.set)
                    await anyio.lowlevel.checkpoint()
                    done.wait(0.01)  # blocks the loop, so that the wake-up cannot be delivered
                    scope.cancel()
            assert await pool.run(abs, -1) == 1


async def test_async_scope_waits_and_raises() -> None:
    """The block ends after its tasks, and raises their errors."""
    ran: list[int] = []
    async with WorkStealingPool(2) as pool:
        async with pool.scope() as scope:
            scope.submit_many(ran.append, range(100))
        assert sorted(ran) == list(range(100))
        with pytest.raises(ExceptionGroup) as caught:
            async with pool.scope() as scope:
                scope.submit(divmod, 1, 0)
        assert caught.group_contains(ZeroDivisionError)


@pytest.mark.parametrize("where", ["in the block", "at its end"])
async def test_cancelled_scope_drops_and_waits(where: str) -> None:
    """A cancelled block drops what has not started, and waits for what runs."""
    gate = Gate()
    ran: list[int] = []
    async with WorkStealingPool(1) as pool:
        with anyio.CancelScope() as outer:
            async with pool.scope() as scope:
                running = scope.future(gate)
                scope.submit(ran.append, 1)
                await until(gate.begun.is_set)
                release(gate, lambda: scope.is_cancelled)
                outer.cancel()
                if where == "in the block":
                    await anyio.sleep(30)
        assert outer.cancelled_caught
        assert running.result(0) == "done"
        assert ran == []


async def test_errors_come_before_cancellation() -> None:
    """A task's error is raised although the block was cancelled, and no cancellation is in it."""
    gate = Gate()

    def fail() -> None:
        gate()
        raise LookupError

    async with WorkStealingPool(1) as pool:
        with pytest.raises(ExceptionGroup) as caught, anyio.CancelScope() as outer:  # noqa: PT012
            async with pool.scope() as scope:
                scope.submit(fail)
                await until(gate.begun.is_set)
                release(gate, lambda: scope.is_cancelled)
                outer.cancel()
        assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def test_leaving_under_cancellation_drops_and_waits() -> None:
    """A pool whose block is cancelled drops waiting calls, waits for the running one, and ends."""
    gate = Gate()
    calls: list[int] = []
    with anyio.CancelScope() as outer:
        async with (
            WorkStealingPool(1, name="cancelled") as pool,
            anyio.create_task_group() as group,
        ):
            group.start_soon(pool.run, gate)
            await until(gate.begun.is_set)
            group.start_soon(pool.run, calls.append, 1)
            outer.cancel()
            gate.go.set()
    assert outer.cancelled_caught
    assert calls == []
    assert not any("cancelled-" in each.name for each in threading.enumerate())


async def test_aclose_waits_or_drops() -> None:
    """aclose() drains; cancelling, it returns what was dropped, and the callers learn of it."""
    gate = Gate()
    refused: list[BaseException] = []

    async def call() -> None:
        try:
            await pool.run(divmod, 7, 2)
        except anyio.ClosedResourceError as error:
            refused.append(error)

    async with WorkStealingPool(1) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.run, gate)
        await until(gate.begun.is_set)
        group.start_soon(call)
        await until(lambda: pool.statistics().queued == 1)
        release(gate, lambda: pool._scheduler.is_closing)
        dropped = await pool.aclose(cancel_pending=True)
        assert [call() for call in dropped] == [(3, 1)]
    assert len(refused) == 1
    with pytest.raises(anyio.ClosedResourceError):
        await pool.run(abs, 1)
    assert await pool.aclose() == []


async def test_aclose_that_is_cancelled_still_ends() -> None:
    """A cancelled aclose() drops what has not begun, waits for what runs, and ends the threads."""
    gate = Gate()

    async def lose_patience() -> None:
        await until(lambda: pool._scheduler.is_closing)
        patience.cancel()
        gate.go.set()

    async with anyio.create_task_group() as group:
        pool = WorkStealingPool(1)
        await pool.__aenter__()
        group.start_soon(pool.run, gate)
        await until(gate.begun.is_set)
        group.start_soon(lose_patience)
        with anyio.CancelScope() as patience:
            await pool.aclose()
        assert patience.cancelled_caught
        assert repr(pool).endswith(" closed>")


async def test_blocking_calls_are_refused_in_a_loop() -> None:
    """What would block the event loop raises and says what to use."""
    pool = WorkStealingPool(1)
    with pytest.raises(RuntimeError, match="use 'async with'"), pool:
        pass
    async with pool:
        with pytest.raises(RuntimeError, match="use 'async with'"), pool.scope():
            pass
        with pytest.raises(RuntimeError, match="use 'async with'"):
            pool.map(abs, [1])
        with pytest.raises(RuntimeError, match=r"use 'await pool.aclose\(\)'"):
            pool.close()


async def test_async_methods_are_checkpoints() -> None:
    """Each async method lets a cancellation in, also when it would not have to wait."""
    pool = WorkStealingPool(1)
    never = WorkStealingPool(1)
    async with pool:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: pool.run(abs, 1),
            lambda: pool.run_many(abs, []),
            never.aclose,
            never.__aenter__,
        ]
        for call in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
