"""Writes down, while a mission runs, what each of its tasks waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, final

import anyio
from attrs import field, frozen

from orchestra import Priority
from orchestra.errors import StoreError
from orchestra.events import PermissionAsked, PermissionPending, RetryScheduled, SessionEvent
from orchestra.opencode.mission.orders import (
    Ask,
    AskApproval,
    CheckPlan,
    Command,
    Finish,
    Integrate,
    Order,
    PlanMade,
    RunGates,
    TaskAdded,
    TaskHeld,
    TaskMoved,
)
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import TaskState
from orchestra.opencode.mission.timeline import carried_on
from orchestra.opencode.mission.transitions import OVER
from orchestra.opencode.mission.waits import Cause, WaitBook, read_book

__all__ = ("WaitLog", "turn_cause")

_PATIENCE = 1.0
"""Seconds that news wait for a step that they can go with."""
_URGENCY = tuple(Priority)
"""The most urgent one first."""

_CAUSES: Mapping[type[Order], Cause] = {
    CheckPlan: Cause.PLANNING,
    AskApproval: Cause.APPROVAL,
    RunGates: Cause.GATES,
    Integrate: Cause.MERGE,
}


def turn_cause(role: Role) -> Cause:
    """Return what a task's time is spent on during a turn.

    Args:
        role: Whose turn it is.
    """
    return {Role.WORKER: Cause.WORK, Role.REVIEWER: Cause.REVIEW}.get(role, Cause.PLANNING)


@frozen
class _Asking:
    """The open permission requests of a turn, and what its time was spent on before."""

    before: Cause
    requests: dict[str, str] = field(factory=dict)


@final
class WaitLog:
    """The book of waits of a mission under way.

    What the machine decides is observed; between its orders those who carry them out tell what
    they wait for, with `during` and `turn`. None of this ever waits.

    Args:
        now: Gives seconds after the mission's start in this process.

    Attributes:
        book: The book.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._clock = now
        self._before = 0.0
        self._written = 0
        self._queues: dict[str, dict[Priority, dict[str, int]]] = {}
        self._places: dict[str, tuple[str, Priority]] = {}
        self._arrivals = 0
        self._repeated: dict[str, Cause] = {}
        self._asking: dict[str, _Asking] = {}
        self._has_news = anyio.Event()
        self.book: WaitBook = WaitBook()
        self.book.turn("", Cause.PLANNING, 0.0)

    def now(self) -> float:
        """Return the seconds since the mission's first start."""
        return self._before + self._clock()

    @property
    def began(self) -> float:
        """When this process began with it, in seconds after the mission's first start."""
        return self._before

    def carried_on(self) -> float:
        """Return for how many seconds some process has carried the mission on."""
        return carried_on(self.book, self.now())

    # --- what the machine decides ---

    def observe(self, commands: Sequence[Command]) -> None:
        """Take in what the machine has decided.

        Args:
            commands: Its commands of one step, in order.
        """
        now = self.now()
        if any(isinstance(each, Finish) and each.is_resumable for each in commands):
            self.book.turn("", Cause.AWAY, now)  # it may go on, and its tasks have not ended
            return
        for each in commands:
            if isinstance(each, PlanMade):
                self._plan(each, now)
            elif isinstance(each, TaskAdded):
                self.book.begin(each.spec.id, each.parent)
                self._wait_for(each.spec.id, each.spec.depends, now)
            elif isinstance(each, TaskHeld):
                self.book.turn(each.task_id, Cause.LEASE, now, by=[each.holder])
            elif isinstance(each, TaskMoved):
                self._move(each, now)
            elif isinstance(each, AskApproval):
                self.book.turn("", Cause.APPROVAL, now)
            elif isinstance(each, Ask | RunGates | Integrate):
                self.book.turn(each.task_id or "", Cause.RECORDS, now)
            elif isinstance(each, Finish):
                self.book.end(now)

    def _plan(self, made: PlanMade, now: float) -> None:
        self.book.turn("", Cause.TASKS, now)
        if (tasks := self.book.now("")) is not None:
            now = tasks.since  # not later: until then they go with the mission
        for spec in made.plan.tasks:
            self.book.begin(spec.id)
            self._wait_for(spec.id, spec.depends, now)

    def _wait_for(self, task: str, depends: Iterable[str], now: float) -> None:
        # What is accepted already is not waited for, and has no cause any more.
        names = [name for name in dict.fromkeys(depends) if self.book.is_open(name)]
        missing = [name for name in depends if name not in self.book.tasks]
        by = dict.fromkeys([*names, *missing])
        self.book.turn(task, Cause.DEPENDENCY if by else Cause.RECORDS, now, by=by)

    def _move(self, moved: TaskMoved, now: float) -> None:
        if moved.state in OVER:
            self.book.turn(moved.task_id, None, now)
        elif moved.state is TaskState.SPLIT:
            self.book.turn(moved.task_id, Cause.PARTS, now)
        elif moved.state is TaskState.MERGING:  # what races with it may be merged first
            self.book.turn(moved.task_id, Cause.MERGE_ORDER, now)
        elif moved.state is not TaskState.WORKING:  # then its turn has begun, and says so itself
            self.book.turn(moved.task_id, Cause.RECORDS, now)

    # --- what those who carry it out wait for ---

    @contextmanager
    def during(self, order: Order) -> Iterator[None]:
        """Carry out an order during this block; afterwards it is the machine's turn again.

        Args:
            order: The order; what its time is spent on, until `turn` says otherwise, follows.
        """
        task = order.task_id or "" if isinstance(order, Ask | RunGates | Integrate) else ""
        self._turn(task, _CAUSES.get(type(order), Cause.RECORDS))
        try:
            yield
        finally:
            self._leave_queue(task)
            self._asking.pop(task, None)
            self._turn(task, Cause.RECORDS)

    def turn(
        self,
        task_id: str | None,
        cause: Cause,
        *,
        by: Iterable[str] = (),
        seconds: float | None = None,
    ) -> None:
        """From now on a task's time is spent on this; of one that is over nothing changes.

        Args:
            task_id: The task; None: the mission.
            cause: On what.
            by: Who is waited for.
            seconds: How long it should take; None: nobody knows.
        """
        self._turn(task_id or "", cause, by=by, seconds=seconds)

    def _turn(
        self, task: str, cause: Cause, *, by: Iterable[str] = (), seconds: float | None = None
    ) -> None:
        if task in self._repeated:
            self._call_again(task)
        if self.book.is_open(task):
            now = self.now()
            expected = None if seconds is None else now + seconds
            self.book.turn(task, cause, now, by=by, expected=expected)
            self._has_news.set()

    def merging(self, task_id: str, earlier: Sequence[str]) -> None:
        """A task's change waits for those of earlier tasks, or for nobody any more.

        Args:
            task_id: The task.
            earlier: Who comes before.
        """
        self._turn(task_id, Cause.MERGE_ORDER if earlier else Cause.MERGE, by=earlier)

    def queue(self, ask: Ask) -> None:
        """Somebody waits for a slot of a role from now on.

        Args:
            ask: What the turn is about.
        """
        task, role = ask.task_id or "", ask.role.value
        self._turn(task, Cause.SLOT, by=[role])
        self._arrivals += 1
        self._places[task] = role, ask.priority
        self._queues.setdefault(role, {}).setdefault(ask.priority, {})[task] = self._arrivals

    def granted(self, ask: Ask) -> None:
        """Somebody got a slot: who came earlier and is less urgent was overtaken.

        Args:
            ask: What the turn is about.
        """
        task = ask.task_id or ""
        arrival = self._leave_queue(task)
        for priority, waiting in self._queues[ask.role.value].items():
            if _URGENCY.index(priority) > _URGENCY.index(ask.priority):
                for other, came in waiting.items():
                    now = self.book.now(other)
                    if came < arrival and now is not None and now.cause is Cause.SLOT:
                        self._turn(other, Cause.PRIORITY, by=[task])

    def _leave_queue(self, task: str) -> int:
        role, priority = self._places.pop(task, ("", Priority.NORMAL))
        return self._queues[role][priority].pop(task) if role else 0

    def see(self, task_id: str | None, event: SessionEvent) -> None:
        """Take in what a turn tells: repetitions of model calls by the server, and asking for leave.

        Args:
            task_id: The task; None: the mission.
            event: What was told.
        """
        task = task_id or ""
        if task in self._repeated:
            self._call_again(task)
        if (now := self.book.now(task)) is None:
            return
        if isinstance(event, RetryScheduled):
            self._turn(task, Cause.RETRY, seconds=event.delay)
            self._repeated[task] = now.cause
        elif isinstance(event, PermissionPending):
            asking = self._asking.setdefault(task, _Asking(now.cause))
            asking.requests[event.request.id] = event.request.permission
            self._ask_somebody(task, asking)
        elif isinstance(event, PermissionAsked) and task in self._asking:
            self._asking[task].requests.pop(event.request.id, None)
            self._ask_somebody(task, self._asking[task])

    def _ask_somebody(self, task: str, asking: _Asking) -> None:
        if asking.requests:
            self._turn(task, Cause.PERMISSION, by=dict.fromkeys(asking.requests.values()))
        else:
            del self._asking[task]
            self._turn(task, asking.before)

    def _call_again(self, task: str) -> None:
        """The call was made again when the pause was over, not when it was first heard of."""
        cause, now = self._repeated.pop(task), self.book.now(task)
        if now is not None and now.expected is not None:
            self.book.turn(task, cause, min(self.now(), now.expected))

    # --- the store ---

    async def keep(self, write: Callable[[], Awaitable[None]]) -> None:
        """See that news are written, also while nothing is decided; to be run beside the mission.

        Args:
            write: Writes them; that it cannot is told by the next step.
        """
        while True:
            await self._has_news.wait()
            await anyio.sleep(_PATIENCE)
            with anyio.CancelScope(shield=True), suppress(StoreError):
                await write()

    def take_news(self) -> Mapping[str, Any]:
        """Return what is to be written, by name: all changes since the last call in one."""
        news = self.book.take_news()
        if self._has_news.is_set():  # else somebody waits for this one
            self._has_news = anyio.Event()
        if not news:
            return {}
        self._written += 1
        return {f"{self._written:08}": news}

    def restore(self, written: Mapping[str, Any], started_at: str) -> None:
        """Go on with the book of a mission that was interrupted.

        Args:
            written: All that `take_news` ever returned.
            started_at: When the mission was first started, ISO 8601 in UTC.
        """
        self.book = read_book(written)
        self._written = max(map(int, written), default=0)
        began = datetime.fromisoformat(started_at)
        passed = (datetime.now(UTC) - began).total_seconds() - self._clock()
        self._before = max(passed, self.book.last)
        self.book.resume(self._before)

    def __repr__(self) -> str:
        return f"<WaitLog {self.book!r}>"
