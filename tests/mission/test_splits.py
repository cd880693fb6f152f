"""Whole missions with tasks that their workers split: what is seen of the parts in the end."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from small_missions import ACCEPT, REJECT, repository, run

from orchestra import Turn
from orchestra.opencode.mission.events import MissionEvent, TaskChanged
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.plan import MissionSettings, TaskMode, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, TaskState


def rules(tmp_path: Path, kind: IsolationKind) -> MissionSettings:
    folder = tmp_path.parent / f"{tmp_path.name}-worktrees"
    return MissionSettings(
        retry_delay=0,
        todo_file=None,
        isolation=Isolation(kind=kind, folder=folder),
        allow=(("test", "*"),),
    )


SPLIT = TaskSpec(
    id="p",
    title="p",
    files=("a", "b"),
    mode=TaskMode.FRACTAL,
    acceptance=(("test", "-e", "b"),),
)
PARTS = json.dumps({"split": [{"id": name, "title": name, "files": [name]} for name in ("a", "b")]})


@pytest.mark.parametrize("kind", ["shared", "worktree"])
async def test_the_whole_of_a_split_task_is_reviewed(kind: IsolationKind, tmp_path: Path) -> None:
    """The reviewer of a split task sees what all its parts have changed, and nothing of others."""
    (tmp_path / "a").write_text("old a\n")
    (tmp_path / "other").write_text("old other\n")
    repository(tmp_path)
    shown: dict[str, str] = {}

    async def worker(turn: Turn) -> str:
        spec = read_task(turn.prompt)
        if spec.id == "p":
            return PARTS
        (turn.directory / spec.files[0]).write_text(f"new {spec.files[0]}\n")
        return f"{spec.id} is done"

    async def reviewer(turn: Turn) -> str:
        shown[turn.metadata["task"]] = turn.prompt
        return ACCEPT

    other = TaskSpec(id="other", title="other", files=("other",))
    report = await run(
        tmp_path, worker, SPLIT, other, settings=rules(tmp_path, kind), reviewer=reviewer
    )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert report.warnings == ()
    parent, _, *parts = report.tasks
    assert [(each.state, each.rounds) for each in parts] == [(TaskState.ACCEPTED, 1)] * 2
    assert (parent.rounds, parent.reasons) == (1, ())
    assert parent.receipt is not None
    assert parent.receipt.changed == ("a", "b")
    for line in ("changed: a, b", "succeeded: test -e b", "-old a", "+new a", "+new b"):
        assert line in shown["p"]
    assert "other" not in shown["p"]


@pytest.mark.parametrize("kind", ["shared", "worktree"])
async def test_a_split_task_that_is_sent_back(kind: IsolationKind, tmp_path: Path) -> None:
    """Its worker puts right what the parts have left, and the reviewer sees all of it together."""
    (tmp_path / "a").write_text("old a\n")
    repository(tmp_path)
    shown: list[str] = []

    async def worker(turn: Turn) -> str:
        spec = read_task(turn.prompt)
        if spec.id == "p" and "<reasons>" not in turn.prompt:
            return PARTS
        if spec.id == "p":
            assert (turn.directory / "b").read_text() == "new b\n"
            (turn.directory / "a").write_text("better a\n")
        else:
            (turn.directory / spec.files[0]).write_text(f"new {spec.files[0]}\n")
        return f"{spec.id} is done"

    async def reviewer(turn: Turn) -> str:
        if turn.metadata["task"] != "p":
            return ACCEPT
        shown.append(turn.prompt)
        return ACCEPT if len(shown) == 2 else REJECT

    report = await run(tmp_path, worker, SPLIT, settings=rules(tmp_path, kind), reviewer=reviewer)
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert report.warnings == ()
    assert report.tasks[0].rounds == 2
    assert (tmp_path / "a").read_text() == "better a\n"
    for line in ("changed: a, b", "-old a", "+better a", "+new b"):
        assert line in shown[1]
    assert "+new a" not in shown[1]


async def test_parts_are_merged_in_plan_order(tmp_path: Path) -> None:
    """What comes after a split task in the plan waits for its parts, which were not known before."""
    repository(tmp_path)
    begun, done, merging = anyio.Event(), anyio.Event(), anyio.Event()
    accepted: list[str] = []

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged) and event.state is TaskState.MERGING:
            merging.set()
        elif isinstance(event, TaskChanged) and event.state is TaskState.ACCEPTED:
            accepted.append(event.task_id)

    async def worker(turn: Turn) -> str:
        spec = read_task(turn.prompt)
        if spec.id == "p":
            begun.set()
            await done.wait()
            return PARTS
        if spec.id == "last":
            await begun.wait()
            done.set()
        else:
            await merging.wait()
        (turn.directory / spec.files[0]).write_text(spec.id)
        return "done"

    last = TaskSpec(id="last", title="last", files=("last",))
    settings = rules(tmp_path, "worktree")
    report = await run(tmp_path, worker, SPLIT, last, settings=settings, listener=listen)
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert accepted.index("last") > max(accepted.index("p.a"), accepted.index("p.b"))
