"""What a store returns, and what its engine is handed: records, and the footprint of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from attrs import field, frozen, validators

__all__ = (
    "AuditRecord",
    "Change",
    "Commit",
    "Contention",
    "Difference",
    "Entry",
    "Footprint",
    "KeyDigest",
    "Link",
    "Logged",
    "StoreLease",
    "StoreStatistics",
    "Stored",
    "Verification",
)


@frozen(kw_only=True)
class Entry:
    """A key's value at some revision, and where it comes from.

    Attributes:
        key: The key.
        value: The value.
        revision: The revision that wrote this value.
        created: The revision that made the key.
        version: How often the key was written since, 1 for the first time.
    """

    key: str
    value: Any
    revision: int
    created: int
    version: int


@frozen(kw_only=True)
class Change:
    """What a commit did to one key.

    Attributes:
        key: The key.
        value: The new value; None when it was deleted.
        is_deleted: Whether it was deleted.
        previous: The revision of the value before; 0 when there was none.
    """

    key: str
    value: Any
    is_deleted: bool = False
    previous: int = 0


@frozen(kw_only=True)
class Commit:
    """One commit, whole, as a watch delivers it.

    Attributes:
        revision: The revision that it made.
        time: When, in seconds since the epoch; never less than that of the commit before.
        author: Who, as the transaction said.
        changes: What it did to the keys that are watched; never empty.
    """

    revision: int
    time: float
    author: str
    changes: tuple[Change, ...]


@frozen(kw_only=True)
class KeyDigest:
    """What an audit record keeps of one change.

    Attributes:
        key: The key.
        digest: SHA-256 of the stored value, in hex; None when the key was deleted.
        previous: The revision of the value before; 0 when there was none.
    """

    key: str
    digest: str | None
    previous: int


@frozen(kw_only=True)
class AuditRecord:
    """One commit in the journal. Records are chained: a digest covers all that came before.

    Attributes:
        revision: The revision that the commit made.
        time: When, in seconds since the epoch.
        author: Who, as the transaction said.
        transaction_id: The transaction.
        changes: The keys, with digests in the place of values.
        digest: SHA-256 over the digest before and this record, in hex.
    """

    revision: int
    time: float
    author: str
    transaction_id: str
    changes: tuple[KeyDigest, ...]
    digest: str


@frozen(kw_only=True)
class Difference:
    """How one key differs between two revisions.

    Attributes:
        key: The key.
        before: The entry at the first revision; None when the key was not there.
        after: The entry at the second revision; None when it is not there.
    """

    key: str
    before: Entry | None
    after: Entry | None


@frozen(kw_only=True)
class Verification:
    """What came of checking the history; true when it is intact.

    Attributes:
        revision: The last revision.
        digest: The digest of the last record, in hex: keep it elsewhere, and pass it to a later
            ``verify(anchors=...)``, to find out whether records were cut off or all rewritten.
        fault: What is wrong first, in one sentence; empty when nothing is.
        fault_revision: The revision that it is wrong with; None when nothing is.
    """

    revision: int
    digest: str
    fault: str = ""
    fault_revision: int | None = None

    def __bool__(self) -> bool:
        return not self.fault


@frozen(kw_only=True)
class StoreLease:
    """The right to do something alone, until it is given back or not renewed in time.

    Attributes:
        name: What the lease is for.
        owner: Who holds it.
        fence: The fencing number: greater than that of every earlier holder of this lease.
    """

    name: str
    owner: str
    fence: int


@frozen(kw_only=True)
class StoreStatistics:
    """What this object (not other processes) has done in its namespace, and what it holds.

    Attributes:
        revision: The newest revision that this object has seen.
        pins: Snapshots and transactions under way.
        watches: Watches that are open.
        commits: Transactions committed.
        conflicts: Transactions refused because of a conflict.
        ambiguous: Commits whose outcome was not known at first.
        merges: Conflicts that a merge function resolved.
        tickets: Times that `MVCCStore.transact` waited in line for a contended key.
        groups: Times that the engine wrote to its disk; less than ``commits`` when writers share.
    """

    revision: int = 0
    pins: int = 0
    watches: int = 0
    commits: int = 0
    conflicts: int = 0
    ambiguous: int = 0
    merges: int = 0
    tickets: int = 0
    groups: int = 0


@frozen(kw_only=True)
class Contention:
    """How `MVCCStore.transact` behaves when it meets others.

    Attributes:
        attempts: How often the function is run before the conflict is raised.
        delay: Seconds of the first back-off at most; doubled each time (full jitter).
        maximum_delay: Seconds of any back-off at most.
        ticket_after: After so many conflicts it waits in line instead.
    """

    attempts: int = field(default=32, validator=validators.ge(1))
    delay: float = field(default=0.001, validator=validators.ge(0))
    maximum_delay: float = field(default=0.05, validator=validators.ge(0))
    ticket_after: int = field(default=2, validator=validators.ge(1))


# --- between a store and its engine -------------------------------------------------------------


class Stored(NamedTuple):
    """One version of a key as an engine keeps it. ``body`` is opaque; None: the key was deleted by this version."""

    revision: int
    created: int
    version: int
    previous: int
    body: object | None


class Logged(NamedTuple):
    """One commit as an engine returns it, with the versions that it made by key."""

    revision: int
    time: float
    author: str
    id: str
    changes: dict[str, Stored]


class Footprint:
    """What a transaction has read and wants to write, and when that is in conflict.

    Validation is backward and optimistic (H. T. Kung and J. T. Robinson, "On optimistic methods for
    concurrency control", 1981): what was read is compared with what was written since.

    Attributes:
        read_revision: The revision that it read; None: nothing.
        keys: Keys that it read.
        prefixes: Prefixes that it ranged over.
        writes: The bodies to write; None deletes.
        validates_reads: False for snapshot isolation.
    """

    __slots__ = ("keys", "prefixes", "read_revision", "validates_reads", "writes")

    def __init__(self, *, validates_reads: bool = True) -> None:
        self.read_revision: int | None = None
        self.keys: set[str] = set()
        self.prefixes: list[str] = []
        self.writes: dict[str, object | None] = {}
        self.validates_reads: bool = validates_reads

    def conflicts(
        self,
        revision_of: Callable[[str], int],
        changed_since: Callable[[int], Iterable[str]],
    ) -> list[str]:
        """Return what changed under the transaction, sorted; empty when it may be committed.

        Args:
            revision_of: The revision that last wrote or deleted a key; 0 for one unknown.
            changed_since: The keys written after a revision; only asked for prefix reads.
        """
        begin = self.read_revision
        if begin is None:
            return []
        keys = self.keys | self.writes.keys() if self.validates_reads else self.writes.keys()
        found = {key for key in keys if revision_of(key) > begin}
        if self.prefixes and self.validates_reads:
            prefixes = tuple(self.prefixes)
            found.update(key for key in changed_since(begin) if key.startswith(prefixes))
        return sorted(found)

    def __repr__(self) -> str:
        return (
            f"<Footprint read_revision={self.read_revision} keys={len(self.keys)} "
            f"prefixes={len(self.prefixes)} writes={len(self.writes)}>"
        )


class Link(NamedTuple):
    """One audit record as an engine keeps it. ``changes`` is its changes as text."""

    revision: int
    time: float
    author: str
    id: str
    changes: str
    digest: bytes
