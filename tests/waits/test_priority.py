"""The more urgent task gets what is free, a file or a slot, and the less urgent one its turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from model_backend import ModelBackend, done

from orchestra import Priority
from orchestra.abc import Agent
from orchestra.events import SessionEvent
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, MissionReport
from orchestra.opencode.mission.run import run_mission

RULES = MissionSettings(
    todo_file=None, has_evidence=False, retry_delay=0, limits={"worker": 1, "reviewer": 10}
)


async def play(directory: Path, *tasks: TaskSpec) -> tuple[MissionReport, list[str]]:
    """Run tasks of five seconds each on one slot; return the order in which they were begun."""
    begun: list[str] = []

    async def work(agent: Agent, prompt: str) -> AsyncGenerator[SessionEvent]:
        if agent.name == "worker":
            spec = read_task(prompt)
            begun.append(spec.id)
            await anyio.sleep(5.0)
            for name in spec.files:
                (directory / name).write_text(spec.id)
        for event in done('{"verdict": "accept"}' if agent.name == "reviewer" else "did it"):
            yield event

    report = await run_mission(
        "the goal",
        backend=ModelBackend(work),
        directory=directory,
        plan=Plan(tasks),
        settings=RULES,
    )
    return report, begun


def task(name: str, priority: Priority, *files: str, depends: tuple[str, ...] = ()) -> TaskSpec:
    return TaskSpec(id=name, title=name, priority=priority, files=files, depends=depends)


async def test_a_file_goes_to_the_most_urgent_of_those_who_wait(tmp_path: Path) -> None:
    """Of tasks that wait for one file, the urgent ones go first, whatever their place in the plan."""
    report, begun = await play(
        tmp_path,
        task("first", Priority.LOW, "x.txt"),
        task("low", Priority.LOW, "x.txt"),
        task("normal", Priority.NORMAL, "x.txt"),
        task("high", Priority.HIGH, "x.txt"),
        task("normal2", Priority.NORMAL, "x.txt"),
    )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert begun == ["first", "high", "normal", "normal2", "low"]


@pytest.mark.parametrize("stream", [3, 30])
async def test_a_slot_goes_to_the_most_urgent_and_nobody_starves(
    stream: int, tmp_path: Path
) -> None:
    """Urgent tasks go first, but of however many, at most sixteen pass one that waits."""
    urgent = [task(f"u{number}", Priority.HIGH, depends=("first",)) for number in range(stream)]
    low = task("low", Priority.LOW, depends=("first",))
    report, begun = await play(tmp_path, task("first", Priority.LOW), urgent[0], low, *urgent[1:])
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    place = begun.index("low")
    # Whoever is there first finds the slot free; on trio that may be anybody.
    assert place == 1 or min(stream, 5) <= place <= 1 + 17
