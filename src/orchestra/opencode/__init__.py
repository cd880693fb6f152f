"""A multi-agent orchestrator, assembled from the public primitives of `orchestra`.

Commander, Planner, Worker and Reviewer agents bring a goal to a report, on any session backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.opencode.agents.roles import ROLE_AGENTS
    from orchestra.opencode.mission.messages import read_task
    from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
    from orchestra.opencode.mission.report import (
        CommandResult,
        MissionOutcome,
        MissionReport,
        Span,
        TaskReport,
        TaskState,
    )
    from orchestra.opencode.mission.runner import Mission, MissionStatistics, run_mission

__all__ = (
    "ROLE_AGENTS",
    "CommandResult",
    "Mission",
    "MissionOutcome",
    "MissionReport",
    "MissionSettings",
    "MissionStatistics",
    "Plan",
    "Role",
    "Span",
    "TaskReport",
    "TaskSpec",
    "TaskState",
    "read_task",
    "run_mission",
)

_HOMES = {
    "ROLE_AGENTS": "orchestra.opencode.agents.roles",
    "CommandResult": "orchestra.opencode.mission.report",
    "Mission": "orchestra.opencode.mission.runner",
    "MissionOutcome": "orchestra.opencode.mission.report",
    "MissionReport": "orchestra.opencode.mission.report",
    "MissionSettings": "orchestra.opencode.mission.plan",
    "MissionStatistics": "orchestra.opencode.mission.runner",
    "Plan": "orchestra.opencode.mission.plan",
    "Role": "orchestra.opencode.mission.plan",
    "Span": "orchestra.opencode.mission.report",
    "TaskReport": "orchestra.opencode.mission.report",
    "TaskSpec": "orchestra.opencode.mission.plan",
    "TaskState": "orchestra.opencode.mission.report",
    "read_task": "orchestra.opencode.mission.messages",
    "run_mission": "orchestra.opencode.mission.runner",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orchestra.opencode' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
