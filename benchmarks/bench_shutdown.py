"""Shutdown: what handlers that hang cost, and what the quick ones do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import ShutdownManager

PEERS = ()


@frozen
class Handlers:
    """Handlers of one priority.

    Attributes:
        count: How many.
        timeout: Seconds that each may take.
    """

    count: int
    timeout: float


hanging = st.builds(Handlers, count=st.just(5), timeout=st.sampled_from([0.1, 0.15, 0.2]))
quick = st.builds(Handlers, count=st.integers(50, 150), timeout=st.just(5.0))


async def shut_down_hanging(handlers: Handlers, measure: Measure, *, count: int | None) -> None:
    """Ours, with all handlers or with ``count`` of them."""
    count = handlers.count if count is None else count
    failed = 0
    with measure(1, waits=True):
        try:
            async with ShutdownManager() as shutdown:
                for _ in range(count):
                    shutdown.register(anyio.sleep_forever, timeout=handlers.timeout)
        except ExceptionGroup as group:
            failed = len(group.exceptions)
    assert failed == count


async def all_hang(handlers: Handlers, measure: Measure) -> None:
    """Ours."""
    await shut_down_hanging(handlers, measure, count=None)


async def one_hangs(handlers: Handlers, measure: Measure) -> None:
    """Ours with one handler: what can be reached."""
    await shut_down_hanging(handlers, measure, count=1)


async def one_after_the_other(handlers: Handlers, measure: Measure) -> None:
    """A loop with a time limit for each, as most programs have."""
    ended = 0
    with measure(1, waits=True):
        for _ in range(handlers.count):
            with anyio.move_on_after(handlers.timeout, shield=True) as scope:
                await anyio.sleep_forever()
            ended += scope.cancelled_caught
    assert ended == handlers.count


@asynccontextmanager
async def hanging_resource(timeout: float) -> AsyncIterator[None]:
    """Something that hangs when it is left, with a time limit."""
    yield
    with anyio.move_on_after(timeout, shield=True):
        await anyio.sleep_forever()


async def exit_stack(handlers: Handlers, measure: Measure) -> None:
    """The standard library's exit stack."""
    with measure(1, waits=True):
        async with AsyncExitStack() as stack:
            for _ in range(handlers.count):
                await stack.enter_async_context(hanging_resource(handlers.timeout))


class Counter:
    """A handler that counts its calls and does nothing else."""

    def __init__(self) -> None:
        self.calls = 0

    async def close(self) -> None:
        """Be called."""
        self.calls += 1
        await anyio.lowlevel.checkpoint()


async def quick_ours(handlers: Handlers, measure: Measure) -> None:
    """Ours, with the report of each."""
    counter = Counter()
    with measure(handlers.count):
        async with ShutdownManager() as shutdown:
            for _ in range(handlers.count):
                shutdown.register(counter.close, timeout=handlers.timeout)
    assert counter.calls == handlers.count
    assert shutdown.report is not None
    assert len(shutdown.report.handlers) == handlers.count


async def quick_group(handlers: Handlers, measure: Measure) -> None:
    """A shielded task group with a time limit for each, and no report."""
    counter = Counter()

    async def call() -> None:
        with anyio.move_on_after(handlers.timeout):
            await counter.close()

    with measure(handlers.count), anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            for _ in range(handlers.count):
                tasks.start_soon(call)
    assert counter.calls == handlers.count


async def quick_stack(handlers: Handlers, measure: Measure) -> None:
    """The standard library's exit stack, one after the other and without a time limit."""
    counter = Counter()
    with measure(handlers.count):
        async with AsyncExitStack() as stack:
            for _ in range(handlers.count):
                stack.push_async_callback(partial(counter.close))
    assert counter.calls == handlers.count


BENCHMARKS: tuple[Benchmark[Handlers], ...] = (
    Benchmark(
        name="shutdown-hanging",
        title="ShutdownManager: five handlers that hang",
        workload=hanging,
        rows=(
            Row(name="orchestra, all five", run=all_hang),
            Row(name="orchestra, one of them", run=one_hangs, at_most=1.2),
            Row(
                name="one after the other, each with a limit", run=one_after_the_other, at_most=0.3
            ),
            Row(name="AsyncExitStack, each with a limit", run=exit_stack, at_most=0.3),
        ),
        max_rounds=7,
        note="Shutdown ends at one time-out, not at five. Here waiting is what is measured.",
    ),
    Benchmark(
        name="shutdown-quick",
        title="ShutdownManager: handlers that end at once, for each",
        workload=quick,
        rows=(
            Row(name="orchestra", run=quick_ours),
            Row(name="shielded task group, no report", run=quick_group),
            Row(name="AsyncExitStack, one by one, no limits", run=quick_stack),
        ),
        note=(
            "Here we lose: a report of each, an order and a scope that can be cut have a price. It is "
            "paid once in the life of a process."
        ),
    ),
)
