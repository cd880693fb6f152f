"""The mission's rules, without a loop."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission import machine as machine_module
from orchestra.opencode.mission.machine import TRANSITIONS, MissionMachine
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    Ask,
    CheckPlan,
    CloseSession,
    Command,
    CommandsFinished,
    Event,
    Finish,
    PlanChecked,
    PlanMade,
    RunCommands,
    StopRequested,
    TaskMoved,
    Warn,
    WorkStarted,
)
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import CommandResult, MissionOutcome, TaskState

ACCEPT = '{"verdict": "accept"}'
REJECT = '{"verdict": "reject", "reasons": ["no tests"]}'


def plan_text(*tasks: dict[str, object]) -> str:
    return json.dumps({"tasks": [{"title": "do it", **task} for task in tasks]})


def spec(task_id: str, depends: Iterable[str] = (), files: Iterable[str] = ()) -> TaskSpec:
    return TaskSpec(id=task_id, title=task_id, depends=tuple(depends), files=tuple(files))


class Driver:
    """Plays the runner: keeps what the machine ordered and answers it."""

    def __init__(
        self, *tasks: TaskSpec, settings: MissionSettings | None = None, goal: str = "the goal"
    ) -> None:
        plan = Plan(tasks) if tasks else None
        self.machine = MissionMachine(goal, settings=settings, plan=plan)
        self.log: list[Command] = []
        self.open: dict[int, Ask | RunCommands] = {}
        self.take(self.machine.start())

    def take(self, commands: list[Command]) -> None:
        self.log.extend(commands)
        for command in commands:
            if isinstance(command, Ask | RunCommands):
                self.open[command.ticket] = command
            if isinstance(command, Finish):
                self.open.clear()
            if isinstance(command, CheckPlan):
                self.send(self.check(command))

    def check(self, order: CheckPlan) -> PlanChecked:
        """Play the steps that look at a plan: here they have no objection."""
        return PlanChecked(ticket=order.ticket, plan=order.plan)

    def send(self, event: Event) -> None:
        self.take(self.machine.handle(event))

    def ask(self, role: Role, task: str | None = None) -> Ask:
        """Return the one open ask of that role and task."""
        found = [
            ask
            for ask in self.open.values()
            if isinstance(ask, Ask) and ask.role is role and (task is None or ask.task_id == task)
        ]
        assert len(found) == 1, (role, task, self.open)
        return found[0]

    def answer(
        self,
        role: Role,
        text: str = "",
        task: str | None = None,
        reason: FinishReason = FinishReason.DONE,
        error: TurnError | None = None,
        **more: object,
    ) -> Ask:
        ask = self.ask(role, task)
        del self.open[ask.ticket]
        self.send(WorkStarted(ticket=ask.ticket))
        self.send(
            AgentAnswered(ticket=ask.ticket, reason=reason, text=text, error=error, **more)  # type: ignore[arg-type]
        )
        return ask

    def run_commands(self, exit_code: int = 0, output: str = "") -> RunCommands:
        order = next(each for each in self.open.values() if isinstance(each, RunCommands))
        del self.open[order.ticket]
        results = tuple(
            CommandResult(argv=argv, exit_code=exit_code, output=output) for argv in order.commands
        )
        self.send(CommandsFinished(ticket=order.ticket, results=results))
        return order

    @property
    def finish(self) -> Finish:
        assert self.machine.finish is not None
        return self.machine.finish

    def state(self, task: str) -> TaskState:
        return self.machine.states()[task]

    def accept(self, task: str) -> None:
        self.answer(Role.WORKER, "done", task)
        self.answer(Role.REVIEWER, ACCEPT, task)


def test_whole_way() -> None:
    """Goal, brief, plan, work, review: every role is asked once, sessions are closed, all is accepted."""
    driver = Driver()
    assert driver.answer(Role.COMMANDER, "look at b.py").message.count("the goal") == 1
    assert "look at b.py" in driver.answer(Role.PLANNER, plan_text({"id": "a"})).message
    assert any(isinstance(command, PlanMade) for command in driver.log)
    driver.answer(Role.WORKER, "did it", usage=Usage(cost=1.0))
    assert "did it" in driver.answer(Role.REVIEWER, ACCEPT, usage=Usage(cost=0.5)).message
    assert driver.finish == Finish(outcome=MissionOutcome.ACCEPTED, reason="the task was accepted")
    (report,) = driver.machine.task_reports()
    assert (report.rounds, report.usage.cost, report.summary) == (1, 1.5, "did it")
    opened = {command.session for command in driver.log if isinstance(command, Ask)}
    closed = {command.session for command in driver.log if isinstance(command, CloseSession)}
    assert opened == closed


def test_ready_plan_needs_no_commander() -> None:
    """With a plan given, work starts at once."""
    driver = Driver(spec("a"), spec("b"))
    assert {ask.role for ask in driver.open.values() if isinstance(ask, Ask)} == {Role.WORKER}
    assert len(driver.open) == 2


def test_dependencies_are_waited_for() -> None:
    """A task starts when all it depends on are accepted, and not before."""
    driver = Driver(spec("a"), spec("b"), spec("c", ["a", "b"]))
    driver.accept("a")
    assert driver.state("c") is TaskState.WAITING
    driver.accept("b")
    assert driver.state("c") is TaskState.READY
    driver.accept("c")
    assert driver.finish.reason == "all 3 tasks were accepted"


def test_rejection_goes_back_with_reasons_to_the_same_session() -> None:
    """The worker that is sent back keeps its session and is told why."""
    driver = Driver(spec("a"))
    first = driver.answer(Role.WORKER, "done")
    driver.answer(Role.REVIEWER, REJECT)
    second = driver.ask(Role.WORKER)
    assert second.session == first.session
    assert (first.round, second.round) == (1, 2)
    assert "no tests" in second.message
    assert "no tests" not in first.message
    driver.accept("a")
    assert driver.finish.outcome is MissionOutcome.ACCEPTED
    assert driver.machine.task_reports()[0].reasons == ("no tests",)


def test_each_review_has_its_own_session() -> None:
    """A reviewer of a second round does not remember what it said in the first."""
    driver = Driver(spec("a"))
    driver.answer(Role.WORKER, "done")
    first = driver.answer(Role.REVIEWER, REJECT)
    driver.answer(Role.WORKER, "done")
    assert driver.ask(Role.REVIEWER).session != first.session


def test_rounds_are_bounded() -> None:
    """After the last round the task fails, with the last reason, and its dependents are skipped."""
    driver = Driver(spec("a"), spec("b", ["a"]), spec("c", ["b"]), spec("d"))
    for _ in range(3):
        driver.answer(Role.WORKER, "done", "a")
        driver.answer(Role.REVIEWER, REJECT, "a")
    assert driver.state("a") is TaskState.FAILED
    assert driver.state("b") is TaskState.SKIPPED
    assert driver.state("c") is TaskState.SKIPPED
    driver.accept("d")
    assert driver.finish == Finish(
        outcome=MissionOutcome.FAILED, reason="3 of 4 tasks not accepted: a, b, c"
    )
    assert driver.machine.task_reports()[2].reasons == ("it depends on 'a', which failed",)


def test_failed_turn_is_a_round_in_a_fresh_session_after_a_delay() -> None:
    """A worker's turn that failed is repeated elsewhere, later each time, then given up."""
    driver = Driver(spec("a"))
    sessions, delays = [], []
    for _ in range(3):
        ask = driver.answer(
            Role.WORKER,
            reason=FinishReason.FAILED,
            error=TurnError(name="APIError", message="overloaded"),
        )
        sessions.append(ask.session)
        delays.append(ask.delay)
    assert len(set(sessions)) == 3
    assert delays == [0.0, 1.0, 2.0]
    assert driver.state("a") is TaskState.FAILED
    assert "overloaded" in driver.machine.task_reports()[0].reasons[0]
    assert driver.machine.retries == 2


def test_retry_after_is_obeyed_within_bounds() -> None:
    """The origin's wish for a pause counts, unless it is absurd."""
    driver = Driver(spec("a"))
    for wish in (7.5, 1e9):
        driver.answer(
            Role.WORKER,
            reason=FinishReason.FAILED,
            error=TurnError(name="APIError", message="later", retry_after=wish),
        )
        assert driver.ask(Role.WORKER).delay == min(wish, 600.0)


@pytest.mark.parametrize("role", [Role.COMMANDER, Role.PLANNER, Role.REVIEWER])
def test_other_roles_turns_are_tried_three_times(role: Role) -> None:
    """A turn of another role that fails is tried in three sessions, then something fails."""
    driver = Driver() if role is not Role.REVIEWER else Driver(spec("a"))
    if role is Role.PLANNER:
        driver.answer(Role.COMMANDER, "brief")
    if role is Role.REVIEWER:
        driver.answer(Role.WORKER, "done")
    sessions = {driver.answer(role, reason=FinishReason.INTERRUPTED).session for _ in range(3)}
    assert len(sessions) == 3
    assert driver.finish.outcome is MissionOutcome.FAILED
    if role is not Role.REVIEWER:
        assert driver.finish.reason == f"the {role.value} failed: it broke off"
    else:
        assert driver.machine.task_reports()[0].reasons == ("the reviewer failed: it broke off",)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (FinishReason.REFUSED, None),
        (FinishReason.FAILED, TurnError(name="E", message="401", is_retryable=False)),
    ],
)
def test_useless_repetition_is_not_tried(reason: FinishReason, error: TurnError | None) -> None:
    """What cannot work the second time is not tried a second time."""
    driver = Driver()
    driver.answer(Role.COMMANDER, reason=reason, error=error)
    assert driver.finish.outcome is MissionOutcome.FAILED
    driver = Driver(spec("a"))
    driver.answer(Role.WORKER, reason=reason, error=error)
    assert driver.state("a") is TaskState.FAILED
    assert driver.machine.task_reports()[0].rounds == 1


def test_lost_backend_ends_the_mission() -> None:
    """When the backend is gone, nothing more is asked, and the report says so."""
    driver = Driver(spec("a"), spec("b"), spec("c", ["a"]), settings=MissionSettings())
    driver.answer(
        Role.WORKER,
        task="a",
        reason=FinishReason.LOST,
        error=TurnError(name="TransportError", message="the server was killed (signal 9)"),
    )
    assert driver.finish == Finish(
        outcome=MissionOutcome.FAILED,
        reason="the backend is gone: the server was killed (signal 9)",
    )
    assert driver.state("a") is TaskState.FAILED
    assert driver.state("b") is TaskState.SKIPPED
    assert driver.state("c") is TaskState.SKIPPED


def test_bad_plan_is_asked_for_once_more() -> None:
    """A plan that is none is refused with its fault, in the same session, once."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    first = driver.answer(Role.PLANNER, plan_text({"id": "a", "depends": ["b"]}))
    second = driver.answer(Role.PLANNER, plan_text({"id": "a"}, {"id": "a"}))
    assert first.session == second.session
    assert "depends on 'b', which is not in the plan" in second.message
    assert driver.finish.reason == "the planner gave no usable plan: the id 'a' is used twice"


def test_bad_plan_then_a_good_one() -> None:
    """The second answer counts."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    driver.answer(Role.PLANNER, "Sorry, I cannot do that.")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    driver.accept("a")
    assert driver.finish.outcome is MissionOutcome.ACCEPTED
    assert "asked again" in driver.machine.warnings[0]


def test_cut_plan_is_not_used() -> None:
    """A plan whose answer was cut for length is not taken for the whole plan."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}), is_truncated=True)
    assert "too long" in driver.ask(Role.PLANNER).message


def test_empty_brief_is_reported() -> None:
    """A commander without words is no reason to stop, but is told."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "  \n")
    assert "brief" not in driver.ask(Role.PLANNER).message
    assert "commander's answer was empty" in driver.machine.warnings[0]


def test_verdict_that_is_none_is_asked_for_once_more() -> None:
    """A reviewer that gives no verdict accepts nothing."""
    driver = Driver(spec("a"))
    driver.answer(Role.WORKER, "done")
    driver.answer(Role.REVIEWER, "Looks good to me!")
    driver.answer(Role.REVIEWER, '{"verdict": "reject", "reasons": []}')
    assert driver.state("a") is TaskState.FAILED
    assert "gave no verdict" in driver.machine.task_reports()[0].reasons[0]


def test_empty_work_is_reviewed_and_reported() -> None:
    """A worker without words is judged by what it did."""
    driver = Driver(spec("a"))
    driver.answer(Role.WORKER, "")
    assert "gave no summary" in driver.ask(Role.REVIEWER).message
    assert "empty answer" in driver.machine.warnings[0]


def test_acceptance_runs_after_the_review_and_decides() -> None:
    """Acceptance that fails sends the task back with the output; success accepts it."""
    task = TaskSpec(id="a", title="a", acceptance=(("pytest", "-q"),))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest", "*"),)))
    driver.accept("a")
    assert driver.state("a") is TaskState.CHECKING
    driver.run_commands(exit_code=1, output="1 failed")
    message = driver.ask(Role.WORKER).message
    assert "ended with exit code 1" in message
    assert "1 failed" in message
    driver.accept("a")
    driver.run_commands()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED


def test_what_is_not_permitted_is_not_run() -> None:
    """A command that the mission does not permit is refused and reported, the others run."""
    task = TaskSpec(id="a", title="a", acceptance=(("rm", "-rf", "/"), ("pytest",)))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest",),)))
    driver.accept("a")
    assert driver.run_commands().commands == (("pytest",),)
    first, second = driver.machine.task_reports()[0].commands
    assert first.refusal
    assert second.exit_code == 0
    assert "not on the allow list" in driver.machine.warnings[0]


def test_refused_commands_of_a_second_round_are_told_once() -> None:
    """Results of an earlier round are replaced, not piled up."""
    task = TaskSpec(id="a", title="a", acceptance=(("rm",), ("pytest",)))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest",),)))
    driver.accept("a")
    driver.run_commands(exit_code=1)
    driver.accept("a")
    driver.run_commands()
    assert len(driver.machine.task_reports()[0].commands) == 2


def test_missions_own_acceptance() -> None:
    """The mission's commands run once, at the end, and decide."""
    settings = MissionSettings(acceptance=(("make", "check"),), allow=(("make", "check"),))
    for exit_code, outcome in ((0, MissionOutcome.ACCEPTED), (2, MissionOutcome.FAILED)):
        driver = Driver(spec("a"), settings=settings)
        driver.accept("a")
        assert driver.machine.finish is None
        driver.run_commands(exit_code=exit_code)
        assert driver.finish.outcome is outcome
        assert len(driver.machine.commands) == 1


@pytest.mark.parametrize(
    ("entry", "line", "is_permitted"),
    [
        (("pytest", "-q"), ("pytest", "-q"), True),
        (("pytest", "-q"), ("pytest", "-q", "--pdb"), False),
        (("pytest", "*"), ("pytest",), True),
        (("pytest", "*"), ("pytest", "a", "b"), True),
        (("pytest", "*"), ("python", "-m", "pytest"), False),
        (("*",), ("anything",), True),
        ((), ("anything",), False),
        (("pyt*",), ("pytest",), False),
    ],
)
def test_allow_list(entry: tuple[str, ...], line: tuple[str, ...], is_permitted: bool) -> None:  # noqa: FBT001
    """Only a last word '*' opens an entry; everything else must match as it is."""
    assert MissionSettings(allow=(entry,)).permits(line) is is_permitted


def test_tasks_that_write_the_same_file_do_not_run_together() -> None:
    """The second one waits for the first one's end, whatever that is."""
    driver = Driver(
        spec("a", files=["x.py", "y.py"]), spec("b", files=["y.py"]), spec("c", files=["z.py"])
    )
    assert {ask.task_id for ask in driver.open.values()} == {"a", "c"}
    driver.answer(Role.WORKER, "done", "a")
    assert "b" not in {ask.task_id for ask in driver.open.values()}
    driver.answer(Role.REVIEWER, ACCEPT, "a")
    assert {ask.task_id for ask in driver.open.values()} == {"b", "c"}


def test_stop_ends_everything() -> None:
    """What was begun has failed, what was not begun is skipped, and answers no longer count."""
    driver = Driver(spec("a"), spec("b"), spec("c", ["a"]))
    ask = driver.ask(Role.WORKER, "a")
    driver.send(WorkStarted(ticket=ask.ticket))
    driver.send(StopRequested(reason="Ctrl-C"))
    assert driver.finish == Finish(outcome=MissionOutcome.INTERRUPTED, reason="Ctrl-C")
    assert list(driver.machine.states().values()) == [
        TaskState.FAILED,
        TaskState.SKIPPED,
        TaskState.SKIPPED,
    ]
    late = AgentAnswered(ticket=ask.ticket, reason=FinishReason.DONE)
    assert driver.machine.handle(late) == []


def test_stale_tickets_change_nothing() -> None:
    """A doubled or late answer is counted and otherwise ignored."""
    driver = Driver(spec("a"))
    ask = driver.answer(Role.WORKER, "done")
    before = driver.machine.states()
    log = len(driver.log)
    driver.send(AgentAnswered(ticket=ask.ticket, reason=FinishReason.FAILED))
    driver.send(CommandsFinished(ticket=999, results=()))
    driver.send(WorkStarted(ticket=ask.ticket))
    assert driver.machine.states() == before
    assert len(driver.log) == log
    assert driver.machine.stale_events == 3


def test_misuse() -> None:
    """Starting twice, events before the start, and answers of the wrong kind are refused."""
    machine = MissionMachine("goal", plan=Plan((spec("a"),)))
    with pytest.raises(RuntimeError, match="call start"):
        machine.handle(StopRequested(reason="x"))
    machine.start()
    with pytest.raises(RuntimeError, match="started before"):
        machine.start()
    with pytest.raises(RuntimeError, match="ticket 1 and CommandsFinished do not match"):
        machine.handle(CommandsFinished(ticket=1, results=()))
    driver = Driver(spec("a"))
    with pytest.raises(RuntimeError, match="for an agent"):
        driver.send(CommandsFinished(ticket=driver.ask(Role.WORKER).ticket, results=()))
    driver = Driver(spec("a"))
    with pytest.raises(RuntimeError, match="and PlanChecked do not match"):
        driver.send(PlanChecked(ticket=driver.ask(Role.WORKER).ticket, plan=Plan((spec("a"),))))


class Refusing(Driver):
    """A driver whose steps refuse the first plans."""

    refusals = 1

    def check(self, order: CheckPlan) -> PlanChecked:
        self.refusals -= 1
        problem = "too few tests" if self.refusals >= 0 else ""
        return PlanChecked(ticket=order.ticket, plan=order.plan, problem=problem)


def test_a_refused_plan_is_asked_for_again() -> None:
    """The planner hears why its plan was refused, once, in the same session."""
    driver = Refusing()
    driver.answer(Role.COMMANDER, "do it")
    first = driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    again = driver.answer(Role.PLANNER, plan_text({"id": "b"}))
    assert "too few tests" in again.message
    assert again.session == first.session
    assert list(driver.machine.states()) == ["b"]
    assert driver.machine.warnings == (
        "the planner's plan was refused, asked again: too few tests",
    )


def test_a_plan_that_stays_refused_ends_the_mission() -> None:
    """A planner gets one more try, a ready plan none."""

    class Stubborn(Refusing):
        refusals = 2

    driver = Stubborn()
    driver.answer(Role.COMMANDER, "do it")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    driver.answer(Role.PLANNER, plan_text({"id": "b"}))
    end = Finish(outcome=MissionOutcome.FAILED, reason="the plan was refused: too few tests")
    assert driver.finish == end
    assert Stubborn(spec("a")).finish == end


def test_repr_and_states() -> None:
    """The repr shows how far things are."""
    driver = Driver(spec("a"), spec("b", ["a"]))
    assert repr(driver.machine) == "<MissionMachine ready=1, waiting=1 open=1>"


# --- what must hold whatever happens -----------------------------------------------------------

SPECS = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        *(
            st.builds(
                spec,
                st.just(f"t{number}"),
                st.sets(st.sampled_from([f"t{earlier}" for earlier in range(number)]))
                if number
                else st.just(()),
                st.sets(st.sampled_from(["a.py", "b.py", "c.py"]), max_size=2),
            )
            for number in range(count)
        )
    )
)
GOOD_ENDS: list[tuple[FinishReason, str]] = [
    (FinishReason.DONE, text) for text in (ACCEPT, ACCEPT, REJECT, "", "hm", "{")
]
BAD_ENDS: list[tuple[FinishReason, str]] = [
    (reason, "") for reason in FinishReason if reason is not FinishReason.LOST
]


class Play:
    """A mission with answers of all kinds in any order, checked at every step."""

    def __init__(self, specs: tuple[TaskSpec, ...], seed: int) -> None:
        self.random = random.Random(seed)
        self.specs = {each.id: each for each in specs}
        self.rules = MissionSettings(allow=(("true",),), acceptance=(("true",),))
        self.driver = Driver(*specs, settings=self.rules)
        self.states = dict.fromkeys(self.specs, TaskState.WAITING)
        self.tickets: set[int] = set()
        self.checked = 0

    def run(self) -> None:
        for _ in range(3_000):
            self.check_commands()
            self.check_files()
            if self.driver.machine.finish is not None:
                self.check_end()
                return
            assert self.driver.open, "nothing is under way, and the mission has not ended"
            self.step()
        raise AssertionError("the mission does not end")

    def step(self) -> None:
        work = self.driver.open[self.random.choice(sorted(self.driver.open))]
        if self.random.random() < 0.5:
            self.driver.send(WorkStarted(ticket=work.ticket))
        if self.random.random() < 0.5:
            return
        del self.driver.open[work.ticket]
        if isinstance(work, RunCommands):
            code = self.random.choice([0, 0, 1])
            results = tuple(CommandResult(argv=argv, exit_code=code) for argv in work.commands)
            event: Event = CommandsFinished(ticket=work.ticket, results=results)
        else:
            reason, text = self.random.choice(GOOD_ENDS * 3 + BAD_ENDS)
            event = AgentAnswered(ticket=work.ticket, reason=reason, text=text)
        self.driver.send(event)
        if self.random.random() < 0.1:
            self.driver.send(event)

    def check_commands(self) -> None:
        for command in self.driver.log[self.checked :]:
            if isinstance(command, Ask | RunCommands):
                assert command.ticket not in self.tickets
                self.tickets.add(command.ticket)
            if isinstance(command, TaskMoved):
                assert command.state in TRANSITIONS[self.states[command.task_id]]
                self.states[command.task_id] = command.state
                if command.state is TaskState.WORKING:
                    needed = self.specs[command.task_id].depends
                    assert all(self.states[name] is TaskState.ACCEPTED for name in needed)
        self.checked = len(self.driver.log)
        assert self.driver.machine.states() == self.states

    def check_files(self) -> None:
        held = [
            file
            for name, state in self.states.items()
            if state in {TaskState.WORKING, TaskState.REVIEWING, TaskState.CHECKING}
            for file in self.specs[name].files
        ]
        assert len(held) == len(set(held)), "two tasks hold one file"

    def check_end(self) -> None:
        reports = self.driver.machine.task_reports()
        lost = [report for report in reports if report.state is not TaskState.ACCEPTED]
        assert all(report.rounds <= self.rules.max_rounds for report in reports)
        assert all(not TRANSITIONS[report.state] for report in reports)
        assert all(report.reasons for report in lost)
        if self.driver.finish.outcome is MissionOutcome.ACCEPTED:
            assert not lost
            assert not any(result.is_failed for result in self.driver.machine.commands)


@settings(deadline=None)
@given(SPECS, st.integers(0, 2**32))
def test_any_mission_ends(specs: tuple[TaskSpec, ...], seed: int) -> None:
    """Whatever agents answer: legal moves only, order and files kept, rounds bounded, an end."""
    Play(specs, seed).run()


MUTANTS = {
    "rounds are not bounded": ("task.round >= self._settings.max_rounds", "False"),
    "files are not held": ("if self._write_sets.hold(task.spec.id, task.spec.files):", "if True:"),
    "dependents start early": ("if dependent.open_dependencies == 0 and", "if"),
    "a dependent is forgotten": ("dependent.open_dependencies -= 1", "pass"),
    "kept tasks are never woken": ("self._try_work(waiting)", "pass"),
    "failure does not skip dependents": (
        "skipped.extend(self._dependents",
        "list(self._dependents",
    ),
    "stale answers count": ("self._work.pop(event.ticket, None)", "self._work.get(event.ticket)"),
    "failed tasks do not count": ("if task.state is not TaskState.ACCEPTED\n", "if False\n"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above and the stale-ticket test fail when the rule they guard is broken."""
    old, new = MUTANTS[name]
    source = Path(machine_module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, "the mutant's line has changed"
    kept = {key: value for key, value in vars(machine_module).items() if key != "MissionMachine"}
    namespace = dict(kept)
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)  # noqa: S102
    # Only the machine is taken anew: events and commands must keep their identity.
    namespace.update(kept)
    monkeypatch.setitem(globals(), "MissionMachine", namespace["MissionMachine"])

    @settings(deadline=None, database=None, max_examples=300, phases=[Phase.generate])
    @given(SPECS, st.integers(0, 2**32))
    def search(specs: tuple[TaskSpec, ...], seed: int) -> None:
        Play(specs, seed).run()

    def check() -> None:
        test_stale_tickets_change_nothing()
        search()

    with pytest.raises((AssertionError, RuntimeError, ExceptionGroup)):
        check()


def test_warnings_are_told_and_kept() -> None:
    """What is warned of is in the commands and in the end's list."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "")
    told = [command.message for command in driver.log if isinstance(command, Warn)]
    assert tuple(told) == driver.machine.warnings


@pytest.mark.parametrize("limits", [{"wroker": 2}, {"worker": 0}, {"worker": True}])
def test_limits_are_checked(limits: dict[str, int]) -> None:
    """A limit that would not count is refused, by its name."""
    with pytest.raises(ValueError, match="limits"):
        MissionSettings(limits=limits)
