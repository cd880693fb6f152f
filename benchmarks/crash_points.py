"""End the orchestrator before its 1st, 2nd, 3rd, ... effect on the world, and resume each time.

An effect is what another process could see: a commit in the store, a program that is started, a
file or folder that is made, written, moved or removed. The agents are embedded and their turns are counted.
Run it from the project's root; it needs ``fork``::

    python -m benchmarks.crash_points --mode race --isolation worktree

What must come out: the mission is accepted with the files of an undisturbed run; a task whose
worker's answer was recorded before the crash is not given to a worker again; and no worktree, branch or
copy is left over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from orchestra import EmbeddedBackend, SQLiteStore, Turn
from orchestra.errors import MissionError, StoreError
from orchestra.opencode import (
    Isolation,
    Mission,
    MissionSettings,
    Plan,
    TaskMode,
    TaskSpec,
    load_mission,
    read_task,
)
from orchestra.opencode.mission.isolation import IsolationKind
from orchestra.opencode.mission.keys import MISSION
from orchestra.opencode.mission.saved import unfinished_missions

CRASHED = 9
ANSWERED = {"checking", "reviewing", "merging", "accepted"}
EFFECTS = {
    "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.truncate", "os.symlink",
    "shutil.copyfile", "shutil.move", "subprocess.Popen",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
USUAL = {"accepted", "all 3 tasks were accepted", "the task was accepted"}
SALVAGED = "orchestra/salvage/"


class Place:
    """Where one mission runs, and what it leaves."""

    def __init__(self, folder: Path, mode: TaskMode, isolation: IsolationKind) -> None:
        self.workspace = folder / "work"
        self.temporary = folder / "temporary"
        self.records = folder / "records.db"
        self.turns = folder / "turns"
        self._homes = folder / "homes"
        self.mode = mode
        self.workspace.mkdir()
        self.temporary.mkdir()
        self.settings = MissionSettings(
            retry_delay=0, todo_file=None, isolation=Isolation(kind=isolation, folder=self._homes)
        )
        self.is_git = isolation == "worktree"
        if self.is_git:
            name = ("-c", "user.name=crash", "-c", "user.email=crash@localhost")
            self._git("init", "-q", "-b", "main")
            self._git(*name, "commit", "-q", "--allow-empty", "-m", "first")
        many = mode is TaskMode.FRACTAL
        self.plan = Plan(
            TaskSpec(
                id=name, title=name, mode=mode, depends=("a",) if name == "b" else (),
                files=(f"{name}1.txt", f"{name}2.txt") if many else (f"{name}.txt",),
            )
            for name in "abc"
        )  # fmt: skip

    def wanted(self) -> dict[str, str]:
        """Return what an undisturbed run makes."""
        return {path: f"This is {path}.\n" for task in self.plan.tasks for path in task.files}

    def files(self) -> dict[str, str]:
        """Return what was made."""
        return {p.name: p.read_text() for p in sorted(self.workspace.iterdir()) if p.is_file()}

    def leftovers(self) -> list[str]:
        """Return what is left of the workers' places."""
        left = [*map(str, self.temporary.iterdir()), *map(str, self._homes.glob("*/*"))]
        if self.is_git:
            left += self._git("worktree", "list").splitlines()[1:]
            left += self._git("for-each-ref", "--format=%(refname:short)").split()
            left.remove("main")
        return left

    def asked(self) -> Counter[str]:
        """Return how often each task was given to a worker, and forget it."""
        counts = Counter(self.turns.read_text().split()) if self.turns.exists() else Counter()
        self.turns.unlink(missing_ok=True)
        return counts

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self.workspace), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    # --- in a process of its own ---

    def backend(self) -> EmbeddedBackend:
        """Return the agents."""

        async def work(turn: Turn) -> str:
            task = read_task(turn.prompt)
            with self.turns.open("a") as turns:
                turns.write(f"{task.id}\n")
            if len(task.files) > 1:
                parts = [
                    {"id": str(number), "title": path, "files": [path]}
                    for number, path in enumerate(task.files, 1)
                ]
                return json.dumps({"split": parts})
            for path in task.files:
                await anyio.Path(turn.directory, path).write_text(f"This is {path}.\n")
            return "Done."

        async def review(_: Turn) -> str:
            return '{"verdict": "accept"}'

        return EmbeddedBackend({"worker": work, "reviewer": review})

    async def carry_on(self, fault: Callable[[str], None] | None = None) -> str:
        """Run the mission, or go on with it; returns how it ended."""
        async with SQLiteStore(self.records, durability="process", fault=fault) as store:
            names = await unfinished_missions(store)
            saved = await load_mission(store, names[0]) if names else None
            is_over = not names and await self._has_ended(store)
            plan = Plan([TaskSpec(id="next", title="next")]) if is_over else self.plan
            mission = Mission(
                "write", backend=self.backend(), directory=self.workspace, plan=plan,
                settings=self.settings, store=store, saved=saved,
            )  # fmt: skip
            async with mission:
                report = await mission.wait_finished()
            problems = [report.reason, *report.warnings]
            return "; ".join([report.outcome.value, *filter(None, problems)])

    async def _has_ended(self, store: SQLiteStore) -> bool:
        missions = [name for name in await store.namespaces() if name.startswith("mission_")]
        return any([await store.namespace(name).get(MISSION) for name in missions])

    async def states(self) -> dict[str, str]:
        """Return how far each task is, as it is recorded."""
        if not self.records.exists():
            return {}
        try:
            async with SQLiteStore(self.records, read_only=True) as store:
                names = await unfinished_missions(store)
                saved = await load_mission(store, names[0]) if names else None
        except (MissionError, StoreError):
            return {}
        record = saved.record if saved is not None else None
        return {} if record is None else {n: t["state"] for n, t in record.tasks.items()}


class Fuse:
    """Ends this process before its effect of some number.

    Args:
        number: The number, from 1.
        tell: Told which effect it is.
    """

    def __init__(self, number: int, tell: Callable[[str], object]) -> None:
        self._left = number
        self._tell = tell
        sys.addaudithook(self._on_event)

    def on_fault(self, point: str) -> None:
        """A store is about to write."""
        if point.endswith(": commit"):
            self._burn(point, ())

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_effect = event in EFFECTS
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            is_own = arguments[0].startswith(("/dev/", "/proc/"))
            is_effect = bool(arguments[2] & WRITING) and not is_own
        if is_effect:
            self._burn(event, arguments)

    def _burn(self, event: str, arguments: tuple[Any, ...]) -> None:
        self._left -= 1
        if not self._left:
            where = " ".join(frame.name for frame in traceback.extract_stack()[-10:-2])
            self._tell(f"{event} {str(arguments)[:200]} in {where}")
            os._exit(CRASHED)


def in_child(act: Callable[[], object]) -> int:
    """Run something in a fork of this process; returns its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:  # noqa: BLE001  (the child's last words)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_once(folder: Path, number: int, mode: TaskMode, isolation: IsolationKind) -> str | None:
    """Crash before an effect, and go on; returns what is wrong, None when there is no such effect."""
    place = Place(folder, mode, isolation)
    told, ended = folder / "told", folder / "ended"
    tempfile.tempdir = str(place.temporary)

    def crash() -> None:
        file = os.open(folder / "told", os.O_WRONLY | os.O_CREAT)
        fuse = Fuse(number, lambda text: os.write(file, text.encode()))
        anyio.run(place.carry_on, fuse.on_fault)

    code = in_child(crash)
    if code != CRASHED:
        return None if code == 0 else "the first run failed by itself"
    states = anyio.run(place.states)
    place.asked()
    code = in_child(lambda: ended.write_text(anyio.run(place.carry_on)))
    again = place.asked()
    how = ended.read_text() if ended.exists() else "it raised"
    wrong = []
    if not how.startswith("accepted"):
        wrong.append(how)
    elif not {each for each in how.split("; ") if SALVAGED not in each} <= USUAL:
        print(f"{number}: {how}")
    if place.files() != place.wanted():
        wrong.append(f"the files are {place.files()}")
    if paid := [name for name, state in states.items() if state in ANSWERED and again[name]]:
        wrong.append(f"done again: {[(name, states[name]) for name in paid]}")
    if left := [each for each in place.leftovers() if not each.startswith(SALVAGED)]:
        wrong.append(f"left over: {left}")
    if wrong:
        return f"before {told.read_text()}: {'; '.join(wrong)}"
    return ""


def main() -> None:
    """Crash at every point, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isolation", choices=("shared", "worktree"), default="shared")
    parser.add_argument("--mode", choices=[mode.value for mode in TaskMode], default="normal")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--points", type=int, default=100_000)
    options = parser.parse_args()
    begun = time.monotonic()
    number, faults = options.first, 0
    crash = partial(crash_once, mode=TaskMode(options.mode), isolation=options.isolation)
    while number < options.first + options.points * options.step:
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            wrong = crash(Path(name), number)
        if wrong is None:
            break
        if wrong:
            faults += 1
            print(f"{number} WRONG: {wrong}", flush=True)
        number += options.step
    points = (number - options.first) // options.step
    print(f"{points} points, {faults} wrong, after {time.monotonic() - begun:.0f} s")
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    main()
