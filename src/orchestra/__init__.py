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
        Session,
        SessionBackend,
        deny_all,
    )
    from orchestra.background import background_tasks
    from orchestra.concurrency import (
        ConcurrencyController,
        ConcurrencyStatistics,
        ConcurrencyToken,
    )
    from orchestra.processes import CommandOutput, run_command
    from orchestra.scopes import TaskScope
    from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn
    from orchestra.stealing import DequeStatistics, Stealer, WorkStealingDeque, scan_files
    from orchestra.workers import WorkerStatistics, WorkStealingPool, WorkStealingStatistics

__all__ = (
    "Agent",
    "BackendStatistics",
    "CommandAgent",
    "CommandOutput",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "DequeStatistics",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "PermissionPolicy",
    "PermissionRule",
    "Session",
    "SessionBackend",
    "Stealer",
    "TaskScope",
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
    "Agent": "orchestra.abc",
    "BackendStatistics": "orchestra.abc",
    "CommandAgent": "orchestra.sessions.embedded",
    "CommandOutput": "orchestra.processes",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "DequeStatistics": "orchestra.stealing",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "Stealer": "orchestra.stealing",
    "TaskScope": "orchestra.scopes",
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
