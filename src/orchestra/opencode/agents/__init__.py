"""The agents: their standing instructions and what they may do."""

from __future__ import annotations

from orchestra.opencode.agents.roles import ROLE_AGENTS

__all__ = ("ROLE_AGENTS",)
