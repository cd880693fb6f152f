"""What a mission itself costs: plan, workplaces, gates, records, review and merge of small tasks.

Three runs, each in a fresh interpreter, with the default settings and a SQLite store; every task
writes its file, and every run checks that all tasks were accepted.

* Agents that answer at once: what is measured is ours and the embedded backend's, but for what the
  agents use to write their files. Beside the CPU
  time per task, the memory that the report holds per task is taken at growing sizes.
* 1,000 tasks, 200 at once, each of which takes some seconds as agents do: the time from start to
  end, compared with the ideal, which is work / slots.
* The real OpenCode server, with a scripted model in a process of its own: what is measured is this
  process alone, so neither the server nor the model.

Run it with ``python -m benchmarks.mission_overhead [--rounds N] [--work SECONDS] [--no-server]``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import median

import anyio
from attrs import define

from orchestra import EmbeddedBackend, MVCCStore, SessionBackend, SQLiteStore, Turn
from orchestra.opencode import (
    ROLE_AGENTS,
    MissionOutcome,
    MissionReport,
    MissionSettings,
    OpenCodeBackend,
    Plan,
    TaskSpec,
    read_task,
    run_mission,
)
from orchestra.testing import ModelRequest, Rule, ScriptedModel, Step, ToolCall

TASKS = 1_000
SLOTS = 200
SERVER_TASKS = 60
SIZES = (250, 500, 1_000)
CPU_BOUND = 0.005
"""Seconds of CPU per task."""
IDEAL_BOUND = 1.3
"""How many times the ideal time."""
GROWTH_BOUND = 1.2
"""How many times the memory per task may grow from the smallest to the largest mission."""
ACCEPT = '{"verdict": "accept"}'


def plan(tasks: int) -> Plan:
    """Return a plan of tasks that do not wait for each other.

    Args:
        tasks: How many.
    """
    return Plan(
        tuple(TaskSpec(id=f"t{n}", title=f"task {n}", files=(f"t{n}.txt",)) for n in range(tasks))
    )


@define
class Agents:
    """Agents whose work is to wait, and then to write a file.

    Attributes:
        work: Seconds that it takes.
        cpu: CPU seconds that they have used themselves.
    """

    work: float = 0.0
    cpu: float = 0.0

    def backend(self) -> EmbeddedBackend:
        """Return where they are."""
        return EmbeddedBackend({"worker": self._worker, "reviewer": self._reviewer})

    async def _worker(self, turn: Turn) -> str:
        if self.work:
            await anyio.sleep(self.work)
        started = time.thread_time()
        (Path(turn.directory) / f"{turn.metadata['task']}.txt").write_text("done\n")
        self.cpu += time.thread_time() - started
        return "done"

    async def _reviewer(self, _turn: Turn) -> str:
        return ACCEPT


async def mission(
    tasks: int, backend: SessionBackend, slots: int, directory: Path
) -> MissionReport:
    """Run one mission.

    Args:
        tasks: How many tasks.
        backend: Where the agents are.
        slots: How many workers, and reviewers, at once.
        directory: An empty folder.
    """
    settings = MissionSettings(limits={"worker": slots, "reviewer": slots})
    workspace = directory / "workspace"
    workspace.mkdir()
    store: MVCCStore = SQLiteStore(directory / "records.db")
    async with store:
        report = await run_mission(
            "nothing, often",
            backend=backend,
            directory=workspace,
            plan=plan(tasks),
            settings=settings,
            store=store,
        )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert len(report.tasks) == tasks
    return report


async def on_server(tasks: int, directory: Path) -> float:
    """Run one mission on a real server, and return this process's CPU seconds for it.

    Args:
        tasks: How many tasks.
        directory: An empty folder.
    """
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts before anything runs
        [sys.executable, "-m", "benchmarks.mission_overhead", "--model", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            config = json.loads(process.stdout.readline())
            async with OpenCodeBackend(
                model="scripted/m1", agents=ROLE_AGENTS.values(), config=config
            ) as backend:
                started = time.process_time()
                await mission(tasks, backend, 10, directory)
                return time.process_time() - started
        finally:
            process.stdin.close()  # which ends it


async def serve(directory: Path) -> None:
    """Be the model, until stdin is closed.

    Args:
        directory: The mission's folder.
    """

    def work(request: ModelRequest) -> Step:
        task = read_task(request.prompt)
        if "Wrote file" in str(request.messages[-1].get("content")):
            return "Written."
        path = directory / "workspace" / task.files[0]
        return ToolCall("write", {"filePath": str(path), "content": f"{task.id}\n"})

    rules = (
        Rule(agent="worker", answer=work),
        Rule(agent="reviewer", answer=lambda _: ACCEPT),
    )
    async with ScriptedModel(*rules) as model:
        print(json.dumps(model.opencode_config()), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


def measure(loop: str, kind: str, size: int, work: float) -> float:
    """Measure one mission in this interpreter.

    Args:
        loop: ``asyncio`` or ``trio``.
        kind: ``cpu`` seconds per task, ``bytes`` held per task by the report, ``ideal``: the time
            as a multiple of the ideal one, or ``server``: CPU seconds per task beside a server's.
        size: How many tasks.
        work: Seconds that each takes, for ``ideal``.
    """
    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        if kind == "server":
            return anyio.run(on_server, size, directory, backend=loop) / size
        anyio.run(mission, 10, Agents().backend(), SLOTS, Path(warm), backend=loop)
        gc.collect()
        if kind == "bytes":
            tracemalloc.start()
            report = anyio.run(mission, size, Agents().backend(), SLOTS, directory, backend=loop)
            gc.collect()
            assert report.tasks
            return tracemalloc.get_traced_memory()[0] / size
        agents = Agents(work if kind == "ideal" else 0.0)
        started, cpu = time.perf_counter(), time.process_time()
        anyio.run(mission, size, agents.backend(), SLOTS, directory, backend=loop)
        if kind == "cpu":
            return (time.process_time() - cpu - agents.cpu) / size
        return (time.perf_counter() - started) / (size * work / SLOTS)


def fresh(*args: object) -> float:
    """Measure in a fresh interpreter.

    Args:
        args: What `measure` takes.
    """
    words = [sys.executable, "-m", "benchmarks.mission_overhead", "--measure", *map(str, args)]
    run = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout.splitlines()[-1])


def main(options: argparse.Namespace) -> int:
    """Measure, print, and compare with the bounds.

    Args:
        options: The command line's.

    Returns:
        The exit code: 1 when a bound is broken.
    """
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {options.rounds} rounds"
    )
    is_broken = False
    for loop in ("asyncio", "trio"):
        times = [fresh(loop, "cpu", TASKS, 0) for _ in range(options.rounds)]
        memory = {size: fresh(loop, "bytes", size, 0) for size in SIZES}
        growth = memory[SIZES[-1]] / memory[SIZES[0]]
        ratio = min(fresh(loop, "ideal", TASKS, options.work) for _ in range(options.rounds))
        print(
            f"{loop:<8} {median(times) * 1000:.2f} ms CPU per task (min {min(times) * 1000:.2f}, "
            f"max {max(times) * 1000:.2f}; bound {CPU_BOUND * 1000:g}); {TASKS} tasks of "
            f"{options.work:g} s, {SLOTS} at once: {ratio:.2f}x the ideal time (bound "
            f"{IDEAL_BOUND}x); held per task: "
            + ", ".join(f"{held:.0f} bytes at {size}" for size, held in memory.items())
            + f" (growth {growth:.2f}x; bound {GROWTH_BOUND}x)"
        )
        is_broken |= min(times) > CPU_BOUND or growth > GROWTH_BOUND or ratio > IDEAL_BOUND
        if not options.no_server:
            server = min(fresh(loop, "server", SERVER_TASKS, 0) for _ in range(options.rounds))
            print(f"{loop:<8} {server * 1000:.2f} ms CPU per task beside a real server's")
            is_broken |= server > CPU_BOUND
    print("BROKEN" if is_broken else "bounds kept")
    return int(is_broken)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
    elif sys.argv[1:2] == ["--model"]:
        anyio.run(serve, Path(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--work", type=float, default=3.0, help="seconds of a task")
        parser.add_argument(
            "--no-server",
            action="store_true",
            help="without the real server",
            default=not os.environ.get("ORCHESTRA_OPENCODE"),
        )
        sys.exit(main(parser.parse_args()))
