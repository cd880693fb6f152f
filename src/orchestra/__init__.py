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
    from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn

__all__ = (
    "Agent",
    "BackendStatistics",
    "CommandAgent",
    "CommandOutput",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "PermissionPolicy",
    "PermissionRule",
    "Session",
    "SessionBackend",
    "Turn",
    "__version__",
    "background_tasks",
    "deny_all",
    "run_command",
)

_HOMES = {
    "Agent": "orchestra.abc",
    "BackendStatistics": "orchestra.abc",
    "CommandAgent": "orchestra.sessions.embedded",
    "CommandOutput": "orchestra.processes",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "Turn": "orchestra.sessions.embedded",
    "background_tasks": "orchestra.background",
    "deny_all": "orchestra.abc",
    "run_command": "orchestra.processes",
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
