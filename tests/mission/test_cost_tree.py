"""The tree of costs in the report: all that was told is in it once, and every sum is inclusive."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import anyio

from orchestra import EmbeddedBackend, Turn
from orchestra.events import Usage
from orchestra.opencode import run_mission
from orchestra.opencode.mission.plan import MissionSettings
from orchestra.opencode.mission.report import CostNode, MissionOutcome, TaskState

PLANNED = json.dumps(
    {
        "tasks": [
            {"id": "race", "title": "race", "files": ["r.txt"], "mode": "race", "racers": 3},
            {"id": "split", "title": "split", "files": ["x.txt", "y.txt"], "mode": "fractal"},
            {"id": "plain", "title": "plain", "files": ["p.txt"]},
        ]
    }
)
SPLIT = json.dumps(
    {"split": [{"id": name, "title": name, "files": [f"{name}.txt"]} for name in "xy"]}
)
FILES = {"race": "r.txt", "plain": "p.txt", "split.x": "x.txt", "split.y": "y.txt"}
STEP = 7


def check_sums(node: CostNode) -> int:
    """Return how many nodes there are, each with what it and its parts have cost."""
    assert node.tokens == node.own_tokens + sum(part.tokens for part in node.parts)
    return 1 + sum(map(check_sums, node.parts))


async def test_every_turn_is_in_the_tree_once(tmp_path: Path) -> None:  # noqa: C901, PLR0915
    """Races with their cancelled racers, parts, failures, rejections, reviewers, and the planner."""
    told: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    racing: set[str] = set()
    all_race = anyio.Event()

    async def spend(turn: Turn, steps: int) -> None:
        for _ in range(steps):
            told[turn.metadata["task"] or turn.agent.name] += STEP
            await turn.usage(Usage(output_tokens=STEP))

    async def lead(turn: Turn) -> str:
        await spend(turn, 1)
        return PLANNED if turn.agent.name == "planner" else "Do it."

    async def worker(turn: Turn) -> str:
        name = turn.metadata["task"]
        turns[name] += 1
        if name.startswith("race#"):  # the first is quick, the others are cut off after a while
            await spend(turn, int(name[-1]))
            racing.add(name)
            if len(racing) == 3:
                all_race.set()
            await all_race.wait()
            if name != "race#1":
                await anyio.sleep_forever()
        else:
            await spend(turn, 3)
        if name == "split" and turns[name] == 1:
            return SPLIT
        if name == "plain" and turns[name] == 1:
            raise OSError("the model is away")
        (turn.directory / FILES.get(name.partition("#")[0], "x.txt")).write_text(name)
        return "did it"

    async def reviewer(turn: Turn) -> str:
        name = f"review of {turn.metadata['task']}"
        turns[name] += 1
        await spend(turn, 2)
        is_bad = name == "review of plain" and turns[name] == 1
        return json.dumps({"verdict": "reject" if is_bad else "accept", "reasons": ["no"]})

    with anyio.fail_after(60):
        report = await run_mission(
            "the goal",
            backend=EmbeddedBackend(
                {"commander": lead, "planner": lead, "worker": worker, "reviewer": reviewer}
            ),
            directory=tmp_path,
            settings=MissionSettings(todo_file=None, retry_delay=0),
        )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    states = {task.id: task.state for task in report.tasks}
    assert states["race#2"] is states["race#3"] is TaskState.CANCELLED
    assert turns["plain"] == 3
    assert turns["review of plain"] == 2
    costs = report.costs
    assert costs is not None
    assert check_sums(costs) > 12
    assert costs.tokens == sum(told.values()) == report.usage.output_tokens
    parts = {part.name: part for part in costs.parts}
    assert set(parts) == {"commander", "planner", "task race", "task split", "task plain"}
    racers = {part.name: part.tokens for part in parts["task race"].parts}
    assert racers == {f"task race~{number}": told[f"race#{number}"] for number in (1, 2, 3)}
    # The first was also reviewed, in two steps.
    assert [told[f"race#{number}"] // STEP for number in (1, 2, 3)] == [3, 2, 3]
    inside = {part.name: part.tokens for part in parts["task split"].parts}
    assert inside["task split.x"] == told["split.x"]
    assert parts["task split"].tokens == sum(told[name] for name in ("split", "split.x", "split.y"))
    assert parts["task plain"].tokens == told["plain"]
    # A task's own usage in the report is that of its turns which came to an end.
    for task in report.tasks:
        if task.state is TaskState.ACCEPTED:
            assert task.usage.output_tokens == told.get(task.id, 0)
