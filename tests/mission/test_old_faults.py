"""What was wrong before a task began is not its fault, wherever it works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_missions import ACCEPT, repository, run, task

from orchestra import Turn
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.plan import GateSettings, MissionSettings, TaskMode
from orchestra.opencode.mission.report import MissionOutcome

RUFF = str(Path(sys.executable).with_name("ruff"))
KEY = "AKIA" + "A1B2" * 4
OLD = {
    "broken.json": "{,}\n",
    "secret.txt": f"key = {KEY}\n",
    "names.py": "old_name()\n",
}


@pytest.mark.parametrize(
    ("kind", "mode", "is_repository", "is_new"),
    [
        ("shared", TaskMode.NORMAL, False, False),
        ("worktree", TaskMode.NORMAL, True, False),
        ("worktree", TaskMode.NORMAL, True, True),
        ("shared", TaskMode.RACE, True, False),
        ("shared", TaskMode.RACE, False, False),
        ("shared", TaskMode.RACE, False, True),
    ],
)
async def test_old_faults_are_not_new_ones(
    kind: IsolationKind,
    mode: TaskMode,
    is_repository: bool,  # noqa: FBT001  (a parameter)
    is_new: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    """Broken files, secrets and errors that were there are told to the reviewer; new ones refused."""
    below = tmp_path / "package"
    below.mkdir()
    if not is_new:
        for name, text in OLD.items():
            (below / name).write_text(text)
    (tmp_path / "README").write_text("")
    if is_repository:
        repository(tmp_path)
    shown: list[str] = []

    async def worker(turn: Turn) -> str:
        for name, text in OLD.items():
            (turn.directory / name).write_text(f"{text}\n")
        return "done"

    async def reviewer(turn: Turn) -> str:
        shown.append(turn.prompt)
        return ACCEPT

    settings = MissionSettings(
        retry_delay=0,
        todo_file=None,
        gates=GateSettings(diagnostics={".py": (RUFF, "server")}),
        isolation=Isolation(kind=kind, folder=tmp_path.parent / f"{tmp_path.name}-worktrees"),
    )
    report = await run(
        below, worker, task("t", *OLD, mode=mode), settings=settings, reviewer=reviewer
    )
    if is_new:
        assert report.outcome is MissionOutcome.FAILED
        assert shown == []
    else:
        assert report.outcome is MissionOutcome.ACCEPTED, report.reason
        assert "look at secret.txt:1: it looks like an AWS access key" in shown[0]
        assert "look at broken.json:1: it does not parse" in shown[0]
