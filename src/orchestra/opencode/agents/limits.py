"""How much we may add to what an agent is asked, beyond the task itself."""

from __future__ import annotations

__all__ = ("MESSAGE_LIMIT", "SYSTEM_LIMIT", "system_room")

SYSTEM_LIMIT = 4_000
"""Bytes of system text that a session gets from us, once: the role's prompt and what is remembered."""
MESSAGE_LIMIT = 600
"""Characters of a message that are neither the task nor what became of it."""


def system_room(prompt: str) -> int:
    """Return how many bytes of system text a prompt leaves; never less than 0.

    Args:
        prompt: An agent's standing instructions.
    """
    return max(SYSTEM_LIMIT - len(prompt.encode("utf-8", "replace")), 0)
