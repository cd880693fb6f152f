"""What is left after many missions: descriptors, threads, child processes, tasks, sessions.

Each mission has two tasks with a worker, gates (one command each) and a reviewer; every third one
is cancelled at a random moment. Counts are taken after a few missions, which pay for what is made
once, and again after the rest, each time with no backend open. They must be equal, and while
the backend is still open it must know no session any more.

Run it with ``python -m benchmarks.leaks [MISSIONS] [embedded|opencode]``; it prints one JSON object
for each event loop, and ends with exit code 1 if anything is left. ``opencode`` needs the real
server, and counts the sessions that the server itself knows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import trio.lowlevel
from attrs import asdict, frozen

from orchestra import EmbeddedBackend, SessionBackend, SQLiteStore, Turn
from orchestra.opencode import (
    ROLE_AGENTS,
    Mission,
    MissionOutcome,
    MissionSettings,
    OpenCodeBackend,
    Plan,
    TaskSpec,
    read_task,
)
from orchestra.testing import Reply, Rule, ScriptedModel, ToolCall

WARM_UP = 6
CACHED = ("Trio thread", "AnyIO worker thread")
"""Idle threads that the libraries keep for the next call, for ten seconds."""
ACCEPT = '{"verdict": "accept", "reasons": []}'
SETTINGS = MissionSettings(allow=(("true",),), retry_delay=0.0)
PLAN = Plan(
    TaskSpec(id=name, title=f"write {name}", files=(f"{name}.txt",), acceptance=(("true",),))
    for name in ("a", "b")
)


@frozen(kw_only=True)
class Held:
    """What this process holds."""

    descriptors: int
    threads: int
    children: int
    tasks: int


def count_tasks() -> int:
    """Tasks of the event loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


def count_descriptors() -> int:
    """Open files, pipes and sockets."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - strings will do


def count_children() -> int:
    """Child processes, grandchildren not included."""
    return sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))


async def count() -> Held:
    """Take the counts, once what is about to end has ended."""
    await anyio.sleep(0.2)
    gc.collect()
    threads = [each for each in threading.enumerate() if not each.name.startswith(CACHED)]
    return Held(
        descriptors=count_descriptors(),
        threads=len(threads),
        children=count_children(),
        tasks=count_tasks(),
    )


async def count_sessions(backend: SessionBackend, directory: Path) -> int:
    """Sessions that the server knows; for others, those that the backend holds."""
    if not isinstance(backend, OpenCodeBackend):
        return backend.statistics().sessions_open
    server = backend._server  # noqa: SLF001 - the password is nobody else's business
    assert server is not None
    async with httpx2.AsyncClient(
        base_url=server.url, auth=("opencode", server.password), trust_env=False
    ) as http:
        answer = await http.get(
            "/session", headers={"x-opencode-directory": str(directory)}, params={"limit": 10_000}
        )
        return len(answer.json())


async def worker(turn: Turn) -> str:
    """Write the task's file."""
    await anyio.sleep(random.random() / 50)
    for file in read_task(turn.prompt).files:
        await anyio.Path(turn.directory / file).write_text(turn.prompt)
    return "Written."


async def reviewer(_turn: Turn) -> str:
    """Accept."""
    return ACCEPT


@asynccontextmanager
async def open_backend(kind: str) -> AsyncIterator[SessionBackend]:
    """A backend whose agents do what the plan asks for."""
    if kind == "embedded":
        async with EmbeddedBackend({"worker": worker, "reviewer": reviewer}) as embedded:
            yield embedded
        return
    model = ScriptedModel(
        Rule(
            agent="worker",
            answer=lambda request: [
                ToolCall(
                    "write",
                    {"filePath": read_task(request.prompt).files[0], "content": request.prompt},
                ),
                Reply("Written."),
            ],
        ),
        Rule(agent="reviewer", answer=lambda _request: Reply(ACCEPT)),
    )
    async with (
        model,
        OpenCodeBackend(
            agents=ROLE_AGENTS.values(), config=model.opencode_config(), model="scripted/m1"
        ) as backend,
    ):
        yield backend


async def run_one(
    number: int, backend: SessionBackend, directory: Path, store: SQLiteStore
) -> bool:
    """Run a mission; every third one is cancelled. Whether it went as it should."""
    async with store:
        with anyio.CancelScope() as scope:
            if number % 3 == 2:
                scope.deadline = anyio.current_time() + random.random() / 10
            async with Mission(
                "write two files",
                backend=backend,
                directory=directory,
                plan=PLAN,
                settings=SETTINGS,
                store=store,
            ) as mission:
                report = await mission.wait_finished()
                return report.outcome is MissionOutcome.ACCEPTED
    return True


async def run_many(missions: int, kind: str, directory: Path) -> tuple[int, int]:
    """Run missions on a backend of their own; how many failed, and what sessions were left."""
    failed = 0
    async with open_backend(kind) as backend:
        for number in range(missions):
            for name in ("a", "b"):
                (directory / f"{name}.txt").unlink(missing_ok=True)
            store = SQLiteStore(directory / ".orchestra" / "missions.db")
            failed += not await run_one(number, backend, directory, store)
        return failed, await count_sessions(backend, directory)


async def measure(missions: int, kind: str) -> dict[str, object]:
    """Run the missions on the current event loop."""
    directory = Path(tempfile.mkdtemp()).resolve()  # noqa: ASYNC240 - before anything runs
    (directory / ".orchestra").mkdir()
    await run_many(WARM_UP, kind, directory)
    before = await count()
    failed, sessions = await run_many(missions, kind, directory)
    after = await count()
    return {
        "missions": missions,
        "cancelled": len(range(2, missions, 3)),
        "failed": failed,
        "sessions": sessions,
        "before": asdict(before),
        "after": asdict(after),
        "is_equal": before == after and not sessions,
    }


def main() -> int:
    """Measure on both event loops and print the figures."""
    missions = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    kind = sys.argv[2] if len(sys.argv) > 2 else "embedded"
    is_clean = True
    for loop in ("asyncio", "trio"):
        found = anyio.run(measure, missions, kind, backend=loop)
        is_clean = is_clean and bool(found["is_equal"]) and not found["failed"]
        print(json.dumps({"loop": loop, "backend": kind, **found}))
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
