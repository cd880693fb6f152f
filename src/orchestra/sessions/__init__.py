"""Sessions: a backend that needs nothing but the core, and a pool of sessions of any backend."""

from __future__ import annotations

from orchestra.sessions.commands import CommandAgent
from orchestra.sessions.embedded import EmbeddedAgent, EmbeddedBackend, Turn
from orchestra.sessions.pool import SessionLease, SessionPool, SessionPoolStatistics

__all__ = (
    "CommandAgent",
    "EmbeddedAgent",
    "EmbeddedBackend",
    "SessionLease",
    "SessionPool",
    "SessionPoolStatistics",
    "Turn",
)
