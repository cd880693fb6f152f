"""A multi-agent orchestrator, assembled from the public primitives of `orchestra`.

Commander, Planner, Worker and Reviewer agents bring a goal to a report, on any session backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.opencode.agents.agents_file import AgentEntry, AgentsFile, read_agents_file
    from orchestra.opencode.agents.roles import ROLE_AGENTS
    from orchestra.opencode.backend import OpenCodeBackend
    from orchestra.opencode.client.locate import OpenCodeProgram, find_opencode, locate_opencode
    from orchestra.opencode.client.looking import TurnTiming
    from orchestra.opencode.client.stream import StreamTiming
    from orchestra.opencode.event_log import EVENT_SCHEMA, EventLog
    from orchestra.opencode.housekeeping import Cleaning, CleanOptions, clean_workspace
    from orchestra.opencode.mission.allowances import Allowance, BudgetSettings, ProviderSettings
    from orchestra.opencode.mission.critical_path import PathStep
    from orchestra.opencode.mission.events import (
        AgentActed,
        CommandFinished,
        EventsDropped,
        MissionEvent,
        MissionFinished,
        MissionStarted,
        PlanAccepted,
        TaskChanged,
        TurnFinished,
        TurnStarted,
        WarningRaised,
    )
    from orchestra.opencode.mission.file import (
        AgentCall,
        AgentCommand,
        MissionFile,
        RoleChoice,
        read_mission_file,
    )
    from orchestra.opencode.mission.hook_points import (
        AFTER_TURN,
        BEFORE_PROMPT,
        PLAN_RECEIVED,
        REPORT_READY,
        SESSION_EVENT,
        MissionPrompt,
        MissionTurn,
        SessionTold,
    )
    from orchestra.opencode.mission.isolation import Isolation
    from orchestra.opencode.mission.memory.rules import MemorySettings
    from orchestra.opencode.mission.messages import read_task
    from orchestra.opencode.mission.people_settings import PeopleSettings
    from orchestra.opencode.mission.plan import (
        GateSettings,
        LoopLimits,
        MissionSettings,
        Plan,
        Role,
        TaskMode,
        TaskSpec,
    )
    from orchestra.opencode.mission.report import (
        CommandResult,
        CostNode,
        Evidence,
        Finding,
        MissionOutcome,
        MissionReport,
        Receipt,
        Span,
        TaskReport,
        TaskState,
    )
    from orchestra.opencode.mission.report_files import ReportFiles, write_report
    from orchestra.opencode.mission.report_html import report_to_html
    from orchestra.opencode.mission.report_json import report_from_json, report_to_json
    from orchestra.opencode.mission.run import resume_mission, run_mission
    from orchestra.opencode.mission.runner import Mission
    from orchestra.opencode.mission.saved import Attempt, SavedMission, load_mission
    from orchestra.opencode.mission.specialists import Specialist
    from orchestra.opencode.mission.statistics import MissionStatistics
    from orchestra.opencode.mission.waits import Cause, Segment
    from orchestra.opencode.people.cancelling import Quiescence
    from orchestra.opencode.people.permissions import MissionPermissions
    from orchestra.opencode.people.questions import Person, PersonAnswer, PersonQuestion
    from orchestra.opencode.toasts import Toast, Toasts

__all__ = (
    "AFTER_TURN",
    "BEFORE_PROMPT",
    "EVENT_SCHEMA",
    "PLAN_RECEIVED",
    "REPORT_READY",
    "ROLE_AGENTS",
    "SESSION_EVENT",
    "AgentActed",
    "AgentCall",
    "AgentCommand",
    "AgentEntry",
    "AgentsFile",
    "Allowance",
    "Attempt",
    "BudgetSettings",
    "Cause",
    "CleanOptions",
    "Cleaning",
    "CommandFinished",
    "CommandResult",
    "CostNode",
    "EventLog",
    "EventsDropped",
    "Evidence",
    "Finding",
    "GateSettings",
    "Isolation",
    "LoopLimits",
    "MemorySettings",
    "Mission",
    "MissionEvent",
    "MissionFile",
    "MissionFinished",
    "MissionOutcome",
    "MissionPermissions",
    "MissionPrompt",
    "MissionReport",
    "MissionSettings",
    "MissionStarted",
    "MissionStatistics",
    "MissionTurn",
    "OpenCodeBackend",
    "OpenCodeProgram",
    "PathStep",
    "PeopleSettings",
    "Person",
    "PersonAnswer",
    "PersonQuestion",
    "Plan",
    "PlanAccepted",
    "ProviderSettings",
    "Quiescence",
    "Receipt",
    "ReportFiles",
    "Role",
    "RoleChoice",
    "SavedMission",
    "Segment",
    "SessionTold",
    "Span",
    "Specialist",
    "StreamTiming",
    "TaskChanged",
    "TaskMode",
    "TaskReport",
    "TaskSpec",
    "TaskState",
    "Toast",
    "Toasts",
    "TurnFinished",
    "TurnStarted",
    "TurnTiming",
    "WarningRaised",
    "clean_workspace",
    "find_opencode",
    "load_mission",
    "locate_opencode",
    "read_agents_file",
    "read_mission_file",
    "read_task",
    "report_from_json",
    "report_to_html",
    "report_to_json",
    "resume_mission",
    "run_mission",
    "write_report",
)

_HOMES = {
    "AFTER_TURN": "orchestra.opencode.mission.hook_points",
    "BEFORE_PROMPT": "orchestra.opencode.mission.hook_points",
    "EVENT_SCHEMA": "orchestra.opencode.event_log",
    "PLAN_RECEIVED": "orchestra.opencode.mission.hook_points",
    "REPORT_READY": "orchestra.opencode.mission.hook_points",
    "ROLE_AGENTS": "orchestra.opencode.agents.roles",
    "SESSION_EVENT": "orchestra.opencode.mission.hook_points",
    "AgentActed": "orchestra.opencode.mission.events",
    "AgentCall": "orchestra.opencode.mission.file",
    "AgentCommand": "orchestra.opencode.mission.file",
    "AgentEntry": "orchestra.opencode.agents.agents_file",
    "AgentsFile": "orchestra.opencode.agents.agents_file",
    "Allowance": "orchestra.opencode.mission.allowances",
    "Attempt": "orchestra.opencode.mission.saved",
    "BudgetSettings": "orchestra.opencode.mission.allowances",
    "Cause": "orchestra.opencode.mission.waits",
    "CleanOptions": "orchestra.opencode.housekeeping",
    "Cleaning": "orchestra.opencode.housekeeping",
    "CommandFinished": "orchestra.opencode.mission.events",
    "CommandResult": "orchestra.opencode.mission.report",
    "CostNode": "orchestra.opencode.mission.report",
    "EventLog": "orchestra.opencode.event_log",
    "EventsDropped": "orchestra.opencode.mission.events",
    "Evidence": "orchestra.opencode.mission.report",
    "Finding": "orchestra.opencode.mission.report",
    "GateSettings": "orchestra.opencode.mission.plan",
    "Isolation": "orchestra.opencode.mission.isolation",
    "LoopLimits": "orchestra.opencode.mission.plan",
    "MemorySettings": "orchestra.opencode.mission.memory.rules",
    "Mission": "orchestra.opencode.mission.runner",
    "MissionEvent": "orchestra.opencode.mission.events",
    "MissionFile": "orchestra.opencode.mission.file",
    "MissionFinished": "orchestra.opencode.mission.events",
    "MissionOutcome": "orchestra.opencode.mission.report",
    "MissionPermissions": "orchestra.opencode.people.permissions",
    "MissionPrompt": "orchestra.opencode.mission.hook_points",
    "MissionReport": "orchestra.opencode.mission.report",
    "MissionSettings": "orchestra.opencode.mission.plan",
    "MissionStarted": "orchestra.opencode.mission.events",
    "MissionStatistics": "orchestra.opencode.mission.statistics",
    "MissionTurn": "orchestra.opencode.mission.hook_points",
    "OpenCodeBackend": "orchestra.opencode.backend",
    "OpenCodeProgram": "orchestra.opencode.client.locate",
    "PathStep": "orchestra.opencode.mission.critical_path",
    "PeopleSettings": "orchestra.opencode.mission.people_settings",
    "Person": "orchestra.opencode.people.questions",
    "PersonAnswer": "orchestra.opencode.people.questions",
    "PersonQuestion": "orchestra.opencode.people.questions",
    "Plan": "orchestra.opencode.mission.plan",
    "PlanAccepted": "orchestra.opencode.mission.events",
    "ProviderSettings": "orchestra.opencode.mission.allowances",
    "Quiescence": "orchestra.opencode.people.cancelling",
    "Receipt": "orchestra.opencode.mission.report",
    "ReportFiles": "orchestra.opencode.mission.report_files",
    "Role": "orchestra.opencode.mission.plan",
    "RoleChoice": "orchestra.opencode.mission.file",
    "SavedMission": "orchestra.opencode.mission.saved",
    "Segment": "orchestra.opencode.mission.waits",
    "SessionTold": "orchestra.opencode.mission.hook_points",
    "Span": "orchestra.opencode.mission.report",
    "Specialist": "orchestra.opencode.mission.specialists",
    "StreamTiming": "orchestra.opencode.client.stream",
    "TaskChanged": "orchestra.opencode.mission.events",
    "TaskMode": "orchestra.opencode.mission.plan",
    "TaskReport": "orchestra.opencode.mission.report",
    "TaskSpec": "orchestra.opencode.mission.plan",
    "TaskState": "orchestra.opencode.mission.report",
    "Toast": "orchestra.opencode.toasts",
    "Toasts": "orchestra.opencode.toasts",
    "TurnFinished": "orchestra.opencode.mission.events",
    "TurnStarted": "orchestra.opencode.mission.events",
    "TurnTiming": "orchestra.opencode.client.looking",
    "WarningRaised": "orchestra.opencode.mission.events",
    "clean_workspace": "orchestra.opencode.housekeeping",
    "find_opencode": "orchestra.opencode.client.locate",
    "load_mission": "orchestra.opencode.mission.saved",
    "locate_opencode": "orchestra.opencode.client.locate",
    "read_agents_file": "orchestra.opencode.agents.agents_file",
    "read_mission_file": "orchestra.opencode.mission.file",
    "read_task": "orchestra.opencode.mission.messages",
    "report_from_json": "orchestra.opencode.mission.report_json",
    "report_to_html": "orchestra.opencode.mission.report_html",
    "report_to_json": "orchestra.opencode.mission.report_json",
    "resume_mission": "orchestra.opencode.mission.run",
    "run_mission": "orchestra.opencode.mission.run",
    "write_report": "orchestra.opencode.mission.report_files",
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
