"""Done means done: agents that say so and do nothing are refused, in a bounded number of turns."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from orchestra import EmbeddedBackend, Turn
from orchestra.opencode import (
    MissionOutcome,
    MissionReport,
    MissionSettings,
    Plan,
    TaskSpec,
    run_mission,
)
from orchestra.opencode.mission.plan import LoopLimits

ACCEPT = '{"verdict": "accept"}'
QUICK = MissionSettings(retry_delay=0, todo_file=None)
PLAN = json.dumps(
    {
        "tasks": [
            {"id": "a", "title": "A", "files": ["a.py"]},
            {"id": "b", "title": "B", "files": ["b.py"], "acceptance": ["test -e b.py"]},
            {"id": "c", "title": "C", "files": ["c.py"], "depends": ["a"]},
        ]
    }
)


class Team:
    """Agents that say the same, always; a text that is a file name is written before."""

    def __init__(self, **answers: str) -> None:
        self.answers: Mapping[str, str] = {
            "commander": "done",
            "planner": PLAN,
            "worker": "done",
            "reviewer": "done",
            **answers,
        }
        self.turns: Counter[str] = Counter()
        self.prompts: dict[str, list[str]] = {}
        self.is_working = False

    async def run(self, directory: Path, plan: Plan | None = None, **changes: Any) -> MissionReport:
        backend = EmbeddedBackend(dict.fromkeys(self.answers, self.agent))
        settings = evolve(QUICK, allow=(("test", "*"),), **changes)
        with anyio.fail_after(30):
            return await run_mission(
                "do it", backend=backend, directory=directory, plan=plan, settings=settings
            )

    async def agent(self, turn: Turn) -> str:
        role = turn.metadata["role"]
        self.turns[role] += 1
        self.prompts.setdefault(role, []).append(turn.prompt)
        if role == "worker" and self.is_working:
            name = f"{turn.metadata['task']}.py"
            await anyio.Path(turn.directory, name).write_text(f"x = {self.turns[role]}\n")
        return self.answers[role]


async def test_always_done_ends_by_stagnation(tmp_path: Path) -> None:
    """A team that only ever says "done" is refused by the gates, and asked no more than 30 times."""
    team = Team()
    report = await team.run(tmp_path)
    assert report.outcome is MissionOutcome.FAILED
    assert report.reason == (
        "stagnation: plans change nothing any more; 3 of 3 tasks not accepted: a, b, c"
    )
    # Three plans; each of the two tasks that can start: told why, told the facts, another way, end.
    assert team.turns == {"commander": 3, "planner": 3, "worker": 3 * 2 * 4}
    by_id = {task.id: task for task in report.tasks}
    assert by_id["a"].reasons[-1].startswith("stagnation: 4 rounds have changed neither")
    receipt = by_id["b"].receipt
    assert receipt is not None
    assert not receipt.is_passed
    assert receipt.changed == ()
    assert [result.exit_code for result in receipt.commands] == [1]
    assert "did not change" in team.prompts["worker"][2]
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_rounds_bound_it_too(rounds: int, tmp_path: Path) -> None:
    """With a plan that was given, nobody is asked how to go on, and each round is one turn."""
    team = Team()
    plan = Plan([TaskSpec(id="a", title="A", files=("a.py",))])
    report = await team.run(tmp_path, plan, loop=LoopLimits(rounds=rounds))
    assert report.outcome is MissionOutcome.FAILED
    assert team.turns == {"worker": min(rounds, 4)}


async def test_a_yes_man_does_not_help(tmp_path: Path) -> None:
    """A reviewer who accepts everything is not even asked about a change that is none."""
    team = Team(reviewer=ACCEPT)
    assert (await team.run(tmp_path)).outcome is MissionOutcome.FAILED
    assert team.turns["reviewer"] == 0


async def test_done_is_no_verdict(tmp_path: Path) -> None:
    """Real work and a reviewer who says "done": asked again twice for each try, never accepted."""
    team = Team()
    team.is_working = True
    report = await team.run(tmp_path, loop=LoopLimits(iterations=1))
    assert report.outcome is MissionOutcome.FAILED
    assert team.turns == {"commander": 1, "planner": 1, "worker": 2, "reviewer": 2 * 3}
    assert "gave no verdict" in report.tasks[0].reasons[-1]


async def test_done_is_no_plan(tmp_path: Path) -> None:
    """A planner who says "done" is asked again twice; then the mission has failed."""
    team = Team(planner="done")
    report = await team.run(tmp_path)
    assert report.outcome is MissionOutcome.FAILED
    assert team.turns == {"commander": 1, "planner": 3}
    assert report.tasks == ()


async def test_no_message_and_no_tool_call_is_no_success(tmp_path: Path) -> None:
    """An empty turn is refused even where the plan asks for nothing that could be checked.

    code-yeongyu/oh-my-openagent#4642 and deftai/directive#3979 tell of such a success.
    """
    team = Team(worker="", reviewer=ACCEPT)
    plan = Plan([TaskSpec(id="a", title="A")])
    report = await team.run(tmp_path, plan)
    assert report.outcome is MissionOutcome.FAILED
    assert team.turns == {"worker": 4}
    assert "the turn was empty" in report.tasks[0].reasons[0]


async def test_the_end_waits_for_the_last_review(tmp_path: Path) -> None:
    """Nothing is reported before the last turn that decides has ended, and its word counts.

    code-yeongyu/oh-my-openagent#4721 tells of a success that came before the final turn.
    """
    team = Team(reviewer='{"verdict": "reject", "reasons": ["not like this"]}')
    team.is_working = True
    plan = Plan([TaskSpec(id="a", title="A", files=("a.py",))])
    report = await team.run(tmp_path, plan, loop=LoopLimits(rounds=2))
    assert report.outcome is MissionOutcome.FAILED
    assert team.turns == {"worker": 2, "reviewer": 2}
    last = max(report.timeline, key=lambda span: span.ended)
    assert (last.name, last.outcome) == ("reviewer", "rejected")
    assert last.ended <= report.elapsed


async def test_work_is_sealed(tmp_path: Path) -> None:
    """Work that stands has a receipt for each task and one for the whole, of the tree that is left."""
    team = Team(reviewer=ACCEPT)
    team.is_working = True
    report = await team.run(tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert report.receipt is not None
    assert report.evidence is not None
    assert (report.receipt.stage, report.receipt.is_passed) == ("seal", True)
    assert report.receipt.changed == ("a.py", "b.py", "c.py")
    assert [result.argv for result in report.receipt.commands] == [("test", "-e", "b.py")]
    for task in report.tasks:
        assert task.receipt is not None
        assert (task.receipt.stage, task.receipt.is_passed) == ("unit", True)
        assert task.receipt.changed == (f"{task.id}.py",)
    assert all("<evidence>" in prompt for prompt in team.prompts["reviewer"])
    assert any("succeeded: test -e b.py" in prompt for prompt in team.prompts["reviewer"])


async def test_what_changes_under_every_check_is_not_sealed(tmp_path: Path) -> None:
    """A command that writes into a task's file each time it runs: there is no tree to vouch for."""
    team = Team(reviewer=ACCEPT)
    team.is_working = True
    plan = Plan([TaskSpec(id="a", title="A", files=("a.py",))])
    command = ("sh", "-c", "echo '#' >> a.py")
    report = await team.run(tmp_path, plan, acceptance=(command,))
    assert report.outcome is MissionOutcome.FAILED
    assert "something still writes there" in report.reason
    assert report.receipt is not None
    assert (report.receipt.stage, report.receipt.is_passed) == ("integration", False)
