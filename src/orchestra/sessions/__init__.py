"""Session backends that need nothing but the core."""

from __future__ import annotations

from orchestra.sessions.embedded import CommandAgent, EmbeddedAgent, EmbeddedBackend, Turn

__all__ = ("CommandAgent", "EmbeddedAgent", "EmbeddedBackend", "Turn")
