"""The rules of a mission as a pure state machine: events in, commands out.

No I/O and no clock; randomness comes in as an argument. Every order carries a *ticket*; what comes
back with a ticket that is not open (late, doubled, of an attempt that was given up) changes
nothing. This module has the mission as a whole; how one task goes is in `task_flow`.

    brief -> plan -> approval -> tasks -> integration -> seal -> accepted
      ^                            |           |          |
      |____________________________|___________|__________|    (at most loop.iterations)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import final

from attrs import evolve

from orchestra.errors import PlanError
from orchestra.events import FinishReason
from orchestra.opencode.mission.answers import parse_direct, parse_plan
from orchestra.opencode.mission.failures import describe, explain
from orchestra.opencode.mission.messages import (
    commander_message,
    continuation_message,
    planner_message,
    repeat_message,
)
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    ApprovalGiven,
    Ask,
    AskApproval,
    CloseSession,
    Command,
    Event,
    Finish,
    GatesFinished,
    Integrate,
    Integrated,
    PlanMade,
    RunGates,
    StopRequested,
    Warn,
    WorkStarted,
)
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.recovery import Action, ErrorClass, Recovery, Troubles
from orchestra.opencode.mission.report import (
    CommandResult,
    MissionOutcome,
    Receipt,
    TaskReport,
    TaskState,
)
from orchestra.opencode.mission.stagnation import Facts, Stagnation, Step, digest
from orchestra.opencode.mission.task_flow import TaskFlow
from orchestra.opencode.mission.tickets import Tickets
from orchestra.opencode.mission.tracking import OpenWork, TrackedTask

__all__ = ("MissionMachine", "Phase")

_MAX_SEALS = 3
"""How often the whole is checked again because files changed under the check."""
_MAX_PROPOSALS = 3
"""How often a plan that somebody did not approve is made anew."""

_EXPECTED: Mapping[type[Event], tuple[type, str]] = {
    AgentAnswered: (Ask, "an agent"),
    GatesFinished: (RunGates, "gates"),
    Integrated: (Integrate, "a merge"),
    ApprovalGiven: (AskApproval, "an approval"),
}


class Phase(Enum):
    """How far a mission is."""

    BRIEF = "brief"
    PLAN = "plan"
    APPROVAL = "approval"
    TASKS = "tasks"
    INTEGRATION = "integration"
    SEAL = "seal"
    ENDED = "ended"


@final
class MissionMachine:
    """Decides what a mission does next.

    ``start()`` once, then ``handle(event)`` for each event; both return commands to perform in
    order. After a `Finish` every event is ignored.

    Args:
        goal: What the mission is for.
        settings: The rules of the run.
        plan: A ready plan; None: commander and planner make one.
        random: Returns numbers from 0.0 to below 1.0, which spread delays; always 0.0: no spread.
    """

    def __init__(
        self,
        goal: str,
        *,
        settings: MissionSettings | None = None,
        plan: Plan | None = None,
        random: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._goal = goal
        self._settings = settings or MissionSettings()
        self._given = plan
        self._plan: Plan | None = None
        self._tickets = Tickets()
        self._recovery = Recovery(self._settings.retry_delay, random)
        self._flow = TaskFlow(
            self._tickets,
            self._settings,
            self._recovery,
            warn=self._warn,
            stop=self._fail,
            conclude=self._on_concluded,
        )
        self._phase = Phase.BRIEF
        self._is_started = False
        self._finish: Finish | None = None
        self._brief = ""
        self._why = ""
        self._iteration = 1
        self._commanders = 1
        self._planners = 0
        self._turns = {Role.COMMANDER: 0, Role.PLANNER: 0}
        self._proposals = 0
        self._seals = 0
        self._stagnation = Stagnation(self._settings.loop.stagnation)
        self._receipt: Receipt | None = None
        self._warnings: list[str] = []
        self._retries = 0

    # --- what the runner calls ---

    def start(self) -> list[Command]:
        """Begin. May be called once.

        Raises:
            RuntimeError: The mission has been started.
        """
        if self._is_started:
            raise RuntimeError("the mission has been started before")
        self._is_started = True
        if self._given is not None:
            self._propose(self._given)
        else:
            self._ask_commander(commander_message(self._goal))
        return self._tickets.flush()

    def handle(self, event: Event) -> list[Command]:
        """Take an event and return what is to be done.

        Args:
            event: What happened.

        Raises:
            RuntimeError: The mission has not been started, or the event does not fit its order.
        """
        if not self._is_started:
            raise RuntimeError("the mission has not been started: call start() first")
        if self._finish is not None:
            return []
        if isinstance(event, StopRequested):
            self._end(event.outcome, event.reason)
        elif isinstance(event, WorkStarted):
            if (started := self._tickets.look(event.ticket)) is not None:
                self._flow.on_started(started)
        elif (work := self._tickets.take(event.ticket)) is not None:
            self._on_end(work, event)
        return self._tickets.flush()

    @property
    def finish(self) -> Finish | None:
        """How the mission ended; None while it runs."""
        return self._finish

    @property
    def phase(self) -> Phase:
        """How far the mission is."""
        return self._phase

    @property
    def iteration(self) -> int:
        """Which of its plans it is at, from 1."""
        return self._iteration

    @property
    def plan(self) -> Plan | None:
        """The plan, once there is one."""
        return self._plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be known, in order."""
        return tuple(self._warnings)

    @property
    def commands(self) -> tuple[CommandResult, ...]:
        """The results of the commands that were run on the whole."""
        return self._receipt.commands if self._receipt is not None else ()

    @property
    def receipt(self) -> Receipt | None:
        """What was last checked of the whole; None before."""
        return self._receipt

    @property
    def retries(self) -> int:
        """How many turns were asked again because one failed."""
        return self._retries + self._flow.retries

    @property
    def stale_events(self) -> int:
        """How many events came with a ticket that was not open."""
        return self._tickets.stale

    def states(self) -> dict[str, TaskState]:
        """Return every task's state, in plan order."""
        return {task.id: task.state for task in self._in_order()}

    def task_report(self, task_id: str) -> TaskReport:
        """Return what is known of one task.

        Args:
            task_id: A task of the plan, or a part of one.
        """
        return self._flow.tasks[task_id].report()

    def task_reports(self) -> tuple[TaskReport, ...]:
        """Return what is known of every task, in plan order."""
        return tuple(task.report() for task in self._in_order())

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for task in self._flow.tasks.values():
            counts[task.state.value] = counts.get(task.state.value, 0) + 1
        states = ", ".join(f"{state}={count}" for state, count in sorted(counts.items()))
        end = f" {self._finish.outcome.value}" if self._finish else ""
        return f"<MissionMachine{end} {states or 'no plan'} open={len(self._tickets)}>"

    def _in_order(self) -> list[TrackedTask]:
        return sorted(self._flow.tasks.values(), key=lambda task: task.position)

    # --- ordering work ---

    def _ask_commander(self, message: str, delay: float = 0.0) -> None:
        self._phase = Phase.BRIEF
        self._ask(Role.COMMANDER, f"commander/{self._commanders}", message, Troubles(), delay)

    def _ask_planner(self, message: str) -> None:
        self._phase = Phase.PLAN
        self._planners += 1
        self._turns[Role.PLANNER] = 0
        self._ask(Role.PLANNER, f"planner/{self._planners}", message, Troubles())

    def _ask(
        self, role: Role, session: str, message: str, troubles: Troubles, delay: float = 0.0
    ) -> None:
        self._turns[role] += 1
        self._tickets.order(
            Ask(
                ticket=0,
                session=session,
                role=role,
                message=message,
                turn=self._turns[role],
                delay=delay,
                model=troubles.pick(self._settings.chain(role)),
            ),
            troubles=troubles,
        )

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._tickets.put(Warn(message=message))

    def _fail(self, reason: str) -> None:
        if self._why and self._phase in {Phase.BRIEF, Phase.PLAN}:
            reason = f"{self._why}; and going on failed, since {reason}"
        self._end(MissionOutcome.FAILED, reason)

    def _end(self, outcome: MissionOutcome, reason: str) -> None:
        if self._finish is None:
            self._flow.end(reason)
            self._tickets.clear()
            self._phase = Phase.ENDED
            self._finish = Finish(outcome=outcome, reason=reason)
            self._tickets.put(self._finish)

    # --- what comes back ---

    def _on_end(self, work: OpenWork, event: Event) -> None:
        expected, what = _EXPECTED[type(event)]
        if not isinstance(work.order, expected):
            order = work.order
            raise RuntimeError(  # noqa: TRY004  (not an argument of the wrong type)
                f"ticket {order.ticket} is for {type(order).__name__}, not for {what}"
            )
        if isinstance(event, AgentAnswered):
            if event.reason is FinishReason.LOST:
                self._fail(f"the backend is gone: {describe(event)}")
            elif work.task is not None:
                self._flow.on_answer(work, event)
            elif self._phase is Phase.BRIEF:
                self._on_brief(work, event)
            else:
                self._on_plan(work, event)
        elif isinstance(event, GatesFinished):
            if work.task is not None:
                self._flow.on_gates(work, event)
            else:
                self._on_whole(event)
        elif isinstance(event, Integrated):
            self._flow.on_integrated(work, event)
        elif isinstance(event, ApprovalGiven):
            self._on_approval(event)

    def _again(self, work: OpenWork, event: AgentAnswered, role: Role) -> bool:
        """Ask the same again as the recovery table says; whether that is done."""
        ask = work.order
        if not isinstance(ask, Ask):
            return False
        models = len(self._settings.chain(role))
        remedy = self._recovery.decide(event, work.troubles, models=models)
        if remedy.action in {Action.GIVE_UP, Action.STOP}:
            return False
        self._tickets.put(CloseSession(session=ask.session))
        self._retries += 1
        self._turns[role] = 0
        if role is Role.COMMANDER:
            self._commanders += 1
            session = f"commander/{self._commanders}"
        else:
            self._planners += 1
            session = f"planner/{self._planners}"
        self._ask(role, session, ask.message, work.troubles, remedy.delay)
        return True

    def _on_brief(self, work: OpenWork, event: AgentAnswered) -> None:
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event, Role.COMMANDER):
                self._fail(f"the commander failed: {describe(event)}")
            return
        self._brief = event.text.strip()
        if not self._brief:
            self._warn("the commander's answer was empty; the plan is made from the goal")
        try:
            direct = parse_direct(event.text)
        except PlanError as exc:
            direct = None
            self._warn(f"the commander's task cannot be used, so a plan is made: {exc}")
        if direct is not None and direct.id not in self._flow.tasks:
            self._propose(Plan((direct,)))
        else:
            self._ask_planner(planner_message(self._goal, self._brief, self._done()))

    def _done(self) -> tuple[str, ...]:
        """Return what is accepted already, one line each."""
        return tuple(
            f"{task.id}: {task.spec.title}"
            for task in self._in_order()
            if task.state is TaskState.ACCEPTED and task.parent is None
        )

    def _on_plan(self, work: OpenWork, event: AgentAnswered) -> None:
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event, Role.PLANNER):
                self._fail(f"the planner failed: {describe(event)}")
            return
        try:
            if event.is_truncated:
                raise PlanError("the answer is too long")
            plan = parse_plan(event.text)
            taken = [spec.id for spec in plan.tasks if self._is_accepted(spec.id)]
            if taken:
                raise PlanError(f"the ids {', '.join(taken)} are those of accepted tasks")
        except PlanError as exc:
            self._mend_plan(work, str(exc))
            return
        if isinstance(work.order, Ask):
            self._tickets.put(CloseSession(session=work.order.session))
        self._propose(plan)

    def _is_accepted(self, task_id: str) -> bool:
        task = self._flow.tasks.get(task_id)
        return task is not None and task.state is TaskState.ACCEPTED

    def _mend_plan(self, work: OpenWork, problem: str) -> None:
        """Ask the planner again, in the same session as long as that helps."""
        ask = work.order
        models = len(self._settings.chain(Role.PLANNER))
        remedy = self._recovery.remedy(ErrorClass.PARSE, work.troubles, models=models)
        if not isinstance(ask, Ask) or remedy.action is Action.GIVE_UP:
            self._fail(f"the planner gave no usable plan: {problem}")
            return
        self._warn(f"the planner's answer was no usable plan, asked again: {problem}")
        if remedy.action is Action.REASK:
            self._ask(Role.PLANNER, ask.session, repeat_message(problem), work.troubles)
            return
        self._tickets.put(CloseSession(session=ask.session))
        self._planners += 1
        self._turns[Role.PLANNER] = 0
        message = planner_message(self._goal, self._brief, self._done())
        self._ask(Role.PLANNER, f"planner/{self._planners}", message, work.troubles)

    # --- the plan ---

    def _propose(self, plan: Plan) -> None:
        self._plan = plan
        if self._settings.must_approve:
            self._phase = Phase.APPROVAL
            self._proposals += 1
            self._tickets.order(AskApproval(ticket=0, plan=plan))
        else:
            self._accept_plan(plan)

    def _on_approval(self, event: ApprovalGiven) -> None:
        if event.is_approved and self._plan is not None:
            self._accept_plan(self._plan)
        elif event.note and self._given is None and self._proposals < _MAX_PROPOSALS:
            brief = f"{self._brief}\n\nThe last plan was not approved: {event.note}"
            self._ask_planner(planner_message(self._goal, brief, self._done()))
        else:
            why = f": {event.note}" if event.note else ""
            self._end(MissionOutcome.INTERRUPTED, f"the plan was not approved{why}")

    def _accept_plan(self, plan: Plan) -> None:
        self._phase = Phase.TASKS
        self._tickets.put(PlanMade(plan=plan, iteration=self._iteration))
        self._flow.add_plan(plan)
        self._flow.start()

    # --- the whole ---

    def _on_concluded(self) -> None:
        if self._finish is not None or self._phase is not Phase.TASKS:
            return
        if lost := self._lost():
            self._continue(lost)
        else:
            self._seals = 0
            self._check_whole()

    def _lost(self) -> str:
        tasks = [
            task
            for task in self._in_order()
            if task.parent is None and task.state is not TaskState.REPLACED
        ]
        lost = [task.id for task in tasks if task.state is not TaskState.ACCEPTED]
        if not lost:
            return ""
        names = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        return f"{len(lost)} of {count} not accepted: {names}"

    def _check_whole(self) -> None:
        """Run every command once more, on the tree that all tasks together have led to."""
        self._phase = Phase.INTEGRATION
        lines = dict.fromkeys(self._settings.acceptance)
        for task in self._in_order():
            if task.state is TaskState.ACCEPTED:
                lines.update(dict.fromkeys(task.spec.acceptance))
        permitted, _ = self._settings.sort_commands(lines)
        _, refused = self._settings.sort_commands(self._settings.acceptance)
        self._tickets.order(
            RunGates(ticket=0, stage="integration", commands=permitted, refused=refused)
        )

    def _on_whole(self, event: GatesFinished) -> None:
        receipt = event.receipt
        failed = [explain(result) for result in receipt.commands if result.is_failed]
        if self._phase is Phase.INTEGRATION:
            self._receipt = receipt
            if problems := (*receipt.problems, *failed):
                self._continue(f"the mission's acceptance failed: {problems[0]}")
                return
            self._phase = Phase.SEAL
            self._tickets.order(RunGates(ticket=0, stage="seal"))
            return
        checked = self._receipt
        if checked is not None and receipt.tree == checked.tree:
            self._receipt = evolve(checked, stage="seal")
            self._end(MissionOutcome.ACCEPTED, self._success())
            return
        self._seals += 1
        if self._seals < _MAX_SEALS:
            self._warn("files changed after the last check, so the whole is checked again")
            self._check_whole()
        else:
            self._fail("files keep changing after the last check: something still writes there")

    def _success(self) -> str:
        number = sum(
            task.parent is None and task.state is TaskState.ACCEPTED
            for task in self._flow.tasks.values()
        )
        return "the task was accepted" if number == 1 else f"all {number} tasks were accepted"

    # --- once more ---

    def _continue(self, reason: str) -> None:
        """Let the commander decide how to go on, if that can lead anywhere."""
        tree = self._receipt.tree if self._receipt is not None else ""
        states = ",".join(f"{task.id}={task.state.value}" for task in self._in_order())
        receipts = [task.receipt.tree for task in self._in_order() if task.receipt is not None]
        step = self._stagnation.observe(
            Facts(tree=digest(tree, *receipts), evidence=digest(reason), state=digest(states))
        )
        if self._given is not None:  # a plan that was given is never made anew
            self._fail(reason)
        elif step is Step.STOP:
            self._fail(f"stagnation: plans change nothing any more; {reason}")
        elif self._iteration >= self._settings.loop.iterations:
            self._fail(reason)
        else:
            self._iteration += 1
            self._why = reason
            if step is Step.CHANGE:
                self._tickets.put(CloseSession(session=f"commander/{self._commanders}"))
                self._commanders += 1
                self._turns[Role.COMMANDER] = 0
            self._ask_commander(
                continuation_message(
                    self._goal,
                    [task.report() for task in self._in_order() if task.parent is None],
                    reason,
                    self._iteration,
                    is_stagnant=step is not Step.NONE,
                )
            )
