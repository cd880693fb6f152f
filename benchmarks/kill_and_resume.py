"""Kill the orchestrator, the server, or both, at random moments, and resume each time.

A real OpenCode server with the scripted model behind it; ``orchestra run`` and ``orchestra resume``
are real processes that get SIGKILL. Run it from the project's root, with the path of ``opencode``
in ``ORCHESTRA_OPENCODE`` if it is not found::

    python -m benchmarks.kill_and_resume --kills 20 --victim orchestrator --seed 1

What must come out: of every task the model was asked for the work exactly once (a kill of the
server loses the turns that ran in it; these, and no others, are asked for again), and the files
are those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal

from benchmarks.killable import PASSWORD, KillableServer
from orchestra.opencode import read_task
from orchestra.testing import ModelRequest, Rule, ScriptedModel, Step, ToolCall

LATENCY = 0.25
COMMAND = [
    sys.executable,
    "-c",
    "from orchestra.opencode.cli import main; raise SystemExit(main())",
]


def rules(tasks: int) -> tuple[Rule, ...]:
    """Return a script for a mission of that many tasks, each of which writes a file."""
    plan = json.dumps(
        {
            "tasks": [
                {
                    "id": f"t{number}",
                    "title": f"Write file {number}",
                    "files": [f"f{number}.txt"],
                    "depends": [f"t{number - 3}"] if number > 3 and number % 3 == 0 else [],
                }
                for number in range(1, tasks + 1)
            ]
        }
    )

    async def say(text: str) -> str:
        await anyio.sleep(LATENCY)
        return text

    async def work(request: ModelRequest) -> list[Step]:
        await anyio.sleep(LATENCY)
        task = read_task(request.prompt)
        arguments = {"filePath": task.files[0], "content": f"This is {task.id}.\n"}
        return [ToolCall("write", arguments), f"Wrote {task.id}."]

    return (
        Rule(agent="commander", answer=lambda _: say("Plan it.")),
        Rule(agent="planner", answer=lambda _: say(plan)),
        Rule(agent="worker", answer=work),
        Rule(agent="reviewer", answer=lambda _: say('{"verdict": "accept"}')),
    )


def asked(model: ScriptedModel) -> Counter[tuple[str, str, int]]:
    """Count what the model was asked: by role, task and step of the turn."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for request in model.requests:
        if request.agent in {"worker", "reviewer"}:
            task = read_task(request.prompt).id
        elif request.agent in {"commander", "planner"}:
            task = ""
        else:
            continue
        counts[request.agent, task, request.step] += 1
    return counts


class Run:
    """One mission, killed again and again."""

    def __init__(self, folder: Path, server: KillableServer, workers: int) -> None:
        self.workspace = folder / "work"
        self.workspace.mkdir()
        self._server = server
        self._file = folder / "mission.toml"
        self._file.write_text(
            f"""
goal = "write the files"
workspace.directory = "work"
limits.worker = {workers}
[backend]
kind = "opencode"
url = "{server.url}"
model = "scripted/m1"
"""
        )

    def start(self, *, is_first: bool) -> subprocess.Popen[str]:
        """Start the mission, or go on with it."""
        words = ["run", str(self._file)] if is_first else ["resume", "--dir", str(self.workspace)]
        env = {**os.environ, "OPENCODE_SERVER_PASSWORD": PASSWORD}
        return subprocess.Popen(
            [*COMMAND, *words], env=env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def is_recorded(self) -> bool:
        """Whether there is something to go on with."""
        words = [*COMMAND, "history", "--dir", str(self.workspace)]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        return "mission_" in found.stdout

    def files(self) -> dict[str, str]:
        """Return what the agents have made."""
        return {path.name: path.read_text() for path in sorted(self.workspace.glob("f*.txt"))}


def kill_run(
    folder: Path,
    server: KillableServer,
    *,
    kills: int,
    victim: str,
    workers: int,
    longest: float,
    dice: random.Random,
    tell: Callable[[str], None],
) -> tuple[Run, int, int]:
    """Run one mission to its end; returns it, the number of kills, and its exit code."""
    run = Run(folder, server, workers)
    done = 0
    is_first = True
    while True:
        process = run.start(is_first=is_first)
        if done < kills:
            try:
                process.wait(dice.uniform(0.6, longest))
            except subprocess.TimeoutExpired:
                done += 1
                if victim in {"orchestrator", "both"}:
                    os.killpg(process.pid, signal.SIGKILL)
                if victim in {"server", "both"}:
                    server.kill()
                    server.start()
                if victim == "server":
                    tell(f"kill {done}")
                    output, _ = process.communicate(timeout=300)
                    tell(f"it ended with {process.returncode}: {output.splitlines()[-4:]}")
                    is_first = False
                    if process.returncode == 0:
                        return run, done, 0
                    continue
                process.communicate()
                is_first = not run.is_recorded
                tell(f"kill {done}: {len(run.files())} files so far")
                continue
        output, _ = process.communicate(timeout=300)
        if process.returncode != 0:
            tell(output)
        return run, done, process.returncode


def main() -> None:
    """Run the missions, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--victim", choices=("orchestrator", "server", "both"), default="orchestrator"
    )
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    left = options.kills
    begun = time.monotonic()
    is_right = True
    while left > 0:
        with (
            tempfile.TemporaryDirectory() as name,
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(ScriptedModel(*rules(options.tasks))) as model,
            KillableServer(Path(name, "server"), model.opencode_config()) as server,
        ):
            run, done, code = kill_run(
                Path(name), server, kills=left, victim=options.victim, workers=options.workers,
                longest=options.longest, dice=dice, tell=print,
            )  # fmt: skip
            left -= max(done, 1)
            wanted = {f"f{n}.txt": f"This is t{n}.\n" for n in range(1, options.tasks + 1)}
            counts = asked(model)
            twice = {"/".join(map(str, key)): n for key, n in counts.items() if n != 1}
            is_whole = run.files() == wanted
            print(
                f"{done} kills of {options.victim}: exit code {code}, files as in an undisturbed "
                f"run: {is_whole}, prompts of {len(counts)} asked more than once: {twice or 'none'}"
            )
            is_right &= is_whole and code == 0 and (options.victim != "orchestrator" or not twice)
    print(f"{'right' if is_right else 'WRONG'} after {time.monotonic() - begun:.0f} s")
    raise SystemExit(not is_right)


if __name__ == "__main__":
    main()
