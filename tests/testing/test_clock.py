from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from orchestra.testing import settle, virtual_time_options

virtual = pytest.mark.parametrize(
    "anyio_backend",
    [(name, virtual_time_options(name)) for name in ("asyncio", "trio")],
    ids=["asyncio", "trio"],
)


@virtual
async def test_hours_pass_in_no_time() -> None:
    """Sleeping takes as long as it says by the loop's clock and next to nothing by the wall's."""
    wall, begin = time.monotonic(), anyio.current_time()
    ends: list[float] = []

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        ends.append(anyio.current_time() - begin)

    async with anyio.create_task_group() as tasks:
        for seconds in (3600.0, 0.001, 60.0):
            tasks.start_soon(sleep, seconds)
    assert ends == pytest.approx([0.001, 60.0, 3600.0])
    assert time.monotonic() - wall < 1800


@virtual
async def test_deadlines_are_virtual() -> None:
    """A time limit expires at its virtual moment, and not before what ends earlier."""
    begin = anyio.current_time()
    with anyio.move_on_after(600) as scope:
        await anyio.sleep(599)
        assert not scope.cancel_called
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - begin == pytest.approx(600)


async def check_settle() -> None:
    """Count what other tasks have done when `settle` returns."""
    steps = 0
    event = anyio.Event()

    async def work() -> None:
        nonlocal steps
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
            steps += 1
        event.set()

    async def chain() -> None:
        nonlocal steps
        await event.wait()
        steps += 1
        await anyio.sleep(60)
        steps += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(chain)
        tasks.start_soon(work)
        begin = anyio.current_time()
        await settle()
        assert steps == 51
        assert anyio.current_time() - begin < 60
        tasks.cancel_scope.cancel()


@virtual
async def test_settle_lets_all_others_run_and_no_time_pass() -> None:
    """When it returns every other task waits, and the clock stands where it stood."""
    begin = anyio.current_time()
    await check_settle()
    assert anyio.current_time() == begin


async def test_settle_in_real_time() -> None:
    """It does the same on ordinary loops."""
    await check_settle()


@virtual
async def test_two_settle_at_once() -> None:
    """Several tasks may settle, also one that is cancelled meanwhile."""
    done = 0

    async def one() -> None:
        nonlocal done
        await settle()
        done += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await settle()
    assert done == 2


@virtual
async def test_threads_still_work() -> None:
    """A worker thread is waited for in real time when nothing else is to come."""
    assert await anyio.to_thread.run_sync(lambda: 42) == 42


def test_same_order_every_time() -> None:
    """Asyncio in virtual time does the same things in the same order on every run."""

    async def main() -> list[tuple[int, float]]:
        log: list[tuple[int, float]] = []

        async def work(number: int) -> None:
            for turn in range(3):
                await anyio.sleep((number * 7 + turn * 3) % 5)
                log.append((number, anyio.current_time()))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(work, number)
        return log

    def run() -> Any:
        return anyio.run(main, backend_options=virtual_time_options("asyncio"))

    first = run()
    assert first == run()
    assert first[0][1] == 0.0


def test_unknown_backend() -> None:
    """Another backend than the two is an error that says so."""
    with pytest.raises(ValueError, match="'curio'"):
        virtual_time_options("curio")
