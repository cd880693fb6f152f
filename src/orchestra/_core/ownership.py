"""Who owns whom: a tree whose parts are ended exactly once, and children before their owner."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final, final

__all__ = ("Node", "NodeState")


class NodeState(Enum):
    """How far the end of a node is."""

    LIVE = "live"
    """Nobody ends it; it may own more."""
    CLAIMED = "claimed"
    """Somebody has the duty to end it, and nobody else has; it owns nothing new."""
    ENDED = "ended"
    """It is over, and so is everything below it."""


@final
class Node:
    """One part of the tree.

    Attributes:
        owner: Its owner; None: it is a root.
        children: What it owns and what has not ended, the oldest first.
        state: How far its end is.

    Args:
        owner: What owns it.

    Raises:
        ValueError: The owner is being ended, or has ended.
    """

    __slots__ = ("children", "owner", "state")

    def __init__(self, owner: Node | None) -> None:
        self.owner = owner
        self.children: Final[dict[Node, None]] = {}
        self.state: NodeState = NodeState.LIVE
        if owner is not None:
            if owner.state is not NodeState.LIVE:
                raise ValueError(f"the owner is {owner.state.value}")
            owner.children[self] = None

    def walk(self) -> Iterator[Node]:
        """Everything in this subtree, an owner before its children."""
        nodes = [self]
        while nodes:
            node = nodes.pop()
            yield node
            nodes.extend(reversed(node.children))

    def owners(self) -> Iterator[Node]:
        """Its owner, that one's owner, and so on."""
        node = self.owner
        while node is not None:
            yield node
            node = node.owner

    def claim(self) -> tuple[Node, ...]:
        """Take the duty of ending what is live in this subtree; children come before their owner.

        What is claimed is the claimant's alone. What somebody else has claimed is not in it, and
        is to be waited for before its owner is ended.
        """
        claimed = [node for node in self.walk() if node.state is NodeState.LIVE]
        for node in claimed:
            node.state = NodeState.CLAIMED
        return tuple(reversed(claimed))

    def end(self) -> None:
        """Say that it is over.

        Raises:
            ValueError: Nobody has claimed it, it has ended, or it still owns something.
        """
        if self.state is not NodeState.CLAIMED or self.children:
            raise ValueError(
                f"a {self.state.value} node with {len(self.children)} children cannot end"
            )
        self._leave()

    def drop(self) -> None:
        """Take a live node out as over; its children become its owner's.

        Raises:
            ValueError: It is not live.
        """
        if self.state is not NodeState.LIVE:
            raise ValueError(f"a {self.state.value} node cannot be dropped")
        for child in self.children:
            child.owner = self.owner
            if self.owner is not None:
                self.owner.children[child] = None
        self.children.clear()
        self._leave()

    def _leave(self) -> None:
        self.state = NodeState.ENDED
        if self.owner is not None:
            del self.owner.children[self]
            self.owner = None
