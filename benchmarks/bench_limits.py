"""Limit rules against a backend whose capacity goes 20, 8, 20: how much work, how many refusals."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from benchmarks.limit_simulation import Phase, Tail, simulate
from orchestra import AIMD, Fixed, Limit, LimitRule, LimitState, Streak

PEERS = ()


@frozen
class Load:
    """What the requests are like."""

    tail: Tail
    seed: int


class FixedAt(LimitRule):
    """A fixed limit other than the one the simulation starts with."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def start(self, limit: Limit) -> LimitState:  # noqa: ARG002 - it has its own
        """Ignore the limit."""
        return Fixed().start(Limit(self._limit, rule=Fixed()))


def row(
    name: str,
    rule: LimitRule,
    figure: Callable[[list[Phase]], float],
    *,
    is_default: bool = False,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row[Load]:
    """Make a row that simulates a rule and reports its worst phase."""

    def run(load: Load, measure: Measure) -> None:
        phases = simulate(rule, tail=load.tail, seed=load.seed)
        if is_default:
            assert all(phase.throughput >= 0.97 for phase in phases), phases
            assert all(phase.refused <= 0.05 for phase in phases), phases
        measure.report(figure(phases))

    return Row(name=name, run=run, at_most=at_most, at_least=at_least)


def worst_throughput(phases: list[Phase]) -> float:
    """In percent of the ideal."""
    return 100 * min(phase.throughput for phase in phases)


def worst_refused(phases: list[Phase]) -> float:
    """In percent of what was sent."""
    return 100 * max(phase.refused for phase in phases)


loads = st.builds(Load, tail=st.sampled_from(["light", "heavy"]), seed=st.integers(0, 2**32 - 1))
note = (
    "The default asserts in every round at least 97 % and at most 5 % in every phase. "
    "Streak is the rule this project began with."
)

BENCHMARKS = (
    Benchmark(
        name="limit-refusals",
        title="Requests refused in the worst phase",
        workload=loads,
        unit="%",
        note=note,
        rows=(
            row("AIMD (default)", AIMD(), worst_refused, is_default=True),
            row("Streak", Streak(), worst_refused, at_most=0.13),
            row("AIMD, cut by 0.5", AIMD(backoff=0.5), worst_refused),
            row("AIMD, cut by 0.9", AIMD(backoff=0.9), worst_refused),
            row("Fixed, 20", FixedAt(20), worst_refused),
        ),
    ),
    Benchmark(
        name="limit-throughput",
        title="Share of the ideal throughput in the worst phase",
        workload=loads,
        unit="%",
        note=note,
        rows=(
            row("AIMD (default)", AIMD(), worst_throughput, is_default=True),
            row("Streak", Streak(), worst_throughput, at_least=0.97),
            row("AIMD, cut by 0.5", AIMD(backoff=0.5), worst_throughput),
            row("AIMD, cut by 0.9", AIMD(backoff=0.9), worst_throughput),
            row("Fixed, 10", FixedAt(10), worst_throughput),
        ),
    ),
)
