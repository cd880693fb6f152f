"""What sessions and primitives tell: frozen records, for machines.

A turn (one prompt and what comes of it) is a sequence of these events: first `Started`, then any
number of the others, at the end exactly one `Finished`, after which nothing comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen

__all__ = (
    "AttemptFailed",
    "BudgetAction",
    "BudgetChanged",
    "CircuitCause",
    "CircuitChanged",
    "CircuitState",
    "FinishReason",
    "Finished",
    "HandlerOutcome",
    "PermissionAsked",
    "PermissionPending",
    "PermissionReply",
    "PermissionRequest",
    "QuestionAsked",
    "ResourceCreated",
    "ResourceDestroyed",
    "ResourceEnd",
    "RetryScheduled",
    "RetryVerdict",
    "SessionEvent",
    "ShutdownChanged",
    "ShutdownPhase",
    "Started",
    "SubagentStarted",
    "TextReceived",
    "TodoChanged",
    "TodoItem",
    "ToolCalled",
    "ToolStatus",
    "TurnError",
    "Usage",
    "UsageReported",
)


class FinishReason(Enum):
    """Why a turn ended."""

    DONE = "done"
    """The agent finished by itself; the text is its answer (which may be empty)."""
    STOPPED = "stopped"
    """The backend stopped the agent without an error, e.g. after a rejected permission."""
    LENGTH = "length"
    """The answer was cut at the model's output limit."""
    BLOCKED = "blocked"
    """A content filter withheld the answer."""
    ABORTED = "aborted"
    """Somebody aborted the turn."""
    FAILED = "failed"
    """The agent or its model failed; a new attempt may work if ``error.is_retryable``."""
    INTERRUPTED = "interrupted"
    """The turn broke off without a result; what the agent did so far stands."""
    REFUSED = "refused"
    """The backend did not accept the prompt (unknown agent or model); repeating is useless."""
    LOST = "lost"
    """The backend itself is gone (server killed, unreachable); none of its sessions will answer."""


class ToolStatus(Enum):
    """How far a tool call is."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@frozen(kw_only=True)
class Usage:
    """What model calls consumed.

    Attributes:
        input_tokens: Tokens sent, without those read from a cache.
        output_tokens: Tokens received, without reasoning.
        reasoning_tokens: Tokens the model spent on thinking.
        cache_read_tokens: Tokens taken from the provider's prompt cache.
        cache_write_tokens: Tokens written to it.
        cost: US dollars, as the backend prices them; 0.0 when it has no price.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost=self.cost + other.cost,
        )


@frozen(kw_only=True)
class TurnError:
    """Why a turn did not end well.

    Attributes:
        name: The error's kind, as its origin names it.
        message: One sentence for people.
        status: The HTTP status the model's provider answered with, when there was one.
        is_retryable: Whether a new attempt of the same prompt may succeed.
        retry_after: Seconds to wait before it, when the origin said so.
    """

    name: str
    message: str
    status: int | None = None
    is_retryable: bool = True
    retry_after: float | None = None


@frozen(kw_only=True)
class TodoItem:
    """One line of an agent's own to-do list.

    Attributes:
        text: What is to be done.
        status: ``pending``, ``in_progress``, ``completed`` or ``cancelled``.
    """

    text: str
    status: str


@frozen(kw_only=True)
class PermissionRequest:
    """An agent wants to do something that its rules say must be asked.

    Attributes:
        id: The backend's id of the request.
        session_id: The session that asks (a child's requests reach its root's stream too).
        agent: The name of the asking agent.
        permission: What kind of act: ``bash``, ``edit``, ``external_directory``, ...
        patterns: What it is about: command lines, paths.
        metadata: Further details, as the backend gives them.
        session_metadata: What the session at the root of the asking one's tree was opened with; a
            mission's sessions carry ``mission``, ``role`` and ``task``.
    """

    id: str
    session_id: str
    agent: str
    permission: str
    patterns: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(factory=dict)
    session_metadata: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class PermissionReply:
    """The answer to a `PermissionRequest`.

    Attributes:
        is_allowed: Whether the agent may do it, this once.
        message: Told to the agent with a refusal, so that it can go on another way.
    """

    is_allowed: bool
    message: str = ""


@frozen(kw_only=True)
class SessionEvent:
    """Base of everything that a session tells.

    Attributes:
        session_id: The session whose prompt runs.
    """

    session_id: str


@frozen(kw_only=True)
class Started(SessionEvent):
    """The prompt was accepted by the session.

    Attributes:
        prompt_id: The id of this prompt, unique within the backend.
    """

    prompt_id: str


@frozen(kw_only=True)
class TextReceived(SessionEvent):
    """A piece of the agent's visible answer; the pieces in order are the text it wrote.

    Attributes:
        text: The piece; never empty.
    """

    text: str


@frozen(kw_only=True)
class ToolCalled(SessionEvent):
    """A tool call began or got further; the same ``call_id`` comes once per status.

    Attributes:
        call_id: The call, unique within the turn.
        tool: The tool's name.
        status: How far the call is.
        input: The arguments, as far as known.
        output: The result's text, possibly cut; set when ``status`` is COMPLETED.
        error: What went wrong; set when ``status`` is FAILED.
    """

    call_id: str
    tool: str
    status: ToolStatus
    input: Mapping[str, object] = field(factory=dict)
    output: str = ""
    error: str = ""


@frozen(kw_only=True)
class UsageReported(SessionEvent):
    """One model call's consumption; the sum over the turn is ``Finished.usage``."""

    usage: Usage


@frozen(kw_only=True)
class TodoChanged(SessionEvent):
    """The agent rewrote its own to-do list; ``items`` is the whole new list."""

    items: tuple[TodoItem, ...]


@frozen(kw_only=True)
class PermissionPending(SessionEvent):
    """A permission request came, and the backend's policy takes its time: perhaps it asks somebody.

    `PermissionAsked` follows, unless the turn ends before; of an answer that is there at once it
    alone is told.
    """

    request: PermissionRequest


@frozen(kw_only=True)
class PermissionAsked(SessionEvent):
    """A permission request came and the backend's policy answered it."""

    request: PermissionRequest
    reply: PermissionReply


@frozen(kw_only=True)
class SubagentStarted(SessionEvent):
    """The agent has started a session of its own on the backend, or a sub-agent of it has.

    Attributes:
        child_id: The new session.
        agent: Whom it talks to; empty when that is not known.
        depth: How many generations it is below the session whose prompt runs, from 1.
        is_refused: Whether that is deeper than the agent may go, so that it is aborted.
    """

    child_id: str
    agent: str
    depth: int
    is_refused: bool = False


@frozen(kw_only=True)
class QuestionAsked(SessionEvent):
    """The agent asked a person; nobody is there, so the backend answered for them.

    Attributes:
        question: The question's text.
        answer: What the agent was told; empty when the question was turned down.
    """

    question: str
    answer: str


@frozen(kw_only=True)
class RetryScheduled(SessionEvent):
    """The backend itself repeats a failed model call.

    Attributes:
        attempt: 1 for the first repetition.
        message: Why, as the backend puts it.
        delay: Seconds until the repetition.
    """

    attempt: int
    message: str
    delay: float


@frozen(kw_only=True)
class Finished(SessionEvent):
    """The turn is over; always the last event.

    Attributes:
        reason: How it ended.
        text: The agent's final answer (the text after its last tool call), at most 1 MiB.
        is_truncated: Whether ``text`` was longer and has been cut.
        usage: What the whole turn consumed.
        error: Why it did not end well; None when ``reason`` is DONE.
    """

    reason: FinishReason
    text: str = ""
    is_truncated: bool = False
    usage: Usage = field(factory=Usage)
    error: TurnError | None = None


class CircuitState(Enum):
    """Where a circuit breaker stands."""

    CLOSED = "closed"
    """Calls pass and their outcomes are counted."""
    OPEN = "open"
    """Calls are rejected until the break is over."""
    HALF_OPEN = "half-open"
    """A bounded number of calls pass as probes; their outcomes decide."""
    FORCED_OPEN = "forced open"
    """Calls are rejected until somebody resets the breaker."""
    DISABLED = "disabled"
    """Calls pass and decide nothing."""


class CircuitCause(Enum):
    """What moves a circuit breaker from one state to another."""

    THRESHOLD_REACHED = "threshold reached"
    BREAK_OVER = "break over"
    PROBES_PASSED = "probes passed"
    PROBE_FAILED = "probe failed"
    PROBES_OVERDUE = "probes overdue"
    ISOLATE = "isolate()"
    DISABLE = "disable()"
    RESET = "reset()"


@frozen(kw_only=True)
class CircuitChanged:
    """A circuit breaker took a transition.

    Attributes:
        name: The breaker's name.
        previous: Where it stood.
        state: Where it stands now; the same as ``previous`` after e.g. a ``reset()`` when closed.
        cause: What moved it.
        retry_after: Seconds until the next probe is let through; None unless ``state`` is OPEN.
    """

    name: str
    previous: CircuitState
    state: CircuitState
    cause: CircuitCause
    retry_after: float | None = None


class ShutdownPhase(Enum):
    """Where a shutdown stands."""

    RUNNING = "running"
    """Nobody has requested it."""
    DRAINING = "draining"
    """Work in flight may end; new work is refused."""
    CLEANING = "cleaning up"
    """Handlers are called."""
    FINISHED = "finished"
    """All of them are over."""


@frozen(kw_only=True)
class ShutdownChanged:
    """A shutdown entered a phase, or its grace was cut.

    Attributes:
        phase: Where it stands now.
        reason: Why it was requested.
        is_cut: Whether its grace has been cut.
    """

    phase: ShutdownPhase
    reason: str
    is_cut: bool = False


class HandlerOutcome(Enum):
    """How the call that should end something went."""

    OK = "ok"
    """It returned."""
    TIMEOUT = "timeout"
    """It was cancelled because its time was over; a thread was left alone."""
    ERROR = "error"
    """It raised."""


class RetryVerdict(Enum):
    """What is done about a failed attempt."""

    AGAIN = "again"
    """It is repeated after a delay."""
    ATTEMPTS_SPENT = "attempts spent"
    """It was the last of the permitted attempts."""
    DEADLINE_REACHED = "deadline reached"
    """The delay would end after the deadline."""
    BUDGET_SPENT = "budget spent"
    """The retry budget has nothing left."""


@frozen(kw_only=True)
class AttemptFailed:
    """An attempt of a retried call failed with an error that is worth repeating.

    Attributes:
        attempt: 1 for the first.
        error: What it raised.
        verdict: What is done about it.
        delay: Seconds until the next attempt; None unless ``verdict`` is AGAIN.
    """

    attempt: int
    error: Exception
    verdict: RetryVerdict
    delay: float | None = None


class BudgetAction(Enum):
    """What happened to a reservation of a budget."""

    WAITING = "waiting"
    """It waits for those in flight to leave room."""
    HELD = "held"
    """Its amount is held; the work may begin."""
    SETTLED = "settled"
    """What the work has cost is spent, and no more is held."""
    RELEASED = "released"
    """What was not used was given back without a settlement."""
    REFUSED = "refused"
    """The budget cannot pay for it."""


@frozen(kw_only=True)
class BudgetChanged:
    """Something happened to a reservation of a budget.

    Attributes:
        budget: The path of the budget whose reservation it is.
        action: What happened.
        reservation: The reservation's id; empty for WAITING and REFUSED where it was to be made.
        tokens: What was asked for, is held or was used, as ``action`` says.
        microdollars: The same in millionths of a US dollar.
    """

    budget: str
    action: BudgetAction
    reservation: str
    tokens: int
    microdollars: int


class ResourceEnd(Enum):
    """Why a pool destroyed a resource."""

    WORN = "worn"
    """It had been used as often as it may be."""
    OUTDATED = "outdated"
    """Its lifetime was over."""
    SURPLUS = "surplus"
    """It idled for too long, and more idled than should."""
    UNFIT = "unfit"
    """Its validation failed."""
    RESET_FAILED = "reset failed"
    """It could not be reset."""
    INVALIDATED = "invalidated"
    """Its holder, or somebody else, said that it is of no use any more."""
    INTERRUPTED = "interrupted"
    """What used or validated it was cancelled or failed, and nothing could vouch for it."""
    CLOSED = "closed"
    """The pool was closed."""
    KEPT = "kept"
    """Its holder still had it when the pool's grace period was over."""


@frozen(kw_only=True)
class ResourceCreated:
    """A pool created a resource.

    Attributes:
        pool: The pool's name.
        elapsed: Seconds it took.
    """

    pool: str
    elapsed: float


@frozen(kw_only=True)
class ResourceDestroyed:
    """A pool let go of a resource for good.

    Attributes:
        pool: The pool's name.
        cause: Why.
        uses: How often it had been leased.
        age: Seconds since it was created.
        is_clean: Whether its destruction succeeded in time.
    """

    pool: str
    cause: ResourceEnd
    uses: int
    age: float
    is_clean: bool
