"""Which session descends from which: of ours, and of those that agents have started themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import final

from attrs import field, frozen

from orchestra.events import SubagentStarted
from orchestra.opencode.client import wire

__all__ = ("Lineage",)

_REMEMBERED = 20_000


@frozen(kw_only=True)
class _Place:
    """Where a session stands."""

    root: str
    depth: int = 0
    agent: str = ""
    limit: int | None = None
    metadata: Mapping[str, str] = field(factory=dict)


@final
class Lineage:
    """Knows of each session from which one of ours it descends, and how deep it is below that.

    What is known of a session outlives it for a while, so that it can be asked about afterwards.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._parents: set[str] = set()
        self._refused: set[str] = set()

    def __repr__(self) -> str:
        return f"<Lineage of {len(self._places)} sessions>"

    def add_root(
        self, session_id: str, *, agent: str, limit: int | None, metadata: Mapping[str, str]
    ) -> None:
        """Take up a session of ours.

        Args:
            session_id: The server's id of it.
            agent: Whom it talks to.
            limit: How many generations below it may be; None: any number.
            metadata: What it was opened with.
        """
        self._note(
            session_id,
            _Place(root=session_id, agent=agent, limit=limit, metadata=dict(metadata)),
        )

    def adopt(self, info: wire.SessionInfo) -> SubagentStarted | None:
        """Take up a child; what is to be told of it, unless it is known or none of ours.

        Args:
            info: The child, as the server describes it.
        """
        parent = self._places.get(info.parent_id or "")
        if parent is None or info.id in self._places:
            return None
        self._parents.add(info.parent_id or "")
        depth = parent.depth + 1
        is_refused = parent.limit is not None and depth > parent.limit
        self._note(
            info.id,
            _Place(
                root=parent.root,
                depth=depth,
                agent=info.agent or "",
                limit=parent.limit,
                metadata=parent.metadata,
            ),
        )
        if is_refused:
            self._refused.add(info.id)
        return SubagentStarted(
            session_id=parent.root,
            child_id=info.id,
            agent=info.agent or "",
            depth=depth,
            is_refused=is_refused,
        )

    def _note(self, session_id: str, place: _Place) -> None:
        self._places[session_id] = place
        while len(self._places) > _REMEMBERED:
            oldest = next(iter(self._places))
            del self._places[oldest]
            self._refused.discard(oldest)
            self._parents.discard(oldest)

    def has_children(self, session_id: str) -> bool:
        """Whether a session is known to have started others.

        Args:
            session_id: Any session.
        """
        return session_id in self._parents

    def relabel(self, session_id: str, metadata: Mapping[str, str]) -> None:
        """Note that a session of ours has other metadata now.

        Args:
            session_id: The session.
            metadata: What it has.
        """
        place = self._places.get(session_id)
        if place is not None:
            self.add_root(session_id, agent=place.agent, limit=place.limit, metadata=metadata)

    def root(self, session_id: str) -> str | None:
        """Return the session of ours that a session is, or descends from; None: that is unknown.

        Args:
            session_id: Any session.
        """
        place = self._places.get(session_id)
        return None if place is None else place.root

    def agent(self, session_id: str) -> str:
        """Return whom a session talks to; empty when that is unknown.

        Args:
            session_id: Any session.
        """
        place = self._places.get(session_id)
        return "" if place is None else place.agent

    def metadata(self, session_id: str) -> Mapping[str, str]:
        """Return what the root of a session's tree was opened with.

        Args:
            session_id: Any session.
        """
        place = self._places.get(session_id)
        return {} if place is None else place.metadata

    def is_refused(self, session_id: str) -> bool:
        """Whether a session is deeper than it may be.

        Args:
            session_id: Any session.
        """
        return session_id in self._refused

    def roots_of(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return the sessions of ours that these are, or descend from.

        Args:
            session_ids: Any sessions.
        """
        return frozenset(
            place.root for place in map(self._places.get, session_ids) if place is not None
        )
