"""Run fleets of coding agents as safely as a database runs transactions.

Every public name is imported on first use, so that ``import orchestra`` costs next to nothing and
never pulls in an optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from orchestra._version import __version__

if TYPE_CHECKING:
    from orchestra.abc import (
        Agent,
        BackendStatistics,
        PermissionPolicy,
        PermissionRule,
        Policy,
        Session,
        SessionBackend,
        deny_all,
    )
    from orchestra.breaker import (
        CircuitBreaker,
        CircuitPermit,
        CircuitStatistics,
        CircuitTrip,
        FailureRate,
    )
    from orchestra.concurrency import (
        ConcurrencyController,
        ConcurrencyStatistics,
        ConcurrencyToken,
    )
    from orchestra.pipeline import Pipeline, Timeout, TimeoutStatistics
    from orchestra.retry import Backoff, BudgetStatistics, Retry, RetryBudget, RetryStatistics
    from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn

__all__ = (
    "Agent",
    "BackendStatistics",
    "Backoff",
    "BudgetStatistics",
    "CircuitBreaker",
    "CircuitPermit",
    "CircuitStatistics",
    "CircuitTrip",
    "CommandAgent",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "FailureRate",
    "PermissionPolicy",
    "PermissionRule",
    "Pipeline",
    "Policy",
    "Retry",
    "RetryBudget",
    "RetryStatistics",
    "Session",
    "SessionBackend",
    "Timeout",
    "TimeoutStatistics",
    "Turn",
    "__version__",
    "deny_all",
)

_HOMES = {
    "Agent": "orchestra.abc",
    "BackendStatistics": "orchestra.abc",
    "Backoff": "orchestra.retry",
    "BudgetStatistics": "orchestra.retry",
    "CircuitBreaker": "orchestra.breaker",
    "CircuitPermit": "orchestra.breaker",
    "CircuitStatistics": "orchestra.breaker",
    "CircuitTrip": "orchestra.breaker",
    "CommandAgent": "orchestra.sessions.embedded",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "FailureRate": "orchestra.breaker",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "Pipeline": "orchestra.pipeline",
    "Policy": "orchestra.abc",
    "Retry": "orchestra.retry",
    "RetryBudget": "orchestra.retry",
    "RetryStatistics": "orchestra.retry",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "Timeout": "orchestra.pipeline",
    "TimeoutStatistics": "orchestra.pipeline",
    "Turn": "orchestra.sessions.embedded",
    "deny_all": "orchestra.abc",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orchestra' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
