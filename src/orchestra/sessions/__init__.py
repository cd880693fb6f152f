"""Session backends that need nothing but the core."""

from __future__ import annotations

from orchestra.sessions.commands import CommandAgent
from orchestra.sessions.embedded import EmbeddedAgent, EmbeddedBackend, Turn

__all__ = ("CommandAgent", "EmbeddedAgent", "EmbeddedBackend", "Turn")
