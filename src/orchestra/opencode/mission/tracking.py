"""What the mission's machine keeps in mind: tasks under way, and work that has not come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define, field, frozen

from orchestra.events import Usage
from orchestra.opencode.mission.orders import AgentAnswered, Ask
from orchestra.opencode.mission.plan import TaskSpec
from orchestra.opencode.mission.report import CommandResult, TaskReport, TaskState

__all__ = ("TRANSITIONS", "OpenWork", "TrackedTask")

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
"""The whole of what a task may do."""


@define
class TrackedTask:
    """A task under way.

    Attributes:
        spec: What is to be done.
        position: Its place in the plan.
        open_dependencies: Tasks that it waits for.
        state: How far it is.
        round: The round it is in, or was in last; 0 before the first.
        sessions: How many worker sessions it has had.
        is_session_fresh: Whether the next round takes a new session.
        failures: Turns of its workers that failed in a row.
        usage: What its sessions have consumed.
        reasons: Why rounds were sent back or failed, in order.
        sent_back: Why the last one was.
        summary: What the worker last said.
        commands: Its acceptance commands of the last round.
    """

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

    def report(self) -> TaskReport:
        """Return what is known of it."""
        return TaskReport(
            id=self.spec.id,
            title=self.spec.title,
            state=self.state,
            rounds=self.round,
            reasons=tuple(self.reasons),
            files=self.spec.files,
            depends=self.spec.depends,
            usage=self.usage,
            commands=self.commands,
            summary=self.summary,
        )


@frozen
class OpenWork:
    """Ordered work that has not come back.

    Attributes:
        answer: Takes an agent's answer; None: these are commands.
        ask: What was asked; None: these are commands.
        task: The task it is about; None: the mission as a whole.
        tries: How often it was asked because a turn failed.
        repeats: How often it was asked because an answer had the wrong form.
        is_check: Whether it is the look at the plan that came of it.
    """

    answer: Callable[[OpenWork, AgentAnswered], None] | None
    ask: Ask | None
    task: TrackedTask | None
    tries: int = 1
    repeats: int = 0
    is_check: bool = False
