"""Kill the orchestrator, the server, or both, at random moments, and resume each time.

A real OpenCode server with the scripted model behind it; ``orchestra run`` and ``orchestra resume``
are real processes that get SIGKILL. Run it from the project's root, with the path of ``opencode``
in ``ORCHESTRA_OPENCODE`` if it is not found::

    python -m benchmarks.kill_and_resume --kills 20 --victim orchestrator --seed 1

What must come out: of every task the model was asked for the work exactly once (a kill of the
server loses the turns that ran in it; these, and no others, are asked for again), and the files
are those of an undisturbed run. With ``--isolation worktree``, and with tasks that are raced for or split
(``--mode race``, ``--mode fractal``), nothing of the workers' places may be left over either: no worktree,
no branch but those of salvaged work, no copy in the folder for temporary files.
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
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from benchmarks.killable import PASSWORD, KillableServer
from orchestra.opencode import read_task
from orchestra.testing import ModelRequest, Rule, ScriptedModel, Step, ToolCall

LATENCY = 0.25
SALVAGED = "refs/heads/orchestra/salvage/"
COMMAND = [
    sys.executable,
    "-c",
    "from orchestra.opencode.cli import main; raise SystemExit(main())",
]
AGENT = "scribe"
AGENTS = """
[scribe]
description = "Writes files"
prompt = "You are the scribe."
"""
BLIND = (
    "from orchestra.opencode.mission.ownership import Owner; "
    "Owner.is_gone = property(lambda owner: bool(owner.mission)); "
)
"""As if every process that owns a workspace were gone."""


def rules(
    tasks: int, mode: str = "normal", wait: Callable[[], object] = bool, agent: str = ""
) -> tuple[Rule, ...]:
    """Return a script for a mission of that many tasks, each of which writes a file.

    Two race for each task, or it is split into two that write a file each, if the mode says so.
    Workers wait, in a thread, before they begin. With an agent's name, that one is the worker.
    """
    plan = json.dumps(
        {
            "tasks": [
                {
                    "id": f"t{number}",
                    "title": f"Write file {number}",
                    "files": _files(number, mode),
                    "depends": [f"t{number - 3}"] if number > 3 and number % 3 == 0 else [],
                    "mode": mode,
                    **({"agent": agent} if agent else {}),
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
        await anyio.to_thread.run_sync(wait)
        task = read_task(request.prompt)
        if len(task.files) > 1:
            parts = [
                {"id": str(part), "title": f"Write {path}", "files": [path]}
                for part, path in enumerate(task.files, 1)
            ]
            return [json.dumps({"split": parts})]
        arguments = {"filePath": task.files[0], "content": _text(task.files[0])}
        return [ToolCall("write", arguments), f"Wrote {task.id}."]

    return (
        Rule(agent="commander", answer=lambda _: say("Plan it.")),
        Rule(agent="planner", answer=lambda _: say(plan)),
        Rule(agent=agent or "worker", answer=work),
        Rule(agent="reviewer", answer=lambda _: say('{"verdict": "accept"}')),
    )


def _files(number: int, mode: str) -> list[str]:
    return [f"f{number}.txt", f"g{number}.txt"] if mode == "fractal" else [f"f{number}.txt"]


def _text(path: str) -> str:
    return f"This is {path}.\n"


def wanted(tasks: int, mode: str = "normal") -> dict[str, str]:
    """Return what an undisturbed run leaves of such a mission."""
    paths = [path for number in range(1, tasks + 1) for path in _files(number, mode)]
    return {path: _text(path) for path in sorted(paths)}


def asked(model: ScriptedModel) -> Counter[tuple[str, str, int]]:
    """Count what the model was asked: by role, task and step of the turn."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for request in model.requests:
        if request.agent in {"worker", "reviewer", AGENT}:
            task = read_task(request.prompt).id
        elif request.agent in {"commander", "planner"}:
            task = ""
        else:
            continue
        counts[request.agent, task, request.step] += 1
    return counts


class Run:
    """One mission, killed again and again."""

    def __init__(
        self,
        folder: Path,
        server: KillableServer,
        workers: int,
        isolation: str = "shared",
        *,
        has_agent: bool = False,
    ) -> None:
        self._more = ["--project-agents"] if has_agent else []
        self.workspace = folder / "work"
        self.workspace.mkdir()
        self._server = server
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        self._state = folder / "state"
        if has_agent:
            (self.workspace / ".orchestra").mkdir()
            (self.workspace / ".orchestra" / "agents.toml").write_text(AGENTS)
        self._is_git = isolation == "worktree"
        if self._is_git:
            self._git("init", "-q", "-b", "main")
            name = ("-c", "user.name=kills", "-c", "user.email=kills@localhost")
            self._git(*name, "commit", "-q", "--allow-empty", "-m", "first")
        self.file = folder / "mission.toml"
        self.file.write_text(
            f"""
goal = "write the files"
workspace.directory = "work"
workspace.isolation = "{isolation}"
limits.worker = {workers}
[backend]
kind = "opencode"
url = "{server.url}"
model = "scripted/m1"
"""
        )

    def start(self, *, is_first: bool, is_blind: bool = False) -> subprocess.Popen[str]:
        """Start the mission, or go on with it, even if its owner lives."""
        command = [*COMMAND[:2], BLIND + COMMAND[2]] if is_blind else COMMAND
        words = (
            ["run", str(self.file), *self._more]
            if is_first
            else ["resume", "--dir", str(self.workspace)]
        )
        env = {
            **os.environ,
            "OPENCODE_SERVER_PASSWORD": PASSWORD,
            "TMPDIR": str(self._temporary),
            "XDG_STATE_HOME": str(self._state),
        }
        return subprocess.Popen(
            [*command, *words], env=env, text=True, start_new_session=True,
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
        return {path.name: path.read_text() for path in sorted(self.workspace.glob("[fg]*.txt"))}

    def leftovers(self) -> list[str]:
        """Return what is left of the workers' places."""
        left = [str(path) for path in self._temporary.iterdir()]
        left += map(str, self._state.glob("orchestra/worktrees/*/*"))
        if self._is_git:
            left += self._git("worktree", "list", "--porcelain").split("\n\n")[1:-1]
            left += self._git("for-each-ref", "--format=%(refname)").split()
            left.remove("refs/heads/main")
        return left

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self.workspace), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kill_run(
    folder: Path,
    server: KillableServer,
    *,
    kills: int,
    victim: str,
    workers: int,
    longest: float,
    isolation: str = "shared",
    has_agent: bool = False,
    dice: random.Random,
    tell: Callable[[str], None],
) -> tuple[Run, int, int]:
    """Run one mission to its end; returns it, the number of kills, and its exit code."""
    run = Run(folder, server, workers, isolation, has_agent=has_agent)
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
    parser.add_argument("--isolation", choices=("shared", "worktree"), default="shared")
    parser.add_argument("--mode", choices=("normal", "race", "fractal"), default="normal")
    parser.add_argument("--agents", action="store_true", help="with an agents file's worker")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    kills_left = options.kills
    begun = time.monotonic()
    is_right = True
    while kills_left > 0:
        with (
            tempfile.TemporaryDirectory() as name,
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(
                ScriptedModel(
                    *rules(options.tasks, options.mode, agent=AGENT if options.agents else "")
                )
            ) as model,
            KillableServer(Path(name, "server"), model.opencode_config()) as server,
        ):
            run, done, code = kill_run(
                Path(name), server, kills=kills_left, victim=options.victim, workers=options.workers,
                longest=options.longest, isolation=options.isolation, has_agent=options.agents, dice=dice, tell=print,
            )  # fmt: skip
            kills_left -= max(done, 1)
            counts = asked(model)
            twice = {"/".join(map(str, key)): n for key, n in counts.items() if n != 1}
            is_whole = run.files() == wanted(options.tasks, options.mode)
            salvaged = [each for each in run.leftovers() if each.startswith(SALVAGED)]
            left = [each for each in run.leftovers() if each not in salvaged]
            print(
                f"{done} kills of {options.victim}: exit code {code}, files as in an undisturbed "
                f"run: {is_whole}, prompts of {len(counts)} asked more than once: {twice or 'none'}"
                f", left over: {left or 'nothing'}, branches with salvaged work: {len(salvaged)}"
            )
            is_right &= (
                is_whole
                and code == 0
                and not left
                and (options.victim != "orchestrator" or not twice)
            )
    print(f"{'right' if is_right else 'WRONG'} after {time.monotonic() - begun:.0f} s")
    raise SystemExit(not is_right)


if __name__ == "__main__":
    main()
