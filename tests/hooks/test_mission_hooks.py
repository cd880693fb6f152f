"""Hooks in a mission: its own steps, and those of users."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from orchestra import (
    Block,
    EmbeddedBackend,
    HookPhase,
    HookRegistry,
    MemoryStore,
    Modify,
    Redactor,
    SQLiteStore,
    Turn,
)
from orchestra.errors import HookOrderError
from orchestra.events import TextReceived, ToolCalled
from orchestra.opencode import (
    AFTER_TURN,
    BEFORE_PROMPT,
    PLAN_RECEIVED,
    REPORT_READY,
    SESSION_EVENT,
    AgentActed,
    Mission,
    MissionEvent,
    MissionOutcome,
    MissionPrompt,
    MissionReport,
    MissionSettings,
    MissionTurn,
    Plan,
    PlanAccepted,
    Role,
    SessionTold,
    TaskSpec,
    TaskState,
    run_mission,
    write_report,
)

QUICK = MissionSettings(retry_delay=0, todo_file=None, has_evidence=False)
ACCEPT = '{"verdict": "accept"}'
ONE = Plan((TaskSpec(id="a", title="Do a"),))


def key(seed: int) -> str:
    """Return something that looks like a key; made here, so that no scanner finds it."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "ghp_" + "".join(random.Random(seed).choices(letters, k=36))


def contents(folder: Path) -> str:
    """Return what is in all the files."""
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return data.decode("utf-8", "replace")


def agents(**answers: str | Callable[[Turn], Any]) -> EmbeddedBackend:
    def fixed(text: str) -> Callable[[Turn], Any]:
        async def answer(turn: Turn) -> str:
            await anyio.lowlevel.checkpoint()
            return text

        return answer

    crew: dict[str, str | Callable[[Turn], Any]] = {
        "commander": "brief",
        "planner": json.dumps({"tasks": [{"id": "a", "title": "Do a"}]}),
        "worker": "Done.",
        "reviewer": ACCEPT,
        **answers,
    }
    return EmbeddedBackend(
        {name: fixed(each) if isinstance(each, str) else each for name, each in crew.items()}
    )


async def run(
    backend: EmbeddedBackend,
    directory: Path,
    hooks: HookRegistry | None = None,
    plan: Plan | None = ONE,
    settings: MissionSettings = QUICK,
    listener: Callable[[MissionEvent], object] | None = None,
) -> MissionReport:
    with anyio.fail_after(30):
        return await run_mission(
            "the goal",
            backend=backend,
            directory=directory,
            plan=plan,
            settings=settings,
            hooks=hooks,
            listener=listener,
        )


# --- secrets ---


async def test_no_secret_gets_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Secrets of goal, plan, prompts, tools, answers, errors and commands are written nowhere."""
    secrets = {
        name: key(seed)
        for seed, name in enumerate(["goal", "plan", "tool", "answer", "error", "cmd"])
    }
    pieces = [secrets["answer"][:9], secrets["answer"][9:21], secrets["answer"][21:]]
    prompts: list[str] = []
    failures = 0

    async def worker(turn: Turn) -> str:
        nonlocal failures
        prompts.append(turn.prompt)
        await turn.tool_call("bash", {"command": f"echo {secrets['tool']}"}, output=secrets["tool"])
        await turn.tool_call("read", {"password": "hunter2!"}, error=f"no {secrets['tool']}")
        await turn.ask_permission("bash", f"curl -H 'x: {secrets['tool']}'")
        if failures == 0:
            failures += 1
            raise RuntimeError(f"the token {secrets['error']} has expired")
        for piece in pieces:
            await turn.text(piece)
        return f"\nI used {secrets['answer']}."

    async def planner(turn: Turn) -> str:
        prompts.append(turn.prompt)
        task = {
            "id": "a",
            "title": f"Use {secrets['plan']}",
            "instructions": f"TOKEN={secrets['plan']}",
            "acceptance": [["echo", secrets["cmd"]], ["echo", "--token", "s3cr3tvalue"]],
        }
        return json.dumps({"tasks": [task]})

    told: list[MissionEvent] = []
    folder = tmp_path / "work"
    folder.mkdir()
    backend = agents(worker=worker, planner=planner, commander=f"Use {secrets['goal']}.")
    settings = evolve(
        QUICK, todo_file="TODO.md", allow=(("echo", "*"),), acceptance=(("echo", secrets["cmd"]),)
    )
    with caplog.at_level(logging.DEBUG), anyio.fail_after(30):
        async with SQLiteStore(tmp_path / "store.db") as store:
            report = await run_mission(
                f"Deploy with {secrets['goal']}",
                backend=backend,
                directory=folder,
                settings=settings,
                listener=told.append,
                store=store,
            )
    assert report.outcome is MissionOutcome.ACCEPTED, report
    assert report.statistics["retries"] == 1
    write_report(report, folder)
    written = contents(tmp_path)
    everything = {
        "files": written,
        "report": repr(report),
        "events": repr(told),
        "log": caplog.text,
        "prompts": repr(prompts),
    }
    for place, text in everything.items():
        for name, secret in secrets.items():
            assert secret not in text, (place, name)
            assert secret[9:21] not in text, (place, name)
        assert "hunter2!" not in text
        assert "s3cr3tvalue" not in text
    assert "[redacted:github-token]" in report.goal
    assert "[redacted:github-token]" in prompts[1]


async def test_a_failing_backend_logs_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged without the secret that its message holds."""
    secret = key(1)

    def listener(event: MissionEvent) -> None:
        raise RuntimeError(f"cannot send {secret}")

    await run(agents(), tmp_path, listener=listener)
    assert "[redacted:github-token]" in caplog.text
    assert secret not in caplog.text


async def test_redaction_has_the_last_word(tmp_path: Path) -> None:
    """A secret that a hook brings into a prompt, or a ready plan into a task, does not go out."""
    prompts: list[str] = []

    async def worker(turn: Turn) -> str:
        prompts.append(turn.prompt)
        return "Done."

    hooks = HookRegistry()
    hooks.register(
        BEFORE_PROMPT,
        lambda draft: Modify(evolve(draft, message=f"{draft.message}\nUse {key(1)}.")),
        name="careless",
        phase=HookPhase.LATE,
    )
    plan = Plan((TaskSpec(id="a", title="Do a", acceptance=(("echo", key(2)),)),))
    await run(agents(worker=worker), tmp_path, hooks, plan=plan)
    assert key(1) not in prompts[0]
    assert key(2) not in prompts[0]
    assert prompts[0].endswith("Use [redacted:github-token].")


async def test_what_comes_after_redaction_is_not_written_either(tmp_path: Path) -> None:
    """A hook that runs after the redaction cannot get a secret into the store or the report."""
    hooks = HookRegistry()
    hooks.register(
        AFTER_TURN,
        lambda turn: (
            Modify(evolve(turn, finished=evolve(turn.finished, text=key(1))))
            if turn.role is Role.WORKER
            else None
        ),
        name="careless",
        phase=HookPhase.LATE,
        after=["secret-redaction"],
    )
    async with SQLiteStore(tmp_path / "store.db") as store:
        report = await run_mission(
            "g",
            backend=agents(),
            directory=tmp_path,
            plan=ONE,
            settings=QUICK,
            store=store,
            hooks=hooks,
        )
    assert report.tasks[0].summary == "[redacted:github-token]"
    assert key(1) not in contents(tmp_path)


async def test_redaction_can_be_turned_off(tmp_path: Path) -> None:
    """Without a redactor everything passes as it is, piece by piece."""
    secret = key(1)
    told: list[MissionEvent] = []

    async def worker(turn: Turn) -> str:
        for letter in secret:
            await turn.text(letter)
        return secret

    settings = evolve(QUICK, redactor=None)
    report = await run(agents(worker=worker), tmp_path, settings=settings, listener=told.append)
    assert report.tasks[0].summary == secret
    texts = [
        e.event.text
        for e in told
        if isinstance(e, AgentActed) and e.task_id
        if isinstance(e.event, TextReceived)
    ]
    assert texts[: len(secret)] == list(secret)


async def test_known_secrets_of_ones_own(tmp_path: Path) -> None:
    """A redactor that was told a value takes it out wherever it comes up."""
    settings = evolve(QUICK, redactor=Redactor(known=["swordfish"]))
    report = await run(agents(worker="it is swordfish"), tmp_path, settings=settings)
    assert report.tasks[0].summary == "it is [redacted:known]"


# --- the other steps of its own ---


async def test_the_tool_guard_refuses_what_was_denied(tmp_path: Path) -> None:
    """A reviewer that writes a file is no reviewer: its verdict does not count."""

    async def reviewer(turn: Turn) -> str:
        await turn.tool_call("write", {"filePath": "a.py"}, output="written")
        return ACCEPT

    report = await run(agents(reviewer=reviewer), tmp_path)
    assert report.outcome is MissionOutcome.FAILED
    assert "used 'write', which its permissions deny" in report.tasks[0].reasons[-1]
    assert report.statistics["tool_calls"] == 3


async def test_the_tool_guard_lets_pass_what_is_allowed_or_failed(tmp_path: Path) -> None:
    """Workers write, reviewers read, and a call that the backend refused is no offence."""

    async def worker(turn: Turn) -> str:
        await turn.tool_call("write", {"filePath": "a.py"}, output="written")
        return "Done."

    async def reviewer(turn: Turn) -> str:
        await turn.tool_call("read", {"filePath": "a.py"}, output="text")
        await turn.tool_call("edit", {"filePath": "a.py"}, error="denied")
        return ACCEPT

    report = await run(agents(worker=worker, reviewer=reviewer), tmp_path)
    assert report.outcome is MissionOutcome.ACCEPTED


@pytest.mark.parametrize("file", ["/etc/passwd", "../other/a.py", "a/../../b", "C:\\x", ".."])
async def test_a_plan_stays_in_the_workspace(file: str, tmp_path: Path) -> None:
    """A ready plan that writes elsewhere is refused before anything is done."""
    plan = Plan((TaskSpec(id="a", title="Do a", files=(file,)),))
    report = await run(agents(), tmp_path, plan=plan)
    assert report.outcome is MissionOutcome.FAILED
    assert "is not a path inside the workspace" in report.reason
    assert report.statistics["turns"] == 0


# --- steps of the user's ---


async def test_hooks_see_and_change_everything(tmp_path: Path) -> None:
    """A prompt, an event, an answer, a plan and the report can be changed, in this order."""
    seen: list[str] = []
    told: list[MissionEvent] = []
    prompts: list[str] = []

    async def prompt(draft: MissionPrompt) -> Modify[MissionPrompt]:
        await anyio.lowlevel.checkpoint()
        seen.append(f"prompt {draft.role.value} {draft.task_id} {draft.round}")
        return Modify(evolve(draft, message=f"{draft.message}\nBe brief."))

    def event(told: SessionTold) -> Modify[SessionTold] | None:
        if not isinstance(told.event, ToolCalled):
            return None
        seen.append(f"tool {told.event.tool}")
        return Modify(evolve(told, event=evolve(told.event, output="(cut)")))

    def answer(turn: MissionTurn) -> Modify[MissionTurn] | None:
        seen.append(f"answer {turn.role.value}")
        if turn.role is not Role.WORKER:
            return None
        return Modify(evolve(turn, finished=evolve(turn.finished, text="changed")))

    def plan(made: Plan) -> Modify[Plan]:
        seen.append("plan")
        return Modify(Plan([evolve(task, title="Changed") for task in made.tasks]))

    def report(made: MissionReport) -> Modify[MissionReport]:
        seen.append("report")
        return Modify(evolve(made, warnings=(*made.warnings, "looked at")))

    async def worker(turn: Turn) -> str:
        prompts.append(turn.prompt)
        await turn.tool_call("read", output="long")
        return "Done."

    hooks = HookRegistry()
    hooks.register(BEFORE_PROMPT, prompt, name="brief")
    hooks.register(SESSION_EVENT, event, name="cut")
    hooks.register(AFTER_TURN, answer, name="answer")
    hooks.register(PLAN_RECEIVED, plan, name="plan", before=["plan-validation"])
    hooks.register(REPORT_READY, report, name="look")
    made = await run(agents(worker=worker), tmp_path, hooks, plan=None, listener=told.append)
    assert made.outcome is MissionOutcome.ACCEPTED
    assert seen == [
        "prompt commander None 0",
        "answer commander",
        "prompt planner None 0",
        "answer planner",
        "plan",
        "prompt worker a 1",
        "tool read",
        "answer worker",
        "prompt reviewer a 1",
        "answer reviewer",
        "report",
    ]
    assert prompts[0].endswith("Be brief.")
    assert (made.tasks[0].title, made.tasks[0].summary) == ("Changed", "changed")
    assert made.warnings == ("looked at",)
    acted = [e.event for e in told if isinstance(e, AgentActed)]
    assert [e.output for e in acted if isinstance(e, ToolCalled)] == ["(cut)"]
    (accepted,) = (e.plan for e in told if isinstance(e, PlanAccepted))
    assert accepted.tasks[0].title == "Changed"


async def test_a_blocked_prompt_is_not_sent(tmp_path: Path) -> None:
    """A prompt that is blocked reaches no agent, is not tried again, and fails its task."""
    hooks = HookRegistry()
    hooks.register(BEFORE_PROMPT, lambda _: Block("not on Sundays"), name="calendar")
    called: list[str] = []

    async def worker(turn: Turn) -> str:
        called.append(turn.prompt)
        return "Done."

    report = await run(agents(worker=worker), tmp_path, hooks)
    assert called == []
    assert (report.tasks[0].state, report.tasks[0].rounds) == (TaskState.FAILED, 1)
    assert "not on Sundays" in report.tasks[0].reasons[0]
    assert [span.outcome for span in report.timeline] == ["blocked"]


async def test_a_blocked_answer_is_asked_for_again(tmp_path: Path) -> None:
    """An answer that is blocked counts as a failed turn: the worker tries again."""
    blocked: list[str] = []

    def once(turn: MissionTurn) -> Block | None:
        if turn.role is Role.WORKER and not blocked:
            blocked.append(turn.finished.text)
            return Block("it has no tests")
        return None

    hooks = HookRegistry()
    hooks.register(AFTER_TURN, once, name="quality")
    report = await run(agents(), tmp_path, hooks)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert (blocked, report.tasks[0].rounds) == (["Done."], 1)
    assert report.statistics["retries"] == 1
    assert "it has no tests" in report.tasks[0].reasons[0]


async def test_a_blocked_event_ends_the_turn(tmp_path: Path) -> None:
    """A tool call that is blocked aborts the turn; what it has consumed still counts."""
    after: list[str] = []

    async def worker(turn: Turn) -> str:
        await turn.tool_call("deploy")
        await anyio.sleep_forever()
        after.append("went on")
        return "Done."

    hooks = HookRegistry()
    hooks.register(
        SESSION_EVENT,
        lambda told: Block("no deployments") if isinstance(told.event, ToolCalled) else None,
        name="policy",
    )
    report = await run(agents(worker=worker), tmp_path, hooks)
    assert report.outcome is MissionOutcome.FAILED
    assert [span.outcome for span in report.timeline] == ["blocked"] * 3
    assert after == []


async def test_a_refused_plan_is_made_again(tmp_path: Path) -> None:
    """The planner hears the reason of a hook that refused its plan, and makes another one."""
    prompts: list[str] = []

    async def planner(turn: Turn) -> str:
        prompts.append(turn.prompt)
        tasks = [{"id": name, "title": name} for name in ("a", "b")[: len(prompts)]]
        return json.dumps({"tasks": tasks})

    hooks = HookRegistry()
    hooks.register(
        PLAN_RECEIVED,
        lambda plan: Block("cut it in two") if len(plan.tasks) < 2 else None,
        name="size",
    )
    report = await run(agents(planner=planner), tmp_path, hooks, plan=None)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert len(report.tasks) == 2
    assert "cut it in two" in prompts[1]


@pytest.mark.parametrize("point", [BEFORE_PROMPT, SESSION_EVENT, AFTER_TURN, PLAN_RECEIVED])
async def test_a_broken_hook_fails_the_mission_with_a_report(
    point: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that raises fails what it looked at; the report names it, and nothing hangs."""

    def broken(value: object) -> None:
        raise OSError("no route")

    hooks = HookRegistry()
    hooks.register(point, broken, name="broken")
    report = await run(agents(), tmp_path, hooks)
    assert report.outcome is MissionOutcome.FAILED
    assert "hook 'broken' of" in f"{report.reason}{report.tasks}"


async def test_a_broken_hook_does_not_cost_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When a hook of the report raises there is a report all the same, redacted, that says so."""

    def broken(report: MissionReport) -> None:
        raise OSError("no route")

    hooks = HookRegistry()
    hooks.register(REPORT_READY, broken, name="broken", phase=HookPhase.EARLY)
    plan = Plan((TaskSpec(id="a", title="Do a", acceptance=(("echo", key(3)),)),))
    report = await run(agents(), tmp_path, hooks, plan=plan)
    assert report.outcome is MissionOutcome.ACCEPTED
    assert "hook 'broken' of 'report ready' raised" in report.warnings[-1]
    assert key(3) not in repr(report)


async def test_the_users_registry_stays_as_it_is(tmp_path: Path) -> None:
    """One registry serves several missions; each mission has its own order and statistics."""
    hooks = HookRegistry()
    hooks.register(
        SESSION_EVENT, lambda _: None, name="mine", before=["metrics"], phase=HookPhase.EARLY
    )
    missions = []
    for _ in range(2):
        async with Mission(
            "g", backend=agents(), directory=tmp_path, plan=ONE, settings=QUICK, hooks=hooks
        ) as mission:
            missions.append(mission)
            await mission.wait_finished()
    assert hooks.order(SESSION_EVENT) == ("mine",)
    assert hooks.statistics().hooks[0].calls == 0
    for mission in missions:
        assert mission.hooks.order(SESSION_EVENT) == (
            "mine",
            "metrics",
            "tool-guard",
            "secret-redaction",
            "notices",
        )
        assert mission.hooks.statistics().hooks[0].calls == 6
    assert missions[0].hooks.order(AFTER_TURN) == ("secret-redaction",)
    assert missions[0].hooks.order(PLAN_RECEIVED) == ("plan-validation", "secret-redaction")


def test_hooks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A name of the mission's own, or a wish against its order, is an error at once."""
    hooks = HookRegistry()
    hooks.register(REPORT_READY, lambda _: None, name="secret-redaction")
    with pytest.raises(ValueError, match="has a hook 'secret-redaction' already"):
        Mission("g", backend=agents(), directory=tmp_path, hooks=hooks)
    hooks = HookRegistry()
    hooks.register(SESSION_EVENT, lambda _: None, name="mine", before=["metrics"])
    with pytest.raises(HookOrderError, match="'mine' is to run before 'metrics'"):
        Mission("g", backend=agents(), directory=tmp_path, hooks=hooks)


async def test_a_store_of_ones_own_gets_no_secret(tmp_path: Path) -> None:
    """What is in the store after a mission is free of secrets, history included."""
    secret = key(5)
    async with MemoryStore() as store:
        await run_mission(
            f"use {secret}",
            backend=agents(worker=f"{secret} done"),
            directory=tmp_path,
            plan=Plan((TaskSpec(id="a", title=f"t {secret}", instructions=secret),)),
            settings=evolve(QUICK, todo_file="TODO.md"),
            store=store,
        )
        entries = {}
        for name in await store.namespaces():
            async with store.namespace(name).snapshot() as snapshot:
                entries.update(await snapshot.range())
        assert {"mission", "task/a", "plan"} <= set(entries)
        assert secret not in repr(entries)
        assert secret not in (tmp_path / "TODO.md").read_text("utf-8")
