"""The contract of stores: what `orchestra.abc.MVCCStore` demands.

A store maps keys (text) to values and keeps their history. Each commit makes one new *revision*
of the store; a snapshot is the store at one revision, and stays so for ever. A transaction reads a
snapshot, collects what it writes, and is committed as a whole, or not at all when somebody else
has changed what it read.

The words are etcd's (revision, compaction, watch, lease) and FoundationDB's (transaction, read
version, conflict, transactions that are run again, and the third outcome of a commit: unknown).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from orchestra.revisions import (
    AuditRecord,
    Commit,
    Difference,
    Entry,
    StoreLease,
    StoreStatistics,
    Verification,
)

__all__ = ("Codec", "MVCCStore", "Merge", "Reader", "Snapshot", "Transaction")

T = TypeVar("T")
P = ParamSpec("P")

Merge: TypeAlias = Callable[[str, Any, Any, Any], Any]
"""``merge(key, base, mine, theirs)`` returns the value that holds both changes.

``base`` is what the transaction read, ``mine`` what it wrote, ``theirs`` what somebody else has
committed meanwhile; None stands for a key that is not there. It may raise `ConflictError` itself.
"""


class Codec(ABC):
    """Turns values into bytes and back.

    A store asks it on the event loop's thread, so it must not block. What it is given must not be
    changed, and what it returns must not depend on what it is given later.
    """

    @property
    def version(self) -> int:
        """The version of the values' form; stored beside each value."""
        return 1

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """Return the bytes to store.

        Raises:
            TypeError: The codec does not take such a value.
        """

    @abstractmethod
    def decode(self, data: bytes, version: int) -> Any:
        """Return the value of stored bytes.

        Args:
            data: What `encode` returned.
            version: The codec's ``version`` at that time; not greater than it is now.

        Raises:
            SchemaError: The bytes are not of that form.
        """


# --- reading and writing ------------------------------------------------------------------------


class Reader(ABC):
    """Reads the store as it is at one revision. Every read is a cancellation point.

    An engine that has the data at hand need not yield to other tasks at each read.
    """

    @abstractmethod
    async def entry(self, key: str) -> Entry | None:
        """Return a key's value with its revisions; None when the key is not there.

        Args:
            key: Not empty; does not begin with a control character.
        """

    async def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value.

        Args:
            key: As for `entry`.
            default: Returned when the key is not there.
        """
        found = await self.entry(key)
        return default if found is None else found.value

    @abstractmethod
    async def range(self, prefix: str = "") -> dict[str, Any]:
        """Return every key that begins with the prefix, with its value, in the keys' order.

        Args:
            prefix: Empty for all keys.
        """


class Snapshot(Reader):
    """The store at one revision; comes from `MVCCStore.snapshot` only."""

    @property
    @abstractmethod
    def revision(self) -> int:
        """The revision."""


class Transaction(Reader):
    """Reads a snapshot and collects writes; comes from `MVCCStore.transaction` only.

    The snapshot is taken by the first read. Reads see the transaction's own writes.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Identifies this transaction, for `MVCCStore.outcome`."""

    @property
    @abstractmethod
    def read_revision(self) -> int | None:
        """The revision that it reads; None before the first read."""

    @property
    @abstractmethod
    def revision(self) -> int | None:
        """The revision that its commit made; None when it has made none (yet)."""

    @abstractmethod
    def put(self, key: str, value: Any) -> None:
        """Write a value when the transaction is committed.

        The value is encoded at once, so changing it later changes nothing.

        Args:
            key: As for `Reader.entry`.
            value: What the key's codec takes.

        Raises:
            TypeError: The codec does not take it.
            ValueError: It is not a key.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a key when the transaction is committed; one that is not there is no error.

        Args:
            key: As for `Reader.entry`.

        Raises:
            ValueError: It is not a key.
        """

    @abstractmethod
    async def require(self, lease: StoreLease) -> None:
        """Let this transaction be committed only while the lease is valid. A cancellation point.

        Args:
            lease: From `MVCCStore.lease` of the same namespace.

        Raises:
            LeaseLostError: It is not.
        """


class MVCCStore(ABC):
    """One namespace of a store; `orchestra.testing.check_store` proves an implementation.

    Entering the object that was constructed opens the store; leaving it closes it, and what comes
    from `namespace` works in between. An implementation must see to all of this:

    * A commit is atomic and makes exactly one revision, the last one plus 1; a transaction that
      changes nothing makes none. Revisions of different namespaces have nothing to do with each
      other, and neither do their conflicts.
    * Transactions are serializable: one is refused (`ConflictError`) when a key that it read or
      wrote, or any key that begins with a prefix that it ranged over, was changed after its
      snapshot. With ``snapshot_isolation`` only the keys that it wrote count, and write skew is
      possible. A transaction that writes without having read anything conflicts with nobody.
    * A commit that has returned is visible to everything that begins afterwards, in this process
      and in others.
    * Nothing that a caller does to a value changes what is stored.
    * An async method is a checkpoint. A commit that is cancelled before the engine has begun with
      it is not committed. From then on it is seen through, within bounds: the cancellation is
      delivered afterwards, and `Transaction.revision` tells. Whoever cannot know asks `outcome`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The namespace; empty for the default one."""

    @abstractmethod
    def namespace(self, name: str) -> MVCCStore:
        """Return another namespace of the same store; it exists once something is written.

        Args:
            name: Any text.
        """

    @abstractmethod
    async def namespaces(self) -> tuple[str, ...]:
        """Return the namespaces that have been written to, sorted."""

    @abstractmethod
    async def revision(self) -> int:
        """Return the current revision; 0 before the first commit."""

    @abstractmethod
    def transaction(
        self,
        *,
        author: str = "",
        snapshot_isolation: bool = False,
        transaction_id: str | None = None,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Commit what the block writes, at its end; when the block raises, nothing is written.

        ::

            async with store.transaction(author="planner") as tx:
                plan = await tx.get("plan")
                tx.put("plan", plan + ["test it"])

        Args:
            author: Kept in the history.
            snapshot_isolation: Only writes are validated, not reads.
            transaction_id: Identifies the transaction; None: a new one. Committing under an id that
                has been committed changes nothing and succeeds.

        Raises:
            ConflictError: At the end of the block; nothing was committed.
            AmbiguousCommitError: At the end of the block; see `outcome`.
            StoreError: Nothing was committed, for the reason that it gives.
        """

    @abstractmethod
    def snapshot(self, revision: int | None = None) -> AbstractAsyncContextManager[Snapshot]:
        """Read one revision for the length of a block; `compact` keeps it meanwhile.

        Args:
            revision: None for the current one.

        Raises:
            CompactedError: It is not kept any more (on entering).
            ValueError: It does not exist yet (on entering).
        """

    @abstractmethod
    async def transact(
        self,
        fn: Callable[Concatenate[Transaction, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a function in a transaction, again and again until it is committed.

        After a conflict it backs off with jitter; after ``Contention.ticket_after`` conflicts it
        waits in line for the contended key. An unknown outcome is cleared up first. The function
        may run several times, so what it does besides reading and writing must bear that. See
        `using` for an author, a merge function and snapshot isolation.

        Args:
            fn: Called with a fresh transaction and the arguments.
            args: Passed on.
            kwargs: Passed on.

        Returns:
            What the function returned in the run that was committed.

        Raises:
            ConflictError: Every attempt met a conflict.
            AmbiguousCommitError: The outcome cannot be found out either.
        """

    @abstractmethod
    def using(
        self,
        *,
        author: str = "",
        merge: Merge | None = None,
        snapshot_isolation: bool = False,
    ) -> MVCCStore:
        """Return the same namespace with other defaults for `transact`, `put` and `put_if`.

        Args:
            author: Kept in the history.
            merge: Asked about each key that the transaction both read and wrote and that somebody
                else changed, in the place of running the function again.
            snapshot_isolation: Only writes are validated, not reads.
        """

    @abstractmethod
    async def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value at the current revision.

        Args:
            key: As for `Reader.entry`.
            default: Returned when the key is not there.
        """

    @abstractmethod
    async def put(self, key: str, value: Any) -> int:
        """Write a value, whatever is there, and return the revision.

        Args:
            key: As for `Reader.entry`.
            value: What the key's codec takes.
        """

    @abstractmethod
    async def put_if(self, key: str, value: Any, *, revision: int) -> int:
        """Write a value if the key has not been changed, and return the new revision.

        Args:
            key: As for `Reader.entry`.
            value: What the key's codec takes.
            revision: That of the entry it replaces; 0: the key must not be there.

        Raises:
            ConflictError: The key has another revision.
        """

    @abstractmethod
    def watch(
        self, prefix: str = "", *, since: int | None = None, batch: int = 100
    ) -> AbstractAsyncContextManager[AsyncIterator[Commit]]:
        """Iterate over commits, also those of other processes, as they are made.

        In order, none left out, each one whole. There is no buffer that could overflow: the store
        itself is the buffer, of which ``batch`` commits at a time are read ahead. A watch does not
        hold up `compact`; when that overtakes a slow one, the iterator raises `CompactedError`.

        ::

            async with store.snapshot() as snap:
                tasks = await snap.range("task/")
            async with store.watch("task/", since=snap.revision) as commits:
                async for commit in commits:
                    ...

        Args:
            prefix: Only changes of keys that begin with it.
            since: The last revision that is already known; None: the current one.
            batch: How many commits are read ahead at most.

        Raises:
            CompactedError: Commits after ``since`` are not kept any more (on iterating).
            ValueError: ``since`` does not exist yet (on entering), or ``batch`` is less than 1.
        """

    @abstractmethod
    async def outcome(self, transaction_id: str) -> int | None:
        """Find out what became of a transaction, and settle it.

        Args:
            transaction_id: `Transaction.id`.

        Returns:
            The revision that it made, or None when it was not committed and will never be, since the
            store refuses the id from now on.
        """

    @abstractmethod
    async def compact(self, revision: int | None = None) -> int:
        """Forget what was overwritten before a revision, except for what is being read.

        The audit records stay.

        Args:
            revision: The oldest one to keep; None: the current one.

        Returns:
            The oldest revision that can be read now, which is not newer than any snapshot or
            transaction under way, here or in another process (whose reads may be known with a lag).

        Raises:
            ValueError: The revision does not exist yet.
        """

    @abstractmethod
    async def drop(self) -> bool:
        """Forget the namespace with its whole history, audit records included. A checkpoint.

        For what nobody will ask about again: `compact` keeps the audit records, this keeps nothing,
        and gives the room back. The name can be used again, from revision 1.

        Returns:
            Whether it was done. It is not while somebody reads the namespace, here or in another
            process that has it open.
        """

    @abstractmethod
    def lease(
        self, name: str, *, owner: str = "", lifetime: float = 30.0
    ) -> AbstractAsyncContextManager[StoreLease]:
        """Wait for the lease and hold it for the length of a block, renewing it meanwhile.

        When the holder dies, the next one gets it after ``lifetime`` seconds without a renewal, as
        measured by the one that waits; wall clocks are not compared. What is done under a lease is
        protected by `Transaction.require`, or by the fencing number.

        Args:
            name: What the lease is for.
            owner: Who takes it, for people.
            lifetime: Seconds that it outlives its last renewal; it is renewed three times in that.

        Raises:
            LeaseLostError: It was lost while the block ran; the block was cancelled.
            ValueError: ``lifetime`` is not positive.
        """

    @abstractmethod
    async def history(self, key: str) -> Sequence[Entry | None]:
        """Return the versions of a key that are kept, oldest first; None where it was deleted.

        Args:
            key: As for `Reader.entry`.
        """

    @abstractmethod
    async def journal(self, after: int = 0, *, limit: int = 1000) -> Sequence[AuditRecord]:
        """Return audit records in order.

        Args:
            after: Only those of later revisions.
            limit: How many at most.
        """

    @abstractmethod
    async def diff(self, first: int, second: int) -> Sequence[Difference]:
        """Return the keys whose values differ between two revisions, in the keys' order.

        Args:
            first: A revision that is kept.
            second: One that is not older.

        Raises:
            CompactedError: ``first`` is not kept any more.
            ValueError: ``second`` is older than ``first``, or does not exist yet.
        """

    @abstractmethod
    async def verify(self, *, anchors: Mapping[int, str] | None = None) -> Verification:
        """Check every audit record, and every stored value against them.

        Args:
            anchors: Digests noted earlier, by revision.
        """

    @abstractmethod
    def statistics(self) -> StoreStatistics:
        """Count what this object has done in its namespace."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...
