"""What a store returns: entries, changes, commits, audit records, leases, figures."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen, validators

__all__ = (
    "AuditRecord",
    "Change",
    "Commit",
    "Contention",
    "Difference",
    "Entry",
    "KeyDigest",
    "StoreLease",
    "StoreStatistics",
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
