"""Start and first prompt in a prewarmed directory against a cold one, on the real OpenCode server.

A scripted model answers at once. In each round a session is leased in two directories that the
server has never seen, in random order, and prompted once; one of them was prewarmed through the
pool before. Before each lease the server is left alone for a moment, as it is when there is time
to prewarm. The very first prompt of the server, which pays for much more, is made before.

Run it with ``python benchmarks/prewarm.py [ROUNDS]``; it prints one JSON object. The bound is on
the median of the ratios within the rounds. Every run checks the answers, that prewarming has
called no model, and that no session is left.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import anyio

from orchestra import SessionPool
from orchestra.abc import Agent
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.testing import Reply, Rule, ScriptedModel

BOUND = 0.2
QUIET = 1.0
"""Seconds that the server is left alone before each measurement."""


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(median(values), 3), "low": round(low, 3), "high": round(high, 3)}


async def first_prompt(pool: SessionPool, directory: Path) -> float:
    """Seconds from wanting a session to its first answer."""
    await anyio.sleep(QUIET)
    began = time.perf_counter()
    async with pool.lease("echo", directory=directory) as session:
        end = await session.prompt("hello")
        elapsed = time.perf_counter() - began
    assert end.text == "hello", end
    return elapsed


async def measure(rounds: int) -> dict[str, object]:
    """Run the rounds on the current event loop."""
    figures: dict[str, list[float]] = {"cold": [], "prewarm": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        root = await anyio.Path(name).resolve()

        async def new_directory() -> Path:
            place = root / f"d{next(numbers)}"
            await place.mkdir()
            return Path(place)

        numbers = iter(range(10_000))
        async with ScriptedModel(
            Rule(agent="echo", answer=lambda request: Reply(request.prompt))
        ) as model:
            backend = OpenCodeBackend(
                agents=[Agent("echo", prompt="You are the echo.")],
                config=model.opencode_config(),
                model="scripted/m1",
            )
            async with (
                backend,
                SessionPool(backend, min_idle=0) as plain,
                SessionPool(backend) as pool,
            ):
                very_first = await first_prompt(plain, await new_directory())

                async def cold() -> None:
                    figures["cold"].append(await first_prompt(plain, await new_directory()))

                async def warm() -> None:
                    directory = await new_directory()
                    began = time.perf_counter()
                    await pool.prewarm(directory, ["echo"])
                    figures["prewarm"].append(time.perf_counter() - began)
                    while not pool.statistics().idle:  # noqa: ASYNC110 - no event says it
                        await anyio.sleep(0.05)
                    figures["warm"].append(await first_prompt(pool, directory))

                for _ in range(rounds):
                    for run in random.sample([cold, warm], 2):
                        await run()
                assert len(model.calls()) == 1 + 2 * rounds, "prewarming has called the model"
            assert backend.statistics().sessions_open == 0
    ratios = [b / a for a, b in zip(figures["cold"], figures["warm"], strict=True)]
    return {
        "very_first_s": round(very_first, 3),
        **{f"{name}_s": spread(values) for name, values in figures.items()},
        "ratio": spread(ratios),
        "ratio_of_minima": round(min(figures["warm"]) / min(figures["cold"]), 3),
    }


def main(rounds: int) -> int:
    """Measure, print, and compare with the bound.

    Args:
        rounds: How many pairs of directories.
    """
    loops = {loop: anyio.run(measure, rounds, backend=loop) for loop in ("asyncio", "trio")}
    print(
        json.dumps(
            {
                "benchmark": "prewarm",
                "rounds": rounds,
                "bound": BOUND,
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "load": os.getloadavg()[0],
                "loops": loops,
            },
            indent=2,
        )
    )
    ratios = [result["ratio"]["median"] for result in loops.values()]  # type: ignore[index]  # JSON
    return 0 if max(ratios) <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
