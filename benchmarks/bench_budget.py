"""Budgets: what a reservation costs, free and contended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
from attrs import define, frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import Amount, Budget

PEERS = ("anyio", "trio")


@frozen
class Spending:
    """So many requests, one after the other, that each reserve and settle."""

    count: int
    estimate: int


spendings = st.builds(Spending, count=st.integers(2_000, 4_000), estimate=st.integers(10, 1_000))


@define
class Counter:
    """A budget as one would write it first: checks, adds, subtracts; knows its parent."""

    limit: int
    parent: Counter | None = None
    spent: int = 0
    held: int = 0

    def line(self) -> list[Counter]:
        """The counters from this one up."""
        return [self, *(self.parent.line() if self.parent else ())]


def counters(depth: int, limit: int) -> list[Counter]:
    """Counters one below the other, the lowest first."""
    counter = None
    for _ in range(depth):
        counter = Counter(limit, counter)
    assert counter is not None
    return counter.line()


def budget_of_ours(depth: int, limit: int) -> tuple[Budget, Budget]:
    """The root and the lowest of budgets one below the other."""
    root = budget = Budget("mission", tokens=limit)
    for number in range(depth - 1):
        budget = budget.child(f"level {number}", tokens=limit)
    return root, budget


def ours(depth: int) -> Callable[[Spending, Measure], Awaitable[None]]:
    """Make a row of ours that waits if it must."""

    async def run(work: Spending, measure: Measure) -> None:
        root, budget = budget_of_ours(depth, 2 * work.count * work.estimate)
        estimate = Amount(tokens=work.estimate)
        with measure(work.count):
            for _ in range(work.count):
                reservation = await budget.reserve(estimate)
                reservation.settle(estimate)
        assert root.statistics().spent.tokens == work.count * work.estimate

    return run


def ours_nowait(depth: int) -> Callable[[Spending, Measure], None]:
    """Make a row of ours that does not wait."""

    def run(work: Spending, measure: Measure) -> None:
        root, budget = budget_of_ours(depth, 2 * work.count * work.estimate)
        estimate = Amount(tokens=work.estimate)
        with measure(work.count):
            for _ in range(work.count):
                reservation = budget.reserve_nowait(estimate)
                reservation.settle(estimate)
        assert root.statistics().spent.tokens == work.count * work.estimate

    return run


def under_lock(depth: int) -> Callable[[Spending, Measure], Awaitable[None]]:
    """Make a row of plain counters that a lock protects, once to reserve and once to settle."""

    async def run(work: Spending, measure: Measure) -> None:
        line = counters(depth, 2 * work.count * work.estimate)
        lock = anyio.Lock()
        with measure(work.count):
            for _ in range(work.count):
                async with lock:
                    assert all(c.spent + c.held + work.estimate <= c.limit for c in line)
                    for counter in line:
                        counter.held += work.estimate
                async with lock:
                    for counter in line:
                        counter.held -= work.estimate
                        counter.spent += work.estimate
        assert line[-1].spent == work.count * work.estimate

    return run


def bare(depth: int) -> Callable[[Spending, Measure], None]:
    """Make a row of plain counters that nothing protects."""

    def run(work: Spending, measure: Measure) -> None:
        line = counters(depth, 2 * work.count * work.estimate)
        with measure(work.count):
            for _ in range(work.count):
                assert all(c.spent + c.held + work.estimate <= c.limit for c in line)
                for counter in line:
                    counter.held += work.estimate
                for counter in line:
                    counter.held -= work.estimate
                    counter.spent += work.estimate
        assert line[-1].spent == work.count * work.estimate

    return run


@frozen
class Crowd:
    """Many tasks that each reserve several times, where only a few fit at once."""

    tasks: int
    times: int
    at_once: int


crowds = st.builds(Crowd, tasks=st.just(200), times=st.just(10), at_once=st.integers(5, 20))


async def crowd_of_ours(crowd: Crowd, measure: Measure) -> None:
    """Ours; who does not fit waits in line."""
    total = crowd.tasks * crowd.times
    root = Budget("mission", margin=0)
    task = root.child("task", tokens=total + crowd.at_once - 1)
    task.reserve_nowait(Amount(tokens=total - 1), id="the rest")
    estimate, nothing = Amount(tokens=1), Amount()
    held = most = 0

    async def work() -> None:
        nonlocal held, most
        for _ in range(crowd.times):
            reservation = await task.reserve(estimate)
            held += 1
            most = max(most, held)
            await anyio.lowlevel.checkpoint()
            held -= 1
            reservation.settle(nothing)

    await compete(work, crowd, measure)
    assert most == crowd.at_once


async def crowd_under_condition(crowd: Crowd, measure: Measure) -> None:
    """A counter under a condition: who does not fit waits to be notified, and looks again."""
    condition = anyio.Condition()
    held = most = 0

    async def work() -> None:
        nonlocal held, most
        for _ in range(crowd.times):
            async with condition:
                while held >= crowd.at_once:
                    await condition.wait()
                held += 1
                most = max(most, held)
            await anyio.lowlevel.checkpoint()
            async with condition:
                held -= 1
                condition.notify()

    await compete(work, crowd, measure)
    assert most == crowd.at_once


async def compete(
    work: Callable[[], Coroutine[Any, Any, None]], crowd: Crowd, measure: Measure
) -> None:
    """Let a crowd work."""
    with measure(crowd.tasks * crowd.times):
        async with anyio.create_task_group() as tasks:
            for _ in range(crowd.tasks):
                tasks.start_soon(work)


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="budget-reserve",
        title="Budget: reserve and settle, three levels deep",
        workload=spendings,
        rows=(
            Row(name="orchestra", run=ours(3)),
            Row(name="counters under anyio.Lock", run=under_lock(3), at_most=1.0),
            Row(name="orchestra, one level", run=ours(1)),
        ),
    ),
    Benchmark(
        name="budget-nowait",
        title="Budget: reserve_nowait and settle, three levels deep",
        workload=spendings,
        rows=(
            Row(name="orchestra", run=ours_nowait(3)),
            Row(name="counters that nothing protects", run=bare(3)),
            Row(name="orchestra, one level", run=ours_nowait(1)),
        ),
        note=(
            "Here we lose: two resources, ids, the margin for errors and an end that counts once "
            "cost more than three integers that are added to."
        ),
    ),
    Benchmark(
        name="budget-contended",
        title="Budget: 200 tasks, of which 5 to 20 fit at once",
        workload=crowds,
        rows=(
            Row(name="orchestra", run=crowd_of_ours),
            Row(name="a counter under anyio.Condition", run=crowd_under_condition, at_most=1.0),
        ),
    ),
)
