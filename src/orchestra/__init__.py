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
    from orchestra.background import background_tasks
    from orchestra.breaker import (
        CircuitBreaker,
        CircuitPermit,
        CircuitStatistics,
        CircuitTrip,
        FailureRate,
    )
    from orchestra.bulkhead import Bulkhead
    from orchestra.concurrency import (
        AIMD,
        ConcurrencyController,
        ConcurrencyStatistics,
        ConcurrencyToken,
        Fixed,
        Limit,
        LimitRule,
        LimitState,
        Priority,
        RateLimit,
        Streak,
    )
    from orchestra.pipeline import Pipeline, Timeout, TimeoutStatistics
    from orchestra.pressure import MemoryPressure, MemoryReading
    from orchestra.processes import CommandOutput, run_command
    from orchestra.retry import Backoff, BudgetStatistics, Retry, RetryBudget, RetryStatistics
    from orchestra.scopes import TaskScope
    from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn
    from orchestra.stealing import DequeStatistics, Stealer, WorkStealingDeque, scan_files
    from orchestra.workers import WorkerStatistics, WorkStealingPool, WorkStealingStatistics

__all__ = (
    "AIMD",
    "Agent",
    "BackendStatistics",
    "Backoff",
    "BudgetStatistics",
    "Bulkhead",
    "CircuitBreaker",
    "CircuitPermit",
    "CircuitStatistics",
    "CircuitTrip",
    "CommandAgent",
    "CommandOutput",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "DequeStatistics",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "FailureRate",
    "Fixed",
    "Limit",
    "LimitRule",
    "LimitState",
    "MemoryPressure",
    "MemoryReading",
    "PermissionPolicy",
    "PermissionRule",
    "Pipeline",
    "Policy",
    "Priority",
    "RateLimit",
    "Retry",
    "RetryBudget",
    "RetryStatistics",
    "Session",
    "SessionBackend",
    "Stealer",
    "Streak",
    "TaskScope",
    "Timeout",
    "TimeoutStatistics",
    "Turn",
    "WorkStealingDeque",
    "WorkStealingPool",
    "WorkStealingStatistics",
    "WorkerStatistics",
    "__version__",
    "background_tasks",
    "deny_all",
    "run_command",
    "scan_files",
)

_HOMES = {
    "AIMD": "orchestra.concurrency",
    "Agent": "orchestra.abc",
    "BackendStatistics": "orchestra.abc",
    "Backoff": "orchestra.retry",
    "BudgetStatistics": "orchestra.retry",
    "Bulkhead": "orchestra.bulkhead",
    "CircuitBreaker": "orchestra.breaker",
    "CircuitPermit": "orchestra.breaker",
    "CircuitStatistics": "orchestra.breaker",
    "CircuitTrip": "orchestra.breaker",
    "CommandAgent": "orchestra.sessions.embedded",
    "CommandOutput": "orchestra.processes",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "DequeStatistics": "orchestra.stealing",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "FailureRate": "orchestra.breaker",
    "Fixed": "orchestra.concurrency",
    "Limit": "orchestra.concurrency",
    "LimitRule": "orchestra.concurrency",
    "LimitState": "orchestra.concurrency",
    "MemoryPressure": "orchestra.pressure",
    "MemoryReading": "orchestra.pressure",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "Pipeline": "orchestra.pipeline",
    "Policy": "orchestra.abc",
    "Priority": "orchestra.concurrency",
    "RateLimit": "orchestra.concurrency",
    "Retry": "orchestra.retry",
    "RetryBudget": "orchestra.retry",
    "RetryStatistics": "orchestra.retry",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "Stealer": "orchestra.stealing",
    "Streak": "orchestra.concurrency",
    "TaskScope": "orchestra.scopes",
    "Timeout": "orchestra.pipeline",
    "TimeoutStatistics": "orchestra.pipeline",
    "Turn": "orchestra.sessions.embedded",
    "WorkStealingDeque": "orchestra.stealing",
    "WorkStealingPool": "orchestra.workers",
    "WorkStealingStatistics": "orchestra.workers",
    "WorkerStatistics": "orchestra.workers",
    "background_tasks": "orchestra.background",
    "deny_all": "orchestra.abc",
    "run_command": "orchestra.processes",
    "scan_files": "orchestra.stealing",
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
