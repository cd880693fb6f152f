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
    from orchestra.hooks import (
        Block,
        Hook,
        HookPhase,
        HookPoint,
        HookRegistry,
        HookStatistics,
        Modify,
        RegistryStatistics,
        SyncHookPoint,
    )
    from orchestra.pipeline import Pipeline, Timeout, TimeoutStatistics
    from orchestra.pools.buffers import BufferPool, BufferPoolStatistics
    from orchestra.pools.objects import ObjectPool, ObjectPoolStatistics
    from orchestra.pools.resources import PoolHolder, PoolLease, PoolStatistics, ResourcePool
    from orchestra.pools.strings import StringPool, StringPoolStatistics
    from orchestra.pressure import MemoryPressure, MemoryReading
    from orchestra.processes import CommandOutput, run_command
    from orchestra.redaction import (
        SECRET_RULES,
        RedactionStream,
        Redactor,
        Secret,
        SecretRule,
    )
    from orchestra.retry import Backoff, BudgetStatistics, Retry, RetryBudget, RetryStatistics
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
    from orchestra.scopes import TaskScope
    from orchestra.sessions.commands import CommandAgent
    from orchestra.sessions.embedded import EmbeddedAgent, EmbeddedBackend, Turn
    from orchestra.sessions.pool import SessionLease, SessionPool, SessionPoolStatistics
    from orchestra.stealing import DequeStatistics, Stealer, WorkStealingDeque, scan_files
    from orchestra.storage import Codec, Merge, MVCCStore, Reader, Snapshot, Transaction
    from orchestra.stores.codecs import JSONCodec, MsgspecCodec, RawCodec
    from orchestra.stores.memory import MemoryStore
    from orchestra.stores.sqlite import SQLiteStore
    from orchestra.tools.command import CancelStyle, Framing, ToolCommand
    from orchestra.tools.language import (
        Diagnostic,
        LanguageServer,
        LanguageServerStatistics,
        Severity,
    )
    from orchestra.tools.pool import ToolPool, ToolPoolStatistics
    from orchestra.tools.process import ToolProcess, ToolProcessStatistics
    from orchestra.workers import WorkerStatistics, WorkStealingPool, WorkStealingStatistics

__all__ = (
    "AIMD",
    "SECRET_RULES",
    "Agent",
    "AuditRecord",
    "BackendStatistics",
    "Backoff",
    "Block",
    "BudgetStatistics",
    "BufferPool",
    "BufferPoolStatistics",
    "Bulkhead",
    "CancelStyle",
    "Change",
    "CircuitBreaker",
    "CircuitPermit",
    "CircuitStatistics",
    "CircuitTrip",
    "Codec",
    "CommandAgent",
    "CommandOutput",
    "Commit",
    "ConcurrencyController",
    "ConcurrencyStatistics",
    "ConcurrencyToken",
    "Contention",
    "DequeStatistics",
    "Diagnostic",
    "Difference",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "Entry",
    "FailureRate",
    "Fixed",
    "Framing",
    "Hook",
    "HookPhase",
    "HookPoint",
    "HookRegistry",
    "HookStatistics",
    "JSONCodec",
    "KeyDigest",
    "LanguageServer",
    "LanguageServerStatistics",
    "Limit",
    "LimitRule",
    "LimitState",
    "MVCCStore",
    "MemoryPressure",
    "MemoryReading",
    "MemoryStore",
    "Merge",
    "Modify",
    "MsgspecCodec",
    "ObjectPool",
    "ObjectPoolStatistics",
    "PermissionPolicy",
    "PermissionRule",
    "Pipeline",
    "Policy",
    "PoolHolder",
    "PoolLease",
    "PoolStatistics",
    "Priority",
    "RateLimit",
    "RawCodec",
    "Reader",
    "RedactionStream",
    "Redactor",
    "RegistryStatistics",
    "ResourcePool",
    "Retry",
    "RetryBudget",
    "RetryStatistics",
    "SQLiteStore",
    "Secret",
    "SecretRule",
    "Session",
    "SessionBackend",
    "SessionLease",
    "SessionPool",
    "SessionPoolStatistics",
    "Severity",
    "Snapshot",
    "Stealer",
    "StoreLease",
    "StoreStatistics",
    "Streak",
    "StringPool",
    "StringPoolStatistics",
    "SyncHookPoint",
    "TaskScope",
    "Timeout",
    "TimeoutStatistics",
    "ToolCommand",
    "ToolPool",
    "ToolPoolStatistics",
    "ToolProcess",
    "ToolProcessStatistics",
    "Transaction",
    "Turn",
    "Verification",
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
    "SECRET_RULES": "orchestra.redaction",
    "Agent": "orchestra.abc",
    "AuditRecord": "orchestra.revisions",
    "BackendStatistics": "orchestra.abc",
    "Backoff": "orchestra.retry",
    "Block": "orchestra.hooks",
    "BudgetStatistics": "orchestra.retry",
    "BufferPool": "orchestra.pools.buffers",
    "BufferPoolStatistics": "orchestra.pools.buffers",
    "Bulkhead": "orchestra.bulkhead",
    "CancelStyle": "orchestra.tools.command",
    "Change": "orchestra.revisions",
    "CircuitBreaker": "orchestra.breaker",
    "CircuitPermit": "orchestra.breaker",
    "CircuitStatistics": "orchestra.breaker",
    "CircuitTrip": "orchestra.breaker",
    "Codec": "orchestra.storage",
    "CommandAgent": "orchestra.sessions.commands",
    "CommandOutput": "orchestra.processes",
    "Commit": "orchestra.revisions",
    "ConcurrencyController": "orchestra.concurrency",
    "ConcurrencyStatistics": "orchestra.concurrency",
    "ConcurrencyToken": "orchestra.concurrency",
    "Contention": "orchestra.revisions",
    "DequeStatistics": "orchestra.stealing",
    "Diagnostic": "orchestra.tools.language",
    "Difference": "orchestra.revisions",
    "EmbeddedAgent": "orchestra.sessions.embedded",
    "EmbeddedBackend": "orchestra.sessions.embedded",
    "Entry": "orchestra.revisions",
    "FailureRate": "orchestra.breaker",
    "Fixed": "orchestra.concurrency",
    "Framing": "orchestra.tools.command",
    "Hook": "orchestra.hooks",
    "HookPhase": "orchestra.hooks",
    "HookPoint": "orchestra.hooks",
    "HookRegistry": "orchestra.hooks",
    "HookStatistics": "orchestra.hooks",
    "JSONCodec": "orchestra.stores.codecs",
    "KeyDigest": "orchestra.revisions",
    "LanguageServer": "orchestra.tools.language",
    "LanguageServerStatistics": "orchestra.tools.language",
    "Limit": "orchestra.concurrency",
    "LimitRule": "orchestra.concurrency",
    "LimitState": "orchestra.concurrency",
    "MVCCStore": "orchestra.storage",
    "MemoryPressure": "orchestra.pressure",
    "MemoryReading": "orchestra.pressure",
    "MemoryStore": "orchestra.stores.memory",
    "Merge": "orchestra.storage",
    "Modify": "orchestra.hooks",
    "MsgspecCodec": "orchestra.stores.codecs",
    "ObjectPool": "orchestra.pools.objects",
    "ObjectPoolStatistics": "orchestra.pools.objects",
    "PermissionPolicy": "orchestra.abc",
    "PermissionRule": "orchestra.abc",
    "Pipeline": "orchestra.pipeline",
    "Policy": "orchestra.abc",
    "PoolHolder": "orchestra.pools.resources",
    "PoolLease": "orchestra.pools.resources",
    "PoolStatistics": "orchestra.pools.resources",
    "Priority": "orchestra.concurrency",
    "RateLimit": "orchestra.concurrency",
    "RawCodec": "orchestra.stores.codecs",
    "Reader": "orchestra.storage",
    "RedactionStream": "orchestra.redaction",
    "Redactor": "orchestra.redaction",
    "RegistryStatistics": "orchestra.hooks",
    "ResourcePool": "orchestra.pools.resources",
    "Retry": "orchestra.retry",
    "RetryBudget": "orchestra.retry",
    "RetryStatistics": "orchestra.retry",
    "SQLiteStore": "orchestra.stores.sqlite",
    "Secret": "orchestra.redaction",
    "SecretRule": "orchestra.redaction",
    "Session": "orchestra.abc",
    "SessionBackend": "orchestra.abc",
    "SessionLease": "orchestra.sessions.pool",
    "SessionPool": "orchestra.sessions.pool",
    "SessionPoolStatistics": "orchestra.sessions.pool",
    "Severity": "orchestra.tools.language",
    "Snapshot": "orchestra.storage",
    "Stealer": "orchestra.stealing",
    "StoreLease": "orchestra.revisions",
    "StoreStatistics": "orchestra.revisions",
    "Streak": "orchestra.concurrency",
    "StringPool": "orchestra.pools.strings",
    "StringPoolStatistics": "orchestra.pools.strings",
    "SyncHookPoint": "orchestra.hooks",
    "TaskScope": "orchestra.scopes",
    "Timeout": "orchestra.pipeline",
    "TimeoutStatistics": "orchestra.pipeline",
    "ToolCommand": "orchestra.tools.command",
    "ToolPool": "orchestra.tools.pool",
    "ToolPoolStatistics": "orchestra.tools.pool",
    "ToolProcess": "orchestra.tools.process",
    "ToolProcessStatistics": "orchestra.tools.process",
    "Transaction": "orchestra.storage",
    "Turn": "orchestra.sessions.embedded",
    "Verification": "orchestra.revisions",
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
