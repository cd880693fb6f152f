"""How long after the server's own idle event a turn ends here, on the real OpenCode server.

A scripted model answers at once. An independent reader of the server's event stream, in the same
process, notes when ``session.idle`` arrives; the turn's `Finished` is noted by its caller. Two
more figures put this into proportion: from the server's stamp on the closed answer to `Finished`
(which contains what the server itself needs to say that it is idle), and the whole turn. Turns
run one by one, and many at once, on asyncio and on trio.

Run it with ``python benchmarks/turn_latency.py [TURNS] [AT_ONCE]``; it prints one JSON object.
The bound is on the median of the turns that run one by one.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import anyio
from attrs import define, field

from orchestra.abc import Agent
from orchestra.events import FinishReason
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client import wire
from orchestra.opencode.client.http import HttpClient
from orchestra.testing import Reply, Rule, ScriptedModel

BOUND = 0.100
MODEL = "scripted/m1"


@define
class Turns:
    """Stamps by session, in seconds since the epoch."""

    idle: dict[str, float] = field(factory=dict)
    closed: dict[str, float] = field(factory=dict)
    started: dict[str, float] = field(factory=dict)
    finished: dict[str, float] = field(factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """The three figures in milliseconds."""
        return {
            "idle_to_finished_ms": spread(self.finished, self.idle),
            "closed_to_finished_ms": spread(self.finished, self.closed),
            "turn_ms": spread(self.finished, self.started),
        }


def spread(ends: dict[str, float], starts: dict[str, float]) -> dict[str, float]:
    """Median, ninth decile and maximum of the differences, in milliseconds."""
    found = [1000 * (end - starts[session_id]) for session_id, end in ends.items()]
    ninth = quantiles(found, n=10)[-1] if len(found) > 1 else found[0]
    return {
        "median": round(median(found), 2),
        "p90": round(ninth, 2),
        "max": round(max(found), 2),
    }


async def read_events(
    url: str, password: str, directory: str, turns: Turns, ready: anyio.Event
) -> None:
    """Note when the server says what, on a connection of its own."""
    http = HttpClient(url, password=password)
    try:
        async with http.events(directory, silence=60.0) as events:
            async for data in events:
                match wire.decode_event(data):
                    case wire.ServerConnected():
                        ready.set()
                    case wire.SessionIdle(session_id=session_id):
                        turns.idle.setdefault(session_id, time.time())
                    case wire.MessageUpdated(info=info) if info.is_completed and info.time:
                        turns.closed[info.session_id] = (info.time.completed or 0) / 1000
    finally:
        with anyio.CancelScope(shield=True):
            await http.aclose()


async def measure(count: int, at_once: int) -> dict[str, object]:
    """Run the turns on the current event loop."""
    directory = Path(tempfile.mkdtemp()).resolve()  # noqa: ASYNC240 - before anything runs
    model = ScriptedModel(Rule(agent="echo", answer=lambda request: Reply(request.prompt)))
    async with model:
        backend = OpenCodeBackend(
            agents=[Agent("echo", prompt="You are the echo.")],
            config=model.opencode_config(),
            model=MODEL,
        )
        async with backend, anyio.create_task_group() as tasks:
            one_by_one, together = Turns(), Turns()

            async def turn(turns: Turns) -> None:
                async with backend.lease("echo", directory=directory) as session:
                    turns.started[session.id] = time.time()
                    end = await session.prompt("hello")
                    turns.finished[session.id] = time.time()
                    assert end.reason is FinishReason.DONE

            await turn(Turns())  # the first prompt pays for lazy loading
            server = backend._server  # noqa: SLF001 - the password is nobody else's business
            assert server is not None
            for turns in (one_by_one, together):
                ready = anyio.Event()
                tasks.start_soon(
                    read_events, server.url, server.password, str(directory), turns, ready
                )
                await ready.wait()
            for _ in range(count):
                await turn(one_by_one)
            async with anyio.create_task_group() as crowd:
                for _ in range(at_once):
                    crowd.start_soon(turn, together)
            tasks.cancel_scope.cancel()
    return {"one_by_one": one_by_one.summary(), "together": together.summary()}


def main(count: int, at_once: int) -> int:
    """Measure, print, and compare with the bound.

    Args:
        count: Turns that run one by one.
        at_once: Turns that run at the same time.
    """
    loops = {loop: anyio.run(measure, count, at_once, backend=loop) for loop in ("asyncio", "trio")}
    print(
        json.dumps(
            {
                "benchmark": "turn_latency",
                "turns": count,
                "at_once": at_once,
                "bound_ms": 1000 * BOUND,
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "load": os.getloadavg()[0],
                "loops": loops,
            },
            indent=2,
        )
    )
    medians = [
        result["one_by_one"]["idle_to_finished_ms"]["median"]  # type: ignore[index]  # JSON
        for result in loops.values()
    ]
    return 0 if max(medians) < 1000 * BOUND else 1


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in [*sys.argv[1:], "50", "20"][:2])))
