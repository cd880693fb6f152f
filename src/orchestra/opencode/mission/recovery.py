"""What is done about a turn that did not end well: one table from error class to action.

Every class is bounded, and so is the sum over all of them. Turns that fail for reasons of their own
(network, rate limit) are counted here, and apart from the rounds in which a worker was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import final

from attrs import define, field, frozen

from orchestra.events import FinishReason, TurnError
from orchestra.opencode.mission.orders import AgentAnswered

__all__ = (
    "MAX_DELAY",
    "MAX_RETRY_AFTER",
    "MAX_TROUBLES",
    "OF_THE_AGENT",
    "RULES",
    "Action",
    "ErrorClass",
    "Recovery",
    "Remedy",
    "Rule",
    "Troubles",
    "asks_for_rest",
    "classify",
)

MAX_DELAY = 60.0
"""Seconds between two turns at most, when nobody has said how long to wait."""
MAX_RETRY_AFTER = 600.0
"""Seconds at most, when somebody has."""
MAX_TROUBLES = 12
"""Turns of one piece of work that may fail, whatever the classes; one more for each further model."""


class ErrorClass(Enum):
    """What kind of failure it was."""

    RATE_LIMIT = "rate limit"
    QUOTA = "quota"
    PROVIDER_AWAY = "provider away"
    NETWORK = "network"
    CONTEXT_OVERFLOW = "context overflow"
    ABORTED = "aborted"
    INTERRUPTED = "interrupted"
    SESSION_LOST = "session lost"
    TIMEOUT = "timeout"
    PARSE = "parse error"
    TOOL = "tool failure"
    LENGTH = "output limit"
    BLOCKED = "content filter"
    LOOP = "equal tool calls"
    REFUSED = "refused"
    BUDGET = "budget"
    TASK_BUDGET = "budget of the task"
    ATTEMPT_BUDGET = "budget of the attempt"
    OVERSPENT = "no room beside others"
    BACKEND_LOST = "backend lost"
    UNKNOWN = "unknown"


class Action(Enum):
    """What is done about it."""

    RETRY = "retry"
    """The same again after a delay, in a fresh session."""
    FRESH = "fresh session"
    """The same again at once, in a fresh session."""
    REASK = "ask again"
    """Once more for the right form, in the same session."""
    NEXT_MODEL = "next model"
    """The same again with the next model of the fallback chain, in a fresh session."""
    GIVE_UP = "give up"
    """The piece of work has failed."""
    WIND_DOWN = "wind down"
    """The piece of work has failed. What is under way is brought to its end, with what is kept for
    that; then the mission ends."""
    STOP = "stop"
    """The mission ends."""


@frozen
class Rule:
    """What is done about one class of failure.

    Attributes:
        action: What is done first.
        tries: How often; afterwards the next model is taken, if there is one.
        is_model_bound: Whether another model may help; otherwise the work is given up at once.
    """

    action: Action
    tries: int
    is_model_bound: bool = True


RULES: Mapping[ErrorClass, Rule] = {
    ErrorClass.RATE_LIMIT: Rule(Action.RETRY, 4),
    ErrorClass.QUOTA: Rule(Action.NEXT_MODEL, 0),
    ErrorClass.PROVIDER_AWAY: Rule(Action.NEXT_MODEL, 0),
    ErrorClass.NETWORK: Rule(Action.RETRY, 4),
    ErrorClass.CONTEXT_OVERFLOW: Rule(Action.FRESH, 1),
    ErrorClass.ABORTED: Rule(Action.FRESH, 1, is_model_bound=False),
    ErrorClass.INTERRUPTED: Rule(Action.RETRY, 3, is_model_bound=False),
    ErrorClass.SESSION_LOST: Rule(Action.FRESH, 2, is_model_bound=False),
    ErrorClass.TIMEOUT: Rule(Action.RETRY, 2),
    ErrorClass.PARSE: Rule(Action.REASK, 2),
    ErrorClass.TOOL: Rule(Action.FRESH, 2),
    ErrorClass.LENGTH: Rule(Action.FRESH, 1),
    ErrorClass.BLOCKED: Rule(Action.NEXT_MODEL, 0),
    ErrorClass.LOOP: Rule(Action.FRESH, 1),
    ErrorClass.REFUSED: Rule(Action.NEXT_MODEL, 0),
    ErrorClass.BUDGET: Rule(Action.WIND_DOWN, 0, is_model_bound=False),
    ErrorClass.TASK_BUDGET: Rule(Action.GIVE_UP, 0, is_model_bound=False),
    ErrorClass.ATTEMPT_BUDGET: Rule(Action.FRESH, 1, is_model_bound=False),
    ErrorClass.OVERSPENT: Rule(Action.FRESH, 1, is_model_bound=False),
    ErrorClass.BACKEND_LOST: Rule(Action.STOP, 0, is_model_bound=False),
    ErrorClass.UNKNOWN: Rule(Action.RETRY, 2),
}
"""One rule for every class there is."""

OF_THE_AGENT = frozenset(
    {
        ErrorClass.ATTEMPT_BUDGET,
        ErrorClass.BLOCKED,
        ErrorClass.CONTEXT_OVERFLOW,
        ErrorClass.LENGTH,
        ErrorClass.LOOP,
        ErrorClass.TOOL,
    }
)
"""Failures that come of what the agent did: the next one is told, so that it goes another way."""

_BY_REASON: Mapping[FinishReason, ErrorClass] = {
    FinishReason.LOST: ErrorClass.BACKEND_LOST,
    FinishReason.REFUSED: ErrorClass.REFUSED,
    FinishReason.LENGTH: ErrorClass.LENGTH,
    FinishReason.BLOCKED: ErrorClass.BLOCKED,
    FinishReason.STOPPED: ErrorClass.TOOL,
    FinishReason.INTERRUPTED: ErrorClass.INTERRUPTED,
}
_BY_NAME: Mapping[str, ErrorClass] = {
    "AttemptBudgetError": ErrorClass.ATTEMPT_BUDGET,
    "BudgetExceededError": ErrorClass.BUDGET,
    "CapacityError": ErrorClass.RATE_LIMIT,
    "CircuitOpenError": ErrorClass.RATE_LIMIT,
    "ConnectError": ErrorClass.NETWORK,
    "ContextOverflowError": ErrorClass.CONTEXT_OVERFLOW,
    "LoopError": ErrorClass.LOOP,
    "MessageAbortedError": ErrorClass.ABORTED,
    "OverspentError": ErrorClass.OVERSPENT,
    "PressureError": ErrorClass.RATE_LIMIT,
    "ProviderAwayError": ErrorClass.PROVIDER_AWAY,
    "RejectedError": ErrorClass.RATE_LIMIT,
    "RetryWaitError": ErrorClass.RATE_LIMIT,
    "SessionLostError": ErrorClass.SESSION_LOST,
    "TaskBudgetError": ErrorClass.TASK_BUDGET,
    "TimeoutError": ErrorClass.TIMEOUT,
    "TransportError": ErrorClass.NETWORK,
    "UnknownPriceError": ErrorClass.REFUSED,
}
# What a provider's sentence says counts only where its status leaves the choice open: a model may
# well write about quotas and rate limits.
_QUOTA = re.compile(
    r"insufficient[_ ]quota|quota (?:is )?exceeded|exceeded your .{0,40}quota|usage limit"
    r"|credit balance|billing|payment required",
    re.IGNORECASE,
)
_OVERFLOW = re.compile(
    r"context[_ ](?:length|window)|maximum context|prompt is too long|too many tokens",
    re.IGNORECASE,
)

_REST = re.compile(
    r"rate[_ -]?limit|too many requests|overloaded|slow down|try again in|\b429\b", re.IGNORECASE
)


def asks_for_rest(message: str) -> bool:
    """Whether a provider's sentence about a failed call means: ask less often, all of you.

    Args:
        message: As the server tells it, which leaves the status out.
    """
    return _REST.search(message) is not None or _QUOTA.search(message) is not None


def classify(answer: AgentAnswered) -> ErrorClass:
    """Say what kind of failure a turn's end is.

    Args:
        answer: The end of a turn that is not DONE.
    """
    found = _BY_REASON.get(answer.reason)
    error = answer.error
    if answer.reason is FinishReason.BLOCKED and error is not None:
        # A hook's word about what the agent did; about the prompt itself it is final.
        return ErrorClass.TOOL if error.is_retryable else ErrorClass.BLOCKED
    if error is None or found is ErrorClass.BACKEND_LOST:
        return found or (
            ErrorClass.ABORTED if answer.reason is FinishReason.ABORTED else ErrorClass.UNKNOWN
        )
    return _by_error(error) or found or ErrorClass.UNKNOWN


def _by_error(error: TurnError) -> ErrorClass | None:
    if (named := _BY_NAME.get(error.name)) is not None:
        return named
    status = error.status
    if status == 402:
        return ErrorClass.QUOTA
    if status == 429:
        return ErrorClass.QUOTA if _QUOTA.search(error.message) else ErrorClass.RATE_LIMIT
    if status is not None and (status >= 500 or status == 408):
        return ErrorClass.NETWORK
    if status is not None and status >= 400:
        is_overflow = status in {400, 413} and _OVERFLOW.search(error.message)
        if is_overflow:
            return ErrorClass.CONTEXT_OVERFLOW
        return ErrorClass.QUOTA if _QUOTA.search(error.message) else ErrorClass.REFUSED
    if not error.is_retryable:
        return ErrorClass.REFUSED
    # A call of the model that came to no answer at all has no status.
    return ErrorClass.NETWORK if error.name == "APIError" else None


@define
class Troubles:
    """What one piece of work has been through.

    Attributes:
        counts: How often each class of failure came, with the model that is in use.
        model: Which model of the chain is in use; 0 is the agent's own.
        total: How many failures there were, of all classes and with all models.
    """

    counts: dict[ErrorClass, int] = field(factory=dict)
    model: int = 0
    total: int = 0

    def pick(self, chain: Sequence[str]) -> str | None:
        """Return the model that is in use; None: the agent's own.

        Args:
            chain: The models that there are to fall back on.
        """
        return chain[min(self.model, len(chain)) - 1] if self.model and chain else None

    def add(self, error: ErrorClass) -> int:
        """Count a failure and return how many of its class there are now."""
        self.total += 1
        self.counts[error] = self.counts.get(error, 0) + 1
        return self.counts[error]


@frozen(kw_only=True)
class Remedy:
    """What is to be done now.

    Attributes:
        action: What.
        error: What kind of failure it is against.
        delay: Seconds to wait before.
    """

    action: Action
    error: ErrorClass
    delay: float = 0.0


@final
class Recovery:
    """Decides what is done about a failed turn.

    Args:
        first_delay: Seconds before the first repetition of a class that waits; doubled each time,
            at most 60, and up to half of it is left out at random, so that workers which failed
            together do not come back together.
        random: Returns a number from 0.0 to below 1.0.
    """

    def __init__(self, first_delay: float, random: Callable[[], float]) -> None:
        self._first = first_delay
        self._random = random

    def decide(self, answer: AgentAnswered, troubles: Troubles, *, models: int) -> Remedy:
        """Count the failure and say what is done about it.

        Args:
            answer: The end of a turn that is not DONE.
            troubles: What the piece of work has been through; it is brought up to date.
            models: How many models there are to fall back on.
        """
        error = classify(answer)
        wish = answer.error.retry_after if answer.error is not None else None
        return self.remedy(error, troubles, models=models, retry_after=wish)

    def remedy(
        self,
        error: ErrorClass,
        troubles: Troubles,
        *,
        models: int,
        retry_after: float | None = None,
    ) -> Remedy:
        """Count a failure of a known class and say what is done about it.

        Args:
            error: What kind of failure it is.
            troubles: As for `decide`.
            models: As for `decide`.
            retry_after: Seconds that the origin wants to be left alone.
        """
        rule = RULES[error]
        count = troubles.add(error)
        if rule.action in {Action.STOP, Action.WIND_DOWN}:
            return Remedy(action=rule.action, error=error)
        if troubles.total <= MAX_TROUBLES + troubles.model:
            if count <= rule.tries:
                delay = 0.0
                if rule.action is Action.RETRY:
                    delay = self._delay(count, retry_after)
                return Remedy(action=rule.action, error=error, delay=delay)
            if rule.is_model_bound and troubles.model < models:
                troubles.model += 1
                troubles.counts.pop(error)  # the next model begins anew; the chain is finite
                return Remedy(action=Action.NEXT_MODEL, error=error)
        return Remedy(action=Action.GIVE_UP, error=error)

    def _delay(self, count: int, retry_after: float | None) -> float:
        delay = min(self._first * 2.0 ** min(count - 1, 16), MAX_DELAY)
        delay *= 1.0 - self._random() / 2.0
        if retry_after is None:
            return delay
        # Nobody comes back early, and not all of them at the same moment.
        return max(0.0, min(retry_after, MAX_RETRY_AFTER)) + self._random() * self._first
