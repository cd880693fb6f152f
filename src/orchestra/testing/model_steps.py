"""The steps of a scripted answer: what the model says, and how it fails. Only data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import Factory, field, frozen, validators

__all__ = (
    "CutStream",
    "Failure",
    "Fault",
    "Hang",
    "InvalidChunk",
    "Reply",
    "Script",
    "Step",
    "ToolCall",
    "Usage",
)

Finish: TypeAlias = Literal["auto", "stop", "tool_calls", "length", "content_filter", "missing"]


def is_count(_step: object, _attribute: object, value: int | None) -> None:
    """Refuse a number of times that is not one.

    Args:
        _step: The step or rule.
        _attribute: The attribute.
        value: The number; None means no limit.
    """
    if value is not None and value < 1:
        raise ValueError(f"times is {value}, but must be at least 1, or None for no limit")


@frozen(kw_only=True)
class Usage:
    """The token counts that the model reports for one call.

    Attributes:
        input: Tokens of the request.
        output: Tokens of the answer.
        cached: How many of the input tokens came from the provider's cache.
    """

    input: int = field(default=100, validator=validators.ge(0))
    output: int = field(default=10, validator=validators.ge(0))
    cached: int = field(default=0, validator=validators.ge(0))


@frozen
class ToolCall:
    """One call of a tool.

    Attributes:
        name: The tool.
        arguments: Its arguments. A string is sent as it is, so it may be malformed JSON.
    """

    name: str
    arguments: Mapping[str, Any] | str = Factory(dict)


@frozen
class Reply:
    """One answer of the model: text, tool calls, or both.

    Attributes:
        text: What it says; streamed in up to eight pieces.
        calls: The tools it calls, all in this one answer.
        finish: The finish reason. ``auto`` is ``tool_calls`` with calls and ``stop`` without;
            ``missing`` ends the stream cleanly without any; it needs a text or a call, because
            clients drop an empty message and would ask for the same step for ever.
        usage: The token counts to report.
        delay: Seconds before the response headers.
        pause: Seconds between two pieces of the stream.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = field(default=(), kw_only=True)
    finish: Finish = field(default="auto", kw_only=True)
    usage: Usage = field(default=Usage(), kw_only=True)
    delay: float = field(default=0.0, kw_only=True, validator=validators.ge(0))
    pause: float = field(default=0.0, kw_only=True, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if self.finish == "missing" and not (self.text or self.calls):
            raise ValueError("a reply with finish='missing' is empty; give it a text or a call")


@frozen
class Failure:
    """An HTTP error instead of an answer.

    Attributes:
        status: The HTTP status, 400 to 599.
        message: Its text, in the body ``{"error": {"message": ...}}``.
        body: A whole body of your own instead.
        retry_after: Seconds that the client is asked to wait. A whole number is sent as
            ``retry-after``, a fraction as ``retry-after-ms``.
        times: How often in one turn before the script goes on; None means always.
    """

    status: int = field(validator=[validators.ge(400), validators.le(599)])
    message: str = "scripted failure"
    body: str | None = field(default=None, kw_only=True)
    retry_after: float | None = field(
        default=None, kw_only=True, validator=validators.optional(validators.ge(0))
    )
    times: int | None = field(default=1, kw_only=True, validator=is_count)


@frozen
class Hang:
    """Silence until the client gives up or the server closes.

    Attributes:
        text: What is streamed before the silence. None: not even the response headers are sent.
        times: How often in one turn before the script goes on; None means always.
    """

    text: str | None = None
    times: int | None = field(default=1, kw_only=True, validator=is_count)


@frozen
class CutStream:
    """A connection that breaks in the middle of a chunk.

    Attributes:
        text: What is streamed before the break.
        times: How often in one turn before the script goes on; None means always.
    """

    text: str = "I will"
    times: int | None = field(default=1, kw_only=True, validator=is_count)


@frozen
class InvalidChunk:
    """A stream with something in it that is not JSON.

    Attributes:
        data: What is sent in place of a chunk.
        times: How often in one turn before the script goes on; None means always.
    """

    data: str = '{"choices": [{'
    times: int | None = field(default=1, kw_only=True, validator=is_count)


Fault: TypeAlias = Failure | Hang | CutStream | InvalidChunk
Step: TypeAlias = str | ToolCall | Reply | Fault
"""One step of a script: text and a single tool call are short for a `Reply`."""

Script: TypeAlias = Step | Sequence[Step]

FAULTS = (Failure, Hang, CutStream, InvalidChunk)
STEPS = (str, ToolCall, Reply, *FAULTS)
