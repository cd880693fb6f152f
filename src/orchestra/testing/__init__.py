"""The public test kit: virtual time, schedules, a scripted model, and the backend contract."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.testing.clock import settle, virtual_time_options
    from orchestra.testing.contract import SESSION_CHECKS, check_session_backend
    from orchestra.testing.linearizability import (
        History,
        NotLinearizableError,
        Operation,
        SequentialModel,
        check_linearizable,
    )
    from orchestra.testing.model_script import ModelRequest, Rule, agent_of
    from orchestra.testing.model_server import (
        ScriptedModel,
        ScriptedModelStatistics,
        UnmatchedRequest,
    )
    from orchestra.testing.model_steps import (
        CutStream,
        Failure,
        Hang,
        InvalidChunk,
        Reply,
        Step,
        ToolCall,
        Usage,
    )
    from orchestra.testing.schedule import (
        Action,
        Job,
        ScheduleStep,
        ScriptedFailure,
        play,
        random_schedule,
    )
    from orchestra.testing.stores import STORE_CHECKS, check_store

__all__ = (
    "SESSION_CHECKS",
    "STORE_CHECKS",
    "Action",
    "CutStream",
    "Failure",
    "Hang",
    "History",
    "InvalidChunk",
    "Job",
    "ModelRequest",
    "NotLinearizableError",
    "Operation",
    "Reply",
    "Rule",
    "ScheduleStep",
    "ScriptedFailure",
    "ScriptedModel",
    "ScriptedModelStatistics",
    "SequentialModel",
    "Step",
    "ToolCall",
    "UnmatchedRequest",
    "Usage",
    "agent_of",
    "check_linearizable",
    "check_session_backend",
    "check_store",
    "play",
    "random_schedule",
    "settle",
    "virtual_time_options",
)

_HOMES = {
    "SESSION_CHECKS": "orchestra.testing.contract",
    "STORE_CHECKS": "orchestra.testing.stores",
    "Action": "orchestra.testing.schedule",
    "CutStream": "orchestra.testing.model_steps",
    "Failure": "orchestra.testing.model_steps",
    "Hang": "orchestra.testing.model_steps",
    "History": "orchestra.testing.linearizability",
    "InvalidChunk": "orchestra.testing.model_steps",
    "Job": "orchestra.testing.schedule",
    "ModelRequest": "orchestra.testing.model_script",
    "NotLinearizableError": "orchestra.testing.linearizability",
    "Operation": "orchestra.testing.linearizability",
    "Reply": "orchestra.testing.model_steps",
    "Rule": "orchestra.testing.model_script",
    "ScheduleStep": "orchestra.testing.schedule",
    "ScriptedFailure": "orchestra.testing.schedule",
    "ScriptedModel": "orchestra.testing.model_server",
    "ScriptedModelStatistics": "orchestra.testing.model_server",
    "SequentialModel": "orchestra.testing.linearizability",
    "Step": "orchestra.testing.model_steps",
    "ToolCall": "orchestra.testing.model_steps",
    "UnmatchedRequest": "orchestra.testing.model_server",
    "Usage": "orchestra.testing.model_steps",
    "agent_of": "orchestra.testing.model_script",
    "check_linearizable": "orchestra.testing.linearizability",
    "check_session_backend": "orchestra.testing.contract",
    "check_store": "orchestra.testing.stores",
    "play": "orchestra.testing.schedule",
    "random_schedule": "orchestra.testing.schedule",
    "settle": "orchestra.testing.clock",
    "virtual_time_options": "orchestra.testing.clock",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orchestra.testing' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
