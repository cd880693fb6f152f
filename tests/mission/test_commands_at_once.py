"""Acceptance commands side by side: what they do to each other, and to the change they check."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from small_missions import ACCEPT, repository, run, task

from orchestra import Turn
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.plan import GateSettings, LoopLimits, MissionSettings, TaskMode
from orchestra.opencode.mission.report import MissionOutcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a shell")


def sh(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text)


async def worker(turn: Turn) -> str:
    (turn.directory / "a").write_text("mine\n")
    return "done"


async def test_one_that_hangs_floods_or_leaves_children(tmp_path: Path) -> None:
    """Each comes to its own end, bounded in time and output, and leaves no process behind."""
    pids = tmp_path.parent / f"{tmp_path.name}-pids"
    commands = (
        sh("echo begun; sleep 300"),
        sh("head -c 5000000 /dev/zero | tr '\\0' x"),
        sh(f"sleep 300 & echo $! >> {pids}; echo left it"),
        sh("echo quick"),
    )
    settings = MissionSettings(
        retry_delay=0,
        todo_file=None,
        allow=(("sh", "*"),),
        command_timeout=1.5,
        loop=LoopLimits(rounds=1),
        gates=GateSettings(commands_at_once=4),
    )
    report = await run(tmp_path, worker, task("t", "a", acceptance=commands), settings=settings)
    assert report.outcome is MissionOutcome.FAILED
    hangs, floods, leaves, quick = report.tasks[0].commands
    assert (hangs.exit_code, hangs.error) == (None, "was stopped after 1.5 s")
    assert "begun" in hangs.output
    assert (floods.exit_code, leaves.exit_code, quick.exit_code) == (0, 0, 0)
    assert 1_000 < len(floods.output) < 200_000
    assert (leaves.output, quick.output) == ("left it\n", "quick\n")
    with anyio.fail_after(10):
        for pid in map(int, pids.read_text().split()):
            while _is_alive(pid):  # noqa: ASYNC110  (nobody tells)
                await anyio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("files", [("a",), ()])
@pytest.mark.parametrize(
    ("kind", "mode", "is_repository"),
    [
        ("shared", TaskMode.NORMAL, False),
        ("worktree", TaskMode.NORMAL, True),
        ("shared", TaskMode.RACE, False),
    ],
)
async def test_what_commands_leave_is_nobodys_change(
    kind: IsolationKind,
    mode: TaskMode,
    is_repository: bool,  # noqa: FBT001  (a parameter)
    files: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """New files and edits of others by the commands are not the task's, not told, not refused."""
    for name in ("b", "c"):
        (tmp_path / name).write_text("old\n")
    if is_repository:
        repository(tmp_path)
    shown: list[str] = []

    async def reviewer(turn: Turn) -> str:
        shown.append(turn.prompt)
        return ACCEPT

    settings = MissionSettings(
        retry_delay=0,
        todo_file=None,
        allow=(("sh", "*"),),
        gates=GateSettings(commands_at_once=2),
        isolation=Isolation(kind=kind, folder=tmp_path.parent / f"{tmp_path.name}-worktrees"),
    )
    commands = (
        sh("mkdir -p out; date +%N > out/report; date +%N > log"),
        sh("date +%N > b; rm -f c"),
    )
    report = await run(
        tmp_path,
        worker,
        task("t", *files, mode=mode, acceptance=commands),
        settings=settings,
        reviewer=reviewer,
    )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert report.tasks[0].rounds == 1
    receipt = report.tasks[0].receipt
    assert receipt is not None
    assert (receipt.changed, receipt.strays, receipt.problems) == (("a",), (), ())
    assert "changed: a\\n" in shown[0]
    assert "put back" not in shown[0]
    assert report.warnings == ()
    assert (tmp_path / "a").read_text() == "mine\n"
    assert not (tmp_path / ".orchestra" / "quarantine").exists()
