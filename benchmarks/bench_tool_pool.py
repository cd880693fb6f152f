"""Tool processes: what a request to a warm one costs, and what a process for each request costs."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import ToolCommand, ToolPool, ToolProcess

__all__ = ("BENCHMARKS", "PEERS")

PEERS: tuple[str, ...] = ()

# The smallest server there is: what it costs to start is Python's own start, and json.
SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": message["params"]}),
          flush=True)
"""
COMMAND = ToolCommand(argv=(sys.executable, "-IS", "-c", SERVER), directory=Path("/"), name="echo")


@frozen
class Requests:
    """Requests with distinct params, some of them at a time."""

    count: int
    at_once: int
    seed: int

    @property
    def params(self) -> list[list[int]]:
        """What is asked, in order."""
        return [[self.seed, number] for number in range(self.count)]


def requests(count: int, at_once: int) -> st.SearchStrategy[Requests]:
    """So many requests, so many at a time."""
    return st.builds(Requests, st.just(count), st.just(at_once), st.integers(0, 2**32 - 1))


async def ask_all(requests: Requests, ask: Callable[[list[int]], Awaitable[Any]]) -> None:
    """Make all requests, and check that each got its own answer, in order."""
    params = requests.params
    answers: list[Any] = [None] * requests.count
    places = iter(range(requests.count))

    async def work() -> None:
        for place in places:
            answers[place] = await ask(params[place])

    async with anyio.create_task_group() as group:
        for _ in range(requests.at_once):
            group.start_soon(work)
    assert answers == params


async def ask_new_process(params: list[int]) -> Any:
    """Start a process, ask it, end it."""
    async with ToolProcess(COMMAND) as process:
        return await process.request("echo", params)


async def warm(requests: Requests, measure: Measure) -> None:
    """A pool whose processes run already."""
    async with ToolPool(COMMAND) as pool:
        await ask_all(requests, lambda params: pool.request("echo", params))
        with measure(requests.count, waits=True):
            await ask_all(requests, lambda params: pool.request("echo", params))
        assert pool.statistics().started <= 4
        assert pool.statistics().ended == 0


async def cold(requests: Requests, measure: Measure) -> None:
    """A process for each request; a part of the requests says enough."""
    part = Requests(requests.count // 20, min(requests.at_once, 4), requests.seed)
    with measure(part.count, waits=True):
        await ask_all(part, ask_new_process)


NOTE = (
    "The server is Python that imports nothing but json, so this is the least that a process per "
    "call costs; only 1 in 20 of the calls is made so, four at a time. The time is that of the clock."
)

BENCHMARKS = (
    Benchmark(
        name="tool calls, one at a time",
        title="1,000 calls of a tool, one after another",
        workload=requests(1000, 1),
        rows=(
            Row(name="ToolPool, warm", run=warm),
            Row(name="a process per call", run=cold, at_most=0.05),
        ),
        max_rounds=5,
        note=NOTE,
    ),
    Benchmark(
        name="tool calls, 32 at a time",
        title="1,000 calls of a tool, 32 at a time, the answers checked one by one",
        workload=requests(1000, 32),
        rows=(
            Row(name="ToolPool, warm", run=warm),
            Row(name="a process per call", run=cold, at_most=0.05),
        ),
        max_rounds=5,
        note=NOTE,
    ),
)
