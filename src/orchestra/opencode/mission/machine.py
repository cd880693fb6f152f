"""The rules of a mission as a pure state machine: events in, commands out.

No I/O, no clock, no randomness. Every piece of work that the machine orders carries a *ticket*;
what comes back with a ticket that is not open (late, doubled, of an attempt that was given up)
changes nothing. `TRANSITIONS` is the whole of what a task may do.

    commander -> planner -> per task: worker -> reviewer -> acceptance -> accepted
                                        ^__________|____________|  (at most max_rounds)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import final

from attrs import evolve

from orchestra.errors import PlanError
from orchestra.events import FinishReason
from orchestra.opencode.mission.answers import VerdictError, parse_plan, parse_verdict
from orchestra.opencode.mission.failures import describe, explain, is_final, retry_delay
from orchestra.opencode.mission.messages import (
    commander_message,
    planner_message,
    repeat_message,
    reviewer_message,
    worker_message,
)
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
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.report import (
    CommandResult,
    MissionOutcome,
    TaskReport,
    TaskState,
)
from orchestra.opencode.mission.tracking import TRANSITIONS, OpenWork, TrackedTask
from orchestra.opencode.mission.write_sets import WriteSets

__all__ = ("TRANSITIONS", "MissionMachine")

_MAX_TURNS = 3
"""Tries of a commander's, planner's or reviewer's turn that fails; a worker's are its rounds."""
_MAX_SUMMARY = 2_000


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@final
class MissionMachine:
    """Decides what a mission does next.

    ``start()`` once, then ``handle(event)`` for each event; both return commands to perform in
    order. After a `Finish` every event is ignored.

    Args:
        goal: What the mission is for.
        settings: The rules of the run.
        plan: A ready plan; None: commander and planner make one.
    """

    def __init__(
        self,
        goal: str,
        *,
        settings: MissionSettings | None = None,
        plan: Plan | None = None,
    ) -> None:
        self._goal = goal
        self._settings = settings or MissionSettings()
        self._plan = plan
        self._tasks: dict[str, TrackedTask] = {}
        self._dependents: dict[str, list[TrackedTask]] = {}
        self._write_sets = WriteSets()
        self._unfinished = 0
        self._work: dict[int, OpenWork] = {}
        self._tickets = 0
        self._is_started = False
        self._finish: Finish | None = None
        self._commands: tuple[CommandResult, ...] = ()
        self._warnings: list[str] = []
        self._retries = 0
        self._stale = 0
        self._out: list[Command] = []

    # --- what the runner calls ---

    def start(self) -> list[Command]:
        """Begin. May be called once.

        Raises:
            RuntimeError: The mission has been started.
        """
        if self._is_started:
            raise RuntimeError("the mission has been started before")
        self._is_started = True
        if self._plan is not None:
            self._check_plan(self._plan, OpenWork(None, None, None))
        else:
            self._ask(self._on_brief, Role.COMMANDER, "commander", commander_message(self._goal))
        return self._flush()

    def handle(self, event: Event) -> list[Command]:
        """Take an event and return what is to be done.

        Args:
            event: What happened.

        Raises:
            RuntimeError: The mission has not been started.
        """
        if not self._is_started:
            raise RuntimeError("the mission has not been started: call start() first")
        if self._finish is not None:
            return []
        if isinstance(event, StopRequested):
            self._stop(event.outcome, event.reason)
        elif isinstance(event, WorkStarted):
            self._on_started(event)
        else:
            work = self._work.pop(event.ticket, None)
            if work is None:
                self._stale += 1
            elif work.is_check is not isinstance(event, PlanChecked):
                raise RuntimeError(f"ticket {event.ticket} and {type(event).__name__} do not match")
            elif isinstance(event, CommandsFinished):
                self._on_commands(work, event)
            elif isinstance(event, PlanChecked):
                self._on_checked(work, event)
            else:
                self._on_answer(work, event)
        return self._flush()

    @property
    def finish(self) -> Finish | None:
        """How the mission ended; None while it runs."""
        return self._finish

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
        """The results of the mission's own acceptance commands."""
        return self._commands

    @property
    def retries(self) -> int:
        """How many turns were asked again because one failed."""
        return self._retries

    @property
    def stale_events(self) -> int:
        """How many events came with a ticket that was not open."""
        return self._stale

    def states(self) -> dict[str, TaskState]:
        """Return every task's state, in plan order."""
        return {task.spec.id: task.state for task in self._tasks.values()}

    def task_report(self, task_id: str) -> TaskReport:
        """Return what is known of one task.

        Args:
            task_id: A task of the plan.
        """
        return self._tasks[task_id].report()

    def task_reports(self) -> tuple[TaskReport, ...]:
        """Return what is known of every task, in plan order."""
        return tuple(task.report() for task in self._tasks.values())

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for task in self._tasks.values():
            counts[task.state.value] = counts.get(task.state.value, 0) + 1
        states = ", ".join(f"{state}={count}" for state, count in sorted(counts.items()))
        end = f" {self._finish.outcome.value}" if self._finish else ""
        return f"<MissionMachine{end} {states or 'no plan'} open={len(self._work)}>"

    # --- ordering work ---

    def _flush(self) -> list[Command]:
        out, self._out = self._out, []
        return out

    def _ask(
        self,
        answer: Callable[[OpenWork, AgentAnswered], None],
        role: Role,
        session: str,
        message: str,
        task: TrackedTask | None = None,
    ) -> None:
        self._tickets += 1
        ask = Ask(
            ticket=self._tickets,
            session=session,
            role=role,
            message=message,
            task_id=task.spec.id if task else None,
            round=task.round if task else 0,
        )
        self._work[ask.ticket] = OpenWork(answer, ask, task)
        self._out.append(ask)

    def _again(self, work: OpenWork, answer: AgentAnswered) -> bool:
        """Ask the same again in a fresh session, unless it was tried often enough."""
        if work.ask is None or work.tries >= _MAX_TURNS or is_final(answer):
            return False
        self._out.append(CloseSession(session=work.ask.session))
        self._tickets += 1
        ask = evolve(
            work.ask,
            ticket=self._tickets,
            session=f"{work.ask.session}'",
            delay=retry_delay(answer, work.tries, self._settings.retry_delay),
        )
        self._work[ask.ticket] = evolve(work, ask=ask, tries=work.tries + 1)
        self._retries += 1
        self._out.append(ask)
        return True

    def _repeat(self, work: OpenWork, problem: str) -> bool:
        """Ask once more for the right form, in the same session."""
        if work.ask is None or work.repeats >= 1:
            return False
        self._tickets += 1
        ask = evolve(work.ask, ticket=self._tickets, message=repeat_message(problem), delay=0.0)
        self._work[ask.ticket] = evolve(work, ask=ask, repeats=work.repeats + 1, is_check=False)
        self._out.append(ask)
        return True

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._out.append(Warn(message=message))

    def _end(self, outcome: MissionOutcome, reason: str) -> None:
        self._work.clear()
        self._finish = Finish(outcome=outcome, reason=reason)
        self._out.append(self._finish)

    def _stop(self, outcome: MissionOutcome, reason: str) -> None:
        """End early: what was begun has failed, what was not begun is skipped."""
        for task in self._tasks.values():
            if task.state is TaskState.WAITING or (
                task.state is TaskState.READY and task.round == 0
            ):
                self._move(task, TaskState.SKIPPED, "the mission ended before")
            elif TRANSITIONS[task.state]:
                task.reasons.append(reason)
                self._move(task, TaskState.FAILED, reason)
        self._end(outcome, reason)

    # --- answers ---

    def _on_started(self, event: WorkStarted) -> None:
        work = self._work.get(event.ticket)
        if work is None:
            self._stale += 1
        elif work.task is not None and work.task.state is TaskState.READY:
            work.task.round += 1
            self._move(work.task, TaskState.WORKING)

    def _on_answer(self, work: OpenWork, event: AgentAnswered) -> None:
        if work.answer is None or work.ask is None:
            raise RuntimeError(f"ticket {event.ticket} is for commands, not for an agent")
        if work.task is not None:
            work.task.usage += event.usage
        if event.reason is FinishReason.LOST:
            self._stop(MissionOutcome.FAILED, f"the backend is gone: {describe(event)}")
            return
        work.answer(work, event)

    def _on_brief(self, work: OpenWork, event: AgentAnswered) -> None:
        brief = ""
        if event.reason is FinishReason.DONE:
            brief = event.text.strip()
            if not brief:
                self._warn("the commander's answer was empty; the plan is made from the goal")
        elif self._again(work, event):
            return
        else:
            self._end(MissionOutcome.FAILED, f"the commander failed: {describe(event)}")
            return
        self._close(work)
        self._ask(self._on_plan, Role.PLANNER, "planner", planner_message(self._goal, brief))

    def _on_plan(self, work: OpenWork, event: AgentAnswered) -> None:
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event):
                self._end(MissionOutcome.FAILED, f"the planner failed: {describe(event)}")
            return
        try:
            if event.is_truncated:
                raise PlanError("the answer is too long")
            plan = parse_plan(event.text)
        except PlanError as exc:
            if self._repeat(work, str(exc)):
                self._warn(f"the planner's answer was no usable plan, asked again: {exc}")
            else:
                self._end(MissionOutcome.FAILED, f"the planner gave no usable plan: {exc}")
            return
        self._check_plan(plan, work)

    def _check_plan(self, plan: Plan, work: OpenWork) -> None:
        self._tickets += 1
        self._work[self._tickets] = evolve(work, is_check=True)
        self._out.append(CheckPlan(ticket=self._tickets, plan=plan))

    def _on_checked(self, work: OpenWork, event: PlanChecked) -> None:
        if not event.problem:
            self._close(work)
            self._accept_plan(event.plan)
        elif self._repeat(work, event.problem):
            self._warn(f"the planner's plan was refused, asked again: {event.problem}")
        else:
            self._end(MissionOutcome.FAILED, f"the plan was refused: {event.problem}")

    def _accept_plan(self, plan: Plan) -> None:
        self._plan = plan
        for position, spec in enumerate(plan.tasks):
            task = TrackedTask(spec, position, len(set(spec.depends)))
            self._tasks[spec.id] = task
            for name in set(spec.depends):
                self._dependents.setdefault(name, []).append(task)
        self._unfinished = len(self._tasks)
        self._out.append(PlanMade(plan=plan))
        for task in self._tasks.values():
            if task.open_dependencies == 0:
                self._make_ready(task)

    # --- one task's way ---

    def _move(self, task: TrackedTask, state: TaskState, note: str = "") -> None:
        if state not in TRANSITIONS[task.state]:
            raise RuntimeError(
                f"task {task.spec.id!r} cannot go from {task.state.value} to {state.value}"
            )
        task.state = state
        self._out.append(
            TaskMoved(task_id=task.spec.id, state=state, round=task.round, note=note[:300])
        )

    def _make_ready(self, task: TrackedTask) -> None:
        self._move(task, TaskState.READY)
        self._try_work(task)

    def _try_work(self, task: TrackedTask) -> None:
        """Give the task to a worker unless another one holds a file that it writes."""
        if self._write_sets.hold(task.spec.id, task.spec.files):
            self._ask_worker(task)

    def _release_files(self, task: TrackedTask) -> None:
        kept = self._write_sets.release(task.spec.id, task.spec.files)
        for waiting in sorted(map(self._tasks.__getitem__, kept), key=lambda task: task.position):
            self._try_work(waiting)

    def _ask_worker(self, task: TrackedTask, delay: float = 0.0) -> None:
        if task.is_session_fresh:
            task.sessions += 1
            task.is_session_fresh = False
        self._ask(
            self._on_work,
            Role.WORKER,
            f"worker/{task.spec.id}/{task.sessions}",
            worker_message(task.spec, task.round + 1, task.sent_back),
            task,
        )
        ask = self._out[-1]
        if isinstance(ask, Ask):
            # The round begins when the worker does.
            self._out[-1] = evolve(ask, round=task.round + 1, delay=delay)

    def _on_work(self, work: OpenWork, event: AgentAnswered) -> None:
        task = self._task(work)
        if task.state is TaskState.READY:  # it failed before it got a slot
            task.round += 1
            self._move(task, TaskState.WORKING)
        if event.reason is not FinishReason.DONE:
            self._close(work)
            task.is_session_fresh = True
            reason = f"the worker's turn failed: {describe(event)}"
            if is_final(event):
                self._fail(task, reason)
            else:
                task.failures += 1
                self._send_back(
                    task, (reason,), retry_delay(event, task.failures, self._settings.retry_delay)
                )
            return
        task.failures = 0
        task.summary = event.text[:_MAX_SUMMARY]
        if not event.text.strip():
            self._warn(f"the worker of task {task.spec.id!r} gave an empty answer")
        self._move(task, TaskState.REVIEWING)
        self._ask(
            self._on_review,
            Role.REVIEWER,
            f"reviewer/{task.spec.id}/{task.round}",
            reviewer_message(task.spec, task.round, event.text),
            task,
        )

    def _on_review(self, work: OpenWork, event: AgentAnswered) -> None:
        task = self._task(work)
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event):
                self._fail(task, f"the reviewer failed: {describe(event)}")
            return
        try:
            if event.is_truncated:
                raise VerdictError("the answer is too long")
            verdict = parse_verdict(event.text)
        except VerdictError as exc:
            if not self._repeat(work, str(exc)):
                self._fail(task, f"the reviewer gave no verdict: {exc}")
            return
        self._close(work)
        if not verdict.is_accepted:
            self._send_back(task, verdict.reasons)
            return
        task.commands, permitted = self._sort_commands(task.spec.acceptance)
        if task.commands:
            self._warn(
                f"task {task.spec.id!r}: {_count(len(task.commands), 'acceptance command')} "
                "not on the allow list and not run"
            )
        if permitted:
            self._move(task, TaskState.CHECKING)
            self._order(permitted, task)
        else:
            self._accept(task)

    def _send_back(self, task: TrackedTask, reasons: Sequence[str], delay: float = 0.0) -> None:
        task.reasons.extend(reasons)
        if task.round >= self._settings.max_rounds:
            self._fail(
                task,
                f"not accepted in {_count(task.round, 'round')}; the last reason: {reasons[-1]}",
                is_known=True,
            )
            return
        task.sent_back = tuple(reasons)
        if delay:
            self._retries += 1
        self._move(task, TaskState.READY, reasons[0])
        self._ask_worker(task, delay)

    # --- acceptance ---

    def _sort_commands(
        self, commands: Iterable[tuple[str, ...]]
    ) -> tuple[tuple[CommandResult, ...], tuple[tuple[str, ...], ...]]:
        """Split command lines into refusals and what may be run."""
        refused, permitted = [], []
        for argv in commands:
            if self._settings.permits(argv):
                permitted.append(argv)
            else:
                refused.append(
                    CommandResult(argv=argv, refusal="it is not on the mission's allow list")
                )
        return tuple(refused), tuple(permitted)

    def _order(self, commands: tuple[tuple[str, ...], ...], task: TrackedTask | None) -> None:
        self._tickets += 1
        self._work[self._tickets] = OpenWork(None, None, task)
        self._out.append(
            RunCommands(
                ticket=self._tickets,
                commands=commands,
                task_id=task.spec.id if task else None,
                round=task.round if task else 0,
            )
        )

    def _on_commands(self, work: OpenWork, event: CommandsFinished) -> None:
        if work.answer is not None:
            raise RuntimeError(f"ticket {event.ticket} is for an agent, not for commands")
        reasons = [explain(result) for result in event.results if result.is_failed]
        if work.task is None:
            self._commands += event.results
            if reasons:
                self._end(MissionOutcome.FAILED, f"the mission's acceptance failed: {reasons[0]}")
            else:
                self._end(MissionOutcome.ACCEPTED, self._success())
            return
        work.task.commands += event.results
        if reasons:
            self._send_back(work.task, reasons)
        else:
            self._accept(work.task)

    # --- the end of a task ---

    def _accept(self, task: TrackedTask) -> None:
        self._move(task, TaskState.ACCEPTED)
        self._leave(task)
        for dependent in self._dependents.get(task.spec.id, ()):
            dependent.open_dependencies -= 1
            if dependent.open_dependencies == 0 and dependent.state is TaskState.WAITING:
                self._make_ready(dependent)
        self._conclude()

    def _fail(self, task: TrackedTask, reason: str, *, is_known: bool = False) -> None:
        if not is_known:
            task.reasons.append(reason)
        self._move(task, TaskState.FAILED, reason)
        self._leave(task)
        skipped = deque(self._dependents.get(task.spec.id, ()))
        while skipped:
            dependent = skipped.popleft()
            if dependent.state is TaskState.WAITING:
                why = f"it depends on {task.spec.id!r}, which failed"
                dependent.reasons.append(why)
                self._move(dependent, TaskState.SKIPPED, why)
                self._unfinished -= 1
                skipped.extend(self._dependents.get(dependent.spec.id, ()))
        self._conclude()

    def _leave(self, task: TrackedTask) -> None:
        """Give back what the task held."""
        self._unfinished -= 1
        if not task.is_session_fresh:
            self._out.append(CloseSession(session=f"worker/{task.spec.id}/{task.sessions}"))
        self._release_files(task)

    def _conclude(self) -> None:
        if self._unfinished or self._finish is not None:
            return
        lost = [
            task.spec.id for task in self._tasks.values() if task.state is not TaskState.ACCEPTED
        ]
        if lost:
            names = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
            self._end(
                MissionOutcome.FAILED,
                f"{len(lost)} of {_count(len(self._tasks), 'task')} not accepted: {names}",
            )
            return
        self._commands, permitted = self._sort_commands(self._settings.acceptance)
        if permitted:
            self._order(permitted, None)
        else:
            self._end(MissionOutcome.ACCEPTED, self._success())

    def _success(self) -> str:
        number = len(self._tasks)
        return "the task was accepted" if number == 1 else f"all {number} tasks were accepted"

    # --- small ---

    def _close(self, work: OpenWork) -> None:
        if work.ask is not None:
            self._out.append(CloseSession(session=work.ask.session))

    @staticmethod
    def _task(work: OpenWork) -> TrackedTask:
        if work.task is None:
            raise RuntimeError("the work is not about a task")
        return work.task
