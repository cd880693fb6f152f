"""What it means that something did not end well, in words."""

from __future__ import annotations

from orchestra.errors import (
    AgentNotFoundError,
    BlockedError,
    ConfigurationError,
    ModelNotFoundError,
    OrchestraError,
    RejectedError,
    ServerError,
)
from orchestra.events import Finished, FinishReason, TurnError
from orchestra.opencode.mission.hook_points import BEFORE_PROMPT
from orchestra.opencode.mission.orders import AgentAnswered
from orchestra.opencode.mission.report import CommandResult, Receipt

__all__ = ("as_finished", "describe", "explain", "warnings_of")

_MAX_MESSAGE = 1_500


def describe(answer: AgentAnswered) -> str:
    """Say in a phrase why a turn did not end well.

    Args:
        answer: The turn's end.
    """
    if answer.error is not None:
        return answer.error.message[:_MAX_MESSAGE]
    return {
        FinishReason.STOPPED: "it was stopped before its answer",
        FinishReason.LENGTH: "its answer was cut at the model's output limit",
        FinishReason.BLOCKED: "a content filter withheld its answer",
        FinishReason.ABORTED: "it was aborted",
        FinishReason.INTERRUPTED: "it broke off",
    }.get(answer.reason, f"it ended as {answer.reason.value!r}")


def explain(result: CommandResult) -> str:
    """Say why an acceptance command does not prove anything, with the end of its output.

    Args:
        result: A result that is a failure.
    """
    end = result.error if result.exit_code is None else f"ended with exit code {result.exit_code}"
    output = result.output.strip()[-_MAX_MESSAGE:]
    return f"`{' '.join(result.argv)}` {end}" + (f":\n{output}" if output else "")


def as_finished(exc: Exception, session_id: str) -> Finished:
    """Turn what a backend raised into the end of a turn.

    Args:
        exc: What it raised.
        session_id: The session, if there was one.
    """
    is_useless = isinstance(exc, AgentNotFoundError | ModelNotFoundError | ConfigurationError)
    is_client_fault = isinstance(exc, ServerError) and 400 <= exc.status < 500
    is_known = isinstance(exc, OrchestraError | OSError)
    if isinstance(exc, BlockedError):
        # The same prompt would be blocked again; an agent may do another thing another time.
        is_useless = exc.point == BEFORE_PROMPT.name
    return Finished(
        session_id=session_id,
        reason=_reason(exc, is_useless=is_useless),
        error=TurnError(
            name=type(exc).__name__,
            message=str(exc) or repr(exc),
            is_retryable=is_known and not is_useless and not is_client_fault,
            retry_after=exc.retry_after if isinstance(exc, RejectedError) else None,
        ),
    )


def _reason(exc: Exception, *, is_useless: bool) -> FinishReason:
    if isinstance(exc, BlockedError):
        return FinishReason.BLOCKED
    return FinishReason.REFUSED if is_useless else FinishReason.FAILED


def warnings_of(task_id: str, receipt: Receipt) -> list[str]:
    """Say what of a task's gates should be known, whether they passed or not.

    Args:
        task_id: The task.
        receipt: What its gates have shown.
    """
    warnings = []
    if refused := sum(bool(result.refusal) for result in receipt.commands):
        noun = "acceptance command" if refused == 1 else "acceptance commands"
        warnings.append(f"task {task_id!r}: {refused} {noun} not on the allow list and not run")
    if receipt.strays:
        names = ", ".join(receipt.strays[:5])
        warnings.append(f"task {task_id!r} changed files that it has no lease on: {names}")
    return warnings
