"""Whether a mission on a tree of 20,000 files stalls its event loop while it looks at the files.

A ticker sleeps for 1 ms again and again; how much later than that it wakes is the loop's lag. It is
taken while the tree is read in the pool of threads, while it is read in the loop itself (what the
pool is there to avoid), and while nothing is read (what the machine does anyhow). Each run checks
that every file was seen.

Run it with ``python -m benchmarks.evidence [FILES]``.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import anyio

from orchestra import WorkStealingPool
from orchestra.opencode.mission import evidence
from orchestra.opencode.mission.evidence import Tree, WorkspaceWatch

BOUND = 0.05
"""Seconds that the loop may lag at most, 99 times of 100, while the tree is read in the pool."""


async def lag_during(work: Callable[[], Awaitable[object]]) -> tuple[float, list[float]]:
    """Return how long the work took, and by how much each tick beside it came late, sorted.

    Args:
        work: What is done beside the ticker.
    """
    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await anyio.sleep(0.001)
            lags.append(max(0.0, time.perf_counter() - due))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await anyio.sleep(0.01)
        lags.clear()
        started = time.perf_counter()
        await work()
        took = time.perf_counter() - started
        await anyio.sleep(0.002)  # the tick that waited for the work's end counts too
        tasks.cancel_scope.cancel()
    return took, sorted(lags)


async def measure(root: Path, files: int) -> bool:
    """Measure on one event loop, print, and tell whether the bound was kept.

    Args:
        root: The tree.
        files: How many files it has.
    """

    async def in_pool() -> Tree:
        async with WorkStealingPool() as pool:
            tree = await WorkspaceWatch(root, pool).take()
        assert len(tree.files) == files
        return tree

    async def in_loop() -> None:
        listed = evidence._walk(str(root), frozenset())  # noqa: SLF001 - the same work, elsewhere
        assert len(listed) == files
        for path, _ in listed:
            evidence._digest(str(root), path)  # noqa: SLF001

    async def nothing() -> None:
        await anyio.sleep(1.0)

    kept = True
    for name, work in (("pool", in_pool), ("loop", in_loop), ("idle", nothing)):
        took, lags = await lag_during(work)
        p99 = lags[min(len(lags) - 1, int(len(lags) * 0.99))]
        print(
            f"  {name}: {took:6.2f} s, lag median {median(lags) * 1000:7.2f} ms, "
            f"p99 {p99 * 1000:7.2f} ms, max {lags[-1] * 1000:7.2f} ms ({len(lags)} ticks)"
        )
        if name == "pool":
            kept = p99 <= BOUND
    return kept


def main(files: int) -> int:
    """Make the tree and measure on both event loops.

    Args:
        files: How many files.

    Returns:
        The exit code: 1 when the bound is broken.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.python_implementation()} {platform.python_version()}, {cores} cores")
    kept = True
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number in range(files):
            folder = root / f"d{number % 200}"
            folder.mkdir(exist_ok=True)
            (folder / f"f{number}.py").write_bytes(b"x = 1\n" * (number % 700))
        for loop in ("asyncio", "trio"):
            print(f"{loop}, {files:,} files:")
            kept &= anyio.run(measure, root, files, backend=loop)
    print(f"p99 of the lag beside the pool at most {BOUND * 1000:.0f} ms: {kept}")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
