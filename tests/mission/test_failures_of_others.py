"""Failures that users of other orchestrators met, reproduced against ours: missions and processes.

Each test names its thread and the mechanism; ``tests/opencode/test_failures_of_others.py`` has those
of talking with a server, and says where the others are. The store's are proved with resuming, in
``test_resume.py``: ``test_a_crash_after_any_write`` (langgraph#8039: a task's result and the
mission's state are one commit, so neither order of a crash can part them), and
``test_the_history_grows_with_the_changes`` (sdk-python#1890).
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

import orchestra
from orchestra import ConcurrencyController, EmbeddedBackend, MemoryStore, Transaction, Turn
from orchestra.events import TodoChanged, TodoItem
from orchestra.opencode import (
    LoopLimits,
    Mission,
    MissionOutcome,
    MissionSettings,
    Plan,
    TaskMode,
    TaskSpec,
    TaskState,
    read_task,
    run_mission,
)

SCRIPT = Path(sys.executable).with_name("orchestra")
SOURCE = Path(orchestra.__file__).parent
SETTINGS = MissionSettings(todo_file=None, retry_delay=0.0, has_evidence=False)
ACCEPT = '{"verdict": "accept"}'

# --- processes ---

MISSION = """
goal = "do it"
workspace.directory = "work"
acceptance.commands = [["cat"]]
[[tasks]]
id = "t1"
title = "The task"
[agents.worker]
command = ["sh", "-c", "test -e ../tried || { touch ../tried; exit 3; }; cat > /dev/null; echo done"]
[agents.reviewer]
command = ["sh", "-c", "cat > /dev/null; echo '{\\"verdict\\": \\"accept\\"}'"]
"""


def test_nobody_waits_for_an_inherited_input_and_a_mended_step_is_no_failure(
    tmp_path: Path,
) -> None:
    """opencode#38723, opencode#50062: our input never ends, a turn fails once, and exit is 0.

    The worker, the reviewer and the acceptance command all read their input to its end while that
    of the whole program stays open and silent.
    """
    (tmp_path / "work").mkdir()
    path = tmp_path / "mission.toml"
    path.write_text(MISSION, encoding="utf-8")
    never, keep = os.pipe()
    try:
        done = subprocess.run(
            [SCRIPT, "run", path, "--json"],
            stdin=never,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(never)
        os.close(keep)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "accepted"
    assert (tmp_path / "tried").exists()
    assert report["statistics"]["retries"] == 1


STARTERS = {"Popen", "open_process", "run_process", "create_subprocess_exec", "run"}


def test_every_process_is_started_with_an_input_of_its_own() -> None:
    """opencode#38723: no call in the package that starts a process leaves its input to chance."""
    found = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            home = node.func.value
            is_ours = isinstance(home, ast.Name) and home.id in {"subprocess", "anyio", "asyncio"}
            is_loop = node.func.attr == "run" and getattr(home, "id", "") != "subprocess"
            if is_ours and node.func.attr in STARTERS and not is_loop:
                found += 1
                named = {keyword.arg for keyword in node.keywords}
                assert named & {"stdin", "input"}, f"{path}:{node.lineno}"
    assert found >= 2


# --- slots ---


async def test_nested_work_under_one_slot(tmp_path: Path) -> None:
    """pydantic-ai#7002: whoever waits for its parts holds no slot of the limiter that they need."""

    async def worker(turn: Turn) -> str:
        task = read_task(turn.prompt)
        if '{"split"' in turn.prompt:
            parts = [{"id": name, "title": name, "files": [name]} for name in task.files]
            return json.dumps({"split": parts})
        for name in task.files:
            await anyio.Path(turn.directory / name).write_text(task.id)
        return "done"

    plan = Plan(
        (
            TaskSpec(id="split", title="s", files=("a", "b", "c"), mode=TaskMode.FRACTAL),
            TaskSpec(id="race", title="r", files=("d",), mode=TaskMode.RACE, racers=3),
            TaskSpec(id="last", title="l", files=("e",), depends=("split", "race")),
        )
    )
    one = evolve(SETTINGS, limits=dict.fromkeys(("commander", "planner", "worker", "reviewer"), 1))
    async with EmbeddedBackend({"worker": worker, "reviewer": lambda _: ACCEPT}) as backend:
        with anyio.fail_after(30):
            report = await run_mission(
                "all", backend=backend, directory=tmp_path, plan=plan, settings=one
            )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason


async def test_a_shared_limiter_inside_a_transaction_that_runs_again() -> None:
    """pydantic-ai#7002: code that is run again after a conflict gets its one slot again."""
    controller = ConcurrencyController({"model": 1})
    runs = 0

    async def add(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        count = await tx.get("n", 0)
        async with controller.lease("model"):
            await anyio.lowlevel.checkpoint()
        tx.put("n", count + 1)

    async with MemoryStore() as store:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(store.transact, add)
        assert await store.get("n") == 5
    assert runs > 5, "no transaction ran again, so this proves nothing"
    assert controller.statistics("model").in_use == 0


# --- lists of agents ---


async def test_a_generic_list_of_an_agent_does_not_replace_the_plan(tmp_path: Path) -> None:
    """omo#3833: what an agent lists after it has forgotten the plan changes no line of the plan."""
    generic = [TodoItem(text="Explore the code", status="pending")]
    files = ("a.txt", "b.txt")

    async def worker(turn: Turn) -> str:
        # As after a compaction: a bootstrap list of its own, in its session and in the file.
        await turn._record.tell(TodoChanged(session_id=turn.session_id, items=tuple(generic)))
        todo = anyio.Path(turn.directory / "TODO.md")
        if await todo.exists():
            await todo.write_text("- [ ] Explore the code\n")
        await anyio.Path(turn.directory / read_task(turn.prompt).files[0]).write_text("done")
        return "done"

    plan = Plan(tuple(TaskSpec(id=name[0], title=f"Write {name}", files=(name,)) for name in files))
    settings = evolve(SETTINGS, todo_file="TODO.md")
    async with EmbeddedBackend({"worker": worker, "reviewer": lambda _: ACCEPT}) as backend:
        with anyio.fail_after(30):
            report = await run_mission(
                "write both", backend=backend, directory=tmp_path, plan=plan, settings=settings
            )
    assert report.outcome is MissionOutcome.ACCEPTED
    assert [(task.id, task.state) for task in report.tasks] == [
        ("a", TaskState.ACCEPTED),
        ("b", TaskState.ACCEPTED),
    ]
    text = (tmp_path / "TODO.md").read_text()
    assert "- [x] a: Write a.txt" in text
    assert "- [x] b: Write b.txt" in text


# --- the journal ---


@pytest.mark.parametrize("reason", ["short", "a long reason " * 70], ids=["short", "long"])
async def test_each_round_of_a_task_costs_the_same(tmp_path: Path, reason: str) -> None:
    """sdk-python#1890: twice as many rounds write at most twice as much, whatever was said before."""
    sizes = []
    for rounds in (10, 20):
        reviews = 0

        def review(turn: Turn) -> str:
            nonlocal reviews
            reviews += 1
            return json.dumps({"verdict": "reject", "reasons": [f"{reason} {reviews}"]})

        settings = evolve(SETTINGS, loop=LoopLimits(rounds=rounds, stagnation=rounds))
        plan = Plan((TaskSpec(id="t", title="t", instructions="x" * 5_000),))
        async with (
            MemoryStore() as store,
            EmbeddedBackend({"worker": lambda _: "done", "reviewer": review}) as backend,
        ):
            with anyio.fail_after(30):
                async with Mission(
                    "go",
                    backend=backend,
                    directory=tmp_path,
                    plan=plan,
                    settings=settings,
                    store=store,
                ) as mission:
                    report = await mission.wait_finished()
            assert report.tasks[0].rounds == rounds
            space = store.namespace(mission.id)
            written = 0
            for record in await space.journal():
                async with space.snapshot(record.revision) as snap:
                    for change in record.changes:
                        written += len(json.dumps(await snap.get(change.key)))
            sizes.append(written)
    assert sizes[1] < 2.3 * sizes[0], sizes
