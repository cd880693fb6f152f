"""A mission that was killed goes on: what was accepted is not paid twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from orchestra import Agent, EmbeddedBackend, MemoryStore, MVCCStore, Turn
from orchestra.errors import LeaseLostError, MissionError, WorkspaceOwnedError
from orchestra.events import FinishReason, Usage
from orchestra.opencode import (
    Isolation,
    Mission,
    MissionOutcome,
    MissionReport,
    MissionSettings,
    Plan,
    Role,
    TaskSpec,
    TaskState,
    load_mission,
    resume_mission,
)
from orchestra.opencode.mission.isolation import IsolationKind
from orchestra.opencode.mission.keys import MISSION, OWNER, PLAN, RESULT, STATE, TASK, WAITS
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.orders import AgentAnswered
from orchestra.opencode.mission.ownership import Ownership, find_owner
from orchestra.opencode.mission.saved import unfinished_missions

CARRIED = [["", "", 5.0, "tasks"], ["", "", 50.0, "away"]]
QUICK = MissionSettings(retry_delay=0, todo_file=None, has_evidence=False)
PLANNED = json.dumps(
    {
        "tasks": [
            {"id": "a", "title": "Do a", "files": ["a.txt"]},
            {"id": "b", "title": "Do b", "files": ["b.txt"], "depends": ["a"]},
            {"id": "c", "title": "Do c", "files": ["c.txt"]},
        ]
    }
)


class Team:
    """Four agents; each worker writes its file, and all turns are counted."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.rejections = {"b": 1}
        self.backend = self.renew()

    def renew(self) -> EmbeddedBackend:
        """Return a new process's backend: sessions of the last one are gone."""
        agents = dict.fromkeys(("commander", "planner", "worker", "reviewer"), self._agent)
        self.backend = EmbeddedBackend(agents)
        return self.backend

    async def _agent(self, turn: Turn) -> str:
        role = turn.agent.name
        task = turn.metadata["task"]
        self.turns[f"{role} {task}".strip()] += 1
        await turn.usage(Usage(input_tokens=1))
        if role == "commander":
            return "Do it."
        if role == "planner":
            return PLANNED
        if role == "worker":
            path = turn.directory / read_task(turn.prompt).files[0]
            await anyio.Path(path).write_text(f"{task} was here\n")
            return "Done."
        if self.rejections.get(task):
            self.rejections[task] -= 1
            return '{"verdict": "reject", "reasons": ["again"]}'
        return '{"verdict": "accept"}'


async def finish(mission: Mission) -> MissionReport:
    with anyio.fail_after(30):
        async with mission:
            return await mission.wait_finished()


async def go_on(store: MVCCStore, team: Team, mission_id: str, **options: Any) -> MissionReport:
    with anyio.fail_after(30):
        return await resume_mission(mission_id, backend=team.renew(), store=store, **options)


async def run(
    store: MVCCStore, team: Team, directory: Path, **options: Any
) -> tuple[str, MissionReport]:
    options = {"settings": QUICK, **options}
    mission = Mission("the goal", backend=team.backend, directory=directory, store=store, **options)
    return mission.id, await finish(mission)


def git_init(root: Path) -> None:
    """Make a repository with one commit."""
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)  # noqa: S607


async def copy_of(store: MVCCStore, mission_id: str, revision: int, into: MVCCStore) -> None:
    """Write what a mission's records were at a revision into another store: the crash's view."""
    async with store.namespace(mission_id).snapshot(revision) as snap:
        found = await snap.range()
    async with into.namespace(mission_id).transaction() as tx:
        for key, value in found.items():
            tx.put(key, value)


async def before_the_end(store: MVCCStore, mission_id: str) -> int:
    """Return the revision before the one that wrote the mission's end."""
    history = await store.namespace(mission_id).history(MISSION)
    return max(entry.revision for entry in history if entry is not None) - 1


async def test_a_crash_after_any_write(tmp_path: Path) -> None:
    """Killed after whichever write, a mission goes on to the same end; accepted work stays."""
    async with MemoryStore() as store:
        name, report = await run(store, Team(), tmp_path)
        assert report.outcome is MissionOutcome.ACCEPTED
        last = await before_the_end(store, name)
        assert last > 20
        for revision in range(1, last + 1):
            async with MemoryStore() as crashed:
                await copy_of(store, name, revision, crashed)
                saved = await load_mission(crashed, name)
                accepted = {
                    task
                    for task, plain in (saved.record.tasks if saved.record else {}).items()
                    if plain["state"] == "accepted"
                }
                assert accepted == set(saved.results)
                for task in {"a", "b", "c"} - set(saved.inputs):
                    (tmp_path / f"{task}.txt").unlink()
                team = Team()
                team.rejections = {}
                again = await go_on(crashed, team, name)
                assert again.outcome is MissionOutcome.ACCEPTED, (revision, again.reason)
                assert [task.id for task in again.tasks] == ["a", "b", "c"]
                assert all(task.state is TaskState.ACCEPTED for task in again.tasks)
                asked = {turn.split()[-1] for turn in team.turns}
                assert not accepted & asked, (revision, team.turns)
                assert all(count == 1 for count in team.turns.values()), (revision, team.turns)
                assert (await load_mission(crashed, name)).state == "accepted"


async def test_usage_adds_up_over_a_crash(tmp_path: Path) -> None:
    """What was consumed before counts once, and what is done again counts again."""
    async with MemoryStore() as store:
        name, report = await run(store, Team(), tmp_path)
        async with MemoryStore() as crashed:
            await copy_of(store, name, await before_the_end(store, name), crashed)
            assert (await go_on(crashed, Team(), name)).usage == report.usage


async def interrupted(store: MVCCStore, team: Team, directory: Path, task: str) -> str:
    """Run a mission until that task is accepted, and interrupt it."""
    mission = Mission(
        "the goal", backend=team.backend, directory=directory, store=store, settings=QUICK
    )
    async with mission:
        with anyio.fail_after(30):
            async for event in mission.events():
                if (
                    getattr(event, "task_id", "") == task
                    and getattr(event, "state", None) is TaskState.ACCEPTED
                ):
                    break
            mission.stop("enough for today")
            await mission.wait_finished()
    return mission.id


async def test_an_interrupted_mission_goes_on(tmp_path: Path) -> None:
    """After Ctrl-C as after a crash: what was accepted is not asked for again."""
    async with MemoryStore() as store:
        team = Team()
        name = await interrupted(store, team, tmp_path, "a")
        assert await unfinished_missions(store) == (name,)
        before = team.turns["worker a"]
        report = await go_on(store, team, name)
        assert report.outcome is MissionOutcome.ACCEPTED
        assert team.turns["worker a"] == before == 1
        assert await unfinished_missions(store) == ()
        with pytest.raises(MissionError, match="has ended as accepted"):
            await go_on(store, team, name)


async def test_the_deadline_counts_over_restarts(tmp_path: Path) -> None:
    """Only the time that nobody carried the mission on is not taken from it."""
    async with MemoryStore() as store:
        team = Team()
        name = await interrupted(store, team, tmp_path, "a")
        await store.namespace(name).put(WAITS + "00000900", CARRIED)
        rules = evolve(QUICK, deadline=60.0)
        team.rejections = {}
        async with MemoryStore() as other:
            await copy_of(store, name, await store.namespace(name).revision(), other)
            report = await go_on(other, team, name, settings=rules)
            assert report.outcome is MissionOutcome.ACCEPTED
        rules = evolve(QUICK, deadline=40.0)
        report = await go_on(store, team, name, settings=rules)
        assert report.outcome is MissionOutcome.FAILED
        assert report.reason == "the mission's deadline of 40 s is over"


async def test_the_timeline_is_that_of_all_processes(tmp_path: Path) -> None:
    """Turns of before a restart are in it, at the time at which they were."""
    async with MemoryStore() as store:
        team = Team()
        name = await interrupted(store, team, tmp_path, "a")
        await store.namespace(name).put(WAITS + "00000900", CARRIED)
        report = await go_on(store, team, name)
        assert report.outcome is MissionOutcome.ACCEPTED
        turns = [(span.name, span.task_id) for span in report.timeline]
        assert turns.count(("worker", "a")) == 1
        assert ("planner", None) in turns
        starts = [span.started for span in report.timeline]
        assert starts == sorted(starts)
        assert all(
            0 <= span.queued <= span.started <= span.ended <= report.elapsed
            for span in report.timeline
        )
        late = {span.task_id for span in report.timeline if span.started >= 50}
        assert "b" in late
        assert "a" not in late
        assert report.elapsed >= report.segments[-1].until >= 50


async def test_a_result_whose_file_is_gone_is_done_again(tmp_path: Path) -> None:
    """Whose file was removed runs again, and what was made of it; nothing else."""
    async with MemoryStore() as store:
        name, _ = await run(store, Team(), tmp_path)
        async with MemoryStore() as crashed:
            await copy_of(store, name, await before_the_end(store, name), crashed)
            (tmp_path / "a.txt").unlink()
            team = Team()
            team.rejections = {}
            report = await go_on(crashed, team, name)
            assert report.outcome is MissionOutcome.ACCEPTED
            assert {turn for turn in team.turns if "worker" in turn} == {"worker a", "worker b"}
            saved = await load_mission(crashed, name)
            assert saved.why["a"] == "its file a.txt was removed after it was accepted"
            assert saved.why["b"] == "it depends on 'a', which runs again"
            assert (tmp_path / "a.txt").read_text() == "a was here\n"


@pytest.mark.parametrize("kind", ["shared", "worktree"])
async def test_what_a_person_has_changed_is_not_overwritten(
    kind: IsolationKind, tmp_path: Path
) -> None:
    """An accepted file that was edited stays: it is reviewed as it is now, and so is the whole.

    Where what was taken over cannot be looked at any more, it stays accepted. What was made of it
    is made again.
    """
    root = tmp_path / "work"
    root.mkdir()
    git_init(root)
    rules = evolve(
        QUICK, has_evidence=True, isolation=Isolation(kind=kind, folder=tmp_path / "homes")
    )
    person = "a person was here\n"
    async with MemoryStore() as store:
        name, _ = await run(store, Team(), root, settings=rules)
        async with MemoryStore() as crashed:
            await copy_of(store, name, await before_the_end(store, name), crashed)
            (root / "a.txt").write_text(person)
            (root / "b.txt").unlink()
            seal = (f"{sys.executable}", "-c", f"assert open('a.txt').read() == {person!r}")
            team = Team()
            team.rejections = {}
            report = await go_on(
                crashed, team, name, settings=evolve(rules, acceptance=(seal,), allow=(seal,))
            )
            assert report.outcome is MissionOutcome.ACCEPTED, report
            assert (root / "a.txt").read_text() == person
            assert (root / "b.txt").read_text() == "b was here\n"
            assert [each.exit_code for each in report.commands] == [0]
            reviewed = ["reviewer a"] if kind == "shared" else []
            assert sorted(team.turns) == sorted([*reviewed, "reviewer b", "worker b"])
            saved = await load_mission(crashed, name)
            why = "its file a.txt was changed after it was accepted"
            assert saved.why["a"] == why + (", and stays as it is" if kind == "worktree" else "")
            assert saved.why["b"] == "it depends on 'a', whose files were changed"
            async with MemoryStore() as again:  # killed once more, it is known how it is
                await copy_of(crashed, name, await before_the_end(crashed, name), again)
                team = Team()
                await go_on(again, team, name, settings=evolve(rules, acceptance=(seal,)))
                assert not team.turns


async def test_a_person_s_change_that_the_reviewer_rejects(tmp_path: Path) -> None:
    """It is a round like another: the worker is told why, and goes on with what is there."""
    async with MemoryStore() as store:
        name, _ = await run(store, Team(), tmp_path)
        async with MemoryStore() as crashed:
            await copy_of(store, name, await before_the_end(store, name), crashed)
            (tmp_path / "c.txt").write_text("a person was here\n")
            team = Team()
            team.rejections = {"c": 1}
            report = await go_on(crashed, team, name)
            assert report.outcome is MissionOutcome.ACCEPTED
            assert team.turns == {"worker c": 1, "reviewer c": 2}
            task = next(task for task in report.tasks if task.id == "c")
            assert task.reasons == ("again",)


async def test_a_task_that_is_another_one_is_done_again(tmp_path: Path) -> None:
    """Of a plan that was edited only what has changed runs again, in whatever order it stands."""
    tasks = tuple(TaskSpec(id=name, title=f"Do {name}", files=(f"{name}.txt",)) for name in "abcd")
    async with MemoryStore() as store:
        name, _ = await run(store, Team(), tmp_path, plan=Plan(tasks[:3]))
        async with MemoryStore() as crashed:
            await copy_of(store, name, await before_the_end(store, name), crashed)
            edited = (tasks[3], evolve(tasks[2], title="Do c well"), tasks[0])
            team = Team()
            report = await go_on(crashed, team, name, plan=Plan(edited))
            assert report.outcome is MissionOutcome.ACCEPTED
            assert [task.id for task in report.tasks] == ["d", "c", "a"]
            assert {turn for turn in team.turns if "worker" in turn} == {"worker c", "worker d"}
            stored = await crashed.namespace(name).get(PLAN)
            assert [each["id"] for each in stored] == ["d", "c", "a"]


async def test_another_prompt_or_model_is_another_result(tmp_path: Path) -> None:
    """The version of the worker's prompt and its model belong to the key."""
    async with MemoryStore() as store:
        name, _ = await run(store, Team(), tmp_path)
        last = await before_the_end(store, name)
        prompt, model = Agent("worker", prompt="Be brief."), Agent("worker", model="p/m2")
        for other, reason in (
            (prompt, "the worker's prompt is another one"),
            (model, "the worker's model was the default and is p/m2"),
        ):
            async with MemoryStore() as crashed:
                await copy_of(store, name, last, crashed)
                saved = await load_mission(crashed, name)
                worker = evolve(
                    saved.agents[Role.WORKER],
                    prompt=other.prompt or saved.agents[Role.WORKER].prompt,
                    model=other.model,
                )
                await go_on(crashed, Team(), name, agents={Role.WORKER: worker})
                why = (await load_mission(crashed, name)).why
                assert set(why) == {"a", "b", "c"}
                assert why["c"].startswith(reason)


async def test_a_mission_whose_backend_went_away_goes_on(tmp_path: Path) -> None:
    """That the backend is gone is a failure of the run, and not the mission's end."""
    async with MemoryStore() as store:
        mission = Mission(
            "the goal", backend=Team().backend, directory=tmp_path, store=store, settings=QUICK
        )
        async with mission:
            lost = AgentAnswered(ticket=1, reason=FinishReason.LOST)
            mission._mail.post(lost)
            with anyio.fail_after(30):
                report = await mission.wait_finished()
        assert report.outcome is MissionOutcome.FAILED
        assert "the backend is gone" in report.reason
        assert (await go_on(store, Team(), mission.id)).outcome is MissionOutcome.ACCEPTED


async def test_settings_and_agents_are_remembered(tmp_path: Path) -> None:
    """Who goes on needs to give nothing but backend and store."""
    settings = evolve(QUICK, limits={"worker": 3}, acceptance=(("true",),), turn_timeout=77.0)
    agents = {Role.WORKER: Agent("worker", prompt="Be brief.", model="p/m")}
    async with MemoryStore() as store:
        mission = Mission(
            "the goal",
            backend=Team().backend,
            directory=tmp_path,
            store=store,
            settings=settings,
            agents=agents,
            notes={"backend": "embedded"},
        )
        await finish(mission)
        saved = await load_mission(store, mission.id)
        assert saved.settings == settings
        assert saved.agents[Role.WORKER] == agents[Role.WORKER]
        assert saved.launch == {"backend": "embedded"}
        assert (saved.goal, saved.directory) == ("the goal", tmp_path)


async def test_the_history_grows_with_the_changes(tmp_path: Path) -> None:
    """No step repeats what another has written: neither plans nor prompts (sdk-python#1890)."""
    sizes = []
    for number in (10, 20):
        tasks = [
            TaskSpec(id=f"t{i}", title="t", instructions="x" * 5_000, files=(f"t{i}.txt",))
            for i in range(number)
        ]
        async with MemoryStore() as store:
            (tmp_path / str(number)).mkdir()
            name, report = await run(store, Team(), tmp_path / str(number), plan=Plan(tasks))
            assert report.outcome is MissionOutcome.ACCEPTED
            space = store.namespace(name)
            written = 0
            for record in await space.journal():
                async with space.snapshot(record.revision) as snap:
                    for change in record.changes:
                        written += len(json.dumps(await snap.get(change.key)))
            assert len(await space.history(STATE)) <= 5
            sizes.append(written)
    assert sizes[1] < 2.2 * sizes[0]
    assert sizes[1] < 20 * 5_000 * 4  # the given plan, the plan, and all the rest


async def test_one_mission_at_a_time(tmp_path: Path) -> None:
    """A second one in the same workspace is told who is at work there; other workspaces are free."""
    started, go = anyio.Event(), anyio.Event()

    async def worker(turn: Turn) -> str:
        started.set()
        await go.wait()
        return "Done."

    plan = Plan((TaskSpec(id="a", title="A"),))
    async with MemoryStore() as store:
        team = Team()
        backend = EmbeddedBackend({"worker": worker, "reviewer": team._agent})
        mission = Mission(
            "first", backend=backend, directory=tmp_path, store=store, settings=QUICK, plan=plan
        )
        async with mission:
            with anyio.fail_after(30):
                await started.wait()
                with pytest.raises(WorkspaceOwnedError, match=f"{mission.id}, which process"):
                    await run(store, Team(), tmp_path)
                owner = await find_owner(store, tmp_path)
                assert owner is not None
                assert owner.mission == mission.id
                (tmp_path / "other").mkdir()
                _, report = await run(store, Team(), tmp_path / "other")
                assert report.outcome is MissionOutcome.ACCEPTED
                go.set()
                await mission.wait_finished()
        assert await find_owner(store, tmp_path) is None
        assert (await run(store, Team(), tmp_path))[1].outcome is MissionOutcome.ACCEPTED


async def test_a_dead_owner_is_followed_at_once(tmp_path: Path) -> None:
    """Whose process is gone owns nothing; what it writes after all is refused."""
    async with MemoryStore() as store:
        dead = Ownership(store, tmp_path, "mission_dead")
        await dead.claim()
        async with store.namespace("mission_dead").transaction() as tx:
            await dead.enter(tx)
        with pytest.raises(WorkspaceOwnedError):
            await Ownership(store, tmp_path, "mission_new").claim()
        space = dead._space
        await space.put("current", {**await space.get("current"), "birth": "0"})
        new = Ownership(store, tmp_path, "mission_new")
        with anyio.fail_after(30):
            await new.claim()
        assert new.generation == dead.generation + 1
        with pytest.raises(LeaseLostError):
            async with store.namespace("mission_dead").transaction() as tx:
                await dead.check(tx)
        assert dead.is_lost


async def test_who_is_cancelled_while_it_claims_owns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled when the claim is written already, a mission knows of it and gives it back."""

    class Space:
        """Is cancelled while the news of a write are on their way back."""

        def __getattr__(self, name: str) -> Any:
            return getattr(space, name)

        async def put_if(self, key: str, value: Any, *, revision: int) -> int:
            revision = await space.put_if(key, value, revision=revision)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            return revision

    async with MemoryStore() as store:
        first = Ownership(store, tmp_path, "mission_first")
        space = first._space
        monkeypatch.setattr(first, "_space", Space())
        with anyio.CancelScope() as scope:
            await first.claim()
            try:
                await anyio.sleep_forever()
            finally:
                await first.release()
        assert scope.cancelled_caught
        assert await find_owner(store, tmp_path) is None
        await Ownership(store, tmp_path, "mission_next").claim()


async def test_an_owner_that_slept_stops_and_writes_nothing_more(tmp_path: Path) -> None:
    """Whose lease has run out, and whose mission goes on elsewhere, ends without touching it."""
    async with MemoryStore() as store:
        team = Team()
        reached, go = anyio.Event(), anyio.Event()

        async def worker(turn: Turn) -> str:
            reached.set()
            await go.wait()
            return "Done."

        backend = EmbeddedBackend({"worker": worker, "reviewer": team._agent})
        plan = Plan((TaskSpec(id="a", title="A"),))
        mission = Mission(
            "first", backend=backend, directory=tmp_path, store=store, settings=QUICK, plan=plan
        )
        async with mission:
            with anyio.fail_after(30):
                await reached.wait()
                space = store.namespace(mission.id)
                await space.put(OWNER, {"generation": 7})  # what the next owner does first
                revision = await space.revision()
                go.set()
                report = await mission.wait_finished()
        assert report.outcome is MissionOutcome.FAILED
        assert await space.revision() == revision
        assert (await space.get(TASK + "a"))["state"] == "working"
        assert await space.get(RESULT + "a") is None
