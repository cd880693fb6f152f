"""What the server has of a prompt that may have been sent already; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from attrs import frozen

from orchestra.opencode.client import wire

__all__ = ("FoundPrompt", "find_prompt")


@final
@frozen(kw_only=True)
class FoundPrompt:
    """What a session's messages say of a prompt.

    Attributes:
        is_stored: Whether the server has it.
        is_begun: Whether there is an answer to it, or a piece of one.
        others: Ids of the session's other prompts, earlier and later ones.
    """

    is_stored: bool
    is_begun: bool
    others: frozenset[str]


def find_prompt(messages: Iterable[wire.Message], prompt_id: str) -> FoundPrompt:
    """Look for a prompt.

    Args:
        messages: All messages of its session.
        prompt_id: Its id.
    """
    prompts: set[str] = set()
    is_begun = False
    for message in messages:
        if message.info.role != "user":
            is_begun |= message.info.parent_id == prompt_id
        elif any(part.type == "text" and not part.synthetic for part in message.parts):
            prompts.add(message.info.id)  # what the server tells itself is synthetic
    return FoundPrompt(
        is_stored=prompt_id in prompts,
        is_begun=is_begun,
        others=frozenset(prompts - {prompt_id}),
    )
