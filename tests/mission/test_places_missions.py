"""Whole missions whose workers get into each other's way."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from small_missions import ACCEPT, REJECT, accept, repository, run, task

from orchestra import Turn
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings, TaskMode
from orchestra.opencode.mission.report import MissionOutcome, TaskState


async def test_two_workers_told_to_edit_the_same_file(tmp_path: Path) -> None:
    """The plan is serialised: both edits are made, one after the other, and both are accepted."""
    (tmp_path / "shared").write_text("")
    working: set[str] = set()

    async def worker(turn: Turn) -> str:
        name = read_task(turn.prompt).id
        assert not working
        working.add(name)
        before = (turn.directory / "shared").read_text()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        (turn.directory / "shared").write_text(f"{before}{name}\n")
        working.remove(name)
        return "done"

    report = await run(tmp_path, worker, *(task(name, "shared", "./own") for name in "abc"))
    assert report.outcome is MissionOutcome.ACCEPTED
    assert (tmp_path / "shared").read_text() == "a\nb\nc\n"
    assert report.warnings == ()


@pytest.mark.parametrize("declared", [("src/m.py", "./src/m.py"), ("src", "src/m.py")])
async def test_two_names_of_one_file(declared: tuple[str, str], tmp_path: Path) -> None:
    """A file is one file, however a plan spells it, and a folder holds its files."""
    working = 0

    async def worker(turn: Turn) -> str:
        nonlocal working
        assert working == 0
        working += 1
        await anyio.lowlevel.checkpoint()
        path = turn.directory / "src" / "m.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {read_task(turn.prompt).id}\n")
        working -= 1
        return "done"

    report = await run(tmp_path, worker, *(task(str(n), f) for n, f in enumerate(declared)))
    assert report.outcome is MissionOutcome.ACCEPTED


async def test_a_worker_that_edits_anothers_file(tmp_path: Path) -> None:
    """Who was not told to edit a file cannot: it is put back, shown, and the holder's stands."""
    both = anyio.Event()
    present: list[str] = []

    async def worker(turn: Turn) -> str:
        spec = read_task(turn.prompt)
        (turn.directory / spec.files[0]).write_text(spec.id)
        present.append(spec.id)
        if len(present) == 2:
            both.set()
        await both.wait()
        if spec.id == "thief":
            (turn.directory / "extra").write_text("not mine")
            await turn.tool_call("write", {"filePath": "extra"})
        return "done"

    report = await run(tmp_path, worker, task("thief", "a"), task("honest", "b"))
    assert report.outcome is MissionOutcome.ACCEPTED
    receipts = {each.id: each.receipt for each in report.tasks}
    assert receipts["thief"] is not None
    assert receipts["honest"] is not None
    assert (receipts["thief"].strays, receipts["honest"].strays) == (("extra",), ())
    assert not (tmp_path / "extra").exists()
    assert (tmp_path / ".orchestra/quarantine/thief/extra").read_text() == "not mine"
    assert any("'thief' changed extra without a lease" in text for text in report.warnings)


async def test_a_paused_worker_that_wakes_after_its_lease_moved(tmp_path: Path) -> None:
    """Its late write is put back: what was checked is what is accepted, and what is there."""
    asleep, wake = anyio.Event(), anyio.Event()
    woke = anyio.Event()
    rounds = 0

    async def sleeper() -> None:
        await wake.wait()
        (tmp_path / "a").write_text("late")
        woke.set()

    async def worker(turn: Turn) -> str:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            group.start_soon(sleeper)  # a thread, or a process, that no abort reaches
            asleep.set()
            await anyio.sleep_forever()
        (turn.directory / "a").write_text("good")
        return "done"

    async def reviewer(turn: Turn) -> str:
        wake.set()
        await woke.wait()
        return ACCEPT

    rules = MissionSettings(retry_delay=0, todo_file=None, turn_timeout=0.1)
    async with anyio.create_task_group() as group:
        report = await run(tmp_path, worker, task("t", "a"), settings=rules, reviewer=reviewer)
    assert rounds == 2
    assert report.outcome is MissionOutcome.ACCEPTED
    assert (tmp_path / "a").read_text() == "good"
    quarantined = [path for path in (tmp_path / ".orchestra/quarantine").rglob("a")]  # noqa: C416
    assert [path.read_text() for path in quarantined] == ["late"]


@pytest.mark.parametrize("is_repository", [True, False])
async def test_a_race(is_repository: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Each racer has a copy; the first accepted one's change is taken over, the others' is not."""
    (tmp_path / "a").write_text("start")
    if is_repository:
        repository(tmp_path)
    seen: dict[str, Path] = {}
    ready = anyio.Event()

    async def worker(turn: Turn) -> str:
        name = turn.metadata["task"]
        seen[name] = turn.directory
        assert (turn.directory / "a").read_text() == "start"
        (turn.directory / "a").write_text(name)
        (turn.directory / "stray").write_text(name)
        if len(seen) == 3:
            ready.set()
        await ready.wait()
        if name == "t#1":
            await anyio.sleep_forever()
        return "done"

    async def reviewer(turn: Turn) -> str:
        assert (turn.directory / "a").read_text() == turn.metadata["task"]
        return ACCEPT if turn.metadata["task"] == "t#3" else REJECT

    rules = MissionSettings(
        retry_delay=0,
        todo_file=None,
        loop=LoopLimits(rounds=1),
        isolation=Isolation(folder=tmp_path.parent / f"{tmp_path.name}-worktrees"),
    )
    spec = task("t", "a", mode=TaskMode.RACE, racers=3)
    report = await run(tmp_path, worker, spec, settings=rules, reviewer=reviewer)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert (tmp_path / "a").read_text() == "t#3"
    assert not (tmp_path / "stray").exists()
    assert len(set(seen.values())) == 3
    assert not any(place.exists() for place in seen.values())
    states = {each.id: each.state for each in report.tasks}
    assert states["t#1"] is TaskState.CANCELLED


async def test_a_mission_in_worktrees(tmp_path: Path) -> None:
    """Workers do not see each other's files; in the end everything is in the workspace."""
    (tmp_path / "list").write_text("1\n2\n3\n4\n5\n")
    repository(tmp_path)

    async def worker(turn: Turn) -> str:
        name = read_task(turn.prompt).id
        assert turn.directory != tmp_path
        lines = (turn.directory / "list").read_text().splitlines()
        lines[int(name) * 2] = f"task {name}"
        (turn.directory / "list").write_text("\n".join(lines) + "\n")
        (turn.directory / f"new{name}").write_text(name)
        return "done"

    rules = MissionSettings(
        retry_delay=0,
        todo_file=None,
        isolation=Isolation(kind="worktree", folder=tmp_path.parent / f"{tmp_path.name}-w"),
    )
    report = await run(
        tmp_path, worker, *(task(str(number)) for number in range(3)), settings=rules
    )
    assert report.outcome is MissionOutcome.ACCEPTED
    assert (tmp_path / "list").read_text() == "task 0\n2\ntask 1\n4\ntask 2\n"
    assert [(tmp_path / f"new{number}").read_text() for number in range(3)] == ["0", "1", "2"]
    assert report.warnings == ()


async def test_worktrees_without_a_repository(tmp_path: Path) -> None:
    """A mission that wants worktrees where there is no git ends with a sentence, exit FAILED."""
    rules = MissionSettings(todo_file=None, isolation=Isolation(kind="worktree"))
    report = await run(tmp_path, accept, task("t"), settings=rules)
    assert report.outcome is MissionOutcome.FAILED
    assert "is not in a git repository, so there are no worktrees" in report.reason


async def test_whose_turn_comes_later_gets_no_credit_for_what_others_did(tmp_path: Path) -> None:
    """A task that waited for another's file begins with what that one left, and must do its own."""
    (tmp_path / "shared").write_text("")
    shown: dict[str, str] = {}

    async def worker(turn: Turn) -> str:
        if read_task(turn.prompt).id == "busy":
            (turn.directory / "shared").write_text("busy\n")
        return "done"

    async def reviewer(turn: Turn) -> str:
        shown[turn.metadata["task"]] = turn.prompt
        return ACCEPT

    tasks = [task(name, "shared") for name in ("busy", "idle")]
    report = await run(tmp_path, worker, *tasks, reviewer=reviewer)
    states = {each.id: each.state for each in report.tasks}
    assert states == {"busy": TaskState.ACCEPTED, "idle": TaskState.FAILED}
    assert set(shown) == {"busy"}
