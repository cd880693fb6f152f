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
    from orchestra.concurrency import ConcurrencyController, ConcurrencyStatistics, ConcurrencyToken
    from orchestra.processes import CommandOutput, run_command
    from orchestra.revisions import (
        AuditRecord,
        Change,
        Commit,
        Contention,
        Difference,
        Entry,
        KeyDigest,
        StoreLease,
        StoreStatistics,
        Verification,
    )
    from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn
    from orchestra.storage import Codec, Merge, MVCCStore, Reader, Snapshot, Transaction
    from orchestra.stores.codecs import JSONCodec, MsgspecCodec, RawCodec
    from orchestra.stores.memory import MemoryStore
    from orchestra.stores.sqlite import SQLiteStore

__all__ = (
    "Agent",
    "AuditRecord",
    "BackendStatistics",
    "Change",
    "Codec",
    "CommandAgent",
    "CommandOutput",
    "Commit",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "Contention",
    "Difference",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "Entry",
    "JSONCodec",
    "KeyDigest",
    "MVCCStore",
    "MemoryStore",
    "Merge",
    "MsgspecCodec",
    "PermissionPolicy",
    "PermissionRule",
    "RawCodec",
    "Reader",
    "SQLiteStore",
    "Session",
    "SessionBackend",
    "Snapshot",
    "StoreLease",
    "StoreStatistics",
    "Transaction",
    "Turn",
    "Verification",
    "__version__",
    "background_tasks",
    "deny_all",
    "run_command",
)

_HOMES = {
    "Agent": "orchestra.abc",
    "AuditRecord": "orchestra.revisions",
    "BackendStatistics": "orchestra.abc",
    "Change": "orchestra.revisions",
    "Codec": "orchestra.storage",
    "CommandAgent": "orchestra.sessions.embedded",
    "CommandOutput": "orchestra.processes",
    "Commit": "orchestra.revisions",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "Contention": "orchestra.revisions",
    "Difference": "orchestra.revisions",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "Entry": "orchestra.revisions",
    "JSONCodec": "orchestra.stores.codecs",
    "KeyDigest": "orchestra.revisions",
    "MVCCStore": "orchestra.storage",
    "MemoryStore": "orchestra.stores.memory",
    "Merge": "orchestra.storage",
    "MsgspecCodec": "orchestra.stores.codecs",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "RawCodec": "orchestra.stores.codecs",
    "Reader": "orchestra.storage",
    "SQLiteStore": "orchestra.stores.sqlite",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "Snapshot": "orchestra.storage",
    "StoreLease": "orchestra.revisions",
    "StoreStatistics": "orchestra.revisions",
    "Transaction": "orchestra.storage",
    "Turn": "orchestra.sessions.embedded",
    "Verification": "orchestra.revisions",
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
