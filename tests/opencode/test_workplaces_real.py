"""Workers that get into each other's way, on the real server: conflicts, races, late writes."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from small_missions import ACCEPT, REJECT, repository, task

from orchestra.opencode import (
    Mission,
    MissionOutcome,
    MissionSettings,
    Plan,
    TaskSpec,
    TaskState,
    read_task,
)
from orchestra.opencode.mission.events import MissionEvent, TaskChanged
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.plan import LoopLimits, TaskMode
from orchestra.testing import Hang, ModelRequest, Step, ToolCall

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

pytestmark = [
    pytest.mark.real_server,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

Script = Callable[[ModelRequest], Step | Awaitable[Step]]


def shell(command: str) -> ToolCall:
    return ToolCall("bash", {"command": command, "description": "Work"})


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread, or another process, brings about."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  (it can set no event here)
            await anyio.sleep(0.02)


async def abort(server: RealServer, session_id: str) -> None:
    """Abort a session, as somebody at the terminal does."""
    auth = ("opencode", server.password)
    async with httpx2.AsyncClient(base_url=server.url, auth=auth, trust_env=False) as client:
        (await client.post(f"/session/{session_id}/abort")).raise_for_status()


@contextmanager
def scripted(server: RealServer, worker: Script, reviewer: Script) -> Iterator[None]:
    server.scripts["worker"], server.scripts["reviewer"] = worker, reviewer  # type: ignore[assignment]  # awaited too
    try:
        yield
    finally:
        del server.scripts["worker"], server.scripts["reviewer"]


@asynccontextmanager
async def mission_of(
    server: RealServer,
    root: Path,
    *tasks: TaskSpec,
    kind: IsolationKind = "shared",
    listener: Callable[[MissionEvent], object] | None = None,
    rounds: int = 5,
) -> AsyncIterator[Mission]:
    settings = MissionSettings(
        retry_delay=0,
        todo_file=None,
        loop=LoopLimits(rounds=rounds),
        isolation=Isolation(kind=kind, folder=root.parent / f"{root.name}-worktrees"),
    )
    with anyio.fail_after(100):
        async with Mission(
            "the goal",
            backend=server.backend(),
            directory=root,
            plan=Plan(tasks),
            settings=settings,
            listener=listener,
        ) as mission:
            yield mission


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words],  # noqa: S607
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


async def test_a_conflict_is_settled_by_its_worker(real_server: RealServer, tmp_path: Path) -> None:
    """Two worktrees in conflict: one is told of it, brings both together, and both are accepted."""
    repository(tmp_path)
    written: set[str] = set()
    told: list[str] = []

    async def worker(request: ModelRequest) -> Step:
        name = read_task(request.prompt).id
        if "<reasons>" in request.prompt:
            told.append(request.prompt)
            return "Both are in." if request.step else shell("printf 'one\\ntwo\\n' > list")
        if not request.step:
            return shell(f"echo {name} > list; echo {name} > only-{name}")
        written.add(name)
        await until(lambda: len(written) == 2)
        return "Written."

    with scripted(real_server, worker, lambda _: ACCEPT):
        async with mission_of(
            real_server, tmp_path, task("one"), task("two"), kind="worktree"
        ) as mission:
            report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert [(each.state, each.rounds) for each in report.tasks] == [
        (TaskState.ACCEPTED, 1),
        (TaskState.ACCEPTED, 2),
    ]
    assert "conflicts with what was accepted meanwhile in list" in told[0]
    for line in ("+\\u003c\\u003c\\u003c\\u003c", "one", "+two"):
        assert line in told[0]
    names = ("list", "only-one", "only-two")
    assert [(tmp_path / name).read_text() for name in names] == ["one\ntwo\n", "one\n", "two\n"]
    assert report.warnings == ()
    assert git(tmp_path, "worktree", "list").count("\n") == 1


async def test_work_that_is_not_taken_over_is_saved(
    real_server: RealServer, tmp_path: Path
) -> None:
    """Of a task that has failed, and of one that is cancelled, a branch holds what was not committed."""
    (tmp_path / "file").write_text("old\n")
    repository(tmp_path)
    working: set[str] = set()
    failed = anyio.Event()

    def worker(request: ModelRequest) -> Step:
        name = read_task(request.prompt).id
        if not request.step:
            return shell(f"echo {name} > file; echo {name} > untracked")
        working.add(name)
        return "Written." if name == "refused" else Hang(times=None)

    async def reviewer(_request: ModelRequest) -> Step:
        await until(lambda: len(working) == 2)
        return REJECT

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TaskChanged) and event.state is TaskState.FAILED:
            failed.set()

    with scripted(real_server, worker, reviewer):
        async with mission_of(
            real_server,
            tmp_path,
            task("refused"),
            task("stopped"),
            kind="worktree",
            rounds=1,
            listener=listen,
        ) as mission:
            await failed.wait()
            quiescence = await mission.cancel("enough")
    assert quiescence.is_quiet
    for name in ("refused", "stopped"):
        branch = f"orchestra/salvage/{mission.id}/{name}"
        for file in ("file", "untracked"):
            assert git(tmp_path, "show", f"{branch}:{file}") == f"{name}\n"
    assert (tmp_path / "file").read_text() == "old\n"
    assert not (tmp_path / "untracked").exists()
    assert git(tmp_path, "worktree", "list").count("\n") == 1


async def test_the_first_accepted_one_wins_the_race(
    real_server: RealServer, tmp_path: Path
) -> None:
    """Not the one that is done first: that is refused by the gates. Those who lose are aborted."""
    (tmp_path / "a.py").write_text("x = 0\n")
    done: list[str] = []
    places: dict[str, str] = {}
    hanging: set[str] = set()

    async def worker(request: ModelRequest) -> Step:
        name = read_task(request.prompt).id
        if "<reasons>" in request.prompt:
            hanging.add(name)
            return Hang(times=None)
        if not request.step:
            code = "x = (" if name == "t#1" else f"x = {name[-1]}"
            return shell(f"echo '{code}' > a.py; touch stray; pwd")
        places[name] = str(request.messages[-1]["content"]).strip()
        if name == "t#2":
            await until(lambda: hanging)
        done.append(name)
        return "Written."

    async def reviewer(request: ModelRequest) -> Step:
        assert read_task(request.prompt).id == "t#2"
        return ACCEPT

    race = task("t", "a.py", mode=TaskMode.RACE, racers=2)
    with scripted(real_server, worker, reviewer):
        async with mission_of(real_server, tmp_path, race) as mission:
            report = await mission.wait_finished()
            quiescence = await mission.cancel()
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert done == ["t#1", "t#2"]
    states = {each.id: each.state for each in report.tasks}
    assert states == {
        "t": TaskState.ACCEPTED,
        "t#1": TaskState.CANCELLED,
        "t#2": TaskState.ACCEPTED,
    }
    assert "does not parse" in report.tasks[1].reasons[0]
    assert quiescence.is_quiet
    assert quiescence.sessions >= 3
    assert (tmp_path / "a.py").read_text() == "x = 2\n"
    assert not (tmp_path / "stray").exists()
    assert len(set(places.values())) == 2
    assert not any(Path(place).exists() for place in places.values())  # noqa: ASYNC240


@pytest.mark.parametrize("kind", ["shared", "worktree"])
async def test_a_worker_that_wakes_after_its_lease_moved(
    real_server: RealServer,
    tmp_path: Path,
    kind: IsolationKind,
) -> None:
    """What it then writes is put aside and told; what the second attempt left is accepted."""
    (tmp_path / "a").write_text("old\n")
    if kind == "worktree":
        repository(tmp_path)
    wake = tmp_path.parent / f"{tmp_path.name}-wake"
    sessions: Counter[str] = Counter()
    places: list[Path] = []

    async def worker(request: ModelRequest) -> Step:
        sessions[request.session_id] += 1
        if len(sessions) == 1 and not request.step:
            # A process of its own, which the end of the session does not reach.
            asleep = f"while ! test -e {wake}; do sleep 0.02; done; echo late > a; touch {wake}d"
            return shell(f"setsid sh -c '{asleep}' </dev/null >/dev/null 2>&1 &")
        if len(sessions) == 1:
            await abort(real_server, request.session_id)
            return Hang(times=None)
        if not request.step:
            return shell("echo good > a; pwd")
        places.append(Path(str(request.messages[-1]["content"]).strip()))
        return "Written."

    async def reviewer(_request: ModelRequest) -> Step:
        wake.touch()
        await until(Path(f"{wake}d").exists)
        assert (places[0] / "a").read_text() == "late\n"
        return ACCEPT

    with scripted(real_server, worker, reviewer):
        async with mission_of(real_server, tmp_path, task("t", "a"), kind=kind) as mission:
            report = await mission.wait_finished()
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert len(sessions) == 2
    assert (tmp_path / "a").read_text() == "good\n"
    late = [path for path in (tmp_path / ".orchestra/quarantine").rglob("a") if path.is_file()]
    assert [path.read_text() for path in late] == ["late\n"]
    assert any("quarantine" in warning for warning in report.warnings)
