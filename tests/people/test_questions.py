"""Questions to people: durable, answered once, by whoever comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from orchestra import (
    Agent,
    EmbeddedBackend,
    MemoryStore,
    MVCCStore,
    PermissionRule,
    SQLiteStore,
    Turn,
)
from orchestra.events import PermissionRequest
from orchestra.opencode.agents.roles import add_rules
from orchestra.opencode.mission.events import MissionEvent, TurnStarted
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome
from orchestra.opencode.mission.run import resume_mission, run_mission
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.people.approval import describe_plan
from orchestra.opencode.people.cancelling import wish_cancel
from orchestra.opencode.people.permissions import MissionPermissions
from orchestra.opencode.people.questions import (
    PersonAnswer,
    PersonQuestion,
    QuestionDesk,
    list_questions,
    write_answer,
)

PLAN = Plan((TaskSpec(id="a", title="Do a"),))
CAREFUL = MissionSettings(must_approve=True, todo_file=None, retry_delay=0, has_evidence=False)


class Workers:
    """A worker and a reviewer; remembers whether anybody has begun."""

    def __init__(self) -> None:
        self.prompts = 0
        self.backend = EmbeddedBackend({"worker": self._work, "reviewer": self._review})

    async def _work(self, _: Turn) -> str:
        self.prompts += 1
        return "Done."

    async def _review(self, _: Turn) -> str:
        return '{"verdict": "accept"}'


async def test_the_plan_is_in_the_store_before_anybody_is_asked(tmp_path: Path) -> None:
    """Whoever is asked about a plan finds the question in the store, and no task has started."""
    crew = Workers()
    seen: list[str] = []

    async def approve(question: PersonQuestion) -> bool:
        namespace = store.namespace(question.mission)
        seen.extend(await list_questions(namespace))
        assert question.plan == PLAN
        assert crew.prompts == 0
        return True

    async with MemoryStore() as store:
        with anyio.fail_after(30):
            report = await run_mission(
                "g", backend=crew.backend, directory=tmp_path, plan=PLAN, settings=CAREFUL,
                store=store, approve=approve,
            )  # fmt: skip
        for name in await store.namespaces():
            assert await list_questions(store.namespace(name)) == {}
    assert report.outcome is MissionOutcome.ACCEPTED
    assert len(seen) == 1
    assert crew.prompts == 1


@pytest.mark.parametrize("is_approved", [True, False])
async def test_another_process_answers(tmp_path: Path, *, is_approved: bool) -> None:
    """An answer that is written into the store from elsewhere is the mission's answer."""
    crew = Workers()
    path = tmp_path / "missions.db"
    async with SQLiteStore(path) as store, anyio.create_task_group() as group:
        reports = []

        async def run() -> None:
            async with Mission(
                "g", backend=crew.backend, directory=tmp_path, plan=PLAN, settings=CAREFUL,
                store=store,
            ) as mission:  # fmt: skip
                ids.append(mission.id)
                reports.append(await mission.wait_finished())

        ids: list[str] = []
        with anyio.fail_after(30):
            group.start_soon(run)
            async with SQLiteStore(path) as other:
                questions: dict[str, object] = {}
                while not questions:
                    await anyio.sleep(0.01)
                    if ids:
                        questions = dict(await list_questions(other.namespace(ids[0])))
                (question,) = questions
                answer = PersonAnswer(is_approved=is_approved, note="use two files", by="ada")
                assert await write_answer(other.namespace(ids[0]), question, answer)
                assert not await write_answer(other.namespace(ids[0]), question, answer)
    report = reports[0]
    if is_approved:
        assert report.outcome is MissionOutcome.ACCEPTED
    else:
        assert report.outcome is MissionOutcome.INTERRUPTED
        assert report.reason == "the plan was not approved: use two files"
        assert crew.prompts == 0


async def test_nobody_answers(tmp_path: Path) -> None:
    """When the deadline is over the mission is INTERRUPTED, and a sentence says how to go on."""
    crew = Workers()
    settings = MissionSettings(
        must_approve=True, todo_file=None, people=PeopleSettings(approval_deadline=0.05)
    )
    async with MemoryStore() as store:
        with anyio.fail_after(30):
            report = await run_mission(
                "g", backend=crew.backend, directory=tmp_path, plan=PLAN, settings=settings,
                store=store,
            )  # fmt: skip
        (mission,) = [name for name in await store.namespaces() if name.startswith("mission_")]
        assert len(await list_questions(store.namespace(mission))) == 1
    assert report.outcome is MissionOutcome.INTERRUPTED
    assert report.reason == (
        f"nobody has approved the plan within 0.05 s; approve it with 'orchestra approve {mission}' "
        f"and go on with 'orchestra resume {mission}'"
    )
    assert crew.prompts == 0


async def test_an_answer_after_the_end_is_taken_when_it_goes_on(tmp_path: Path) -> None:
    """A mission whose plan nobody approved in time is resumed, once somebody has, and does it."""
    crew = Workers()
    settings = MissionSettings(
        must_approve=True,
        todo_file=None,
        has_evidence=False,
        people=PeopleSettings(approval_deadline=0.05),
    )
    async with MemoryStore() as store:
        with anyio.fail_after(30):
            await run_mission(
                "g", backend=crew.backend, directory=tmp_path, plan=PLAN, settings=settings,
                store=store,
            )  # fmt: skip
            (mission,) = [name for name in await store.namespaces() if name.startswith("mission_")]
            namespace = store.namespace(mission)
            (question,) = await list_questions(namespace)
            await write_answer(namespace, question, PersonAnswer(is_approved=True))
            again = Workers()
            report = await resume_mission(mission, backend=again.backend, store=store)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert [task.id for task in report.tasks] == ["a"]
    assert (crew.prompts, again.prompts) == (0, 1)


async def test_an_answer_from_before_a_restart_counts() -> None:
    """A question that was answered while nobody waited is not put to anybody again."""
    question = PersonQuestion(id="q", mission="m", text="may I?")

    def refuse(_: PersonQuestion) -> bool:
        raise AssertionError("asked again")

    async with MemoryStore() as store:
        async with anyio.create_task_group() as group:
            group.start_soon(QuestionDesk(store).ask, question)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await write_answer(store, "q", PersonAnswer(is_approved=True, by="ada"))
        with anyio.fail_after(30):
            answer = await QuestionDesk(store, person=refuse).ask(question)
    assert answer == PersonAnswer(is_approved=True, by="ada")


async def test_a_person_who_fails_leaves_it_to_others() -> None:
    """A callback that raises is logged; the answer may still come from the store."""

    def fail(_: PersonQuestion) -> bool:
        raise LookupError("no phone")

    async def answer_later() -> None:
        await first_question(store)
        assert await write_answer(store, "q", PersonAnswer(is_approved=False))

    async with MemoryStore() as store, anyio.create_task_group() as group:
        group.start_soon(answer_later)
        with anyio.fail_after(30):
            answer = await QuestionDesk(store, person=fail).ask(
                PersonQuestion(id="q", mission="m", text="may I?")
            )
    assert answer == PersonAnswer(is_approved=False)


async def test_somebody_must_be_there_to_approve(tmp_path: Path) -> None:
    """A mission that needs approval and has nobody to ask is refused when it is made."""
    with pytest.raises(ValueError, match="nobody can be asked"):
        Mission("g", backend=Workers().backend, directory=tmp_path, settings=CAREFUL)


def test_a_plan_is_shown_as_it_is() -> None:
    """Tasks, files and commands are lines; what would steer a terminal is not printed."""
    text = describe_plan(
        Plan((TaskSpec(id="a", title="T\x1b[2J\nx", acceptance=(("rm", "-rf", "x"),)),))
    )
    assert "\x1b" not in text
    assert "      runs rm -rf x" in text.splitlines()


# --- cancelling ---


async def _hang(_: Turn) -> str:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


@pytest.mark.parametrize("is_from_outside", [True, False])
async def test_cancel_ends_the_whole_tree(tmp_path: Path, *, is_from_outside: bool) -> None:
    """A wish in the store, or `Mission.cancel`, ends the mission; nothing runs afterwards."""
    started = anyio.Event()

    def listen(event: MissionEvent) -> None:
        if isinstance(event, TurnStarted):
            started.set()

    settings = MissionSettings(todo_file=None, has_evidence=False)
    async with MemoryStore() as store:
        backend = EmbeddedBackend({"worker": _hang, "reviewer": _hang})
        with anyio.fail_after(30):
            async with Mission(
                "g", backend=backend, directory=tmp_path, plan=PLAN, settings=settings, store=store,
                listener=listen,
            ) as mission:  # fmt: skip
                await started.wait()
                if is_from_outside:
                    await wish_cancel(store.namespace(mission.id), "ada wants it")
                    report = await mission.wait_finished()
                    assert report.reason == "ada wants it"
                quiescence = await mission.cancel()
        assert quiescence.is_quiet
        assert quiescence.sessions == 1
        assert await store.namespace(mission.id).get("quiet") == {
            "sessions": 1, "busy": [], "why": "",
        }  # fmt: skip
        assert (await store.namespace(mission.id).get("mission"))["state"] == "interrupted"


async def test_what_still_runs_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose thread cannot be ended is named, not hidden: the process's own word."""
    monkeypatch.setattr("orchestra.opencode.mission.runner._QUIET_LIMIT", 0.1)
    begun = anyio.Event()
    gate = threading.Event()

    def stubborn(turn: Turn) -> str:
        anyio.from_thread.run_sync(begun.set)
        gate.wait(30)
        return "late"

    settings = MissionSettings(todo_file=None, has_evidence=False)
    backend = EmbeddedBackend({"worker": stubborn, "reviewer": _hang}, thread_grace=0.01)
    try:
        with anyio.fail_after(30):
            async with Mission(
                "g", backend=backend, directory=tmp_path, plan=PLAN, settings=settings
            ) as mission:
                await begun.wait()
                quiescence = await mission.cancel()
                report = await mission.wait_finished()
    finally:
        gate.set()
    assert len(quiescence.busy) == 1
    assert any("something may still run" in warning for warning in report.warnings)


# --- permissions ---

ASKING = PeopleSettings(
    permission_deadline=0.05,
    permissions={
        "worker": (
            PermissionRule(permission="*", action="allow"),
            PermissionRule(permission="bash", action="ask"),
            PermissionRule(permission="bash", pattern="rm *", action="deny"),
        )
    },
)


PATIENCE = evolve(ASKING, permission_deadline=30)


async def first_question(space: MVCCStore) -> str:
    """Wait until something is asked, and return its name."""
    while True:
        for name in await list_questions(space):
            return name
        await anyio.sleep(0.001)


def request(permission: str, *patterns: str, role: str = "worker") -> PermissionRequest:
    return PermissionRequest(
        id="p1",
        session_id="s1",
        agent="general",
        permission=permission,
        patterns=patterns,
        session_metadata={"mission": "m", "role": role, "task": "a"},
    )


async def test_rules_decide_by_role() -> None:
    """Last match wins; several patterns are as strict as the strictest; no rule is a no."""
    permissions = MissionPermissions(ASKING)
    assert (await permissions(request("edit", "a.txt"))).is_allowed
    assert not (await permissions(request("edit", "a.txt", role="reviewer"))).is_allowed
    refused = await permissions(request("bash", "ls", "rm -rf x"))
    assert not refused.is_allowed
    assert "not permitted" in refused.message
    assert "deny=2" in repr(permissions)


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_an_ask_never_hangs(*, is_allowed: bool) -> None:
    """opencode#36868, #41991: nobody is there, so the default holds when the time is over."""
    people = PeopleSettings(
        permission_deadline=0.05, permission_default=is_allowed, permissions=ASKING.permissions
    )
    permissions = MissionPermissions(people)
    async with MemoryStore() as store:
        with permissions.asking(store), anyio.fail_after(30):
            reply = await permissions(request("bash", "ls"))
        assert await list_questions(store.namespace("m")) == {}
    assert reply.is_allowed is is_allowed


async def test_a_person_is_asked() -> None:
    """The person sees who wants what, and the word counts."""
    shown = []

    async def person(question: PersonQuestion) -> PersonAnswer:
        shown.append(question.text)
        return PersonAnswer(is_approved=False, note="not today")

    patient = MissionPermissions(PATIENCE)
    async with MemoryStore() as store:
        with patient.asking(store, person):
            reply = await patient(request("bash", "ls"))
    assert shown == ["worker a wants to: bash ls"]
    assert (reply.is_allowed, reply.message) == (False, "not today")


async def test_a_person_is_asked_without_a_store() -> None:
    """As documented: the object, given to a backend, asks its person by itself."""
    permissions = MissionPermissions(PATIENCE, person=lambda _: True)
    assert (await permissions(request("bash", "ls"))).is_allowed


async def test_nothing_is_left_of_a_request(tmp_path: Path) -> None:
    """A late answer, or one to a request whose agent was stopped, answers no other request."""
    permissions, patient = MissionPermissions(ASKING), MissionPermissions(PATIENCE)
    yes = PersonAnswer(is_approved=True)
    async with SQLiteStore(tmp_path / "s.db") as store:
        space = store.namespace("m")
        with permissions.asking(store), patient.asking(store), anyio.fail_after(20):
            assert not (await permissions(request("bash", "ls"))).is_allowed
            async with anyio.create_task_group() as group:
                group.start_soon(patient, request("bash", "ls"))
                question = await first_question(space)
                group.cancel_scope.cancel()
            assert await list_questions(space) == {}
            assert not await write_answer(space, question, yes)
            assert not (await permissions(request("bash", "ls"))).is_allowed


async def test_an_answer_is_for_what_was_asked() -> None:
    """A backend that numbers anew after a restart gets no answer that was given to another act."""
    permissions, patient = MissionPermissions(ASKING), MissionPermissions(PATIENCE)
    async with MemoryStore() as store:
        space = store.namespace("m")
        with permissions.asking(store), patient.asking(store), anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(patient, request("bash", "ls"))
                question = await first_question(space)
                kept = await space.get(f"question/{question}")
                group.cancel_scope.cancel()
            # As if the process had been killed instead, and somebody says yes then.
            await space.put(f"question/{question}", kept)
            assert await write_answer(space, question, PersonAnswer(is_approved=True))
            assert not (await permissions(request("bash", "ls x"))).is_allowed
            assert (await patient(request("bash", "ls"))).is_allowed
            assert not (await permissions(request("bash", "ls"))).is_allowed


async def test_rules_reach_the_agents(tmp_path: Path) -> None:
    """The rules of a role are appended to those of its agent, which the backend enforces."""
    found = []

    async def look(turn: Turn) -> str:
        found.append(turn.agent)
        return "Done."

    async def review(_: Turn) -> str:
        return '{"verdict": "accept"}'

    settings = MissionSettings(todo_file=None, has_evidence=False, people=ASKING)
    backend = EmbeddedBackend({"worker": look, "reviewer": review})
    await run_mission("g", backend=backend, directory=tmp_path, plan=PLAN, settings=settings)
    rules = ASKING.permissions["worker"]
    assert found[0].permissions[-len(add_rules(Agent("x"), rules)) :] == add_rules(
        Agent("x"), rules
    )
    assert [rule for rule in found[0].permissions if rule in rules][-3:] == list(rules)
    assert found[0].subagent_depth == 1
