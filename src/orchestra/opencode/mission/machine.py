"""The rules of a mission as a pure state machine: events in, commands out.

No I/O and no clock; randomness comes in as an argument. Every order carries a *ticket*; what comes
back with a ticket that is not open (late, doubled, of an attempt that was given up) changes
nothing. This module has the mission as a whole; how it comes to a plan is in `planning`, how one
task goes in `task_flow`.

    planning -> approval -> tasks -> integration -> seal -> accepted
       ^                      |           |
       |______________________|___________|    (at most loop.iterations)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, final

from attrs import evolve, field, frozen

from orchestra.events import FinishReason
from orchestra.opencode.mission.failures import describe, explain
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    ApprovalGiven,
    Ask,
    AskApproval,
    CheckPlan,
    Command,
    Event,
    Finish,
    GatesFinished,
    Integrate,
    Integrated,
    PlanChecked,
    PlanMade,
    RunGates,
    StopRequested,
    Warn,
    WorkStarted,
)
from orchestra.opencode.mission.plain import task_to_plain
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.planning import Planning
from orchestra.opencode.mission.recovery import Recovery
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

__all__ = ("MissionMachine", "MissionRecord", "Phase")

_MAX_SEALS = 3
"""How often the whole is checked again because files changed under the check."""
_MAX_PROPOSALS = 3
"""How often a plan that somebody did not approve is made anew."""

_EXPECTED: Mapping[type[Event], tuple[type, str]] = {
    AgentAnswered: (Ask, "an agent"),
    GatesFinished: (RunGates, "gates"),
    Integrated: (Integrate, "a merge"),
    PlanChecked: (CheckPlan, "a check of a plan"),
    ApprovalGiven: (AskApproval, "an approval"),
}


class Phase(Enum):
    """How far a mission is."""

    PLANNING = "planning"
    APPROVAL = "approval"
    TASKS = "tasks"
    INTEGRATION = "integration"
    SEAL = "seal"
    ENDED = "ended"


@frozen(kw_only=True)
class MissionRecord:
    """What was written of a mission, for going on with it.

    Attributes:
        state: What `MissionMachine.record` returned.
        plan: The tasks of its present plan.
        specs: The tasks of all its plans.
        parts: Tasks that race for another one, or are a part of it, with that one's id.
        tasks: What `MissionMachine.task_record` returned, for each task.
    """

    state: Mapping[str, Any]
    plan: tuple[TaskSpec, ...] = ()
    specs: tuple[TaskSpec, ...] = ()
    parts: tuple[tuple[TaskSpec, str], ...] = ()
    tasks: Mapping[str, Mapping[str, Any]] = field(factory=dict)


@final
class MissionMachine:
    """Decides what a mission does next.

    ``start()`` or ``restore()`` once, then ``handle(event)`` for each event; all return commands
    to perform in order. After a `Finish` every event is ignored.

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
        self._settings = settings or MissionSettings()
        self._given = plan
        self._plan: Plan | None = None
        self._tickets = Tickets()
        recovery = Recovery(self._settings.retry_delay, random)
        self._planning = Planning(
            goal,
            self._tickets,
            self._settings,
            recovery,
            warn=self._warn,
            fail=self._fail,
            propose=self._propose,
            reports=self.task_reports,
        )
        self._flow = TaskFlow(
            self._tickets,
            self._settings,
            recovery,
            warn=self._warn,
            stop=self._fail,
            wind_down=self._wind_down,
            conclude=self._on_concluded,
        )
        self._phase = Phase.PLANNING
        self._is_started = False
        self._finish: Finish | None = None
        self._proposals = 0
        self._seals = 0
        self._stagnation = Stagnation(self._settings.loop.stagnation)
        self._receipt: Receipt | None = None
        self._last_reason = ""
        self._warnings: list[str] = []

    # --- what the runner calls ---

    def start(self) -> list[Command]:
        """Begin. May be called once.

        Raises:
            RuntimeError: The mission has been started.
        """
        self._begin()
        if self._given is not None:
            self._propose(self._given)
        else:
            self._planning.begin()
        return self._tickets.flush()

    def _begin(self) -> None:
        if self._is_started:
            raise RuntimeError("the mission has been started before")
        self._is_started = True

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
            is_resumable = event.outcome is MissionOutcome.INTERRUPTED
            self._end(event.outcome, event.reason, is_resumable=is_resumable)
        elif isinstance(event, WorkStarted):
            if (started := self._tickets.look(event.ticket)) is not None:
                self._flow.on_started(started)
        elif (work := self._tickets.take(event.ticket)) is not None:
            self._on_end(work, event)
        return self._tickets.flush()

    # --- after a restart ---

    def record(self) -> dict[str, Any]:
        """Return what has to be kept of the mission as a whole, in plain form."""
        return {
            "phase": self._phase.value,
            "is_given": self._given is not None,
            "proposals": self._proposals,
            "last_reason": self._last_reason,
            "stagnation": self._stagnation.plain(),
            "planning": self._planning.record(),
        }

    def task_record(self, task_id: str) -> dict[str, Any]:
        """Return what has to be kept of a task, in plain form.

        Args:
            task_id: The task.
        """
        return task_to_plain(self._flow.tasks[task_id])

    def evidence_of(self, task_id: str) -> str:
        """Return the change that a task's reviewer is shown.

        Args:
            task_id: The task.
        """
        return self._flow.tasks[task_id].evidence

    def specs(self) -> tuple[TaskSpec, ...]:
        """Return the tasks of all plans, without parts of tasks, in plan order."""
        return tuple(task.spec for task in self._in_order() if task.parent is None)

    def restore(self, record: MissionRecord) -> list[Command]:
        """Go on where a mission of the same goal was interrupted, instead of ``start()``.

        Orders that had not come back are given again; prompts have the same names as before.

        Args:
            record: What was written of it.

        Raises:
            RuntimeError: The mission has been started.
        """
        self._begin()
        state = record.state
        self._phase = Phase(state["phase"])
        self._proposals = state["proposals"]
        self._last_reason = state.get("last_reason", "")
        self._planning.restore(state["planning"])
        self._stagnation = Stagnation.restore(self._settings.loop.stagnation, state["stagnation"])
        if record.plan:
            self._plan = Plan(record.plan)
        if state["is_given"] and self._plan is not None:
            self._given = self._plan
        self._flow.restore(record.specs, record.parts, record.tasks)
        match self._phase:
            case Phase.PLANNING if self._given is not None:
                self._propose(self._given)
            case Phase.PLANNING:
                self._planning.resume()
            case Phase.APPROVAL if self._plan is not None:
                self._tickets.order(
                    AskApproval(ticket=0, plan=self._plan, proposal=self._proposals)
                )
            case Phase.TASKS:
                self._flow.resume()
            case _:
                self._check_whole()
        return self._tickets.flush()

    # --- what is known ---

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
        return self._planning.iteration

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
        return self._planning.retries + self._flow.retries

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

    def position_of(self, task_id: str) -> float:
        """Return a task's place in the plan; parts of a task come right after it.

        Args:
            task_id: A task of the plan, or a part of one.
        """
        return self._flow.tasks[task_id].position

    def parts_of(self, task_id: str) -> tuple[str, ...]:
        """Return the parts that a task was split into; not those who race for it.

        Args:
            task_id: A task of the plan, or a part of one.
        """
        return tuple(part.id for part in self._flow.tasks[task_id].parts if not part.is_racing)

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

    # --- what comes back ---

    def _on_end(self, work: OpenWork, event: Event) -> None:
        expected, what = _EXPECTED[type(event)]
        order = work.order
        if not isinstance(order, expected):
            raise RuntimeError(  # noqa: TRY004  (not an argument of the wrong type)
                f"ticket {order.ticket} is for {type(order).__name__}, not for {what}"
            )
        if isinstance(event, AgentAnswered):
            if event.reason is FinishReason.LOST:
                reason = f"the backend is gone: {describe(event)}"
                self._end(MissionOutcome.FAILED, reason, is_resumable=True)
            elif work.task is not None:
                self._flow.on_answer(work, event)
            else:
                self._planning.on_answer(work, event)
        elif isinstance(event, GatesFinished):
            if work.task is not None:
                self._flow.on_gates(work, event)
            else:
                self._on_whole(event)
        elif isinstance(event, Integrated):
            self._flow.on_integrated(work, event)
        elif isinstance(event, PlanChecked):
            self._on_checked(event)
        elif isinstance(event, ApprovalGiven):
            self._on_approval(event)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._tickets.put(Warn(message=message))

    def _fail(self, reason: str) -> None:
        self._end(MissionOutcome.FAILED, reason)

    def _wind_down(self, reason: str) -> None:
        self._last_reason = self._last_reason or reason

    def _end(self, outcome: MissionOutcome, reason: str, *, is_resumable: bool = False) -> None:
        if self._finish is None:
            self._flow.end(reason)
            self._tickets.clear()
            self._phase = Phase.ENDED
            self._finish = Finish(outcome=outcome, reason=reason, is_resumable=is_resumable)
            self._tickets.put(self._finish)

    # --- the plan ---

    def _propose(self, plan: Plan) -> None:
        if problem := self._settings.check_agents(plan.tasks):
            self._fail(f"the plan was refused: {problem}")
            return
        self._tickets.order(CheckPlan(ticket=0, plan=plan))

    def _on_checked(self, event: PlanChecked) -> None:
        if event.problem:
            if self._given is None:
                self._planning.refuse(event.problem)
            else:
                self._fail(f"the plan was refused: {event.problem}")
            return
        self._planning.settle()
        self._plan = event.plan
        if self._settings.must_approve:
            self._phase = Phase.APPROVAL
            self._proposals += 1
            self._tickets.order(AskApproval(ticket=0, plan=event.plan, proposal=self._proposals))
        else:
            self._accept_plan(event.plan)

    def _on_approval(self, event: ApprovalGiven) -> None:
        if event.is_approved and self._plan is not None:
            self._accept_plan(self._plan)
        elif event.note and self._given is None and self._proposals < _MAX_PROPOSALS:
            self._phase = Phase.PLANNING
            self._planning.replan(event.note)
        else:
            why = f": {event.note}" if event.note else ""
            self._end(MissionOutcome.INTERRUPTED, f"the plan was not approved{why}")

    def _accept_plan(self, plan: Plan) -> None:
        self._phase = Phase.TASKS
        self._tickets.put(PlanMade(plan=plan, iteration=self._planning.iteration))
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
        files: dict[str, None] = {}
        for task in self._in_order():
            if task.state is TaskState.ACCEPTED:
                lines.update(dict.fromkeys(task.spec.acceptance))
                files.update(dict.fromkeys(task.receipt.changed if task.receipt else ()))
        permitted, _ = self._settings.sort_commands(lines)
        _, refused = self._settings.sort_commands(self._settings.acceptance)
        self._tickets.order(
            RunGates(
                ticket=0,
                stage="integration",
                commands=permitted,
                refused=refused,
                files=tuple(files),
            )
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

    def _continue(self, reason: str) -> None:
        """Let the commander decide how to go on, if that can lead anywhere."""
        tree = self._receipt.tree if self._receipt is not None else ""
        states = ",".join(f"{task.id}={task.state.value}" for task in self._in_order())
        trees = [task.receipt.tree for task in self._in_order() if task.receipt is not None]
        step = self._stagnation.observe(
            Facts(tree=digest(tree, *trees), evidence=digest(reason), state=digest(states))
        )
        is_last = self._planning.iteration >= self._settings.loop.iterations
        if self._last_reason:
            self._fail(f"{reason}; the mission cannot go on: {self._last_reason}")
        elif self._given is not None:  # a plan that was given is never made anew
            self._fail(reason)
        elif step is Step.STOP or (is_last and step is not Step.NONE):
            self._fail(f"stagnation: plans change nothing any more; {reason}")
        elif is_last:
            limit = self._settings.loop.iterations
            count = "1 iteration" if limit == 1 else f"{limit} iterations"
            self._fail(f"{reason}; going on is limited to {count} ")
        else:
            self._phase = Phase.PLANNING
            self._planning.again(
                reason, is_stagnant=step is not Step.NONE, is_changed=step is Step.CHANGE
            )
