"""What the server's words mean in ours: errors, finish reasons, usage, and texts cut to size."""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.client import wire

__all__ = ("classify_error", "classify_finish", "cut", "cut_values", "interrupted", "usage_of")

_PERMANENT = {
    "ContextOverflowError",
    "MessageOutputLengthError",
    "ProviderAuthError",
    "ProviderModelNotFoundError",
}
"""Errors that a new attempt of the same prompt meets again."""


def cut(text: str, limit: int) -> tuple[str, bool]:
    """Cut a text to so many bytes of UTF-8.

    Args:
        text: The text.
        limit: Bytes.

    Returns:
        The text or its beginning, and whether it was cut.
    """
    if len(text) * 4 <= limit:
        return text, False
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text, False
    return data[:limit].decode("utf-8", "ignore"), True


def cut_values(values: Mapping[str, object], limit: int) -> Mapping[str, object]:
    """Cut those values that are texts, each to so many bytes of UTF-8.

    Args:
        values: Values by name.
        limit: Bytes.
    """
    return {
        name: cut(value, limit)[0] if isinstance(value, str) else value
        for name, value in values.items()
    }


def usage_of(part: wire.Part) -> Usage:
    """What one model call consumed, by its ``step-finish`` part.

    Args:
        part: The part.
    """
    tokens = part.tokens or wire.Tokens()
    cache = tokens.cache or wire.CacheTokens()
    return Usage(
        input_tokens=int(tokens.input or 0),
        output_tokens=int(tokens.output or 0),
        reasoning_tokens=int(tokens.reasoning or 0),
        cache_read_tokens=int(cache.read or 0),
        cache_write_tokens=int(cache.write or 0),
        cost=part.cost or 0.0,
    )


def interrupted(message: str) -> TurnError:
    """Why a turn broke off.

    Args:
        message: One sentence.
    """
    return TurnError(name="Interrupted", message=message)


def classify_finish(message: wire.Message) -> tuple[FinishReason, TurnError | None]:
    """What it means that an idle session's last answer was finished without an error.

    Args:
        message: The answer, whose ``finish`` is set.
    """
    match message.info.finish:
        case "stop":
            return FinishReason.DONE, None
        case "tool-calls":
            return FinishReason.STOPPED, TurnError(
                name="Stopped",
                message="the server stopped the agent after a refused request",
            )
        case "length":
            return FinishReason.LENGTH, TurnError(
                name="LengthLimit",
                message="the answer was cut at the model's output limit; ask for less at once",
            )
        case "content-filter":
            return FinishReason.BLOCKED, TurnError(
                name="ContentFilter",
                message="the model's provider withheld the answer",
                is_retryable=False,
            )
        case "error":
            return FinishReason.FAILED, TurnError(
                name="ModelError", message="the model ended its answer with an error"
            )
        case _ if any(part.type == "text" and part.text for part in message.parts):
            return FinishReason.DONE, None
        case _:
            return FinishReason.INTERRUPTED, interrupted(
                "the model's stream ended without an answer"
            )


def classify_error(error: wire.ErrorInfo) -> tuple[FinishReason, TurnError]:
    """What an error of a run means.

    Args:
        error: As the server tells it.
    """
    data = error.data or {}
    status = data.get("statusCode")
    is_retryable = data.get("isRetryable")
    if not isinstance(is_retryable, bool):
        is_retryable = error.name not in _PERMANENT
    message, _ = cut(" ".join(error.message.split()), 2000)
    told = TurnError(
        name=error.name,
        message=message,
        status=status if isinstance(status, int) else None,
        is_retryable=is_retryable,
        retry_after=_retry_after(data.get("responseHeaders")),
    )
    match error.name:
        case "MessageAbortedError":
            return FinishReason.ABORTED, told
        case "ContentFilterError":
            return FinishReason.BLOCKED, told
        case "MessageOutputLengthError":
            return FinishReason.LENGTH, told
        case _:
            return FinishReason.FAILED, told


def _retry_after(headers: object) -> float | None:
    """Seconds, by the headers of the provider's answer (RFC 9110, section 10.2.3)."""
    if not isinstance(headers, Mapping):
        return None
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, TypeError, ValueError):
            continue
    return None
