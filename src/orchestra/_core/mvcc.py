"""The rules of multi-version concurrency: versions, commits, compaction.

`VersionedMap` is one namespace in memory: for each key the list of its versions, as in etcd's mvcc
package, and the log of commits that watches read and prefix reads are checked against. When a
transaction conflicts is said by `orchestra.revisions.Footprint`, for every engine.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import final

from orchestra.errors import CompactedError, ConflictError
from orchestra.revisions import Footprint, Logged, Stored

__all__ = (
    "VersionedMap",
    "backoff",
    "prefix_end",
)


def prefix_end(prefix: str) -> str | None:
    """Return the least text greater than all that begin with the prefix; None: there is none.

    Args:
        prefix: Any text.
    """
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            # The surrogates are no characters, and SQLite could not store them.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None


def backoff(conflicts: int, *, delay: float, maximum: float, random: float) -> float:
    """Return how long to wait before the next attempt, in seconds: full jitter.

    The rule is from M. Brooker, "Exponential backoff and jitter", 2015.

    Args:
        conflicts: How many there have been, at least 1.
        delay: The longest first wait.
        maximum: The longest wait.
        random: From 0.0 to 1.0.
    """
    return random * min(maximum, delay * 2.0 ** min(conflicts - 1, 32))


@final
class VersionedMap:
    """One namespace, in memory. No clock, no locks: whoever owns it calls one method at a time."""

    __slots__ = (
        "_fresh",
        "_histories",
        "_is_trimmed",
        "_keys",
        "_log",
        "_time",
        "floor",
        "revision",
    )

    def __init__(self) -> None:
        self.revision = 0
        self.floor = 0
        self._histories: dict[str, list[Stored]] = {}
        self._keys: list[str] = []
        self._fresh: list[str] = []
        self._is_trimmed = False
        self._log: list[Logged] = []
        self._time = 0.0

    def __len__(self) -> int:
        """How many keys have a version that is kept."""
        return len(self._histories)

    def __repr__(self) -> str:
        return f"<VersionedMap revision={self.revision} floor={self.floor} keys={len(self)}>"

    def check(self, revision: int) -> None:
        """Refuse a revision that cannot be read.

        Raises:
            CompactedError: It is not kept any more.
            ValueError: It does not exist yet.
        """
        if revision < self.floor:
            raise CompactedError(revision, self.floor)
        if revision > self.revision:
            raise ValueError(
                f"revision {revision} does not exist yet, the current one is {self.revision}"
            )

    def read(self, key: str, revision: int) -> Stored | None:
        """Return the version of a key at a revision that is kept; None: it was not there.

        Args:
            key: The key.
            revision: From ``floor`` to ``revision``.
        """
        versions = self._histories.get(key)
        if versions is None:
            return None
        found = versions[-1]
        if found.revision > revision:
            at = bisect_left(versions, revision + 1, key=_revision)
            if at == 0:
                return None
            found = versions[at - 1]
        return None if found.body is None else found

    def scan(self, prefix: str, revision: int) -> list[tuple[str, Stored]]:
        """Return what is below a prefix at a revision, in the keys' order.

        Args:
            prefix: Any text.
            revision: From ``floor`` to ``revision``.
        """
        keys = self._sorted()
        first = bisect_left(keys, prefix)
        end = prefix_end(prefix)
        last = len(keys) if end is None else bisect_left(keys, end)
        found = []
        for key in keys[first:last]:
            stored = self.read(key, revision)
            if stored is not None:
                found.append((key, stored))
        return found

    def versions(self, key: str) -> Sequence[Stored]:
        """Return every version of a key that is kept, oldest first."""
        return tuple(self._histories.get(key, ()))

    def commit(self, footprint: Footprint, *, now: float, author: str = "", id: str = "") -> int:  # noqa: A002  (the name that the log has)
        """Validate a transaction and apply it; return the revision, or 0 when nothing changed.

        Args:
            footprint: What it read and writes.
            now: Seconds since the epoch; a clock that went back is not believed.
            author: Who.
            id: The transaction's id.

        Raises:
            ConflictError: What it relies on has changed; nothing was applied.
        """
        histories = self._histories
        begin = footprint.read_revision
        if begin is not None and begin != self.revision:
            keys = footprint.conflicts(self._revision_of, self._changed_since)
            if keys:
                raise ConflictError(tuple(keys), begin, self.revision)
        revision = self.revision + 1
        changes: dict[str, Stored] = {}
        for key, body in footprint.writes.items():
            versions = histories.get(key)
            if versions is None:
                if body is None:
                    continue
                self._fresh.append(key)
                changes[key] = stored = Stored(revision, revision, 1, 0, body)
                histories[key] = [stored]
                continue
            last = versions[-1]
            if body is None:
                if last.body is None:
                    continue
                stored = Stored(revision, 0, 0, last.revision, None)
            elif last.body is None:
                stored = Stored(revision, revision, 1, 0, body)
            else:
                stored = Stored(revision, last.created, last.version + 1, last.revision, body)
            changes[key] = stored
            versions.append(stored)
        if not changes:
            return 0
        self._time = now = max(now, self._time)
        self._log.append(Logged(revision, now, author, id, changes))
        self.revision = revision
        return revision

    def log(self, after: int, limit: int | None = None) -> Sequence[Logged]:
        """Return the commits after a revision, oldest first.

        Args:
            after: From ``floor`` to ``revision``.
            limit: How many at most.
        """
        first = after - self.floor
        return self._log[first : None if limit is None else first + limit]

    def compact(self, revision: int) -> None:
        """Forget what was overwritten or deleted up to a revision, and the log up to it.

        Costs as much as there are changes to forget, whatever the number of keys.

        Args:
            revision: From ``floor`` to ``revision``.
        """
        self.check(revision)
        forgotten = self.log(self.floor, revision - self.floor)
        for key in {key for logged in forgotten for key in logged.changes}:
            versions = self._histories.get(key, [])
            at = bisect_left(versions, revision + 1, key=_revision)
            # The version that is current at the revision stays, unless it says "deleted".
            keep = at - 1 if at and versions[at - 1].body is not None else at
            del versions[:keep]
            if not versions and key in self._histories:
                del self._histories[key]
                self._is_trimmed = True
        del self._log[: revision - self.floor]
        self.floor = revision

    def _revision_of(self, key: str) -> int:
        versions = self._histories.get(key)
        return versions[-1].revision if versions else 0

    def _changed_since(self, revision: int) -> Iterator[str]:
        for logged in self.log(revision):
            yield from logged.changes

    def _sorted(self) -> list[str]:
        """Bring the list of keys up to date: writers do not pay for order, readers do."""
        if self._is_trimmed:
            self._keys = sorted(self._histories)
            self._fresh.clear()
            self._is_trimmed = False
        elif len(self._fresh) > 32:
            self._keys += self._fresh
            self._keys.sort()  # the old keys are one run, so this is a merge
            self._fresh.clear()
        else:
            for key in self._fresh:
                insort(self._keys, key)
            self._fresh.clear()
        return self._keys


def _revision(stored: Stored) -> int:
    return stored.revision
