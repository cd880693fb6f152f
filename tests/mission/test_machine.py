"""The mission's rules, without a loop."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission import machine as machine_module
from orchestra.opencode.mission import task_flow as flow_module
from orchestra.opencode.mission import tickets as tickets_module
from orchestra.opencode.mission.machine import MissionMachine, MissionRecord
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    ApprovalGiven,
    Ask,
    AskApproval,
    Cancel,
    CheckPlan,
    CloseSession,
    Command,
    Discard,
    Event,
    Finish,
    GatesFinished,
    Integrate,
    Integrated,
    Order,
    PlanChecked,
    PlanMade,
    RunGates,
    StopRequested,
    TaskAdded,
    TaskHeld,
    TaskMoved,
    Warn,
    WorkStarted,
)
from orchestra.opencode.mission.plain import spec_from_plain, spec_to_plain
from orchestra.opencode.mission.plan import (
    LoopLimits,
    MissionSettings,
    Plan,
    Role,
    TaskMode,
    TaskSpec,
)
from orchestra.opencode.mission.report import CommandResult, MissionOutcome, Receipt, TaskState
from orchestra.opencode.mission.transitions import OVER, TRANSITIONS

ACCEPT = '{"verdict": "accept"}'
REJECT = '{"verdict": "reject", "reasons": ["no tests"]}'


def plan_text(*tasks: dict[str, object]) -> str:
    return json.dumps({"tasks": [{"title": "do it", **task} for task in tasks]})


def spec(
    task_id: str,
    depends: Iterable[str] = (),
    files: Iterable[str] = (),
    mode: TaskMode = TaskMode.NORMAL,
) -> TaskSpec:
    return TaskSpec(
        id=task_id, title=task_id, depends=tuple(depends), files=tuple(files), mode=mode
    )


class Driver:
    """Plays the runner: keeps what the machine ordered and answers it."""

    def __init__(
        self,
        *tasks: TaskSpec,
        settings: MissionSettings | None = None,
        goal: str = "the goal",
        refusals: Iterable[str] = (),
    ) -> None:
        plan = Plan(tasks) if tasks else None
        self.machine = MissionMachine(goal, settings=settings, plan=plan, random=lambda: 0.0)
        self.log: list[Command] = []
        self.open: dict[int, Order] = {}
        self.trees = 0
        self.refusals = list(refusals)
        self.take(self.machine.start())

    def take(self, commands: list[Command]) -> None:
        self.log.extend(commands)
        for command in commands:
            if isinstance(command, CheckPlan) and not self.refusals:
                self.send(PlanChecked(ticket=command.ticket, plan=command.plan))
                continue
            if isinstance(command, CheckPlan):
                problem = self.refusals.pop()
                self.send(PlanChecked(ticket=command.ticket, plan=command.plan, problem=problem))
                continue
            if isinstance(command, Order):
                self.open[command.ticket] = command
            if isinstance(command, Cancel):
                del self.open[command.ticket]
            if isinstance(command, Finish):
                self.open.clear()

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

    def run_gates(
        self,
        task: str | None = None,
        exit_code: int = 0,
        output: str = "",
        tree: str | None = None,
        **more: object,
    ) -> RunGates:
        """Let the gates of a task, or of the whole, come to this end; each time on a new tree."""
        order = next(
            each
            for each in self.open.values()
            if isinstance(each, RunGates) and each.task_id == task
        )
        del self.open[order.ticket]
        self.trees += 1
        results = [
            *(CommandResult(argv=argv, refusal="not permitted") for argv in order.refused),
            *(
                CommandResult(argv=argv, exit_code=exit_code, output=output)
                for argv in order.commands
            ),
        ]
        receipt = Receipt(
            stage=order.stage,
            tree=f"tree {self.trees}" if tree is None else tree,
            commands=tuple(results),
            **more,  # type: ignore[arg-type]
        )
        self.send(GatesFinished(ticket=order.ticket, receipt=receipt, evidence="the diff"))
        return order

    def integrate(self, task: str, problem: str = "", *, is_moved: bool = False) -> None:
        """Let a task's change be taken over, or not."""
        order = next(
            each
            for each in self.open.values()
            if isinstance(each, Integrate) and each.task_id == task
        )
        del self.open[order.ticket]
        self.send(Integrated(ticket=order.ticket, problem=problem, is_moved=is_moved))

    def approve(self, note: str = "", *, is_approved: bool = True) -> None:
        """Decide about the plan."""
        order = next(each for each in self.open.values() if isinstance(each, AskApproval))
        del self.open[order.ticket]
        self.send(ApprovalGiven(ticket=order.ticket, is_approved=is_approved, note=note))

    def check_whole(self, exit_code: int = 0) -> None:
        """Let the integration run and the seal come to an end, on one tree."""
        self.run_gates(exit_code=exit_code, tree="whole")
        if self.machine.finish is None:
            self.run_gates(tree="whole")

    @property
    def finish(self) -> Finish:
        assert self.machine.finish is not None
        return self.machine.finish

    def state(self, task: str) -> TaskState:
        return self.machine.states()[task]

    def work(self, task: str, text: str = "done", tree: str | None = None) -> Ask:
        """Let a worker end its turn, and its gates pass."""
        ask = self.answer(Role.WORKER, text, task)
        self.run_gates(task, tree=tree)
        return ask

    def accept(self, task: str) -> None:
        """Let a task go all its way."""
        self.work(task)
        self.answer(Role.REVIEWER, ACCEPT, task)
        self.integrate(task)


def test_whole_way() -> None:
    """Goal, brief, plan, work, review: every role is asked once, sessions are closed, all is accepted."""
    driver = Driver()
    assert driver.answer(Role.COMMANDER, "look at b.py").message.count("the goal") == 1
    assert "look at b.py" in driver.answer(Role.PLANNER, plan_text({"id": "a"})).message
    assert any(isinstance(command, PlanMade) for command in driver.log)
    driver.answer(Role.WORKER, "did it", usage=Usage(cost=1.0))
    driver.run_gates("a")
    review = driver.answer(Role.REVIEWER, ACCEPT, usage=Usage(cost=0.5))
    assert "did it" in review.message
    assert "the diff" in review.message
    driver.integrate("a")
    driver.check_whole()
    assert driver.finish == Finish(outcome=MissionOutcome.ACCEPTED, reason="the task was accepted")
    (report,) = driver.machine.task_reports()
    assert (report.rounds, report.usage.cost, report.summary) == (1, 1.5, "did it")
    opened = {command.session for command in driver.log if isinstance(command, Ask)}
    closed = {command.session for command in driver.log if isinstance(command, CloseSession)}
    assert opened - closed == {"commander/1"}, "the root session stays for what may come"


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
    driver.check_whole()
    assert driver.finish.reason == "all 3 tasks were accepted"


def test_rejection_goes_back_with_reasons_to_the_same_session() -> None:
    """The worker that is sent back keeps its session and is told why."""
    driver = Driver(spec("a"))
    first = driver.work("a")
    driver.answer(Role.REVIEWER, REJECT)
    second = driver.ask(Role.WORKER)
    assert second.session == first.session
    assert (first.round, second.round) == (1, 2)
    assert (first.turn, second.turn) == (1, 2)
    assert "no tests" in second.message
    assert "no tests" not in first.message
    driver.accept("a")
    driver.check_whole()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED
    assert driver.machine.task_reports()[0].reasons == ("no tests",)


def test_each_review_has_its_own_session() -> None:
    """A reviewer of a second round does not remember what it said in the first."""
    driver = Driver(spec("a"))
    driver.work("a")
    first = driver.answer(Role.REVIEWER, REJECT)
    driver.work("a")
    assert driver.ask(Role.REVIEWER).session != first.session


def test_rounds_are_bounded() -> None:
    """After the last round the task fails, with the last reason, and its dependents are skipped."""
    rules = MissionSettings(loop=LoopLimits(rounds=3))
    driver = Driver(spec("a"), spec("b", ["a"]), spec("c", ["b"]), spec("d"), settings=rules)
    for _ in range(3):
        driver.work("a")
        driver.answer(Role.REVIEWER, REJECT, "a")
    assert driver.state("a") is TaskState.FAILED
    assert driver.state("b") is TaskState.SKIPPED
    assert driver.state("c") is TaskState.SKIPPED
    driver.accept("d")
    assert driver.finish == Finish(
        outcome=MissionOutcome.FAILED, reason="3 of 4 tasks not accepted: a, b, c"
    )
    assert driver.machine.task_reports()[2].reasons == ("it depends on 'a', which failed",)


def test_failed_turn_is_no_round_and_goes_on_in_a_fresh_session_later_each_time() -> None:
    """A turn that failed for reasons of its own is repeated elsewhere, with growing delays."""
    driver = Driver(spec("a"))
    sessions, delays = [], []
    for _ in range(3):
        ask = driver.answer(
            Role.WORKER,
            reason=FinishReason.FAILED,
            error=TurnError(name="SomeError", message="overloaded"),
        )
        sessions.append(ask.session)
        delays.append(ask.delay)
    assert len(set(sessions)) == 3
    assert delays == [0.0, 1.0, 2.0]
    assert driver.state("a") is TaskState.FAILED
    report = driver.machine.task_reports()[0]
    assert "overloaded" in report.reasons[0]
    assert driver.machine.retries == 2


def test_retry_after_is_obeyed_within_bounds() -> None:
    """The origin's wish for a pause counts, unless it is absurd."""
    driver = Driver(spec("a"))
    for wish in (7.5, 1e9):
        driver.answer(
            Role.WORKER,
            reason=FinishReason.FAILED,
            error=TurnError(name="APIError", message="later", status=429, retry_after=wish),
        )
        assert driver.ask(Role.WORKER).delay == min(wish, 600.0)


@pytest.mark.parametrize("role", [Role.COMMANDER, Role.PLANNER, Role.REVIEWER])
def test_other_roles_turns_are_tried_again(role: Role) -> None:
    """A turn of another role that breaks off is tried in new sessions, then something fails."""
    driver = Driver() if role is not Role.REVIEWER else Driver(spec("a"))
    if role is Role.PLANNER:
        driver.answer(Role.COMMANDER, "brief")
    if role is Role.REVIEWER:
        driver.work("a")
    sessions = {driver.answer(role, reason=FinishReason.INTERRUPTED).session for _ in range(4)}
    assert len(sessions) == 4
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


def test_used_up_budget_brings_what_is_under_way_to_its_end() -> None:
    """One worker has used up the mission's budget: the other's work is judged, nobody plans anew."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}, {"id": "b"}))
    error = TurnError(name="BudgetExceededError", message="budget 'mission' is used up")
    driver.answer(Role.WORKER, task="a", reason=FinishReason.ABORTED, error=error)
    assert driver.state("a") is TaskState.FAILED
    assert driver.machine.finish is None
    driver.accept("b")
    assert driver.state("b") is TaskState.ACCEPTED
    assert driver.finish.outcome is MissionOutcome.FAILED
    assert "budget 'mission' is used up" in driver.finish.reason
    asked = [ask.role for ask in driver.log if isinstance(ask, Ask)]
    assert asked.count(Role.COMMANDER) == 1


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
        is_resumable=True,
    )
    assert driver.state("a") is TaskState.FAILED
    assert driver.state("b") is TaskState.SKIPPED
    assert driver.state("c") is TaskState.SKIPPED


def test_bad_plan_is_asked_for_once_more() -> None:
    """A plan that is none is refused with its fault, in the same session, twice."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    first = driver.answer(Role.PLANNER, plan_text({"id": "a", "depends": ["b"]}))
    second = driver.answer(Role.PLANNER, "no")
    third = driver.answer(Role.PLANNER, plan_text({"id": "a"}, {"id": "a"}))
    assert first.session == second.session == third.session
    assert (first.turn, second.turn, third.turn) == (1, 2, 3)
    assert "depends on 'b', which is not in the plan" in second.message
    assert driver.finish.reason == "the planner gave no usable plan: the id 'a' is used twice"


def test_bad_plan_then_a_good_one() -> None:
    """The second answer counts."""
    driver = Driver()
    driver.answer(Role.COMMANDER, "brief")
    driver.answer(Role.PLANNER, "Sorry, I cannot do that.")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    driver.accept("a")
    driver.check_whole()
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


def test_verdict_that_is_none_is_asked_for_again() -> None:
    """A reviewer that gives no verdict, asked twice more in its session, accepts nothing."""
    driver = Driver(spec("a"))
    driver.work("a")
    first = driver.answer(Role.REVIEWER, "Looks good to me!")
    second = driver.answer(Role.REVIEWER, "Yes.")
    assert (second.session, second.turn) == (first.session, 2)
    driver.answer(Role.REVIEWER, '{"verdict": "reject", "reasons": []}')
    assert driver.state("a") is TaskState.FAILED
    assert "gave no verdict" in driver.machine.task_reports()[0].reasons[0]


def test_empty_work_is_reviewed_and_reported() -> None:
    """A worker without words is judged by what it did."""
    driver = Driver(spec("a"))
    driver.work("a", "")
    assert "gave no summary" in driver.ask(Role.REVIEWER).message
    assert "empty answer" in driver.machine.warnings[0]


def test_gates_run_before_the_review_and_decide() -> None:
    """A gate that fails sends the task back with its output, and no reviewer is asked."""
    task = TaskSpec(id="a", title="a", acceptance=(("pytest", "-q"),))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest", "*"),)))
    driver.answer(Role.WORKER, "done")
    assert driver.state("a") is TaskState.CHECKING
    driver.run_gates("a", exit_code=1, output="1 failed")
    message = driver.ask(Role.WORKER).message
    assert "ended with exit code 1" in message
    assert "1 failed" in message
    driver.accept("a")
    driver.check_whole()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED


def test_problems_of_a_receipt_send_back() -> None:
    """What our own checks say against a change is told to its worker."""
    driver = Driver(spec("a"))
    driver.answer(Role.WORKER, "done")
    driver.run_gates("a", problems=("a.py does not parse",))
    assert "a.py does not parse" in driver.ask(Role.WORKER).message


def test_what_is_not_permitted_is_not_run() -> None:
    """A command that the mission does not permit is refused and reported, the others run."""
    task = TaskSpec(id="a", title="a", acceptance=(("rm", "-rf", "/"), ("pytest",)))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest",),)))
    driver.answer(Role.WORKER, "done")
    order = driver.run_gates("a")
    assert order.commands == (("pytest",),)
    assert order.refused == (("rm", "-rf", "/"),)
    first, second = driver.machine.task_reports()[0].commands
    assert first.refusal
    assert second.exit_code == 0
    assert "not on the allow list" in driver.machine.warnings[0]


def test_results_of_a_second_round_replace_the_first() -> None:
    """Results of an earlier round are replaced, not piled up."""
    task = TaskSpec(id="a", title="a", acceptance=(("rm",), ("pytest",)))
    driver = Driver(task, settings=MissionSettings(allow=(("pytest",),)))
    driver.answer(Role.WORKER, "done")
    driver.run_gates("a", exit_code=1)
    driver.work("a")
    assert len(driver.machine.task_reports()[0].commands) == 2


def test_the_whole_is_checked_with_every_command() -> None:
    """When all are in, the mission's commands and every task's run once more, each once."""
    settings = MissionSettings(acceptance=(("make", "check"),), allow=(("pytest", "*"),))
    for exit_code, outcome in ((0, MissionOutcome.ACCEPTED), (2, MissionOutcome.FAILED)):
        driver = Driver(
            TaskSpec(id="a", title="a", acceptance=(("pytest", "a"), ("rm",))),
            TaskSpec(id="b", title="b", acceptance=(("pytest", "a"), ("make", "check"))),
            settings=settings,
        )
        driver.accept("a")
        driver.accept("b")
        assert driver.machine.finish is None
        order = next(each for each in driver.open.values() if isinstance(each, RunGates))
        assert order.commands == (("make", "check"), ("pytest", "a"))
        driver.check_whole(exit_code=exit_code)
        assert driver.finish.outcome is outcome
        assert len(driver.machine.commands) == 2


def test_seal_counts_for_the_checked_tree_only() -> None:
    """What changes after the check makes it count for nothing; it is bounded how often."""
    driver = Driver(spec("a"))
    driver.accept("a")
    driver.run_gates(tree="one")
    driver.run_gates(tree="two")
    assert driver.machine.finish is None
    driver.run_gates(tree="three")
    driver.run_gates(tree="three")
    assert driver.finish.outcome is MissionOutcome.ACCEPTED
    receipt = driver.machine.receipt
    assert receipt is not None
    assert (receipt.stage, receipt.tree) == ("seal", "three")
    driver = Driver(spec("a"))
    driver.accept("a")
    while driver.machine.finish is None:
        driver.run_gates()
    assert "keep changing after the last check" in driver.finish.reason


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
    assert {each.task_id for each in driver.open.values() if isinstance(each, Ask)} == {"a", "c"}
    assert [each for each in driver.log if isinstance(each, TaskHeld)] == [
        TaskHeld(task_id="b", holder="a")
    ]
    driver.work("a")
    assert "b" not in {each.task_id for each in driver.open.values() if isinstance(each, Ask)}
    driver.answer(Role.REVIEWER, ACCEPT, "a")
    driver.integrate("a")
    assert {each.task_id for each in driver.open.values() if isinstance(each, Ask)} == {"b", "c"}


def test_stop_ends_everything() -> None:
    """What was begun has failed, what was not begun is skipped, and answers no longer count."""
    driver = Driver(spec("a"), spec("b"), spec("c", ["a"]))
    ask = driver.ask(Role.WORKER, "a")
    driver.send(WorkStarted(ticket=ask.ticket))
    driver.send(StopRequested(reason="Ctrl-C"))
    assert driver.finish == Finish(
        outcome=MissionOutcome.INTERRUPTED, reason="Ctrl-C", is_resumable=True
    )
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
    driver.send(GatesFinished(ticket=999, receipt=Receipt()))
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
    with pytest.raises(RuntimeError, match="is for CheckPlan, not for gates"):
        machine.handle(GatesFinished(ticket=1, receipt=Receipt()))


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
                mode=st.sampled_from([TaskMode.NORMAL, *TaskMode]),
            )
            for number in range(count)
        )
    )
)
SPLIT = json.dumps(
    {
        "split": [
            {"id": "x", "title": "x", "files": ["a.py"]},
            {"id": "y", "title": "y", "files": ["b.py"], "depends": ["x"]},
        ]
    }
)
GOOD_ENDS: list[tuple[FinishReason, str]] = [
    (FinishReason.DONE, text) for text in (ACCEPT, ACCEPT, REJECT, "", "hm", "{", SPLIT)
]
BAD_ENDS: list[tuple[FinishReason, str]] = [
    (reason, "") for reason in FinishReason if reason is not FinishReason.LOST
]
HOLDING = {
    TaskState.WORKING,
    TaskState.CHECKING,
    TaskState.REVIEWING,
    TaskState.MERGING,
    TaskState.SPLIT,
}


class Play:
    """A mission with answers of all kinds in any order, checked at every step."""

    def __init__(self, specs: tuple[TaskSpec, ...], seed: int, restarts: float = 0.0) -> None:
        self.restarts = restarts
        self.random = random.Random(seed)
        self.specs = {each.id: each for each in specs}
        self.parents: dict[str, str] = {}
        self.rules = MissionSettings(allow=(("true",),), acceptance=(("true",),))
        self.driver = Driver(*specs, settings=self.rules)
        self.states = dict.fromkeys(self.specs, TaskState.WAITING)
        self.tickets: set[int] = set()
        self.prompts: set[str] = set()
        self.checked = 0

    def run(self) -> None:
        for _ in range(10_000):
            self.check_commands()
            self.check_files()
            self.check_order()
            if self.driver.machine.finish is not None:
                self.check_end()
                return
            assert self.driver.open, "nothing is under way, and the mission has not ended"
            self.step()
        raise AssertionError("the mission does not end")

    def restart(self) -> None:
        """Forget everything but what was written, and go on from there."""
        old = self.driver
        machine = old.machine
        written = json.loads(
            json.dumps(
                {
                    "state": machine.record(),
                    "tasks": {name: machine.task_record(name) for name in machine.states()},
                    "specs": [spec_to_plain(each) for each in machine.specs()],
                    "plan": [spec_to_plain(each) for each in machine.plan.tasks]
                    if machine.plan
                    else [],
                    "parts": [
                        [spec_to_plain(self.specs[part]), parent]
                        for part, parent in self.parents.items()
                    ],
                }
            )
        )
        self.driver = Driver.__new__(Driver)
        self.driver.machine = MissionMachine("the goal", settings=self.rules, random=lambda: 0.0)
        self.driver.log, self.driver.open, self.driver.trees = [], {}, old.trees
        self.driver.refusals = []
        self.checked = 0
        self.tickets = set()
        under_way = {each.key for each in old.open.values() if isinstance(each, Ask)}
        self.prompts -= under_way
        self.driver.take(
            self.driver.machine.restore(
                MissionRecord(
                    state=written["state"],
                    plan=tuple(map(spec_from_plain, written["plan"])),
                    specs=tuple(map(spec_from_plain, written["specs"])),
                    parts=tuple(
                        (spec_from_plain(part), parent) for part, parent in written["parts"]
                    ),
                    tasks=written["tasks"],
                )
            )
        )
        again = {each.key for each in self.driver.open.values() if isinstance(each, Ask)}
        # Of a reviewer's talk all prompts are gone through again, from the first one.
        talks = {key.rpartition(":")[0] for key in under_way}
        first = {f"{talk}:1" for talk in talks}
        self.prompts = {key for key in self.prompts if key.rpartition(":")[0] not in talks}
        assert again <= under_way | first, "what is asked after a restart was asked before"
        assert len(again) == len(under_way), "nothing under way is forgotten"

    def step(self) -> None:
        if self.random.random() < self.restarts:
            self.restart()
            self.check_commands()
            return
        work = self.driver.open[self.random.choice(sorted(self.driver.open))]
        if self.random.random() < 0.5:
            self.driver.send(WorkStarted(ticket=work.ticket))
        if self.random.random() < 0.5 or work.ticket not in self.driver.open:
            return
        del self.driver.open[work.ticket]
        if isinstance(work, RunGates):
            code = self.random.choice([0, 0, 1])
            receipt = Receipt(
                stage=work.stage,
                tree=self.random.choice(["one", "two"]),
                commands=tuple(CommandResult(argv=argv, exit_code=code) for argv in work.commands),
                problems=self.random.choice([(), (), ("it does not parse",)]),
            )
            event: Event = GatesFinished(ticket=work.ticket, receipt=receipt)
        elif isinstance(work, Integrate):
            problem, is_moved = self.random.choice(
                [("", False)] * 4 + [("conflict", False), ("", True)]
            )
            event = Integrated(ticket=work.ticket, problem=problem, is_moved=is_moved)
        else:
            reason, text = self.random.choice(GOOD_ENDS * 3 + BAD_ENDS)
            error = None
            if reason is FinishReason.FAILED:
                name = self.random.choice(["BudgetExceededError", "OverspentError", "LoopError"])
                error = TurnError(name=name, message="it is used up")
            event = AgentAnswered(ticket=work.ticket, reason=reason, text=text, error=error)
        self.driver.send(event)
        if self.random.random() < 0.1:
            self.driver.send(event)

    def check_commands(self) -> None:
        for command in self.driver.log[self.checked :]:
            if isinstance(command, Order):
                assert command.ticket not in self.tickets
                self.tickets.add(command.ticket)
            if isinstance(command, Ask):
                assert command.key not in self.prompts, "one prompt is sent twice"
                self.prompts.add(command.key)
            if isinstance(command, TaskAdded):
                self.specs[command.spec.id] = command.spec
                self.parents[command.spec.id] = command.parent
                self.states[command.spec.id] = TaskState.WAITING
                assert command.parent not in self.parents, "nested deeper than permitted"
            if isinstance(command, TaskMoved):
                assert command.state in TRANSITIONS[self.states[command.task_id]]
                self.states[command.task_id] = command.state
                if command.state is TaskState.WORKING:
                    needed = self.specs[command.task_id].depends
                    assert all(self.states[name] is TaskState.ACCEPTED for name in needed)
                if command.state is TaskState.MERGING:
                    self.check_race(command.task_id)
        self.checked = len(self.driver.log)
        assert self.driver.machine.states() == self.states

    def check_order(self) -> None:
        """Whatever is split when: the plan's tasks are in its order, parts right after their task."""
        place = self.driver.machine.position_of
        planned = [place(name) for name in self.specs if name not in self.parents]
        assert planned == sorted(set(planned))
        for part, parent in self.parents.items():
            assert place(parent) < place(part) < place(parent) + 1
        for parent in set(self.parents.values()):
            parts = [place(part) for part, its in self.parents.items() if its == parent]
            assert parts == sorted(set(parts))
            racers = [part for part in self.parents if part.startswith(f"{parent}#")]
            assert bool(racers) != bool(self.driver.machine.parts_of(parent))

    def check_race(self, name: str) -> None:
        orders = [
            each.task_id
            for each in self.driver.open.values()
            if isinstance(each, Integrate) and "#" in each.task_id
        ]
        parents = [self.parents[each] for each in orders]
        assert len(parents) == len(set(parents)), f"two racers are taken over at once: {name}"

    def check_files(self) -> None:
        for parent in {"", *self.parents.values()}:
            held = [
                file
                for name, state in self.states.items()
                if state in HOLDING and self.parents.get(name, "") == parent and "#" not in name
                for file in self.specs[name].files
            ]
            assert len(held) == len(set(held)), "two tasks hold one file"

    def check_end(self) -> None:
        reports = self.driver.machine.task_reports()
        lost = [
            report
            for report in reports
            if report.state is not TaskState.ACCEPTED and not report.parent
        ]
        assert all(report.rounds <= self.rules.loop.rounds for report in reports)
        assert all(TRANSITIONS[report.state] <= {TaskState.REPLACED} for report in reports)
        assert all(report.reasons for report in lost)
        for name, parent in self.parents.items():
            if "#" in name and self.states[parent] is TaskState.ACCEPTED:
                won = [
                    each
                    for each, its in self.parents.items()
                    if its == parent and self.states[each] is TaskState.ACCEPTED
                ]
                assert len(won) == 1, "a race has one winner"
        if self.driver.finish.outcome is MissionOutcome.ACCEPTED:
            assert not lost
            assert not any(result.is_failed for result in self.driver.machine.commands)


@settings(deadline=None)
@given(SPECS, st.integers(0, 2**32))
def test_any_mission_ends(specs: tuple[TaskSpec, ...], seed: int) -> None:
    """Whatever agents answer: legal moves only, order and files kept, rounds bounded, an end."""
    Play(specs, seed).run()


@settings(deadline=None)
@given(SPECS, st.integers(0, 2**32))
def test_any_mission_ends_after_any_restarts(specs: tuple[TaskSpec, ...], seed: int) -> None:
    """What was written is enough to go on: no prompt that was answered is sent again."""
    Play(specs, seed, restarts=0.1).run()


MUTANTS: dict[str, tuple[ModuleType, str, str]] = {
    "rounds are not bounded": (flow_module, "task.round >= self._settings.loop.rounds", "False"),
    "files are not held": (
        flow_module,
        "if files is not None and not files.hold(task.id, task.spec.files):",
        "if False:",
    ),
    "dependents start early": (flow_module, "if dependent.open_dependencies == 0 and", "if"),
    "a dependent is forgotten": (flow_module, "dependent.open_dependencies -= 1", "pass"),
    "kept tasks are never woken": (flow_module, "self._try_work(waiting)", "pass"),
    "failure does not skip dependents": (
        flow_module,
        "skipped.extend(self._dependents",
        "list(self._dependents",
    ),
    "stale answers count": (
        tickets_module,
        "self._open.pop(ticket, None)",
        "self._open.get(ticket)",
    ),
    "failed tasks do not count": (
        machine_module,
        "if task.state is not TaskState.ACCEPTED]",
        "if False]",
    ),
    "losers of a race go on": (flow_module, "self._tickets.cancel(gone)", "pass"),
    "two racers are taken over": (
        flow_module,
        "if task.parent.merging:",
        "if False:",
    ),
    "a failed part is forgotten": (flow_module, "elif parent.state not in OVER:", "elif False:"),
}


OWNERS = {machine_module: "MissionMachine", flow_module: "TaskFlow", tickets_module: "Tickets"}
PLAYS = 5_000
"""Always the same ones. The first 500 find each bug several times; no more are played than needed."""


def any_specs(rng: random.Random) -> tuple[TaskSpec, ...]:
    """Tasks as SPECS has them, by a generator that never changes."""
    names = [f"t{number}" for number in range(rng.randint(1, 8))]
    return tuple(
        spec(
            name,
            [earlier for earlier in names[:number] if rng.random() < 0.3],
            rng.sample(["a.py", "b.py", "c.py"], rng.randint(0, 2)),
            rng.choice([TaskMode.NORMAL, *TaskMode]),
        )
        for number, name in enumerate(names)
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above and the stale-ticket test fail when the rule they guard is broken."""
    module, old, new = MUTANTS[name]
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, "the mutant's line has changed"
    kept = {key: value for key, value in vars(module).items() if key != OWNERS[module]}
    namespace = dict(kept)
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)  # noqa: S102
    # Only the class is taken anew: events and commands must keep their identity.
    mutant = namespace[OWNERS[module]]
    namespace.update(kept)
    if module is machine_module:
        monkeypatch.setitem(globals(), "MissionMachine", mutant)
    else:
        monkeypatch.setattr(machine_module, mutant.__name__, mutant)

    def check() -> None:
        test_stale_tickets_change_nothing()
        test_first_accepted_racer_wins()
        for seed in range(PLAYS):
            Play(any_specs(random.Random(seed)), seed).run()

    with pytest.raises((AssertionError, RuntimeError, KeyError, ExceptionGroup)):
        check()


# --- races and parts ---------------------------------------------------------------------------


def race(racers: int = 2) -> TaskSpec:
    return TaskSpec(id="a", title="a", files=("x.py",), mode=TaskMode.RACE, racers=racers)


def test_first_accepted_racer_wins() -> None:
    """The others are cancelled, their sessions closed, their changes discarded."""
    driver = Driver(race(3))
    assert {each.task_id for each in driver.open.values() if isinstance(each, Ask)} == {
        "a#1",
        "a#2",
        "a#3",
    }
    driver.work("a#2")
    driver.work("a#3")
    driver.answer(Role.REVIEWER, ACCEPT, "a#3")
    driver.answer(Role.REVIEWER, ACCEPT, "a#2")
    assert [each.task_id for each in driver.open.values() if isinstance(each, Integrate)] == ["a#3"]
    driver.integrate("a#3")
    assert driver.machine.states() == {
        "a": TaskState.ACCEPTED,
        "a#1": TaskState.CANCELLED,
        "a#2": TaskState.CANCELLED,
        "a#3": TaskState.ACCEPTED,
    }
    assert [each.task_id for each in driver.log if isinstance(each, Discard)] == ["a#1", "a#2"]
    driver.check_whole()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED


def test_second_racer_has_its_turn_when_the_first_cannot_be_merged() -> None:
    """A racer that waits behind one whose change conflicts is taken over instead."""
    driver = Driver(race())
    for name in ("a#1", "a#2"):
        driver.work(name)
        driver.answer(Role.REVIEWER, ACCEPT, name)
    driver.integrate("a#1", "conflict in x.py")
    assert "conflict in x.py" in driver.ask(Role.WORKER, "a#1").message
    driver.integrate("a#2")
    assert driver.state("a") is TaskState.ACCEPTED
    assert driver.state("a#1") is TaskState.CANCELLED


def test_race_is_lost_when_nobody_is_accepted() -> None:
    """Each racer has its own rounds; when all have failed the task has."""
    driver = Driver(race(), settings=MissionSettings(loop=LoopLimits(rounds=1)))
    for name in ("a#1", "a#2"):
        driver.work(name)
        driver.answer(Role.REVIEWER, REJECT, name)
    assert driver.state("a") is TaskState.FAILED
    assert "nobody who raced was accepted" in driver.machine.task_report("a").reasons[-1]


def fractal() -> TaskSpec:
    return TaskSpec(id="a", title="a", files=("a.py", "b.py"), mode=TaskMode.FRACTAL)


def test_fractal_task_is_split_inside_its_files() -> None:
    """The parts go their way, then the task itself is checked and reviewed as a whole."""
    driver = Driver(fractal(), spec("b", files=["a.py"]))
    driver.answer(Role.WORKER, SPLIT, "a")
    assert driver.state("a") is TaskState.SPLIT
    assert driver.state("a.y") is TaskState.WAITING
    driver.accept("a.x")
    driver.accept("a.y")
    assert driver.state("a") is TaskState.CHECKING
    assert driver.state("b") is TaskState.READY
    driver.run_gates("a")
    driver.answer(Role.REVIEWER, ACCEPT, "a")
    driver.integrate("a")
    driver.accept("b")
    driver.check_whole()
    assert driver.finish.reason == "all 2 tasks were accepted"


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([{"id": "x", "files": ["a.py"]}], "2 to 8 parts"),
        (
            [{"id": "x", "files": ["a.py"]}, {"id": "y", "files": ["c.py"]}],
            "not a file of the task",
        ),
        ([{"id": "x", "files": ["a.py"]}, {"id": "y", "files": ["a.py"]}], "as another part does"),
        ([{"id": "x", "files": ["a.py"]}, {"id": "y"}], "names no files"),
    ],
)
def test_bad_split_is_sent_back(parts: list[dict[str, object]], fault: str) -> None:
    """A split outside the task's own files is refused with its fault."""
    driver = Driver(fractal())
    parts = [{"title": "part", **part} for part in parts]
    driver.answer(Role.WORKER, json.dumps({"split": parts}), "a")
    assert driver.state("a") is TaskState.READY
    assert fault in driver.ask(Role.WORKER, "a").message


def test_normal_task_is_not_split() -> None:
    """Only a fractal task may be split; what looks like a split is an answer like any other."""
    driver = Driver(TaskSpec(id="a", title="a", files=("a.py", "b.py")))
    driver.answer(Role.WORKER, SPLIT, "a")
    assert driver.state("a") is TaskState.CHECKING


@pytest.mark.parametrize("depth", [2, 3])
def test_depth_is_bounded_by_lineage(depth: int) -> None:
    """A part never splits again, and with a depth of 2 no task does, also when it does not move."""
    loop = LoopLimits(depth=depth)
    task = TaskSpec(id="a", title="a", files=("a", "b", "c", "d"), mode=TaskMode.FRACTAL)
    driver = Driver(task, settings=MissionSettings(loop=loop))
    assert ('{"split"' in driver.ask(Role.WORKER).message) is (depth == 3)
    if depth == 3:
        parts = [{"id": "x", "title": "x", "files": ["a", "b"]}]
        parts.append({"id": "y", "title": "y", "files": ["c", "d"]})
        driver.answer(Role.WORKER, json.dumps({"split": parts}))
    name = "a.x" if depth == 3 else "a"
    for _ in range(3):
        driver.answer(Role.WORKER, "done", name)
        driver.run_gates(name, tree="same", problems=("no",))
    ask = driver.ask(Role.WORKER, name)
    assert "Earlier workers" in ask.message
    assert "split" not in ask.message


def test_failed_part_fails_the_task() -> None:
    """The other parts are called off."""
    rules = MissionSettings(loop=LoopLimits(rounds=1))
    driver = Driver(fractal(), settings=rules)
    driver.answer(Role.WORKER, SPLIT, "a")
    driver.work("a.x")
    driver.answer(Role.REVIEWER, REJECT, "a.x")
    assert driver.machine.states() == {
        "a": TaskState.FAILED,
        "a.x": TaskState.FAILED,
        "a.y": TaskState.CANCELLED,
    }


# --- merging, stagnation, going on -------------------------------------------------------------


def test_conflict_goes_back_to_its_worker() -> None:
    """What cannot be merged is sent back with the conflict's text."""
    driver = Driver(spec("a"))
    driver.work("a")
    driver.answer(Role.REVIEWER, ACCEPT)
    driver.integrate("a", "conflict in x.py: <<<<<<<")
    assert "conflict in x.py" in driver.ask(Role.WORKER).message


def test_change_that_moved_is_checked_again() -> None:
    """A receipt for other files does not count: gates and review are repeated, bounded."""
    driver = Driver(spec("a"))
    driver.work("a")
    for _ in range(3):
        driver.answer(Role.REVIEWER, ACCEPT)
        driver.integrate("a", is_moved=True)
        assert driver.state("a") is TaskState.CHECKING
        driver.run_gates("a")
    driver.answer(Role.REVIEWER, ACCEPT)
    driver.integrate("a", is_moved=True)
    assert "keep changing" in driver.ask(Role.WORKER).message


def test_worker_that_changes_nothing_ends_by_stagnation() -> None:
    """First the facts, then a fresh session and the next model, then the task fails."""
    rules = MissionSettings(fallbacks={"worker": ("p/second",)})
    driver = Driver(spec("a"), settings=rules)
    asks = []
    while driver.machine.finish is None:
        asks.append(driver.answer(Role.WORKER, "done"))
        driver.run_gates("a", tree="same", problems=("nothing was changed",))
    assert len(asks) == 4
    assert [ask.session for ask in asks] == ["worker/a/1"] * 3 + ["worker/a/2"]
    assert [ask.model for ask in asks] == [None, None, None, "p/second"]
    assert "changed neither the files" in asks[2].message
    assert "Earlier workers did not move" in asks[3].message
    assert "stagnation: 4 rounds" in driver.machine.task_reports()[0].reasons[-1]


def test_any_change_is_progress() -> None:
    """Rounds that change something are bounded by their number only."""
    driver = Driver(spec("a"))
    for _ in range(5):
        driver.answer(Role.WORKER, "done")
        driver.run_gates("a", problems=("still wrong",))
    assert "not accepted in 5 rounds" in driver.finish.reason or (
        driver.machine.task_reports()[0].reasons[-1] == "still wrong"
    )
    assert driver.state("a") is TaskState.FAILED


def test_back_and_forth_is_no_progress() -> None:
    """Rounds that lead only to where the work has been before end by stagnation, also restarted."""
    driver = Driver(spec("a"), settings=MissionSettings(loop=LoopLimits(rounds=20)))
    asks = []
    for tree in ("one", "two", "one", "two", "one"):
        asks.append(driver.answer(Role.WORKER, "done"))
        driver.run_gates("a", tree=tree, problems=("still wrong",))
    notes = ["changed neither the files" in ask.message for ask in asks]
    assert notes == [False, False, False, True, False]
    assert "Earlier workers did not move" in asks[4].message
    assert driver.state("a") is TaskState.FAILED
    assert "stagnation: 4 rounds" in driver.machine.task_reports()[0].reasons[-1]


def planned(*tasks: dict[str, object], rules: MissionSettings | None = None) -> Driver:
    driver = Driver(settings=rules)
    driver.answer(Role.COMMANDER, "brief")
    driver.answer(Role.PLANNER, plan_text(*tasks))
    return driver


def test_commander_is_asked_how_to_go_on() -> None:
    """With failed tasks the root session gets mission, progress and evidence; accepted work stays."""
    driver = planned({"id": "a"}, {"id": "b"}, rules=MissionSettings(loop=LoopLimits(rounds=1)))
    driver.accept("a")
    driver.work("b")
    driver.answer(Role.REVIEWER, REJECT, "b")
    ask = driver.answer(Role.COMMANDER, "do it otherwise")
    assert (ask.session, ask.turn) == ("commander/1", 2)
    for tag in ("<mission>", "<progress>", "<evidence>", "no tests"):
        assert tag in ask.message
    plan = driver.answer(Role.PLANNER, plan_text({"id": "c"}))
    assert "a: do it" in plan.message
    assert driver.state("b") is TaskState.REPLACED
    driver.accept("c")
    driver.check_whole()
    assert driver.finish.reason == "all 2 tasks were accepted"
    assert driver.machine.iteration == 2


def test_later_plans_come_after_earlier_ones() -> None:
    """No place in the plan is taken twice, also when a task comes once more under its name."""
    driver = planned({"id": "a"}, {"id": "b"}, rules=MissionSettings(loop=LoopLimits(rounds=1)))
    driver.accept("a")
    plans: list[list[dict[str, object]]] = [[{"id": "b"}], [{"id": "c"}, {"id": "d"}]]
    for plan in plans:
        failing = [name for name, state in driver.machine.states().items() if state not in OVER]
        for name in failing:
            driver.work(name)
            driver.answer(Role.REVIEWER, REJECT, name)
        driver.answer(Role.COMMANDER, "brief")
        driver.answer(Role.PLANNER, plan_text(*plan))
    assert list(driver.machine.states()) == ["a", "b", "c", "d"]
    assert len({driver.machine.position_of(name) for name in "abcd"}) == 4


def test_failed_integration_is_continued_too() -> None:
    """When the whole does not pass, the commander hears why."""
    rules = MissionSettings(acceptance=(("make", "check"),))
    driver = planned({"id": "a"}, rules=rules)
    driver.accept("a")
    driver.run_gates(exit_code=2, output="boom")
    assert "boom" in driver.ask(Role.COMMANDER).message


def test_iterations_are_bounded_and_stagnation_ends_them_earlier() -> None:
    """Plans that fail one after the other come to an end, without any change even sooner."""
    for changes, count in ((True, 5), (False, 4)):
        loop = LoopLimits(rounds=1, iterations=5)
        driver = planned({"id": "a"}, rules=MissionSettings(loop=loop))
        plans = 1
        while True:
            driver.answer(Role.WORKER, "done")
            tree = f"tree {plans}" if changes else "same"
            driver.run_gates("a", tree=tree, problems=("no",))
            if driver.machine.finish is not None:
                break
            driver.answer(Role.COMMANDER, "again")
            driver.answer(Role.PLANNER, plan_text({"id": "a"}))
            plans += 1
        assert plans == count
        assert driver.finish.outcome is MissionOutcome.FAILED
        assert ("stagnation" in driver.finish.reason) is not changes


def test_new_plan_must_not_name_accepted_tasks() -> None:
    """What is accepted is not planned again."""
    driver = planned({"id": "a"}, {"id": "b"}, rules=MissionSettings(loop=LoopLimits(rounds=1)))
    driver.accept("a")
    driver.work("b")
    driver.answer(Role.REVIEWER, REJECT, "b")
    driver.answer(Role.COMMANDER, "again")
    driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    assert "the ids a are those of accepted tasks" in driver.ask(Role.PLANNER).message


def test_small_goal_is_done_directly() -> None:
    """A brief with one task needs no planner."""
    driver = Driver()
    driver.answer(
        Role.COMMANDER, 'Small.\n{"task": {"id": "fix", "title": "fix it", "files": ["a.py"]}}'
    )
    driver.accept("fix")
    driver.check_whole()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED
    assert Role.PLANNER not in {each.role for each in driver.log if isinstance(each, Ask)}


def test_plan_waits_for_approval() -> None:
    """Nothing starts before somebody agrees; a note goes to the planner."""
    driver = planned({"id": "a"}, rules=MissionSettings(must_approve=True))
    assert not driver.machine.states()
    driver.approve("use one file", is_approved=False)
    assert "use one file" in driver.ask(Role.PLANNER).message
    driver.answer(Role.PLANNER, plan_text({"id": "b"}))
    driver.approve()
    driver.accept("b")
    driver.check_whole()
    assert driver.finish.outcome is MissionOutcome.ACCEPTED


def test_plan_that_is_refused_is_made_again() -> None:
    """The planner hears why, in its session; a plan that was given ends the mission."""
    driver = Driver(refusals=["it deletes everything"])
    driver.answer(Role.COMMANDER, "brief")
    first = driver.answer(Role.PLANNER, plan_text({"id": "a"}))
    second = driver.answer(Role.PLANNER, plan_text({"id": "b"}))
    assert first.session == second.session
    assert "it deletes everything" in second.message
    assert CloseSession(session=first.session) in driver.log
    assert list(driver.machine.states()) == ["b"]
    driver = Driver(spec("a"), refusals=["no"])
    assert driver.finish.reason == "the plan was refused: no"


def test_task_of_the_commander_that_is_refused_leads_to_a_plan() -> None:
    """Then the planner is asked after all."""
    driver = Driver(refusals=["no"])
    driver.answer(Role.COMMANDER, '{"task": {"id": "a", "title": "a"}}')
    assert driver.ask(Role.PLANNER).turn == 1


def test_refused_plan_ends_the_mission() -> None:
    """A no without a word, or to a plan that was given, is the end."""
    driver = Driver(spec("a"), settings=MissionSettings(must_approve=True))
    driver.approve("never", is_approved=False)
    assert driver.finish == Finish(
        outcome=MissionOutcome.INTERRUPTED, reason="the plan was not approved: never"
    )


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
