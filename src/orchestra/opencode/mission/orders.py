"""What the runner tells the mission's machine (events), and what it is told to do (commands)."""

from __future__ import annotations

from typing import TypeAlias

from attrs import field, frozen

from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission.plan import Plan, Role
from orchestra.opencode.mission.report import CommandResult, MissionOutcome, TaskState

__all__ = (
    "AgentAnswered",
    "Ask",
    "CheckPlan",
    "CloseSession",
    "Command",
    "CommandsFinished",
    "Event",
    "Finish",
    "PlanChecked",
    "PlanMade",
    "RunCommands",
    "StopRequested",
    "TaskMoved",
    "Warn",
    "WorkStarted",
)

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
class PlanChecked:
    """What the mission's steps made of a plan.

    Attributes:
        ticket: The order.
        plan: The plan, possibly changed.
        problem: Why it cannot be carried out; empty when it can.
    """

    ticket: int
    plan: Plan
    problem: str = ""


@frozen(kw_only=True)
class StopRequested:
    """Somebody, or a deadline, ends the mission."""

    reason: str
    outcome: MissionOutcome = MissionOutcome.INTERRUPTED


Event: TypeAlias = WorkStarted | AgentAnswered | CommandsFinished | PlanChecked | StopRequested


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

    @property
    def name(self) -> str:
        """What people call the session."""
        return f"{self.role.value} {self.task_id}" if self.task_id else self.role.value


@frozen(kw_only=True)
class RunCommands:
    """Run acceptance commands, one after the other; all are permitted."""

    ticket: int
    commands: tuple[tuple[str, ...], ...]
    task_id: str | None = None
    round: int = 0


@frozen(kw_only=True)
class CheckPlan:
    """Show the plan to those who may change or refuse it."""

    ticket: int
    plan: Plan


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


Command: TypeAlias = (
    Ask | RunCommands | CheckPlan | CloseSession | PlanMade | TaskMoved | Warn | Finish
)
