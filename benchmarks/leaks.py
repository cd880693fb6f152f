"""What is left after many missions: descriptors, threads, child processes, tasks, sessions.

Each mission has two tasks with a worker, gates (one command each, and a language server that is
asked about the files) and a reviewer, and a hook that has a pool of tool servers search the
workspace before each prompt. Every third one is cancelled at a random moment; in every third one
processes of the pool and language servers are killed with ``kill -9`` at random moments. Counts are
taken after a few missions, which pay for what is made once, and again after the rest, each time
with no backend and no pool open. They must be equal, and while the backend is still open it must
know no session any more.

Run it with ``python -m benchmarks.leaks [MISSIONS] [embedded|opencode] [asyncio|trio]``; it prints
one JSON object for each event loop, and ends with exit code 1 if anything is left. ``opencode``
needs the real server, and counts the sessions that the server itself knows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import trio.lowlevel
from attrs import asdict, frozen

from orchestra import (
    EmbeddedBackend,
    HookRegistry,
    SessionBackend,
    SQLiteStore,
    ToolCommand,
    ToolPool,
    Turn,
)
from orchestra.errors import ToolError
from orchestra.opencode import (
    BEFORE_PROMPT,
    ROLE_AGENTS,
    GateSettings,
    Mission,
    MissionOutcome,
    MissionSettings,
    OpenCodeBackend,
    Plan,
    TaskSpec,
    read_task,
)
from orchestra.testing import Reply, Rule, ScriptedModel, ToolCall

WARM_UP = 3
CACHED = ("Trio thread", "AnyIO worker thread")
"""Idle threads that the libraries keep for the next call, for ten seconds."""
ACCEPT = '{"verdict": "accept", "reasons": []}'
RUFF = str(Path(sys.executable).with_name("ruff"))
LANGUAGE_SERVER = (shutil.which("ruff") or RUFF, "server")
TOOL_SERVER = (sys.executable, "-P", "-m", "orchestra.tools")
SEARCH = {"name": "grep", "arguments": {"pattern": "x", "glob": "*.py"}}
SETTINGS = MissionSettings(
    allow=(("true",),),
    retry_delay=0.0,
    gates=GateSettings(diagnostics={".py": LANGUAGE_SERVER}),
)
PLAN = Plan(
    TaskSpec(id=name, title=f"write {name}", files=(f"{name}.py",), acceptance=(("true",),))
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


def find_tools() -> list[int]:
    """The processes of tool servers and language servers that this process has started."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if line[-2:-1] in ([b"orchestra.tools"], [b"server"]):
                    found.append(pid)
    return found


async def kill_tools(killed: list[int]) -> None:
    """End tool processes with ``kill -9``, one now and one then."""
    while True:
        await anyio.sleep(random.random() / 5)
        if found := find_tools():
            killed.append(random.choice(found))
            with suppress(ProcessLookupError):
                os.kill(killed[-1], signal.SIGKILL)


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
        await anyio.Path(turn.directory / file).write_text(f"x = {turn.prompt!r}")
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
                    {
                        "filePath": read_task(request.prompt).files[0],
                        "content": f"x = {request.prompt!r}",
                    },
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


def searching(tools: ToolPool, errors: list[ToolError]) -> HookRegistry:
    """A hook that has a tool server search the workspace before each prompt."""

    async def search(_draft: object) -> None:
        try:
            await tools.request("tools/call", SEARCH, timeout=20.0)
        except ToolError as exc:  # its process was killed
            errors.append(exc)

    hooks = HookRegistry()
    hooks.register(BEFORE_PROMPT, search, name="search")
    return hooks


async def run_one(
    number: int,
    backend: SessionBackend,
    directory: Path,
    store: SQLiteStore,
    hooks: HookRegistry,
    killed: list[int],
) -> bool:
    """Run a mission; of three, one is cancelled and one loses tools. Whether it went well."""
    is_good = True
    async with store, anyio.create_task_group() as group:
        if number % 3 == 1:
            group.start_soon(kill_tools, killed)
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
                hooks=hooks,
            ) as mission:
                report = await mission.wait_finished()
                is_good = report.outcome is MissionOutcome.ACCEPTED
        group.cancel_scope.cancel()
    return is_good


@frozen(kw_only=True)
class Run:
    """What many missions came to."""

    failed: int
    killed: int
    tool_errors: int
    sessions: int


async def run_many(missions: int, kind: str, directory: Path) -> Run:
    """Run missions on a backend of their own, with a pool of tools."""
    failed = 0
    killed: list[int] = []
    errors: list[ToolError] = []
    command = ToolCommand(argv=TOOL_SERVER, directory=directory)
    async with open_backend(kind) as backend, ToolPool(command, max_size=2) as tools:
        hooks = searching(tools, errors)
        for number in range(missions):
            for name in ("a", "b"):
                (directory / f"{name}.py").unlink(missing_ok=True)
            store = SQLiteStore(directory / ".orchestra" / "missions.db")
            failed += not await run_one(number, backend, directory, store, hooks, killed)
        return Run(
            failed=failed,
            killed=len(killed),
            tool_errors=len(errors),
            sessions=await count_sessions(backend, directory),
        )


async def measure(missions: int, kind: str) -> dict[str, object]:
    """Run the missions on the current event loop."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()  # noqa: ASYNC240 - before anything runs
        (directory / ".orchestra").mkdir()
        await run_many(WARM_UP, kind, directory)
        before = await count()
        done = await run_many(missions, kind, directory)
        after = await count()
    return {
        "missions": missions,
        "cancelled": len(range(2, missions, 3)),
        **asdict(done),
        "before": asdict(before),
        "after": asdict(after),
        "is_equal": before == after and not done.sessions,
    }


def main() -> int:
    """Measure on both event loops and print the figures."""
    missions = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    kind = sys.argv[2] if len(sys.argv) > 2 else "embedded"
    is_clean = True
    for loop in sys.argv[3:] or ("asyncio", "trio"):
        found = anyio.run(measure, missions, kind, backend=loop)
        is_clean = is_clean and bool(found["is_equal"]) and not found["failed"]
        print(json.dumps({"loop": loop, "backend": kind, **found}))
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
