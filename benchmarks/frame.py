"""What a benchmark is, and how one is run fairly.

A benchmark is a Hypothesis strategy for its workload and a tuple of rows: ours first, then what it
is compared with. In every round all rows get the same freshly drawn workload, in shuffled order,
in this one process; the figure that counts is the ratio *within* a round. A row sets up, times only
the part inside ``with measure(operations):``, and then asserts its invariants on what it has just
timed, so that a fast but wrong run is an error and not a result.
"""

from __future__ import annotations

import gc
import inspect
import random
import statistics
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import anyio
import hypothesis
from attrs import field, frozen, validators
from hypothesis.strategies import SearchStrategy

W = TypeVar("W")
Backend: TypeAlias = Literal["sync", "asyncio", "trio"]


class Measure:
    """What one run of one row measured: seconds per operation, or a figure of its own."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._operations = 1
        self._begin = 0
        self._clock = time.process_time_ns

    def __call__(self, operations: int, *, waits: bool = False) -> Measure:
        """Name the number of operations that the following ``with`` block performs.

        Args:
            operations: The divisor of the time.
            waits: Whether waiting is part of what is measured. If not, the time is the processor
                time of this process, for which it does not matter what else the machine does.
        """
        self._operations = operations
        self._clock = time.perf_counter_ns if waits else time.process_time_ns
        return self

    def __enter__(self) -> None:
        self._begin = self._clock()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.value = (self._clock() - self._begin) / 1e9 / self._operations

    def report(self, value: float) -> None:
        """Give a figure that is not a time: calls admitted, refusals, bytes.

        Args:
            value: The figure, in the benchmark's unit.
        """
        self.value = value


@frozen(kw_only=True)
class Row(Generic[W]):
    """One contender.

    Attributes:
        name: What the table calls it.
        run: Does the workload; a coroutine function runs on each of ``backends``.
        backends: The event loops it runs on; meaningless for a plain function.
        at_most: Ours divided by this row must not exceed it.
        at_least: Ours divided by this row must reach it.
    """

    name: str
    run: Callable[[W, Measure], Awaitable[None] | None]
    backends: tuple[Backend, ...] = ("asyncio", "trio")
    at_most: float | None = None
    at_least: float | None = None

    @property
    def homes(self) -> tuple[Backend, ...]:
        """Where it runs."""
        return self.backends if inspect.iscoroutinefunction(self.run) else ("sync",)


@frozen(kw_only=True)
class Benchmark(Generic[W]):
    """One question, asked of every row.

    Attributes:
        name: Short, unique in the suite.
        title: What is measured, for people.
        workload: Draws the workload of a round.
        rows: The contenders, ours first.
        unit: Of the figures; times are shown in nanoseconds per operation.
        max_rounds: No more rounds than this, for what is slow to measure and hardly varies.
        note: What a reader must know to read the table, e.g. where we lose and why.
    """

    name: str
    title: str
    workload: SearchStrategy[W]
    rows: Sequence[Row[W]] = field(validator=validators.min_len(1))
    unit: str = "ns"
    max_rounds: int | None = None
    note: str = ""


@frozen(kw_only=True)
class Series:
    """The figures of one row on one backend, one per round."""

    row: str
    backend: Backend
    values: tuple[float, ...]
    at_most: float | None
    at_least: float | None

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.values)


@frozen(kw_only=True)
class Comparison:
    """Ours divided by one peer, round by round.

    Attributes:
        peer: The other row.
        ratio: The median.
        low: The lower quartile.
        high: The upper quartile.
        bound: The bound in words; empty when there is none.
        is_met: Whether the median keeps it; None without a bound.
    """

    peer: Series
    ratio: float
    low: float
    high: float
    bound: str
    is_met: bool | None


@frozen(kw_only=True)
class Outcome:
    """What running one benchmark gave."""

    benchmark: Benchmark[Any]
    series: tuple[Series, ...]
    workloads: tuple[str, ...]

    def comparisons(self) -> list[tuple[Series, list[Comparison]]]:
        """Ours beside its peers, for each backend ours runs on."""
        ours = [series for series in self.series if series.row == self.benchmark.rows[0].name]
        return [
            (
                mine,
                [
                    _compare(mine, peer)
                    for peer in self.series
                    if peer.backend == mine.backend and peer.row != mine.row
                ],
            )
            for mine in ours
        ]


def _compare(mine: Series, peer: Series) -> Comparison:
    ratios = [a / b if b else float("inf") for a, b in zip(mine.values, peer.values, strict=True)]
    low, middle, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    bounds = []
    met = []
    if peer.at_most is not None:
        bounds.append(f"<= {peer.at_most:g}")
        met.append(middle <= peer.at_most)
    if peer.at_least is not None:
        bounds.append(f">= {peer.at_least:g}")
        met.append(middle >= peer.at_least)
    return Comparison(
        peer=peer,
        ratio=middle,
        low=low,
        high=high,
        bound=", ".join(bounds),
        is_met=all(met) if met else None,
    )


def draw(strategy: SearchStrategy[W], *, count: int, seed: int) -> list[W]:
    """Draw workloads, the same ones for the same seed and version of Hypothesis.

    Args:
        strategy: What to draw from.
        count: How many; the simplest ones are left out where there are enough.
        seed: Decides which.
    """
    drawn: list[W] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2 * count + 2,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(workload: W) -> None:
        drawn.append(workload)

    collect()
    while len(drawn) < count:
        drawn *= 2
    return drawn[-count:]


def run(benchmark: Benchmark[Any], *, rounds: int, seed: int) -> Outcome:
    """Run every row in every round, after one warm-up round that is not counted.

    Args:
        benchmark: What to run.
        rounds: How many figures each row gets, unless the benchmark wants fewer.
        seed: Decides the workloads and the order of the rows.

    Raises:
        AssertionError: A row broke its invariants.
    """
    rounds = min(rounds, benchmark.max_rounds or rounds)
    seed = zlib.crc32(f"{seed}:{benchmark.name}".encode())
    workloads = draw(benchmark.workload, count=rounds + 1, seed=seed)
    entries = [(row, backend) for row in benchmark.rows for backend in row.homes]
    values: dict[tuple[str, Backend], list[float]] = {
        (row.name, backend): [] for row, backend in entries
    }
    if len(values) != len(entries):
        raise ValueError(f"benchmark {benchmark.name!r} has two rows of the same name")
    shuffle = random.Random(seed).shuffle
    for number, workload in enumerate(workloads):
        order = list(entries)
        shuffle(order)
        for row, backend in order:
            value = _run_row(row, backend, workload)
            if number > 0:
                values[row.name, backend].append(value)
    return Outcome(
        benchmark=benchmark,
        series=tuple(
            Series(
                row=row.name,
                backend=backend,
                values=tuple(values[row.name, backend]),
                at_most=row.at_most,
                at_least=row.at_least,
            )
            for row, backend in entries
        ),
        workloads=tuple(repr(workload) for workload in workloads[1:]),
    )


def _run_row(row: Row[Any], backend: Backend, workload: object) -> float:
    measure = Measure()
    gc.collect()
    if backend == "sync":
        row.run(workload, measure)
    else:
        run = cast("Callable[[object, Measure], Awaitable[None]]", row.run)
        anyio.run(run, workload, measure, backend=backend)
    if measure.value is None:
        raise ValueError(f"row {row.name!r} measured nothing")
    return measure.value
