"""What a mission itself costs: no-op tasks through plan, worker and review, on one core.

The agents answer at once, so everything that is measured is ours: machine, sessions, limits,
events, TODO.md, report. The memory that is still held per task, with the report in hand, is taken
at growing sizes; it is flat when it does not grow with the number of tasks. Every size runs in a
fresh interpreter, and every run checks that all tasks were accepted.

Run it with ``python benchmarks/mission_overhead.py [ROUNDS]``.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from statistics import median

import anyio

from orchestra import EmbeddedBackend, Turn
from orchestra.opencode import MissionOutcome, MissionReport, read_task, run_mission

SIZES = (500, 1_000, 2_000)
BOUND = 5.0
"""Seconds for 2,000 tasks."""
GROWTH = 1.2
"""How many times the memory per task may grow from the smallest to the largest mission."""


async def mission(tasks: int) -> MissionReport:
    """Run one mission of no-op tasks.

    Args:
        tasks: How many.
    """
    plan = [{"id": f"t{n}", "title": f"task {n}", "files": [f"f{n}"]} for n in range(tasks)]

    async def commander(_turn: Turn) -> str:
        return "go"

    async def planner(_turn: Turn) -> str:
        return json.dumps({"tasks": plan})

    async def worker(turn: Turn) -> str:
        # What is not written is not done: the gates would refuse it.
        await anyio.Path(turn.directory, read_task(turn.prompt).files[0]).touch()
        return "done"

    async def reviewer(_turn: Turn) -> str:
        return '{"verdict": "accept"}'

    agents = {"commander": commander, "planner": planner, "worker": worker, "reviewer": reviewer}
    with tempfile.TemporaryDirectory() as directory:
        report = await run_mission(
            "nothing, often", backend=EmbeddedBackend(agents), directory=directory
        )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert len(report.tasks) == tasks
    return report


def measure(backend: str, tasks: int, kind: str) -> float:
    """Measure one mission in this interpreter.

    Args:
        backend: ``asyncio`` or ``trio``.
        tasks: How many tasks.
        kind: ``seconds``, or ``bytes`` held per task by the report at the end.
    """
    anyio.run(mission, 10, backend=backend)
    if kind == "seconds":
        started = time.perf_counter()
        anyio.run(mission, tasks, backend=backend)
        return time.perf_counter() - started
    gc.collect()
    tracemalloc.start()
    report = anyio.run(mission, tasks, backend=backend)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    assert report.tasks
    return held / tasks


def fresh(*args: object) -> float:
    """Measure in a fresh interpreter.

    Args:
        args: What `measure` takes.
    """
    command = [sys.executable, __file__, "--measure", *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def main(rounds: int) -> int:
    """Measure, print, and compare with the bounds.

    Args:
        rounds: How often the time is taken; the median counts.

    Returns:
        The exit code: 1 when a bound is broken.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        f"{platform.python_implementation()} {platform.python_version()}, one core, {rounds} rounds"
    )
    is_broken = False
    for backend in ("asyncio", "trio"):
        times = [fresh(backend, SIZES[-1], "seconds") for _ in range(rounds)]
        memory = {size: fresh(backend, size, "bytes") for size in SIZES}
        growth = memory[SIZES[-1]] / memory[SIZES[0]]
        print(
            f"{backend:<8} {SIZES[-1]} tasks in {median(times):.2f} s "
            f"(min {min(times):.2f}, max {max(times):.2f}; bound {BOUND}); held per task: "
            + ", ".join(f"{held:.0f} bytes at {size}" for size, held in memory.items())
            + f" (growth {growth:.2f}x; bound {GROWTH}x)"
        )
        is_broken |= median(times) > BOUND or growth > GROWTH
    print("BROKEN" if is_broken else "bounds kept")
    return int(is_broken)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
