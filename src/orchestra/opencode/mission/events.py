"""What a mission tells while it runs: frozen records, for progress displays and programs."""

from __future__ import annotations

from attrs import frozen

from orchestra.events import SessionEvent
from orchestra.opencode.mission.plan import Plan, Role
from orchestra.opencode.mission.report import CommandResult, MissionReport, TaskState

__all__ = (
    "AgentActed",
    "CommandFinished",
    "EventsDropped",
    "MissionEvent",
    "MissionFinished",
    "MissionStarted",
    "PlanAccepted",
    "TaskChanged",
    "TurnFinished",
    "TurnStarted",
    "WarningRaised",
)


@frozen(kw_only=True)
class MissionEvent:
    """Base of everything that a mission tells.

    Attributes:
        at: Seconds after the mission's start.
    """

    at: float


@frozen(kw_only=True)
class MissionStarted(MissionEvent):
    """The mission runs."""

    goal: str


@frozen(kw_only=True)
class PlanAccepted(MissionEvent):
    """The plan passed validation; its tasks start."""

    plan: Plan


@frozen(kw_only=True)
class TaskChanged(MissionEvent):
    """A task changed its state.

    Attributes:
        task_id: The task.
        state: The new state.
        round: The round it is in, from 1; 0 before the first.
        note: Why, in a few words; may be empty.
    """

    task_id: str
    state: TaskState
    round: int
    note: str = ""


@frozen(kw_only=True)
class TurnStarted(MissionEvent):
    """An agent turn got its slot and runs."""

    role: Role
    task_id: str | None
    session_id: str


@frozen(kw_only=True)
class AgentActed(MissionEvent):
    """Something an agent's session told.

    Attributes:
        role: The agent's role.
        task_id: The task it works on; None for the mission as a whole.
        event: What the session told.
    """

    role: Role
    task_id: str | None
    event: SessionEvent


@frozen(kw_only=True)
class TurnFinished(MissionEvent):
    """An agent turn ended; ``outcome`` is its finish reason's value."""

    role: Role
    task_id: str | None
    session_id: str
    outcome: str
    cost: float


@frozen(kw_only=True)
class CommandFinished(MissionEvent):
    """An acceptance command ended, or was refused."""

    task_id: str | None
    result: CommandResult


@frozen(kw_only=True)
class WarningRaised(MissionEvent):
    """Something that does not stop the mission but should be known."""

    message: str


@frozen(kw_only=True)
class EventsDropped(MissionEvent):
    """This subscriber was too slow; ``count`` events before this one were dropped."""

    count: int


@frozen(kw_only=True)
class MissionFinished(MissionEvent):
    """The mission is over; always the last event."""

    report: MissionReport
