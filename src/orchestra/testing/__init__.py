"""The public test kit: a scripted model, the contracts of backends and stores, and a checker."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.testing.contract import SESSION_CHECKS, check_session_backend
    from orchestra.testing.linearizability import (
        History,
        NotLinearizableError,
        Operation,
        SequentialModel,
        check_linearizable,
    )
    from orchestra.testing.model_script import (
        CutStream,
        Failure,
        Hang,
        InvalidChunk,
        ModelRequest,
        Reply,
        Rule,
        Step,
        ToolCall,
        Usage,
        agent_of,
    )
    from orchestra.testing.model_server import (
        ScriptedModel,
        ScriptedModelStatistics,
        UnmatchedRequest,
    )
    from orchestra.testing.stores import STORE_CHECKS, check_store

__all__ = (
    "SESSION_CHECKS",
    "STORE_CHECKS",
    "CutStream",
    "Failure",
    "Hang",
    "History",
    "InvalidChunk",
    "ModelRequest",
    "NotLinearizableError",
    "Operation",
    "Reply",
    "Rule",
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
)

_HOMES = {
    "SESSION_CHECKS": "orchestra.testing.contract",
    "STORE_CHECKS": "orchestra.testing.stores",
    "CutStream": "orchestra.testing.model_script",
    "Failure": "orchestra.testing.model_script",
    "Hang": "orchestra.testing.model_script",
    "History": "orchestra.testing.linearizability",
    "InvalidChunk": "orchestra.testing.model_script",
    "ModelRequest": "orchestra.testing.model_script",
    "NotLinearizableError": "orchestra.testing.linearizability",
    "Operation": "orchestra.testing.linearizability",
    "Reply": "orchestra.testing.model_script",
    "Rule": "orchestra.testing.model_script",
    "ScriptedModel": "orchestra.testing.model_server",
    "ScriptedModelStatistics": "orchestra.testing.model_server",
    "SequentialModel": "orchestra.testing.linearizability",
    "Step": "orchestra.testing.model_script",
    "ToolCall": "orchestra.testing.model_script",
    "UnmatchedRequest": "orchestra.testing.model_server",
    "Usage": "orchestra.testing.model_script",
    "agent_of": "orchestra.testing.model_script",
    "check_linearizable": "orchestra.testing.linearizability",
    "check_session_backend": "orchestra.testing.contract",
    "check_store": "orchestra.testing.stores",
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
