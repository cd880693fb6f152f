"""What OpenCode 1.x says on the wire, as far as it concerns us.

Reading is tolerant: unknown keys and unknown event types are skipped, and what is missing gets a
default, so that a newer server does not break an older client. The shapes were taken from what
the 1.18.33 server sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from secrets import SystemRandom
from string import ascii_letters, digits
from typing import Any, TypeAlias, TypeVar

import msgspec
from attrs import define, field
from msgspec import Raw, Struct

__all__ = (
    "AgentInfo",
    "Envelope",
    "ErrorInfo",
    "Event",
    "IdMaker",
    "InstanceDisposed",
    "MalformedError",
    "Message",
    "MessageInfo",
    "MessageUpdated",
    "ModelRef",
    "Part",
    "PartDelta",
    "PartUpdated",
    "PermissionAsked",
    "ProviderList",
    "QuestionAsked",
    "ServerConnected",
    "SessionCreated",
    "SessionDeleted",
    "SessionFailed",
    "SessionIdle",
    "SessionInfo",
    "SessionStatus",
    "StatusInfo",
    "TodoUpdated",
    "Tokens",
    "ToolState",
    "decode",
    "decode_event",
)

T = TypeVar("T")


class MalformedError(Exception):
    """A text is not JSON, or not of the expected shape."""


def _wire_name(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join("ID" if word == "id" else word.capitalize() for word in rest)


class _Wire(Struct, kw_only=True, rename=_wire_name):
    """Base of all wire models: snake_case here, camelCase on the wire."""


class CacheTokens(_Wire):
    """Tokens that passed through the provider's prompt cache."""

    read: float | None = None
    write: float | None = None


class Tokens(_Wire):
    """What one model call consumed."""

    input: float | None = None
    output: float | None = None
    reasoning: float | None = None
    cache: CacheTokens | None = None


class ErrorInfo(_Wire):
    """``{"name": ..., "data": {"message": ..., ...}}``: why a run or a call failed."""

    name: str = "UnknownError"
    data: dict[str, Any] | None = None

    @property
    def message(self) -> str:
        """One line for people."""
        text = (self.data or {}).get("message")
        return text if isinstance(text, str) and text else self.name


class ModelRef(_Wire):
    """A model as the server names it, in two parts."""

    provider_id: str
    model_id: str = ""
    id: str = ""

    def __str__(self) -> str:
        return f"{self.provider_id}/{self.model_id or self.id}"


class Timing(_Wire):
    """Stamps in milliseconds since the epoch."""

    created: float | None = None
    completed: float | None = None


class MessageInfo(_Wire):
    """A message without its parts; all answers to a prompt have it as their parent."""

    id: str
    role: str
    session_id: str = ""
    parent_id: str | None = None
    time: Timing | None = None
    finish: str | None = None
    error: ErrorInfo | None = None
    summary: Any = None

    @property
    def created(self) -> float:
        """When the server stored it, in its milliseconds; 0 when unknown."""
        return (self.time and self.time.created) or 0.0

    @property
    def is_completed(self) -> bool:
        """Whether the server has closed the message."""
        return self.time is not None and self.time.completed is not None


class ToolState(_Wire):
    """How far a tool call is; an ``error`` status has an ``error`` text."""

    status: str = "pending"
    input: dict[str, Any] | None = None
    output: str | None = None
    error: str | None = None


class Part(_Wire):
    """A piece of a message; which fields are set depends on ``type``."""

    id: str
    type: str
    message_id: str = ""
    session_id: str = ""
    text: str | None = None
    synthetic: bool | None = None
    ignored: bool | None = None
    tool: str | None = None
    call_id: str | None = None
    state: ToolState | None = None
    tokens: Tokens | None = None
    cost: float | None = None


class _RawMessage(_Wire):
    info: MessageInfo
    parts: tuple[Raw, ...] = ()


class Message(_Wire):
    """A message as ``GET /session/:id/message`` lists it; parts of unknown shape are left out."""

    info: MessageInfo
    parts: tuple[Part, ...] = ()


class SessionInfo(_Wire):
    """A session; one that an agent has started has a parent."""

    id: str
    parent_id: str | None = None
    directory: str = ""
    agent: str | None = None
    metadata: dict[str, Any] | None = None


class StatusInfo(_Wire):
    """What a session does now; absent from the status map when it is idle."""

    type: str = "idle"
    attempt: float | None = None
    message: str | None = None
    next: float | None = None


class TodoInfo(_Wire):
    """One line of an agent's to-do list."""

    content: str = ""
    status: str = "pending"


class QuestionInfo(_Wire):
    """One question of several that are asked at once."""

    question: str = ""
    header: str = ""


class AgentInfo(_Wire):
    """An agent as ``GET /agent`` lists it."""

    name: str
    prompt: str | None = None
    model: ModelRef | None = None
    hidden: bool | None = None


class ProviderInfo(_Wire):
    """A provider and its models by id."""

    id: str
    models: dict[str, Any] = {}


class ProviderList(_Wire):
    """The answer of ``GET /config/providers``."""

    providers: tuple[ProviderInfo, ...] = ()
    default: dict[str, str] = {}


class ConfigInfo(_Wire):
    """The part of the merged configuration that concerns us."""

    model: str | None = None
    default_agent: str | None = msgspec.field(default=None, name="default_agent")


class HealthInfo(_Wire):
    """The answer of ``GET /global/health``."""

    healthy: bool = False
    version: str = ""


# --- events ---


class ServerConnected(_Wire):
    """The first event of every stream."""


class InstanceDisposed(_Wire):
    """The directory's instance was thrown away; its runs are aborted."""


class SessionCreated(_Wire):
    """A session, maybe a child of one of ours, came to be."""

    info: SessionInfo


class SessionDeleted(_Wire):
    """A session is gone."""

    info: SessionInfo


class SessionStatus(_Wire):
    """A session became busy, idle, or waits for a retry."""

    session_id: str
    status: StatusInfo


class SessionIdle(_Wire):
    """A session became idle; comes once or twice per run."""

    session_id: str


class SessionFailed(_Wire):
    """A run met an error, which need not be its end."""

    session_id: str = ""
    error: ErrorInfo | None = None


class MessageUpdated(_Wire):
    """A message was begun, closed, or closed again."""

    info: MessageInfo
    session_id: str = ""


class PartUpdated(_Wire):
    """A part was begun, got further, or is complete."""

    part: Part


class PartDelta(_Wire):
    """Some more text of a part."""

    session_id: str
    message_id: str
    part_id: str
    delta: str
    field: str = "text"


class TodoUpdated(_Wire):
    """An agent rewrote its to-do list."""

    session_id: str
    todos: tuple[TodoInfo, ...] = ()


class PermissionAsked(_Wire):
    """An agent waits for a permission."""

    id: str
    session_id: str
    permission: str = ""
    patterns: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None


class QuestionAsked(_Wire):
    """An agent waits for an answer."""

    id: str
    session_id: str
    questions: tuple[QuestionInfo, ...] = ()


Event: TypeAlias = (
    ServerConnected
    | InstanceDisposed
    | SessionCreated
    | SessionDeleted
    | SessionStatus
    | SessionIdle
    | SessionFailed
    | MessageUpdated
    | PartUpdated
    | PartDelta
    | TodoUpdated
    | PermissionAsked
    | QuestionAsked
)

_EVENTS: dict[str, type[Event]] = {
    "server.connected": ServerConnected,
    "server.instance.disposed": InstanceDisposed,
    "session.created": SessionCreated,
    "session.deleted": SessionDeleted,
    "session.status": SessionStatus,
    "session.idle": SessionIdle,
    "session.error": SessionFailed,
    "message.updated": MessageUpdated,
    "message.part.updated": PartUpdated,
    "message.part.delta": PartDelta,
    "todo.updated": TodoUpdated,
    "permission.asked": PermissionAsked,
    "question.asked": QuestionAsked,
}


class Envelope(_Wire):
    """The frame around every event."""

    type: str
    properties: Raw = Raw(b"{}")


def decode(data: bytes, shape: type[T]) -> T:
    """Read JSON of an expected shape.

    Half surrogate pairs and invalid UTF-8 (tool output is full of surprises) become replacement
    characters.

    Args:
        data: The JSON text.
        shape: What it must be.

    Raises:
        MalformedError: It is not.
    """
    try:
        try:
            return msgspec.json.decode(data, type=shape)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            value = json.loads(data.decode("utf-8", "replace"))
            clean = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            return msgspec.json.decode(clean, type=shape)
    except (ValueError, RecursionError) as exc:
        raise MalformedError(str(exc)) from exc


def decode_event(data: bytes) -> Event | None:
    """Read one event of the stream.

    Returns:
        The event, or None when its type is not one that concerns us.

    Raises:
        MalformedError: It is not an event, or one of a known type with an unknown shape.
    """
    envelope = decode(data, Envelope)
    shape = _EVENTS.get(envelope.type)
    return None if shape is None else decode(bytes(envelope.properties), shape)


def decode_messages(data: bytes) -> tuple[Message, ...]:
    """Read a list of messages; parts of unknown shape are left out.

    Raises:
        MalformedError: It is not a list of messages.
    """
    messages = []
    for raw in decode(data, tuple[_RawMessage, ...]):
        parts = []
        for raw_part in raw.parts:
            try:
                parts.append(decode(bytes(raw_part), Part))
            except MalformedError:
                continue
        messages.append(Message(info=raw.info, parts=tuple(parts)))
    return tuple(messages)


_ALPHABET = digits + ascii_letters


@define
class IdMaker:
    """Makes ids as the server does: a prefix, 12 hex digits that rise with time, 14 random ones.

    With ids of our own a prompt can be sent again after a broken connection without being run
    twice.

    Attributes:
        clock: Seconds since the epoch.
        choose: Picks one of a string's characters.
    """

    clock: Callable[[], float]
    choose: Callable[[str], str] = field(factory=lambda: SystemRandom().choice)
    _last: int = field(default=0, init=False)

    def __call__(self, prefix: str) -> str:
        """Make an id that sorts after those made before.

        Args:
            prefix: ``msg``, ``prt``, ...
        """
        self._last = max(self._last + 1, int(self.clock() * 1000) * 0x1000)
        tail = "".join(self.choose(_ALPHABET) for _ in range(14))
        return f"{prefix}_{self._last & 0xFFFF_FFFF_FFFF:012x}{tail}"
