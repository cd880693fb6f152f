"""How tasks go, from waiting to accepted; part of the mission's pure machine.

    waiting -> ready -> working -> checking -> reviewing -> merging -> accepted
                 ^         |          |            |           |
                 |_________|__________|____________|___________|   (sent back, with reasons)

A task may have *parts*: several that race for it, of which the first accepted one wins, or pieces
that its worker has split it into, of which all must be accepted. It waits for them as SPLIT.
The table of what a task may do is in `transitions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from attrs import evolve

from orchestra import Priority
from orchestra.errors import PlanError
from orchestra.events import FinishReason
from orchestra.opencode.mission.answers import VerdictError, parse_split, parse_verdict
from orchestra.opencode.mission.asks import (
    racers_of,
    reviewer_ask,
    unit_gates,
    worker_ask,
    worker_session,
)
from orchestra.opencode.mission.failures import describe, explain, warnings_of
from orchestra.opencode.mission.messages import (
    CHANGED_STRATEGY,
    repeat_message,
    stagnation_note,
)
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    Ask,
    CloseSession,
    Discard,
    GatesFinished,
    Integrate,
    Integrated,
    TaskAdded,
    TaskHeld,
    TaskMoved,
)
from orchestra.opencode.mission.plain import fill_task
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskMode, TaskSpec
from orchestra.opencode.mission.recovery import (
    OF_THE_AGENT,
    Action,
    ErrorClass,
    Recovery,
    Remedy,
    Troubles,
)
from orchestra.opencode.mission.report import Receipt, TaskState
from orchestra.opencode.mission.stagnation import Stagnation, Step, facts_of
from orchestra.opencode.mission.tickets import Tickets
from orchestra.opencode.mission.tracking import OpenWork, TrackedTask
from orchestra.opencode.mission.transitions import OVER, TRANSITIONS
from orchestra.opencode.mission.write_sets import WriteSets

__all__ = ("TaskFlow",)

_MAX_SUMMARY = 2_000
_MAX_MERGES = 3
"""How often a change is checked again because the files have moved meanwhile."""


@final
class TaskFlow:
    """Takes tasks from waiting to accepted.

    Args:
        tickets: Where orders go out.
        settings: The rules of the run.
        recovery: Decides about failed turns.
        warn: Told what does not stop the mission but should be known.
        stop: Ends the mission, with a reason.
        wind_down: Told why the mission ends as soon as what is under way has ended.
        conclude: Called when no task of the plan is under way any more.
    """

    def __init__(
        self,
        tickets: Tickets,
        settings: MissionSettings,
        recovery: Recovery,
        *,
        warn: Callable[[str], None],
        stop: Callable[[str], None],
        wind_down: Callable[[str], None],
        conclude: Callable[[], None],
    ) -> None:
        self._tickets = tickets
        self._settings = settings
        self._recovery = recovery
        self._warn = warn
        self._stop = stop
        self._wind_down = wind_down
        self._on_concluded = conclude
        self._dependents: dict[str, list[TrackedTask]] = {}
        self._write_sets = WriteSets()
        self._unfinished = 0
        self.tasks: dict[str, TrackedTask] = {}
        self.retries: int = 0

    # --- tasks come in ---

    def add_plan(self, plan: Plan) -> None:
        """Take over the tasks of a plan; of an earlier one, what is accepted stays.

        Args:
            plan: The plan; it names no accepted task.
        """
        for task in list(self.tasks.values()):
            if task.state in {TaskState.FAILED, TaskState.SKIPPED}:
                self._move(task, TaskState.REPLACED, "a later plan goes another way")
        added = []
        start = 1 + int(max((task.position for task in self.tasks.values()), default=-1))
        for position, spec in enumerate(plan.tasks, start):
            earlier = self.tasks.pop(spec.id, None)
            task = self._track(spec, position)
            if earlier is not None:
                task.reasons.extend(earlier.reasons)
                task.usage = earlier.usage
                task.sessions = earlier.sessions
                task.reviews = earlier.reviews
            self.tasks[spec.id] = task
            added.append(task)
        for task in added:
            self._link(task)
        self._unfinished += len(added)

    def start(self) -> None:
        """Begin with every task that waits for nothing."""
        for task in list(self.tasks.values()):
            if task.state is TaskState.WAITING and task.open_dependencies == 0:
                self._make_ready(task)
        self._conclude()

    def _track(
        self, spec: TaskSpec, position: float, parent: TrackedTask | None = None
    ) -> TrackedTask:
        return TrackedTask(
            spec,
            position,
            0,
            Stagnation(self._settings.loop.stagnation),
            parent=parent,
            depth=parent.depth + 1 if parent else 0,
            may_split=spec.mode is TaskMode.FRACTAL and self._may_nest(parent),
        )

    def _may_nest(self, parent: TrackedTask | None) -> bool:
        # Commander, worker, part of a worker: the depth of the lineage, not of the plan.
        return parent is None and self._settings.loop.depth >= 3

    def _link(self, task: TrackedTask) -> None:
        for name in set(task.spec.depends):
            if self.tasks[name].state is not TaskState.ACCEPTED:
                task.open_dependencies += 1
                self._dependents.setdefault(name, []).append(task)

    def _add_parts(self, parent: TrackedTask, specs: Sequence[TaskSpec]) -> None:
        for number, spec in enumerate(specs, 1):
            part = self._track(spec, parent.position + number / (len(specs) + 1), parent)
            parent.parts.append(part)
            self.tasks[spec.id] = part
            self._tickets.put(TaskAdded(spec=spec, parent=parent.id))
        for part in parent.parts:
            self._link(part)
        self._move(parent, TaskState.SPLIT)
        for part in parent.parts:
            if part.state is TaskState.WAITING and part.open_dependencies == 0:
                self._make_ready(part)

    # --- after a restart ---

    def restore(
        self,
        specs: Sequence[TaskSpec],
        parts: Sequence[tuple[TaskSpec, str]],
        records: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Take over the tasks of a mission that was interrupted, as they were.

        Args:
            specs: The tasks of its plans.
            parts: Their parts, each with its parent's id.
            records: What was written of each task.
        """
        for position, spec in enumerate(specs):
            self.tasks[spec.id] = self._track(spec, position)
        for spec, name in parts:
            parent = self.tasks[name]
            self.tasks[spec.id] = part = self._track(spec, parent.position, parent)
            parent.parts.append(part)
        for name, task in self.tasks.items():
            if name in records:
                fill_task(task, records[name], self._settings.loop.stagnation)
        for task in self.tasks.values():
            if task.state is TaskState.WAITING:
                self._link(task)
            if task.parent is None and task.state not in OVER:
                self._unfinished += 1

    def resume(self) -> None:
        """Order again what was under way; the same prompts under the same names."""
        tasks = sorted(self.tasks.values(), key=lambda task: task.position)
        for task in tasks:
            files = self._files_of(task)
            is_held = task.state is TaskState.READY and task.is_session_fresh
            if files is not None and not is_held and task.state not in {TaskState.WAITING, *OVER}:
                files.hold(task.id, task.spec.files)
        for task in tasks:
            self._resume(task)
        self._conclude()

    def _resume(self, task: TrackedTask) -> None:
        match task.state:
            case TaskState.WAITING if task.open_dependencies == 0:
                self._make_ready(task)
            case TaskState.READY if task.is_session_fresh:
                self._try_work(task)
            case TaskState.READY:
                self._order_work(task, task.round + 1)
            case TaskState.WORKING:
                self._order_work(task, task.round)
            case TaskState.CHECKING:
                self._order_gates(task)
            case TaskState.REVIEWING:
                self._ask_reviewer(task)
            case TaskState.MERGING:
                self._merge(task)
            case _:
                pass

    # --- what comes back ---

    def on_started(self, work: OpenWork) -> None:
        """A worker got its slot: its round begins."""
        task = work.task
        if task is not None and task.state is TaskState.READY:
            task.round += 1
            self._move(task, TaskState.WORKING)

    def on_answer(self, work: OpenWork, event: AgentAnswered) -> None:
        """A worker's or reviewer's turn has ended."""
        task, ask = work.of_task, work.of_ask
        task.usage += event.usage
        if ask.role is Role.WORKER:
            self._on_work(task, event)
        else:
            self._on_review(work, task, ask, event)

    def _on_work(self, task: TrackedTask, event: AgentAnswered) -> None:
        if task.state is TaskState.READY:  # it failed before it got a slot
            task.round += 1
            self._move(task, TaskState.WORKING)
        if event.reason is not FinishReason.DONE:
            models = len(self._settings.chain(Role.WORKER))
            remedy = self._recovery.decide(event, task.troubles, models=models)
            self._remedy_work(task, remedy, f"the worker's turn failed: {describe(event)}")
            return
        task.summary, task.calls = event.text[:_MAX_SUMMARY], event.calls
        if not event.text.strip():
            self._warn(f"the worker of task {task.id!r} gave an empty answer")
        if task.may_split and self._split(task, event.text):
            return
        self._check(task)

    def _remedy_work(self, task: TrackedTask, remedy: Remedy, reason: str) -> None:
        self._close_worker(task)
        if not self._is_end(task, remedy, reason):
            # The turn failed, not the work: it does not count as a round.
            self.retries += 1
            task.round -= 1
            task.reasons.append(reason)
            if remedy.error in OF_THE_AGENT:
                task.sent_back = (reason,)
            self._move(task, TaskState.READY, reason)
            self._ask_worker(task, remedy.delay)

    def _is_end(self, task: TrackedTask, remedy: Remedy, reason: str) -> bool:
        """Whether the remedy is that the task ends; then it does."""
        match remedy.action:
            case Action.STOP:
                self._stop(reason)
            case Action.WIND_DOWN:
                self._wind_down(reason)
                self._fail(task, reason)
            case Action.GIVE_UP:
                self._fail(task, reason)
            case _:
                return False
        return True

    def _split(self, task: TrackedTask, text: str) -> bool:
        """Split the task if its worker says so; whether anything came of it."""
        try:
            specs = parse_split(text, task.spec)
        except PlanError as exc:
            self._send_back(task, (f"the task cannot be split like this: {exc}",), None)
            return True
        if not specs:
            return False
        taken = [spec.id for spec in specs if spec.id in self.tasks]
        if taken:
            self._send_back(task, (f"the ids {', '.join(taken)} are taken",), None)
            return True
        task.may_split = False
        self._close_worker(task)
        self._add_parts(task, specs)
        return True

    def _check(self, task: TrackedTask) -> None:
        self._move(task, TaskState.CHECKING)
        self._order_gates(task)

    def _order_gates(self, task: TrackedTask) -> None:
        self._tickets.order(unit_gates(task, self._settings), task)

    def on_gates(self, work: OpenWork, event: GatesFinished) -> None:
        """A task's gates have run."""
        task = work.of_task
        task.receipt, task.evidence = event.receipt, event.evidence
        task.commands = event.receipt.commands
        for warning in warnings_of(task.id, event.receipt):
            self._warn(warning)
        failed = [explain(result) for result in task.commands if result.is_failed]
        if problems := (*event.receipt.problems, *failed):
            self._send_back(task, problems, event.receipt)
            return
        self._move(task, TaskState.REVIEWING)
        task.reviews += 1
        task.review_troubles = Troubles()
        self._ask_reviewer(task)

    def _ask_reviewer(self, task: TrackedTask, delay: float = 0.0) -> None:
        self._tickets.order(reviewer_ask(task, self._settings, delay), task, task.review_troubles)

    def _on_review(self, work: OpenWork, task: TrackedTask, ask: Ask, event: AgentAnswered) -> None:
        models = len(self._settings.chain(Role.REVIEWER))
        if event.reason is not FinishReason.DONE:
            self._tickets.put(CloseSession(session=ask.session))
            remedy = self._recovery.decide(event, work.troubles, models=models)
            reason = f"the reviewer failed: {describe(event)}"
            if not self._is_end(task, remedy, reason):
                self.retries += 1
                task.reviews += 1
                self._ask_reviewer(task, remedy.delay)
            return
        try:
            if event.is_truncated:
                raise VerdictError("the answer is too long")
            verdict = parse_verdict(event.text)
        except VerdictError as exc:
            remedy = self._recovery.remedy(ErrorClass.PARSE, work.troubles, models=models)
            if remedy.action is Action.REASK:
                self._tickets.order(
                    evolve(ask, message=repeat_message(str(exc)), turn=ask.turn + 1, delay=0.0),
                    task,
                    work.troubles,
                )
                return
            self._tickets.put(CloseSession(session=ask.session))
            if remedy.action is Action.NEXT_MODEL:
                task.reviews += 1
                self._ask_reviewer(task)
            else:
                self._fail(task, f"the reviewer gave no verdict: {exc}")
            return
        self._tickets.put(CloseSession(session=ask.session))
        if not verdict.is_accepted:
            self._send_back(task, verdict.reasons, task.receipt)
            return
        self._move(task, TaskState.MERGING)
        self._merge(task)

    # --- taking a change over ---

    def _merge(self, task: TrackedTask) -> None:
        if task.is_racing and task.parent is not None:
            if task.parent.merging:
                return  # another one was accepted first; it is this one's turn if that fails
            task.parent.merging = task.id
        self._tickets.order(
            Integrate(
                ticket=0, task_id=task.id, receipt=task.receipt or Receipt(), round=task.round
            ),
            task,
        )

    def on_integrated(self, work: OpenWork, event: Integrated) -> None:
        """A task's change was taken over, or was not."""
        task, parent = work.of_task, work.of_task.parent
        if not event.problem and not event.is_moved:
            self._accept(task)
            return
        if event.is_moved and task.merges < _MAX_MERGES:
            task.merges += 1
            self._check(task)
        else:
            problem = event.problem or "the files keep changing under the check"
            self._send_back(task, (problem,), None)
        if parent is not None and parent.merging:
            parent.merging = ""
            waiting = [part for part in parent.parts if part.state is TaskState.MERGING]
            if waiting and parent.state not in OVER:
                self._merge(waiting[0])

    # --- once more ---

    def _send_back(
        self, task: TrackedTask, reasons: Sequence[str], receipt: Receipt | None
    ) -> None:
        task.reasons.extend(reasons)
        task.sent_back = tuple(reasons)
        step = Step.NONE
        if receipt is not None:
            step = task.stagnation.observe(facts_of(receipt))
        if step is Step.STOP:
            self._fail(
                task,
                f"stagnation: {task.stagnation.equal + 1} rounds have changed neither its files "
                f"nor what the checks say, or back only; the last reason: {reasons[-1]}",
            )
            return
        if task.round >= self._settings.loop.rounds:
            count = "1 round" if task.round == 1 else f"{task.round} rounds"
            self._fail(
                task, f"not accepted in {count}; the last reason: {reasons[-1]}", is_known=True
            )
            return
        task.note = ""
        if step is Step.DIAGNOSE:
            task.note = stagnation_note(task.stagnation.equal + 1)
        elif step is Step.CHANGE:
            self._change_strategy(task)
        self._move(task, TaskState.READY, reasons[0])
        self._ask_worker(task)

    def _change_strategy(self, task: TrackedTask) -> None:
        """Go another way: a fresh session, the next model if there is one, leave to split."""
        task.note = CHANGED_STRATEGY
        self._close_worker(task)
        if task.troubles.model < len(self._settings.chain(Role.WORKER)):
            task.troubles.model += 1
        task.may_split = self._may_nest(task.parent) and len(task.spec.files) > 1
        self._warn(f"task {task.id!r} does not move; it goes on in a fresh session")

    # --- one task's way ---

    def _move(self, task: TrackedTask, state: TaskState, note: str = "") -> None:
        if state not in TRANSITIONS[task.state]:
            raise RuntimeError(
                f"task {task.id!r} cannot go from {task.state.value} to {state.value}"
            )
        task.state = state
        self._tickets.put(
            TaskMoved(task_id=task.id, state=state, round=task.round, note=note[:300])
        )

    def _make_ready(self, task: TrackedTask) -> None:
        self._move(task, TaskState.READY)
        self._try_work(task)

    def _files_of(self, task: TrackedTask) -> WriteSets | None:
        """Return the book that the task's files are in; None: it works in a copy of its own."""
        if task.is_racing:
            return None
        return self._write_sets if task.parent is None else task.parent.part_files

    def _try_work(self, task: TrackedTask) -> None:
        """Give the task to a worker unless another one holds a file that it writes."""
        files = self._files_of(task)
        if files is not None and not files.hold(task.id, task.spec.files):
            holder = files.holder(task.spec.files)
            self._tickets.put(TaskHeld(task_id=task.id, holder=holder))
            return
        if task.spec.mode is TaskMode.RACE and task.parent is None:
            self._add_parts(task, racers_of(task.spec))
            return
        self._ask_worker(task)

    def _release_files(self, task: TrackedTask) -> None:
        files = self._files_of(task)
        if files is None:
            return
        kept = [self.tasks[name] for name in files.release(task.id, task.spec.files)]
        urgency = list(Priority)  # the most urgent one first
        for waiting in sorted(
            kept, key=lambda task: (urgency.index(task.spec.priority), task.position)
        ):
            if waiting.state is TaskState.READY:
                self._try_work(waiting)

    def _ask_worker(self, task: TrackedTask, delay: float = 0.0) -> None:
        if task.is_session_fresh:
            task.sessions += 1
            task.turns = 0
            task.is_session_fresh = False
        task.turns += 1
        self._order_work(task, task.round + 1, delay)

    def _order_work(self, task: TrackedTask, round_: int, delay: float = 0.0) -> None:
        self._tickets.order(worker_ask(task, self._settings, round_, delay), task)

    def _close_worker(self, task: TrackedTask) -> None:
        if not task.is_session_fresh:
            self._tickets.put(CloseSession(session=worker_session(task)))
            task.is_session_fresh = True

    # --- the end of a task ---

    def _accept(self, task: TrackedTask) -> None:
        self._move(task, TaskState.ACCEPTED)
        self._leave(task)
        parent = task.parent
        if task.is_racing and parent is not None:
            parent.summary, parent.receipt = task.summary, task.receipt
            parent.commands, parent.round = task.commands, task.round
            self._cancel_parts(parent)
            self._accept(parent)
            return
        for dependent in self._dependents.get(task.id, ()):
            dependent.open_dependencies -= 1
            if dependent.open_dependencies == 0 and dependent.state is TaskState.WAITING:
                self._make_ready(dependent)
        if parent is not None:
            if all(part.state is TaskState.ACCEPTED for part in parent.parts):
                self._check(parent)
            return
        self._conclude()

    def _fail(self, task: TrackedTask, reason: str, *, is_known: bool = False) -> None:
        if not is_known:
            task.reasons.append(reason)
        self._cancel_parts(task)
        self._move(task, TaskState.FAILED, reason)
        self._leave(task)
        parent = task.parent
        if parent is not None:
            if task.is_racing:
                self._tickets.put(Discard(task_id=task.id))
                if all(part.state in OVER for part in parent.parts):
                    self._fail(parent, f"nobody who raced was accepted; the last: {reason}")
            elif parent.state not in OVER:
                self._fail(parent, f"its part {task.id!r} failed: {reason}")
            return
        skipped = deque(self._dependents.get(task.id, ()))
        while skipped:
            dependent = skipped.popleft()
            if dependent.state is TaskState.WAITING:
                why = f"it depends on {task.id!r}, which failed"
                dependent.reasons.append(why)
                self._move(dependent, TaskState.SKIPPED, why)
                self._unfinished -= 1
                skipped.extend(self._dependents.get(dependent.id, ()))
        self._conclude()

    def _cancel_parts(self, parent: TrackedTask) -> None:
        """Call off the parts that are still under way."""
        gone = [part for part in parent.parts if part.state not in OVER]
        self._tickets.cancel(gone)
        for part in gone:
            self._close_worker(part)
            self._move(part, TaskState.CANCELLED, "it is not needed any more")
            if part.is_racing:
                self._tickets.put(Discard(task_id=part.id))

    def _leave(self, task: TrackedTask) -> None:
        """Give back what the task held."""
        if task.parent is None:
            self._unfinished -= 1
        self._close_worker(task)
        self._release_files(task)

    def _conclude(self) -> None:
        if not self._unfinished:
            self._on_concluded()

    def end(self, reason: str) -> None:
        """End early: what was begun has failed for that reason, the rest is skipped."""
        for task in self.tasks.values():
            if task.state in OVER:
                continue
            is_idle = task.state in {TaskState.WAITING, TaskState.READY}
            is_begun = task.round > 0 or task.troubles.total > 0 or not is_idle
            if is_begun:
                task.reasons.append(reason)
                self._move(task, TaskState.FAILED, reason)
            else:
                self._move(task, TaskState.SKIPPED, "the mission ended before")
