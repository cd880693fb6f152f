"""How much a mission may add to what an agent is asked to do; pure.

Every request to a model carries the whole conversation, so each character that is added is paid
for again and again. What is added is bounded, wherever it comes from.
"""

from __future__ import annotations

__all__ = ("MAX_ADDED", "MAX_REASONS", "MAX_SYSTEM", "system_room", "with_system_text")

MAX_SYSTEM = 4_000
"""Bytes (as UTF-8) of an agent's standing instructions and of all that joins them, once for each
session."""

MAX_ADDED = 600
"""Characters of a message to a worker beyond its task and the reasons why it was sent back."""

MAX_REASONS = 4_000
"""Characters of the reasons in one message."""


def system_room(prompt: str) -> int:
    """Return how many bytes may join an agent's standing instructions; 0: they fill the room.

    Args:
        prompt: The instructions.
    """
    return max(0, MAX_SYSTEM - len(prompt.encode()) - len("\n\n"))


def with_system_text(prompt: str, addition: str) -> str:
    """Return an agent's standing instructions with something joined to them, or as they were.

    Args:
        prompt: The instructions.
        addition: What is joined, if there is room for it as a whole.
    """
    if not addition.strip() or len(addition.encode()) > system_room(prompt):
        return prompt
    return f"{prompt}\n\n{addition}" if prompt else addition
