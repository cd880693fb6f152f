from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from benchmarks.frame import Benchmark, Measure, Row, draw, run
from hypothesis import strategies as st

from benchmarks import report

ROOT = Path(__file__).parents[2]


def one(_workload: int, measure: Measure) -> None:
    measure.report(1.0)


def twice(_workload: int, measure: Measure) -> None:
    measure.report(2.0)


async def three(_workload: int, measure: Measure) -> None:
    measure.report(3.0)


async def six(_workload: int, measure: Measure) -> None:
    measure.report(6.0)


def benchmark(*rows: Row[int], unit: str = "calls") -> Benchmark[int]:
    return Benchmark(
        name="x", title="A <title>", workload=st.integers(0, 10**6), rows=rows, unit=unit
    )


def test_the_same_seed_draws_the_same_workloads() -> None:
    """A workload is decided by the seed, and another seed gives others."""
    numbers = st.integers(0, 10**9)
    first, again = (draw(numbers, count=12, seed=5) for _ in range(2))
    assert first == again
    assert len(first) == 12
    assert first != draw(numbers, count=12, seed=6)
    assert draw(st.just(3), count=4, seed=1) == [3, 3, 3, 3]


def test_all_rows_get_the_same_workload_in_every_round() -> None:
    """In every round each row runs once, on the workload of that round, in changing order."""
    seen: list[tuple[str, int]] = []

    def row(name: str) -> Row[int]:
        def note(workload: int, measure: Measure) -> None:
            seen.append((name, workload))
            measure.report(1.0)

        return Row(name=name, run=note)

    run(benchmark(row("a"), row("b")), rounds=8, seed=1)
    rounds = [seen[place : place + 2] for place in range(0, len(seen), 2)]
    assert len(rounds) == 9  # one to warm up
    for first, second in rounds:
        assert {first[0], second[0]} == {"a", "b"}
        assert first[1] == second[1]
    assert len({tuple(name for name, _ in both) for both in rounds}) == 2


def test_a_benchmark_may_bound_its_rounds() -> None:
    """What is slow to measure gets no more rounds than it asks for."""
    few = evolve(benchmark(Row(name="ours", run=one)), max_rounds=2)
    for rounds, expected in ((9, 2), (1, 1)):
        assert len(run(few, rounds=rounds, seed=1).series[0].values) == expected


def test_ratios_are_within_a_round_and_a_loop() -> None:
    """Ours is divided by each peer on the same event loop; bounds are judged by the median."""
    outcome = run(
        benchmark(
            Row(name="ours", run=three),
            Row(name="peer", run=six, at_most=0.6, at_least=0.5),
            Row(name="asyncio's", run=six, backends=("asyncio",), at_most=0.4),
        ),
        rounds=3,
        seed=1,
    )
    found = {
        (mine.backend, comparison.peer.row): (comparison.ratio, comparison.bound, comparison.is_met)
        for mine, comparisons in outcome.comparisons()
        for comparison in comparisons
    }
    assert found == {
        ("asyncio", "peer"): (0.5, "<= 0.6, >= 0.5", True),
        ("asyncio", "asyncio's"): (0.5, "<= 0.4", False),
        ("trio", "peer"): (0.5, "<= 0.6, >= 0.5", True),
    }


def test_broken_invariant_is_an_error() -> None:
    """A row whose results are wrong ends the run: a fast but wrong figure is not a result."""

    def wrong(_workload: int, measure: Measure) -> None:
        with measure(1):
            pass
        raise AssertionError("lost one")

    with pytest.raises(AssertionError, match="lost one"):
        run(benchmark(Row(name="ours", run=wrong)), rounds=1, seed=1)


def test_rows_must_measure_and_have_names_of_their_own() -> None:
    """A row without a figure, and two rows of one name, are mistakes of the benchmark."""
    with pytest.raises(ValueError, match="measured nothing"):
        run(benchmark(Row(name="ours", run=lambda _workload, _measure: None)), rounds=1, seed=1)
    with pytest.raises(ValueError, match="two rows of the same name"):
        run(benchmark(Row(name="a", run=one), Row(name="a", run=twice)), rounds=1, seed=1)


def test_reports_say_how_and_where(tmp_path: Path) -> None:
    """The files hold every figure, the ratio, the command, the machine and the versions."""
    outcome = run(
        benchmark(Row(name="ours", run=one), Row(name="peer", run=twice, at_most=0.4)),
        rounds=2,
        seed=1,
    )
    about = report.surroundings("python -m benchmarks x", seed=1, rounds=2, peers=["pytest"])
    report.save("x", [outcome], about, tmp_path)
    data = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert data["command"] == "python -m benchmarks x"
    assert {"machine", "load", "python", "seed", "rounds"} <= set(data)
    assert set(data["versions"]) == {"anyio", "attrs", "hypothesis", "pytest", "trio"}
    assert data["benchmarks"][0]["series"][1]["values"] == [2.0, 2.0]
    assert data["benchmarks"][0]["ratios"][0]["is_met"] is False
    table = (tmp_path / "x.rst").read_text("utf-8")
    assert "     - 0.50 (0.50-0.50)\n     - <= 0.4\n     - NO\n" in table
    picture = ET.fromstring((tmp_path / "x.svg").read_text("utf-8"))  # noqa: S314 - our own
    texts = [element.text for element in picture.iter() if element.tag.endswith("}text")]
    assert {"A <title>", "peer", "0.50x"} <= set(texts)


def test_command_names_its_groups() -> None:
    """The command refuses a group that does not exist, and tells which ones do."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such group: nothing" in done.stderr
