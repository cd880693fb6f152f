"""What a mission leaves behind: a record that people and programs can read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen

from orchestra.events import Usage
from orchestra.opencode.mission.critical_path import PathStep
from orchestra.opencode.mission.waits import Segment

__all__ = (
    "CommandResult",
    "CostNode",
    "Evidence",
    "Finding",
    "MissionOutcome",
    "MissionReport",
    "Receipt",
    "Span",
    "TaskReport",
    "TaskState",
)


class MissionOutcome(Enum):
    """How a mission ended."""

    ACCEPTED = "accepted"
    """Every task was accepted and every acceptance command that ran succeeded."""
    FAILED = "failed"
    """At least one task, or the mission as a whole, failed; ``reason`` says how."""
    INTERRUPTED = "interrupted"
    """Somebody stopped it."""


class TaskState(Enum):
    """How far a task is."""

    WAITING = "waiting"
    """Some task that it depends on has not been accepted."""
    READY = "ready"
    """Waits for a free worker."""
    WORKING = "working"
    SPLIT = "split"
    """Its parts are under way, racing for it or each doing a piece of it."""
    CHECKING = "checking"
    """Its gates run, which look whether files parse, what is new in them, what commands say."""
    REVIEWING = "reviewing"
    MERGING = "merging"
    """Its change is being taken over into the workspace."""
    ACCEPTED = "accepted"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Never started, because a task that it depends on failed, or the mission ended before."""
    CANCELLED = "cancelled"
    """It lost a race; what it changed was discarded."""
    REPLACED = "replaced"
    """It was not accepted, and a later plan of the same mission goes another way."""


@frozen(kw_only=True)
class CommandResult:
    """One acceptance command.

    Attributes:
        argv: The command line.
        exit_code: Its exit code; None when it was refused, could not start or was killed.
        output: The end of what it printed, both streams, at most 64 KiB.
        elapsed: Seconds it took.
        refusal: Why it was not run; empty when it was.
        error: Why it has no exit code although it was permitted; empty otherwise.
    """

    argv: tuple[str, ...]
    exit_code: int | None = None
    output: str = ""
    elapsed: float = 0.0
    refusal: str = ""
    error: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether it was permitted and did not succeed."""
        return not self.refusal and self.exit_code != 0


@frozen(kw_only=True)
class Finding:
    """Something in a changed file that somebody should look at.

    Attributes:
        path: The file, relative to the workspace.
        line: The line, from 1; 0 for the file as a whole.
        message: What it is; a secret itself is never repeated.
    """

    path: str
    line: int
    message: str


@frozen(kw_only=True)
class Receipt:
    """What we checked ourselves, and of which tree: it proves nothing of any other.

    Attributes:
        stage: ``unit`` (one task), ``integration`` (all tasks) or ``seal`` (the end).
        tree: Digest of the files it is about.
        problems: Why it is no proof, one sentence each; none when everything passed.
        commands: The acceptance commands that were run, or refused.
        findings: What changed files hold that should not be there.
        changed: Files that changed, relative to the workspace, at most 1,000.
        strays: Files that changed although the task has no lease on them.
    """

    stage: str = "unit"
    tree: str = ""
    problems: tuple[str, ...] = ()
    commands: tuple[CommandResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    changed: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def is_passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems and not any(result.is_failed for result in self.commands)


@frozen(kw_only=True)
class Evidence:
    """The workspace before and after a mission, as seen from outside.

    Attributes:
        before: SHA-256 over all paths and contents at the start, in hexadecimal.
        after: The same at the end.
        files: How many files there are at the end.
        added: New files, at most 1,000 of them.
        changed: Files with other contents, likewise.
        removed: Files that are gone, likewise.
        unlisted: How many more changes there are than are named.
        findings: What the new and changed files hold that should not be there, at most 1,000.
    """

    before: str
    after: str
    files: int
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unlisted: int = 0
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Span:
    """A stretch of the mission's timeline: one agent turn or one acceptance run.

    Attributes:
        name: ``commander``, ``planner``, ``worker``, ``reviewer`` or ``acceptance``.
        task_id: The task it was about; None for the mission as a whole.
        round: The task's round, from 1; 0 for the mission as a whole.
        queued: Seconds after the mission's start at which it wanted to run.
        started: Seconds after the mission's start at which it got its slot.
        ended: Seconds after the mission's start at which it ended.
        outcome: ``done``, ``accepted``, ``rejected``, ``failed``, ``aborted``, ...
        session_id: The session it ran in; empty for commands.
    """

    name: str
    task_id: str | None
    round: int
    queued: float
    started: float
    ended: float
    outcome: str
    session_id: str = ""


@frozen(kw_only=True)
class CostNode:
    """What a part of the mission has cost, and below it what its own parts have.

    Attributes:
        name: ``mission``, a role, ``task NAME`` or ``attempt NUMBER``.
        tokens: Model tokens of every kind, its parts' included.
        dollars: US dollars likewise, by the price list or as the backend prices them.
        own_tokens: Tokens without those of its parts.
        own_dollars: US dollars likewise.
        parts: Its parts, in the order in which they began.
    """

    name: str
    tokens: int = 0
    dollars: float = 0.0
    own_tokens: int = 0
    own_dollars: float = 0.0
    parts: tuple[CostNode, ...] = ()


@frozen(kw_only=True)
class TaskReport:
    """What became of one task.

    Attributes:
        id: The task's id.
        title: Its title.
        state: Its last state.
        rounds: How many rounds a worker started.
        reasons: Why rounds were sent back or failed, in order.
        files: The files it was to write.
        depends: The tasks it waited for.
        usage: What its sessions consumed.
        commands: Its acceptance commands.
        summary: The start of the worker's last answer, at most 2,000 characters.
        parent: The task that it is a part of, or races for; empty: none.
        receipt: What we last checked of it; None before the first check.
        segments: What its time was spent on, without gaps from the mission's start to its end.
    """

    id: str
    title: str
    state: TaskState
    rounds: int = 0
    reasons: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    usage: Usage = field(factory=Usage)
    commands: tuple[CommandResult, ...] = ()
    summary: str = ""
    parent: str = ""
    receipt: Receipt | None = None
    segments: tuple[Segment, ...] = ()


@frozen(kw_only=True)
class MissionReport:
    """What became of a mission.

    Attributes:
        goal: What was asked for.
        outcome: How it ended.
        reason: One sentence: why it ended so.
        backend: The backend's name.
        directory: The workspace.
        tasks: Every task of the plan, in plan order.
        commands: The mission's own acceptance commands.
        timeline: Every turn and acceptance run, in order of their start.
        usage: What all sessions together consumed.
        elapsed: Seconds from start to end.
        started_at: Wall-clock time of the start, ISO 8601 in UTC.
        warnings: What did not stop the mission but should be known.
        evidence: What the mission did to the files; None when nobody looked.
        receipt: What we last checked of the whole: ``seal`` when it stood; None before that.
        costs: Who has spent what; None when nobody counted.
        segments: What the mission's own time was spent on, without gaps.
        causes: Seconds that all tasks together were at, or waited for, each cause.
        critical_path: The chain that has determined the end; it tiles the mission's time.
        statistics: Counters: ``turns``, ``retries``, ``permissions``, ``questions``, ``tool_calls``,
            ``memory_entries``, ``memory_characters``.
    """

    goal: str
    outcome: MissionOutcome
    reason: str
    backend: str
    directory: str
    tasks: tuple[TaskReport, ...] = ()
    commands: tuple[CommandResult, ...] = ()
    timeline: tuple[Span, ...] = ()
    usage: Usage = field(factory=Usage)
    elapsed: float = 0.0
    started_at: str = ""
    warnings: tuple[str, ...] = ()
    evidence: Evidence | None = None
    receipt: Receipt | None = None
    costs: CostNode | None = None
    segments: tuple[Segment, ...] = ()
    causes: Mapping[str, float] = field(factory=dict)
    critical_path: tuple[PathStep, ...] = ()
    statistics: Mapping[str, int] = field(factory=dict)
