"""What an engine does for `EngineStore`: bytes in namespaces, pins, one commit at a time.

An engine knows nothing of values, transactions that are run again, leases or iterating over a
watch; those are made of these methods, once for all engines. Whoever brings a new engine derives
from `StoreEngine` and proves the store on top of it with `orchestra.testing.check_store`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

from orchestra.revisions import Footprint, Link, Logged, Stored, Verification

__all__ = ("Body", "Pin", "StoreEngine")


class Body(NamedTuple):
    """What an engine stores as a version's body: a value's bytes and the version of their form."""

    schema: int
    data: bytes


@final
class Pin:
    """Keeps one revision from being compacted. ``revision`` is None until the first read."""

    __slots__ = ("namespace", "revision")

    def __init__(self, namespace: str) -> None:
        self.namespace: str = namespace
        self.revision: int | None = None

    def __repr__(self) -> str:
        return f"<Pin {self.namespace!r} revision={self.revision}>"


class StoreEngine(ABC):
    """The part of a store that is not the same for every engine.

    Every async method is a cancellation point. A method that takes a pin without a revision first
    gives it the current one.
    """

    @property
    def groups(self) -> int:
        """How often the engine has written to its disk."""
        return 0

    @abstractmethod
    async def open(self) -> None:
        """Get ready. Cleans up after itself when it fails or is cancelled."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what has been handed in and let go of everything; called in a shield."""

    @abstractmethod
    def pin(self, namespace: str) -> Pin:
        """Return a new pin. Never blocks."""

    @abstractmethod
    def unpin(self, pin: Pin) -> None:
        """Give a pin back. Never blocks, never fails."""

    @abstractmethod
    async def settle(self, pin: Pin, revision: int | None) -> int:
        """Give the pin a revision, the current one for None, and return it.

        Raises:
            CompactedError: The revision is not kept any more.
            ValueError: It does not exist yet.
        """

    @abstractmethod
    async def read(self, pin: Pin, key: str) -> Stored | None:
        """Return a key's version at the pin; None when the key is not there."""

    @abstractmethod
    async def scan(self, pin: Pin, prefix: str) -> Sequence[tuple[str, Stored]]:
        """Return the versions at the pin of all keys that begin with the prefix, in order."""

    @abstractmethod
    async def commit(
        self,
        namespace: str,
        footprint: Footprint,
        *,
        author: str,
        transaction_id: str,
        is_new: bool,
        note: Callable[[int], object],
    ) -> int:
        """Validate and apply; return the revision, or 0 when nothing changed. A checkpoint.

        An id that has been committed is not applied again: its revision is returned. Once the
        engine has begun, it is not disturbed by cancellation, which is delivered afterwards.

        Args:
            namespace: The namespace.
            footprint: What was read and what is to be written.
            author: Who.
            transaction_id: The id.
            is_new: Whether the id has never been handed in before.
            note: Called with the revision as soon as it is known, also when the wait for it has
                been cancelled.

        Raises:
            ConflictError: What it relies on has changed, or the id has been settled by `outcome`.
            AmbiguousCommitError: It is not known whether it was applied.
            StoreError: It was not applied.
        """

    @abstractmethod
    async def outcome(self, namespace: str, transaction_id: str) -> int | None:
        """Return the id's revision; None when it was not committed, and refuse it from now on."""

    @abstractmethod
    async def log(self, namespace: str, after: int, limit: int) -> Sequence[Logged]:
        """Return commits after a revision, with bodies.

        Raises:
            CompactedError: Some of them are not kept any more.
            ValueError: The revision does not exist yet.
        """

    @abstractmethod
    async def wait(self, namespace: str, after: int) -> None:
        """Wait until the namespace is past a revision."""

    @abstractmethod
    async def compact(self, namespace: str, revision: int | None) -> int:
        """Forget what was overwritten before a revision and is not pinned; return the new floor.

        Raises:
            ValueError: The revision does not exist yet.
        """

    @abstractmethod
    async def drop(self, namespace: str) -> bool:
        """Forget a namespace as if it had never been, unless somebody reads it; whether it was."""

    @abstractmethod
    async def versions(self, namespace: str, key: str) -> Sequence[Stored]:
        """Return every version of a key that is kept, oldest first."""

    @abstractmethod
    async def links(self, namespace: str, after: int, limit: int) -> Sequence[Link]:
        """Return audit records after a revision."""

    @abstractmethod
    async def verify(self, namespace: str, anchors: Mapping[int, str]) -> Verification:
        """Check the chain of records, and the bodies against it."""

    @abstractmethod
    async def namespaces(self) -> Sequence[str]:
        """Return the namespaces that have been written to."""
