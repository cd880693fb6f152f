"""Where hooks may step into a mission, and what they get there."""

from __future__ import annotations

from attrs import field, frozen, validators

from orchestra import HookPoint, SyncHookPoint
from orchestra.events import Finished, SessionEvent
from orchestra.opencode.mission.plan import Plan, Role
from orchestra.opencode.mission.report import MissionReport

__all__ = (
    "AFTER_TURN",
    "BEFORE_PROMPT",
    "PLAN_RECEIVED",
    "REPORT_READY",
    "SESSION_EVENT",
    "MissionPrompt",
    "MissionTurn",
    "SessionTold",
)


@frozen(kw_only=True)
class MissionPrompt:
    """What an agent is about to be told.

    Attributes:
        role: The agent's role.
        task_id: The task it works on; None for the mission as a whole.
        round: The task's round, from 1; 0 for the mission as a whole.
        message: The message; not empty.
    """

    role: Role
    task_id: str | None
    round: int
    message: str = field(validator=validators.min_len(1))


@frozen(kw_only=True)
class SessionTold:
    """Something that an agent's session told.

    Attributes:
        role: The agent's role.
        task_id: The task it works on; None for the mission as a whole.
        event: What the session told. Text comes line by line.
    """

    role: Role
    task_id: str | None
    event: SessionEvent


@frozen(kw_only=True)
class MissionTurn:
    """An agent's turn that has ended, with its answer.

    Attributes:
        role: The agent's role.
        task_id: The task it works on; None for the mission as a whole.
        round: The task's round, from 1; 0 for the mission as a whole.
        finished: How it ended, and the answer.
    """

    role: Role
    task_id: str | None
    round: int
    finished: Finished


BEFORE_PROMPT = HookPoint[MissionPrompt]("before prompt")
"""Before an agent gets a message. `Block`: it does not, and the turn ends as BLOCKED for good."""

SESSION_EVENT = SyncHookPoint[SessionTold]("session event")
"""Before the mission tells what a session told: tool calls, permissions, text. `Block`: the turn
is aborted and ends as BLOCKED; it may be tried again like one that failed."""

AFTER_TURN = HookPoint[MissionTurn]("after turn")
"""Before the mission looks at an agent's answer. `Block`: the turn counts as BLOCKED, likewise."""

PLAN_RECEIVED = HookPoint[Plan]("plan received")
"""Before a plan is accepted, the planner's or a ready one. `Block`: the planner is asked once more,
with the reason; the mission fails when that is no better, or the plan was a ready one."""

REPORT_READY = SyncHookPoint[MissionReport]("report ready", can_block=False)
"""Before the report is handed out. It cannot be blocked."""
