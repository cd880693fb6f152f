"""The rules of a mission as a pure state machine: events in, commands out.

No I/O, no clock, no randomness. Every piece of work that the machine orders carries a *ticket*;
what comes back with a ticket that is not open (late, doubled, of an attempt that was given up)
changes nothing. `TRANSITIONS` is the whole of what a task may do.

    commander -> planner -> per task: worker -> reviewer -> acceptance -> accepted
                                        ^__________|____________|  (at most max_rounds)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, final

from attrs import define, evolve, field, frozen

from orchestra.errors import PlanError
from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission.answers import VerdictError, parse_plan, parse_verdict
from orchestra.opencode.mission.messages import (
    commander_message,
    planner_message,
    repeat_message,
    reviewer_message,
    worker_message,
)
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import (
    CommandResult,
    MissionOutcome,
    TaskReport,
    TaskState,
)

__all__ = (
    "TRANSITIONS",
    "AgentAnswered",
    "Ask",
    "CloseSession",
    "Command",
    "CommandsFinished",
    "Event",
    "Finish",
    "MissionMachine",
    "PlanMade",
    "RunCommands",
    "StopRequested",
    "TaskMoved",
    "Warn",
    "WorkStarted",
)

_MAX_TURNS = 3
"""Tries of a commander's, planner's or reviewer's turn that fails; a worker's are its rounds."""
_MAX_DELAY = 60.0
_MAX_RETRY_AFTER = 600.0
_REASON_TAIL = 1_500
_MAX_SUMMARY = 2_000

TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.READY, TaskState.SKIPPED}),
    TaskState.READY: frozenset({TaskState.WORKING, TaskState.FAILED, TaskState.SKIPPED}),
    TaskState.WORKING: frozenset({TaskState.READY, TaskState.REVIEWING, TaskState.FAILED}),
    TaskState.REVIEWING: frozenset(
        {TaskState.READY, TaskState.CHECKING, TaskState.ACCEPTED, TaskState.FAILED}
    ),
    TaskState.CHECKING: frozenset({TaskState.READY, TaskState.ACCEPTED, TaskState.FAILED}),
    TaskState.ACCEPTED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.SKIPPED: frozenset(),
}


# --- events: what the runner tells the machine -------------------------------------------------


@frozen(kw_only=True)
class WorkStarted:
    """The ordered work got its slot and runs."""

    ticket: int


@frozen(kw_only=True)
class AgentAnswered:
    """An agent's turn ended, one way or the other."""

    ticket: int
    reason: FinishReason
    text: str = ""
    is_truncated: bool = False
    usage: Usage = field(factory=Usage)
    error: TurnError | None = None


@frozen(kw_only=True)
class CommandsFinished:
    """Acceptance commands ended; one result for each that was ordered."""

    ticket: int
    results: tuple[CommandResult, ...]


@frozen(kw_only=True)
class StopRequested:
    """Somebody, or a deadline, ends the mission."""

    reason: str
    outcome: MissionOutcome = MissionOutcome.INTERRUPTED


Event: TypeAlias = WorkStarted | AgentAnswered | CommandsFinished | StopRequested


# --- commands: what the machine tells the runner -----------------------------------------------


@frozen(kw_only=True)
class Ask:
    """Prompt an agent, in the session of that key (opened when there is none)."""

    ticket: int
    session: str
    role: Role
    message: str
    task_id: str | None = None
    round: int = 0
    delay: float = 0.0


@frozen(kw_only=True)
class RunCommands:
    """Run acceptance commands, one after the other; all are permitted."""

    ticket: int
    commands: tuple[tuple[str, ...], ...]
    task_id: str | None = None
    round: int = 0


@frozen(kw_only=True)
class CloseSession:
    """The session of that key is not needed any more."""

    session: str


@frozen(kw_only=True)
class PlanMade:
    """The plan is valid; nothing of it has started."""

    plan: Plan


@frozen(kw_only=True)
class TaskMoved:
    """A task changed its state."""

    task_id: str
    state: TaskState
    round: int
    note: str = ""


@frozen(kw_only=True)
class Warn:
    """Something does not stop the mission but should be known."""

    message: str


@frozen(kw_only=True)
class Finish:
    """The mission is over: cancel what still runs. Always the last command."""

    outcome: MissionOutcome
    reason: str


Command: TypeAlias = Ask | RunCommands | CloseSession | PlanMade | TaskMoved | Warn | Finish


# --- the machine -------------------------------------------------------------------------------


@define
class _Task:
    """A task under way."""

    spec: TaskSpec
    position: int
    open_dependencies: int
    state: TaskState = TaskState.WAITING
    round: int = 0
    sessions: int = 0
    is_session_fresh: bool = True
    failures: int = 0
    usage: Usage = field(factory=Usage)
    reasons: list[str] = field(factory=list)
    sent_back: tuple[str, ...] = ()
    summary: str = ""
    commands: tuple[CommandResult, ...] = ()


@frozen
class _Work:
    """Ordered work that has not come back: who takes the answer, and what was asked."""

    answer: Callable[[_Work, AgentAnswered], None] | None
    ask: Ask | None
    task: _Task | None
    tries: int = 1
    repeats: int = 0


def _describe(answer: AgentAnswered) -> str:
    """Say in a phrase why a turn did not end well."""
    if answer.error is not None:
        return answer.error.message[:_REASON_TAIL]
    return {
        FinishReason.STOPPED: "it was stopped before its answer",
        FinishReason.LENGTH: "its answer was cut at the model's output limit",
        FinishReason.BLOCKED: "a content filter withheld its answer",
        FinishReason.ABORTED: "it was aborted",
        FinishReason.INTERRUPTED: "it broke off",
    }.get(answer.reason, f"it ended as {answer.reason.value!r}")


def _is_final(answer: AgentAnswered) -> bool:
    """Whether trying the same again is useless."""
    if answer.reason is FinishReason.REFUSED:
        return True
    return answer.error is not None and not answer.error.is_retryable


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
        self._tasks: dict[str, _Task] = {}
        self._dependents: dict[str, list[_Task]] = {}
        self._holders: dict[str, str] = {}
        self._kept_waiting: dict[str, deque[_Task]] = {}
        self._unfinished = 0
        self._work: dict[int, _Work] = {}
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
            self._accept_plan(self._plan)
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
            elif isinstance(event, CommandsFinished):
                self._on_commands(work, event)
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

    def task_reports(self) -> tuple[TaskReport, ...]:
        """Return what is known of every task, in plan order."""
        return tuple(
            TaskReport(
                id=task.spec.id,
                title=task.spec.title,
                state=task.state,
                rounds=task.round,
                reasons=tuple(task.reasons),
                files=task.spec.files,
                depends=task.spec.depends,
                usage=task.usage,
                commands=task.commands,
                summary=task.summary,
            )
            for task in self._tasks.values()
        )

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
        answer: Callable[[_Work, AgentAnswered], None],
        role: Role,
        session: str,
        message: str,
        task: _Task | None = None,
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
        self._work[ask.ticket] = _Work(answer, ask, task)
        self._out.append(ask)

    def _again(self, work: _Work, answer: AgentAnswered) -> bool:
        """Ask the same again in a fresh session, unless it was tried often enough."""
        if work.ask is None or work.tries >= _MAX_TURNS or _is_final(answer):
            return False
        self._out.append(CloseSession(session=work.ask.session))
        self._tickets += 1
        ask = evolve(
            work.ask,
            ticket=self._tickets,
            session=f"{work.ask.session}'",
            delay=self._delay(work.tries, answer),
        )
        self._work[ask.ticket] = evolve(work, ask=ask, tries=work.tries + 1)
        self._retries += 1
        self._out.append(ask)
        return True

    def _repeat(self, work: _Work, problem: str) -> bool:
        """Ask once more for the right form, in the same session."""
        if work.ask is None or work.repeats >= 1:
            return False
        self._tickets += 1
        ask = evolve(work.ask, ticket=self._tickets, message=repeat_message(problem), delay=0.0)
        self._work[ask.ticket] = evolve(work, ask=ask, repeats=work.repeats + 1)
        self._out.append(ask)
        return True

    def _delay(self, failures: int, answer: AgentAnswered) -> float:
        delay = min(self._settings.retry_delay * 2.0 ** (failures - 1), _MAX_DELAY)
        if answer.error is not None and answer.error.retry_after is not None:
            delay = max(delay, min(answer.error.retry_after, _MAX_RETRY_AFTER))
        return delay

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

    def _on_answer(self, work: _Work, event: AgentAnswered) -> None:
        if work.answer is None or work.ask is None:
            raise RuntimeError(f"ticket {event.ticket} is for commands, not for an agent")
        if work.task is not None:
            work.task.usage += event.usage
        if event.reason is FinishReason.LOST:
            self._stop(MissionOutcome.FAILED, f"the backend is gone: {_describe(event)}")
            return
        work.answer(work, event)

    def _on_brief(self, work: _Work, event: AgentAnswered) -> None:
        brief = ""
        if event.reason is FinishReason.DONE:
            brief = event.text.strip()
            if not brief:
                self._warn("the commander's answer was empty; the plan is made from the goal")
        elif self._again(work, event):
            return
        else:
            self._end(MissionOutcome.FAILED, f"the commander failed: {_describe(event)}")
            return
        self._close(work)
        self._ask(self._on_plan, Role.PLANNER, "planner", planner_message(self._goal, brief))

    def _on_plan(self, work: _Work, event: AgentAnswered) -> None:
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event):
                self._end(MissionOutcome.FAILED, f"the planner failed: {_describe(event)}")
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
        self._close(work)
        self._accept_plan(plan)

    def _accept_plan(self, plan: Plan) -> None:
        self._plan = plan
        for position, spec in enumerate(plan.tasks):
            task = _Task(spec, position, len(set(spec.depends)))
            self._tasks[spec.id] = task
            for name in set(spec.depends):
                self._dependents.setdefault(name, []).append(task)
        self._unfinished = len(self._tasks)
        self._out.append(PlanMade(plan=plan))
        for task in self._tasks.values():
            if task.open_dependencies == 0:
                self._make_ready(task)

    # --- one task's way ---

    def _move(self, task: _Task, state: TaskState, note: str = "") -> None:
        if state not in TRANSITIONS[task.state]:
            raise RuntimeError(
                f"task {task.spec.id!r} cannot go from {task.state.value} to {state.value}"
            )
        task.state = state
        self._out.append(
            TaskMoved(task_id=task.spec.id, state=state, round=task.round, note=note[:300])
        )

    def _make_ready(self, task: _Task) -> None:
        self._move(task, TaskState.READY)
        self._try_work(task)

    def _try_work(self, task: _Task) -> None:
        """Give the task to a worker unless another one holds a file that it writes."""
        for file in task.spec.files:
            if file in self._holders:
                self._kept_waiting.setdefault(file, deque()).append(task)
                return
        for file in task.spec.files:
            self._holders[file] = task.spec.id
        self._ask_worker(task)

    def _release_files(self, task: _Task) -> None:
        kept: list[_Task] = []
        for file in task.spec.files:
            if self._holders.get(file) == task.spec.id:
                del self._holders[file]
                kept.extend(self._kept_waiting.pop(file, ()))
        for waiting in sorted(kept, key=lambda task: task.position):
            self._try_work(waiting)

    def _ask_worker(self, task: _Task, delay: float = 0.0) -> None:
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

    def _on_work(self, work: _Work, event: AgentAnswered) -> None:
        task = self._task(work)
        if task.state is TaskState.READY:  # it failed before it got a slot
            task.round += 1
            self._move(task, TaskState.WORKING)
        if event.reason is not FinishReason.DONE:
            self._close(work)
            task.is_session_fresh = True
            reason = f"the worker's turn failed: {_describe(event)}"
            if _is_final(event):
                self._fail(task, reason)
            else:
                task.failures += 1
                self._send_back(task, (reason,), self._delay(task.failures, event))
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

    def _on_review(self, work: _Work, event: AgentAnswered) -> None:
        task = self._task(work)
        if event.reason is not FinishReason.DONE:
            if not self._again(work, event):
                self._fail(task, f"the reviewer failed: {_describe(event)}")
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

    def _send_back(self, task: _Task, reasons: Sequence[str], delay: float = 0.0) -> None:
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

    def _order(self, commands: tuple[tuple[str, ...], ...], task: _Task | None) -> None:
        self._tickets += 1
        self._work[self._tickets] = _Work(None, None, task)
        self._out.append(
            RunCommands(
                ticket=self._tickets,
                commands=commands,
                task_id=task.spec.id if task else None,
                round=task.round if task else 0,
            )
        )

    def _on_commands(self, work: _Work, event: CommandsFinished) -> None:
        if work.answer is not None:
            raise RuntimeError(f"ticket {event.ticket} is for an agent, not for commands")
        failed = [result for result in event.results if result.is_failed]
        reasons = []
        for result in failed:
            end = (
                f"ended with exit code {result.exit_code}"
                if result.exit_code is not None
                else result.error
            )
            tail = result.output.strip()[-_REASON_TAIL:]
            reasons.append(f"`{' '.join(result.argv)}` {end}" + (f":\n{tail}" if tail else ""))
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

    def _accept(self, task: _Task) -> None:
        self._move(task, TaskState.ACCEPTED)
        self._leave(task)
        for dependent in self._dependents.get(task.spec.id, ()):
            dependent.open_dependencies -= 1
            if dependent.open_dependencies == 0 and dependent.state is TaskState.WAITING:
                self._make_ready(dependent)
        self._conclude()

    def _fail(self, task: _Task, reason: str, *, is_known: bool = False) -> None:
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

    def _leave(self, task: _Task) -> None:
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

    def _close(self, work: _Work) -> None:
        if work.ask is not None:
            self._out.append(CloseSession(session=work.ask.session))

    @staticmethod
    def _task(work: _Work) -> _Task:
        if work.task is None:
            raise RuntimeError("the work is not about a task")
        return work.task
