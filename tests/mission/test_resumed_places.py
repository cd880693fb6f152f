"""Missions that are interrupted between the check and the review, and go on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import anyio
import pytest
from small_missions import ACCEPT, repository, task

from orchestra import EmbeddedBackend, MemoryStore, Turn
from orchestra.opencode.mission.events import MissionEvent, TaskChanged
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskMode
from orchestra.opencode.mission.report import MissionOutcome, TaskState
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import load_mission


class Team:
    """Workers that write their files, and reviewers of whom one is silent the first time."""

    def __init__(self, silent: str) -> None:
        self.turns: Counter[str] = Counter()
        self.shown: dict[str, str] = {}
        self.is_waiting = anyio.Event()
        self.is_a_accepted = anyio.Event()
        self.silent = silent

    def listen(self, event: MissionEvent) -> None:
        is_accepted = isinstance(event, TaskChanged) and event.state is TaskState.ACCEPTED
        if is_accepted and getattr(event, "task_id", "") == "t.a":
            self.is_a_accepted.set()

    @property
    def backend(self) -> EmbeddedBackend:
        return EmbeddedBackend({"worker": self.work, "reviewer": self.review})

    async def work(self, turn: Turn) -> str:
        name = turn.metadata["task"]
        self.turns[name] += 1
        if '{"split"' in turn.prompt:
            parts = [{"id": each, "title": each, "files": [each]} for each in ("a", "b")]
            return json.dumps({"split": parts})
        for path in ("a", "b") if name == "t" else (name[-1],):
            (turn.directory / path).write_text(f"new {path}\n")
        return "done"

    async def review(self, turn: Turn) -> str:
        name = turn.metadata["task"]
        self.shown[name] = turn.prompt
        if name == self.silent:
            self.silent = ""
            if name == "t.b":
                await self.is_a_accepted.wait()
            self.is_waiting.set()
            await anyio.sleep_forever()
        return ACCEPT


@pytest.mark.parametrize("kind", ["shared", "worktree"])
@pytest.mark.parametrize(
    ("mode", "silent"),
    [(TaskMode.NORMAL, "t"), (TaskMode.FRACTAL, "t"), (TaskMode.FRACTAL, "t.b")],
)
async def test_what_was_checked_is_reviewed_and_taken_over(
    tmp_path: Path, kind: IsolationKind, mode: TaskMode, silent: str
) -> None:
    """No worker is asked again, and the reviewer sees the same change, of all parts if there are."""
    (tmp_path / "a").write_text("old a\n")
    repository(tmp_path)
    folder = tmp_path.parent / f"{tmp_path.name}-worktrees"
    team = Team(silent)
    settings = MissionSettings(
        retry_delay=0, todo_file=None, isolation=Isolation(kind=kind, folder=folder)
    )
    plan = Plan([task("t", "a", "b", mode=mode)])
    async with MemoryStore() as store:
        with anyio.fail_after(60):
            async with Mission(
                "the goal",
                backend=team.backend,
                directory=tmp_path,
                plan=plan,
                settings=settings,
                store=store,
                listener=team.listen,
            ) as mission:
                await team.is_waiting.wait()
                mission.stop("enough for today")
                await mission.wait_finished()
            saved = await load_mission(store, mission.id)
            async with Mission(
                saved.goal, backend=team.backend, store=store, saved=saved
            ) as mission:
                report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert set(team.turns.values()) == {1}, team.turns
    assert (tmp_path / "a").read_text() == "new a\n"
    for line in ("changed: a, b", "-old a", "+new a", "+new b"):
        assert line in team.shown["t"]
