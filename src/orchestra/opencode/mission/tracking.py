"""What the mission's machine keeps in mind: tasks under way, and work that has not come back."""

from __future__ import annotations

from attrs import define, field

from orchestra.events import Usage
from orchestra.opencode.mission.orders import Ask, Order
from orchestra.opencode.mission.plan import TaskSpec
from orchestra.opencode.mission.recovery import Troubles
from orchestra.opencode.mission.report import CommandResult, Receipt, TaskReport, TaskState
from orchestra.opencode.mission.stagnation import Stagnation
from orchestra.opencode.mission.write_sets import WriteSets

__all__ = ("OpenWork", "TrackedTask")


@define(eq=False)
class TrackedTask:
    """A task under way.

    Attributes:
        spec: What is to be done.
        position: Its place in the plan; parts follow their parent.
        open_dependencies: Tasks that it waits for.
        stagnation: Sees that its rounds move nothing.
        parent: The task that it is a part of, or races for.
        parts: The tasks that race for it, or do a piece of it.
        depth: How many parents it has.
        part_files: Who holds which file among its parts.
        merging: The one of those that race for it whose change is being taken over.
        state: How far it is.
        round: The round it is in, or was in last; 0 before the first.
        sessions: How many worker sessions it has had.
        turns: How many prompts its present session has had.
        reviews: How many reviewer sessions it has had.
        is_session_fresh: Whether the next turn takes a new session.
        may_split: Whether its worker may split it.
        merges: How often its change was checked again because the files had moved.
        troubles: The failed turns of its workers.
        review_troubles: The failed turns of its reviewer in this round.
        usage: What its sessions have consumed.
        reasons: Why rounds were sent back or failed, in order.
        sent_back: Why the last one was.
        note: What its worker is told about the way it goes.
        summary: What the worker last said.
        calls: Digest of its last turn's tool calls; empty: there was none.
        evidence: The change, as its reviewer is shown it.
        commands: Its acceptance commands of the last round.
        receipt: What we last checked.
    """

    spec: TaskSpec
    position: float
    open_dependencies: int
    stagnation: Stagnation
    parent: TrackedTask | None = None
    parts: list[TrackedTask] = field(factory=list)
    depth: int = 0
    part_files: WriteSets = field(factory=WriteSets)
    merging: str = ""
    state: TaskState = TaskState.WAITING
    round: int = 0
    sessions: int = 0
    turns: int = 0
    reviews: int = 0
    is_session_fresh: bool = True
    may_split: bool = False
    merges: int = 0
    troubles: Troubles = field(factory=Troubles)
    review_troubles: Troubles = field(factory=Troubles)
    usage: Usage = field(factory=Usage)
    reasons: list[str] = field(factory=list)
    sent_back: tuple[str, ...] = ()
    note: str = ""
    summary: str = ""
    calls: str = ""
    evidence: str = ""
    commands: tuple[CommandResult, ...] = ()
    receipt: Receipt | None = None

    @property
    def id(self) -> str:
        """The task's id."""
        return self.spec.id

    @property
    def is_racing(self) -> bool:
        """Whether it races with others for its parent."""
        return self.parent is not None and self.id.startswith(f"{self.parent.id}#")

    @property
    def lineage(self) -> int:
        """How deep its agents are: the commander is 1, and one who races is no deeper for that."""
        if self.parent is None:
            return 2
        return self.parent.lineage + (not self.is_racing)

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
            parent=self.parent.id if self.parent else "",
            receipt=self.receipt,
        )


@define(eq=False)
class OpenWork:
    """Ordered work that has not come back.

    Attributes:
        order: What was ordered.
        task: The task it is about; None: the mission as a whole.
        troubles: How often it has failed already, and how.
    """

    order: Order
    task: TrackedTask | None = None
    troubles: Troubles = field(factory=Troubles)

    @property
    def of_task(self) -> TrackedTask:
        """The task; that there is none is a mistake of ours."""
        if self.task is None:
            raise RuntimeError("the work is not about a task")
        return self.task

    @property
    def of_ask(self) -> Ask:
        """What was asked; that nothing was is a mistake of ours."""
        if not isinstance(self.order, Ask):
            raise RuntimeError(f"ticket {self.order.ticket} is not for an agent")  # noqa: TRY004
        return self.order
