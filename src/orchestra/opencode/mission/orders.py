"""What the runner tells the mission's machine (events), and what it is told to do (commands)."""

from __future__ import annotations

from typing import TypeAlias

from attrs import field, frozen

from orchestra import Priority
from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission.plan import Plan, Role, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome, Receipt, TaskState

__all__ = (
    "AgentAnswered",
    "ApprovalGiven",
    "Ask",
    "AskApproval",
    "Cancel",
    "CheckPlan",
    "CloseSession",
    "Command",
    "Discard",
    "Event",
    "Finish",
    "GatesFinished",
    "Integrate",
    "Integrated",
    "Order",
    "PlanChecked",
    "PlanMade",
    "RunGates",
    "StopRequested",
    "TaskAdded",
    "TaskHeld",
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
    """An agent's turn ended, one way or the other.

    ``calls`` is a digest of the tool calls it made, for telling whether it repeats itself.
    """

    ticket: int
    reason: FinishReason
    text: str = ""
    is_truncated: bool = False
    usage: Usage = field(factory=Usage)
    error: TurnError | None = None
    calls: str = ""


@frozen(kw_only=True)
class GatesFinished:
    """What we checked ourselves has come to an end.

    ``evidence`` is what a reviewer is shown: the change, as a diff of bounded length.
    """

    ticket: int
    receipt: Receipt
    evidence: str = ""


@frozen(kw_only=True)
class Integrated:
    """A task's change was taken over into the workspace, or was not.

    ``problem`` says why not, for the worker; ``is_moved`` that the files are not those that were
    checked any more, so that they must be checked again.
    """

    ticket: int
    problem: str = ""
    is_moved: bool = False


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
class ApprovalGiven:
    """Somebody has decided about the plan; ``note`` says what to change."""

    ticket: int
    is_approved: bool
    note: str = ""


@frozen(kw_only=True)
class StopRequested:
    """Somebody, or a deadline, ends the mission."""

    reason: str
    outcome: MissionOutcome = MissionOutcome.INTERRUPTED


Event: TypeAlias = (
    WorkStarted
    | AgentAnswered
    | GatesFinished
    | Integrated
    | PlanChecked
    | ApprovalGiven
    | StopRequested
)


# --- commands: what the machine tells the runner -----------------------------------------------


@frozen(kw_only=True)
class Ask:
    """Prompt an agent, in the session of that key (opened when there is none).

    ``turn`` numbers the prompts of this session: session and turn together name the prompt, also
    after a restart, so that it is never sent twice. ``depth`` is the agent's place in the lineage:
    1 for the commander, 2 for those who work for it, 3 for a part of a task. ``agent`` names the
    specialist who takes the role's place, if there is one.
    """

    ticket: int
    session: str
    role: Role
    message: str
    task_id: str | None = None
    round: int = 0
    turn: int = 1
    delay: float = 0.0
    model: str | None = None
    priority: Priority = Priority.NORMAL
    depth: int = 1
    agent: str = ""

    @property
    def name(self) -> str:
        """What people call the session."""
        return f"{self.role.value} {self.task_id}" if self.task_id else self.role.value

    @property
    def key(self) -> str:
        """What names this prompt within its mission."""
        return f"{self.session}:{self.turn}"


@frozen(kw_only=True)
class RunGates:
    """Check a task's change, or (without a task) the whole; all the commands are permitted.

    ``files`` are those that it is about: of a task what it declared, of the whole what tasks
    changed. ``is_silent`` says that the worker's turn had neither an answer nor a tool call.
    """

    ticket: int
    stage: str
    commands: tuple[tuple[str, ...], ...] = ()
    refused: tuple[tuple[str, ...], ...] = ()
    files: tuple[str, ...] = ()
    is_silent: bool = False
    task_id: str | None = None
    round: int = 0


@frozen(kw_only=True)
class Integrate:
    """Take a task's change over into the workspace, if it is what the receipt is about."""

    ticket: int
    task_id: str
    receipt: Receipt
    round: int = 0


@frozen(kw_only=True)
class CheckPlan:
    """Show the plan to those who may change or refuse it."""

    ticket: int
    plan: Plan


@frozen(kw_only=True)
class AskApproval:
    """Let somebody decide about the plan; nothing of it has started.

    ``proposal`` counts the plans that somebody was asked about, also across restarts.
    """

    ticket: int
    plan: Plan
    proposal: int = 1


@frozen(kw_only=True)
class CloseSession:
    """The session of that key is not needed any more."""

    session: str


@frozen(kw_only=True)
class Cancel:
    """What was ordered under that ticket is not wanted any more."""

    ticket: int


@frozen(kw_only=True)
class Discard:
    """What that task changed in its own copy of the workspace is not wanted any more."""

    task_id: str


@frozen(kw_only=True)
class PlanMade:
    """The plan is valid; nothing of it has started. A later one replaces what is not accepted."""

    plan: Plan
    iteration: int = 1


@frozen(kw_only=True)
class TaskAdded:
    """A task that the plan does not name: one that races for another, or a part of it."""

    spec: TaskSpec
    parent: str


@frozen(kw_only=True)
class TaskHeld:
    """A task that could start must wait, since another one holds a file that it writes."""

    task_id: str
    holder: str


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
    """The mission is over: cancel what still runs. Always the last command.

    ``is_resumable`` says that it was none of the mission's doing, so that it can be gone on with.
    """

    outcome: MissionOutcome
    reason: str
    is_resumable: bool = False


Order: TypeAlias = Ask | RunGates | Integrate | CheckPlan | AskApproval
"""A command whose end comes back as an event with its ticket."""

Command: TypeAlias = (
    Order
    | CloseSession
    | Cancel
    | Discard
    | PlanMade
    | TaskAdded
    | TaskHeld
    | TaskMoved
    | Warn
    | Finish
)
