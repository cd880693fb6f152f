"""A mission's state in the store, and TODO.md beside it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve, field, frozen
from hypothesis import example, given
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, MemoryStore, MVCCStore, SQLiteStore, Transaction, Turn
from orchestra.opencode import (
    Mission,
    MissionOutcome,
    MissionReport,
    MissionSettings,
    Plan,
    TaskSpec,
    TaskState,
    run_mission,
)
from orchestra.opencode.mission.ledger import MISSION, PLAN, TASK, Ledger
from orchestra.opencode.mission.orders import Finish, PlanMade, TaskMoved
from orchestra.opencode.mission.todo_outline import ITEM
from orchestra.opencode.mission.todo_text import parse_lines, split_section

PLAN_AB = Plan((TaskSpec(id="a", title="Do it"), TaskSpec(id="b", title="Test it", depends=("a",))))


@pytest.fixture
async def store() -> AsyncIterator[MVCCStore]:
    async with MemoryStore() as found:
        yield found.namespace("mission_1")


@frozen
class Told:
    """A machine that says of each task what it was told to say."""

    states: Mapping[str, TaskState] = field(factory=dict)
    state: TaskState = TaskState.WORKING
    plan: Plan = PLAN_AB

    def record(self) -> dict[str, Any]:
        return {"phase": "tasks"}

    def task_record(self, task_id: str) -> dict[str, Any]:
        return {"state": self.states.get(task_id, self.state).value, "round": 1}

    def evidence_of(self, task_id: str) -> str:
        return f"the change of {task_id}"

    def specs(self) -> tuple[TaskSpec, ...]:
        return self.plan.tasks


def moved(task_id: str, state: TaskState) -> TaskMoved:
    return TaskMoved(task_id=task_id, state=state, round=1)


async def begin(store: MVCCStore, path: Path | None = None, goal: str = "The goal") -> Ledger:
    ledger = Ledger(store, about={"goal": goal}, todo_path=path)
    await ledger.record([], Told())
    await ledger.record(
        [PlanMade(plan=PLAN_AB), moved("a", TaskState.WORKING), moved("b", TaskState.WAITING)],
        Told({"b": TaskState.WAITING}),
    )
    return ledger


async def test_each_step_is_one_commit(store: MVCCStore) -> None:
    """What was decided together is in the store together; deciding nothing writes nothing."""
    ledger = await begin(store)
    assert await store.revision() == 2
    await ledger.record([], Told())
    assert await store.revision() == 2
    await ledger.record([Finish(outcome=MissionOutcome.FAILED, reason="why")], Told())
    records = await store.journal()
    assert [record.author for record in records] == ["mission"] * 3
    keys = [change.key for change in records[1].changes]
    assert PLAN in keys
    assert [key for key in keys if key.startswith(TASK)] == [TASK + "a", TASK + "b"]
    assert (await store.get(MISSION)) == {
        "goal": "The goal",
        "state": "failed",
        "reason": "why",
        "is_over": True,
    }
    assert await store.verify()


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (TaskState.WAITING, "- [ ] a: Do it"),
        (TaskState.READY, "- [ ] a: Do it"),
        (TaskState.WORKING, "- [/] a: Do it"),
        (TaskState.REVIEWING, "- [/] a: Do it"),
        (TaskState.CHECKING, "- [/] a: Do it"),
        (TaskState.ACCEPTED, "- [x] a: Do it"),
        (TaskState.FAILED, "- [-] a: Do it"),
        (TaskState.SKIPPED, "- [-] a: Do it"),
    ],
)
async def test_every_state_has_its_mark(
    store: MVCCStore, tmp_path: Path, state: TaskState, line: str
) -> None:
    """A reader of TODO.md sees how far a task is, and what another one waits for."""
    path = tmp_path / "TODO.md"
    ledger = await begin(store, path)
    await ledger.record([moved("a", state)], Told(state=state))
    await ledger.project()
    lines = path.read_text().splitlines()
    assert lines[1:-1] == ["# The goal", "", line, "- [ ] b: Test it (after a)"]


@given(st.text(), st.text(), st.text())
@example("<!-- orchestra:end -->", "<!-- orchestra:end ---->>", "a\nb")
@example("\ud800", "<!-- orchestra:begin -->\r\n", "\0")
def test_no_text_ends_the_section(goal: str, title: str, name: str) -> None:
    """Whatever goal and tasks are called, the section is read back as what was written."""
    from tempfile import TemporaryDirectory

    async def run(path: Path) -> None:
        async with MemoryStore() as memory:
            ledger = Ledger(memory.namespace("m"), about={"goal": goal}, todo_path=path)
            plan = Plan(
                (TaskSpec(id="x", title=title), TaskSpec(id="y", title=name, depends=("x",)))
            )
            await ledger.record(
                [PlanMade(plan=plan), moved("x", TaskState.READY), moved("y", TaskState.READY)],
                Told(state=TaskState.READY, plan=plan),
            )
            for _ in range(2):
                await ledger.project()
            assert ledger.warnings == []

    with TemporaryDirectory() as directory:
        path = Path(directory, "TODO.md")
        anyio.run(run, path)
        before, inner, _, after = split_section(path.read_bytes().decode())
    assert (before, after) == ("", "\n")
    assert inner is not None
    assert len([line for line in parse_lines(inner) if line.mark is not None]) == 2


async def test_a_tick_by_hand_proves_nothing(store: MVCCStore, tmp_path: Path) -> None:
    """A mark that somebody else set is put right, and told; other edits are taken over."""
    path = tmp_path / "TODO.md"
    ledger = await begin(store, path)
    await ledger.project()
    text = path.read_text().replace("- [/] a: Do it", "- [x] a: Do it well\n- [ ] mine")
    path.write_text(f"before\n{text}after\n")
    await ledger.project()
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "- [/] a: Do it well" in lines
    assert "- [ ] mine" in lines
    (warning,) = ledger.warnings
    assert "somebody marked a as [x]" in warning
    state = TaskState.ACCEPTED
    await ledger.record([moved("a", state)], Told(state=state))
    await ledger.project()
    assert "- [x] a: Do it well" in path.read_text().splitlines()


async def test_an_edit_does_not_undo_a_step_that_is_being_written(
    store: MVCCStore, tmp_path: Path
) -> None:
    """A step that is in the store already counts, although its writer has not been told yet."""
    path = tmp_path / "TODO.md"
    ledger = await begin(store, path)
    await ledger.project()

    async def commit(tx: Transaction) -> None:
        tx.put(TASK + "a", {**await tx.get(TASK + "a"), "state": "accepted"})
        tx.put(ITEM + "a", {**await tx.get(ITEM + "a"), "mark": "x"})

    await store.transact(commit)
    path.write_text(path.read_text().replace("- [ ] b", "- [ ] mine\n- [ ] b"))
    await ledger.project()
    assert {"- [x] a: Do it", "- [ ] mine"} <= set(path.read_text().splitlines())
    assert ledger.warnings == []


async def test_the_section_of_an_earlier_mission_is_replaced(tmp_path: Path) -> None:
    """Lists of earlier missions do not pile up; what stands around them stays."""
    path = tmp_path / "TODO.md"
    path.write_text("# Mine\n- [ ] my own\n")
    async with MemoryStore() as memory:
        for number in range(3):
            ledger = await begin(memory.namespace(f"m{number}"), path, goal=f"Goal {number}")
            await ledger.project()
    text = path.read_text()
    assert text.count("a: Do it") == 1
    assert "# Goal 2" in text
    assert text.endswith("\n\n# Mine\n- [ ] my own\n")


# --- in a mission ---


async def accept(turn: Turn) -> str:
    return '{"verdict": "accept"}'


async def run(directory: Path, store: MVCCStore | None) -> MissionReport:
    async def worker(turn: Turn) -> str:
        return "done"

    return await run_mission(
        "The goal",
        backend=EmbeddedBackend({"worker": worker, "reviewer": accept}),
        directory=directory,
        plan=PLAN_AB,
        settings=MissionSettings(has_evidence=False),
        store=store,
    )


async def test_the_store_tells_what_a_mission_did(tmp_path: Path) -> None:
    """After a mission the file has its plan, its tasks and its end, verified, in its namespace."""
    async with SQLiteStore(tmp_path / "m.db", durability="process") as file:
        first = await run(tmp_path, file)
        second = await run(tmp_path, file)
        assert first.outcome is second.outcome is MissionOutcome.ACCEPTED
        names = [name for name in await file.namespaces() if name.startswith("mission_")]
        assert len(names) == 2
        for name in names:
            space = file.namespace(name)
            assert (await space.get(MISSION))["state"] == "accepted"
            assert [task["id"] for task in await space.get(PLAN)] == ["a", "b"]
            history = [entry.value["state"] for entry in await space.history(TASK + "b") if entry]
            assert history[0] == "waiting"
            assert history[-1] == "accepted"
            assert await space.verify()


async def test_a_mission_whose_state_cannot_be_written_ends(tmp_path: Path) -> None:
    """Nothing is done that could not be written down; the report says why."""
    plan = Plan(TaskSpec(id=f"t{number}", title="t") for number in range(50))

    async with SQLiteStore(tmp_path / "m.db", durability="process") as file:

        def fill() -> None:
            sql = file._engine._write.sql  # type: ignore[attr-defined]
            (pages,) = sql.execute("PRAGMA page_count").fetchone()
            sql.execute(f"PRAGMA max_page_count = {pages}")

        async def worker(turn: Turn) -> str:
            await file._engine._on_writer(fill)  # type: ignore[attr-defined]
            return os.urandom(1_000).hex()

        with anyio.fail_after(20):
            found = await run_mission(
                "The goal",
                backend=EmbeddedBackend({"worker": worker, "reviewer": accept}),
                directory=tmp_path,
                plan=plan,
                settings=MissionSettings(has_evidence=False, todo_file=None),
                store=file,
            )
    assert found.outcome is MissionOutcome.FAILED
    assert "the mission's state cannot be written: " in found.reason
    assert "there is no room" in found.reason


async def test_a_mission_that_cannot_write_at_all_ends_at_once(tmp_path: Path) -> None:
    """A store that fails from the start is a report too, and no agent is asked."""
    async with SQLiteStore(tmp_path / "m.db") as file:
        pass
    async with SQLiteStore(tmp_path / "m.db", read_only=True) as file:
        found = await run(tmp_path, file)
    assert found.outcome is MissionOutcome.FAILED
    assert "the mission's state cannot be written" in found.reason
    assert found.timeline == ()


async def test_a_cancelled_mission_is_remembered_as_interrupted(tmp_path: Path) -> None:
    """Whoever cancels the task that runs a mission leaves no record that says it is running."""
    works = anyio.Event()

    async def worker(turn: Turn) -> str:
        works.set()
        await anyio.sleep_forever()
        return ""

    async with MemoryStore() as memory:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await run_mission(
                    "The goal",
                    backend=EmbeddedBackend({"worker": worker}),
                    directory=tmp_path,
                    plan=PLAN_AB,
                    store=memory,
                )

            group.start_soon(run)
            await works.wait()
            group.cancel_scope.cancel()
        (name,) = [each for each in await memory.namespaces() if each.startswith("mission_")]
        space = memory.namespace(name)
        assert (await space.get(MISSION))["state"] == "interrupted"
        # As it was: who resumes the mission goes on from here.
        assert (await space.get(TASK + "a"))["state"] == "working"
        assert (await space.get(TASK + "b"))["state"] == "waiting"


async def test_an_edit_is_read_back_while_a_worker_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person adds to TODO.md gets into the store although no task moves meanwhile."""
    from orchestra.opencode.mission import continuity

    monkeypatch.setattr(continuity, "_LOOK_INTERVAL", 0.02)
    path = tmp_path / "TODO.md"

    async def worker(turn: Turn) -> str:
        await anyio.sleep_forever()
        return ""

    async def has_item(space: MVCCStore) -> bool:
        async def look(tx: Transaction) -> bool:
            found = await tx.range("todo/item/")
            return any(item["text"] == "mine" for item in found.values())

        return await space.transact(look)

    async with (
        MemoryStore() as memory,
        Mission(
            "The goal",
            backend=EmbeddedBackend({"worker": worker}),
            directory=tmp_path,
            plan=PLAN_AB,
            settings=evolve(MissionSettings(), has_evidence=False),
            store=memory,
        ) as mission,
    ):
        with anyio.fail_after(20):
            while not (path.exists() and "[/] a" in path.read_text()):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            path.write_text(path.read_text().replace("- [ ] b", "- [ ] mine\n- [ ] b"))
            while not await has_item(memory.namespace(mission.id)):  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(b"- [ ] b", b"- [ ] \xff mine\n\xfe\n- [ ] b"),
        lambda text: text.replace(b"revision=", b"revision=" + b"9" * 5_000),
        lambda text: text.replace(b"revision=", b"revision=" + b"9" * 30),
    ],
    ids=["no-utf-8", "digits", "number"],
)
async def test_no_edit_ends_a_mission(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Whatever bytes somebody puts into the list while it runs, the mission comes to its end."""
    path = tmp_path / "TODO.md"

    async def worker(turn: Turn) -> str:
        while not path.exists():  # noqa: ASYNC110
            await anyio.sleep(0.01)
        path.write_bytes(edit(path.read_bytes()))
        return "done"

    async with SQLiteStore(tmp_path / "m.db", durability="process") as file:
        found = await run_mission(
            "The goal",
            backend=EmbeddedBackend({"worker": worker, "reviewer": accept}),
            directory=tmp_path,
            plan=PLAN_AB,
            settings=MissionSettings(has_evidence=False),
            store=file,
        )
    assert found.outcome is MissionOutcome.ACCEPTED
    assert "- [x] b: Test it (after a)" in path.read_text().splitlines()


async def test_a_failure_that_nobody_foresaw_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in writing the list ends the mission with its error; nobody waits for ever."""

    async def project(self: Ledger) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Ledger, "project", project)
    with pytest.raises(BaseExceptionGroup) as caught:
        await run(tmp_path, None)
    assert caught.group_contains(ZeroDivisionError)


async def test_a_mission_cancelled_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while the workspace is looked at, a mission is remembered as interrupted too."""
    from orchestra.opencode.mission.evidence import Witness

    looks = anyio.Event()

    async def look(_: Witness) -> None:
        looks.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(Witness, "begin", look)
    async with MemoryStore() as memory:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await run_mission(
                    "The goal", backend=EmbeddedBackend({}), directory=tmp_path, store=memory
                )

            group.start_soon(run)
            await looks.wait()
            group.cancel_scope.cancel()
        (name,) = [each for each in await memory.namespaces() if each.startswith("mission_")]
        assert (await memory.namespace(name).get(MISSION))["state"] == "interrupted"
