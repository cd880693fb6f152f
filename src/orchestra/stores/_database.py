"""The rows of a store's file: reading versions, and applying commits.

A version is a row that is written once and never changed; the journal beside it holds digests, and
no bodies. Bodies that are long are kept once, under their digest, however often they are written.
Everything here blocks, and runs in an engine's worker thread.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, final

from orchestra._core.chain import body_digest, genesis, link_digest, read_changes, write_changes
from orchestra._core.mvcc import prefix_end
from orchestra.errors import CompactedError, ConflictError, StoreCorruptError
from orchestra.revisions import Footprint, Link, Logged, Stored
from orchestra.stores._file import StoreFile
from orchestra.stores.engine import Body

__all__ = ("Database", "Request")

_MADE_UP: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]+")

_MAX_KNOWN: Final = 4096
"""Keys whose newest version is remembered while nobody else writes."""

_SPARE_PAGES: Final = 32
"""Empty pages that a file may have."""

_LONG: Final = 512
"""Bodies of more bytes are kept apart from the rows, so that rows stay short."""


class Request(NamedTuple):
    """A commit that an engine asks for."""

    namespace: str
    footprint: Footprint
    author: str
    id: str
    is_new: bool


@final
class Database(StoreFile):
    """One connection to the file, with what is read and written through it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ids: dict[str, int] = {}
        # What the last write transaction has left, which holds until somebody else writes.
        self._heads: dict[str, tuple[int, float, bytes]] = {}
        self._lasts: dict[tuple[int, str], tuple[int, int, int, bool]] = {}
        self._data_version = -1
        self._is_alone = False

    def forget_rows(self) -> None:
        self._ids.clear()
        self._heads.clear()
        self._lasts.clear()
        self._data_version = -1

    # --- reading ---

    def namespace_id(self, name: str) -> int | None:
        """Return the row of a namespace; None when nothing has been written to it."""
        found = self._ids.get(name)
        if found is None:
            row = self.sql.execute("SELECT id FROM namespaces WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            found = self._ids[name] = row[0]
        return found

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have a revision."""
        rows = self.sql.execute(
            "SELECT name FROM namespaces n WHERE EXISTS "
            "(SELECT 1 FROM journal WHERE namespace = n.id) ORDER BY name"
        )
        return [name for (name,) in rows]

    def head(self, name: str) -> tuple[int, float, bytes]:
        """Return revision, time and digest of the last record."""
        row = self.sql.execute(
            "SELECT revision, time, digest FROM journal WHERE namespace = ? "
            "ORDER BY revision DESC LIMIT 1",
            (self.namespace_id(name),),
        ).fetchone()
        return row or (0, 0.0, genesis(name))

    def revision(self, name: str) -> int:
        """Return the current revision."""
        return self.head(name)[0]

    def floor(self, name: str) -> int:
        """Return the oldest revision that can be read."""
        row = self.sql.execute("SELECT floor FROM namespaces WHERE name = ?", (name,)).fetchone()
        return row[0] if row else 0

    def check(self, name: str, revision: int) -> None:
        """Refuse a revision that cannot be read.

        Raises:
            CompactedError: It is not kept any more.
            ValueError: It does not exist yet.
        """
        floor, current = self.floor(name), self.revision(name)
        if revision < floor:
            raise CompactedError(revision, floor)
        if revision > current:
            raise ValueError(
                f"revision {revision} does not exist yet, the current one is {current}"
            )

    def read(self, name: str, key: str, revision: int) -> Stored | None:
        """Return a key's version at a revision."""
        row = self.sql.execute(
            "SELECT revision, created, version, previous, schema, body FROM kept "
            "WHERE namespace = ? AND key = ? AND revision <= ? ORDER BY revision DESC LIMIT 1",
            (self.namespace_id(name), key, revision),
        ).fetchone()
        return None if row is None or row[4] is None else _stored(*row)

    def scan(self, name: str, prefix: str, revision: int) -> list[tuple[str, Stored]]:
        """Return the versions at a revision of all keys below a prefix, in order."""
        end = prefix_end(prefix)
        # SQLite compares a blob as greater than every text, so an empty one stands for no end.
        # With max() it takes the other columns from the row that has the maximum.
        rows = self.sql.execute(
            "SELECT key, max(revision), created, version, previous, schema, body FROM kept "
            "WHERE namespace = ? AND key >= ? AND key < ? AND revision <= ? "
            "GROUP BY key ORDER BY key",
            (self.namespace_id(name), prefix, b"" if end is None else end, revision),
        )
        return [(key, _stored(*row)) for key, *row in rows if row[4] is not None]

    def versions(self, name: str, key: str) -> list[Stored]:
        """Return every version of a key that is kept, oldest first."""
        rows = self.sql.execute(
            "SELECT revision, created, version, previous, schema, body FROM kept "
            "WHERE namespace = ? AND key = ? ORDER BY revision",
            (self.namespace_id(name), key),
        )
        return [_stored(*row) for row in rows]

    def links(self, name: str, after: int, limit: int) -> list[Link]:
        """Return records of the journal."""
        rows = self.sql.execute(
            "SELECT revision, time, author, id, changes, digest FROM journal "
            "WHERE namespace = ? AND revision > ? ORDER BY revision LIMIT ?",
            (self.namespace_id(name), after, limit),
        )
        return [Link(*row) for row in rows]

    def log(self, name: str, after: int, limit: int) -> list[Logged]:
        """Return commits with bodies.

        Raises:
            CompactedError: Some are not kept any more.
            ValueError: ``after`` does not exist yet.
        """
        with self.reading():
            self.check(name, after)
            return [self._logged(name, link) for link in self.links(name, after, limit)]

    def _logged(self, name: str, link: Link) -> Logged:
        changes = {}
        for key, digest, previous in read_changes(link.changes):
            if digest is None:
                changes[key] = Stored(link.revision, 0, 0, previous, None)
                continue
            row = self.sql.execute(
                "SELECT revision, created, version, previous, schema, body FROM kept "
                "WHERE namespace = ? AND key = ? AND revision = ?",
                (self.namespace_id(name), key, link.revision),
            ).fetchone()
            if row is None:
                raise StoreCorruptError(
                    f"{self.path} has lost {key!r} of revision {link.revision}; run verify()"
                )
            changes[key] = _stored(*row)
        return Logged(link.revision, link.time, link.author, link.id, changes)

    def find(self, name: str, transaction: str) -> int | None:
        """Return the revision that a transaction made; None: none.

        Ids that a store has made up are not in the index, since hardly anybody ever asks for one.
        """
        order = "named" if _is_named(transaction) else "NOT named ORDER BY revision DESC"
        row = self.sql.execute(
            f"SELECT revision FROM journal WHERE namespace = ? AND id = ? AND {order} LIMIT 1",  # noqa: S608  (two texts of our own)
            (self.namespace_id(name), transaction),
        ).fetchone()
        return row[0] if row else None

    # --- writing ---

    def commit(
        self, requests: Sequence[Request], show: Callable[[], None]
    ) -> list[int | ConflictError]:
        """Validate and apply requests in one write transaction of the file, in their order.

        Args:
            requests: Commits.
            show: Called at the beginning of the transaction, for what else wants to be written.

        Returns:
            For each its revision, 0 when it changed nothing, or its conflict.
        """
        results: list[int | ConflictError] = []
        self.begin("group")
        try:
            self._look_round()
            show()
            for request in requests:
                try:
                    results.append(self._apply(request))
                except ConflictError as exc:
                    results.append(exc)
            self.commit_all("group")
        except BaseException as exc:
            self.roll_back(exc)
            raise
        self.fault("group: committed")
        return results

    def _look_round(self) -> None:
        """Find out whether another connection has written; inside `writing`, so none does now."""
        (version,) = self.sql.execute("PRAGMA data_version").fetchone()
        self._is_alone = version == self._data_version
        if not self._is_alone:
            self._heads.clear()
            self._lasts.clear()
            self._data_version = version

    def _apply(self, request: Request) -> int:
        name, footprint = request.namespace, request.footprint
        namespace = self._make_namespace(name)
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = self.head(name)
        current, last_time, digest = head
        if not (request.is_new and self._is_alone):
            done = self.find(name, request.id)
            if done is not None:
                return done
            self._check_refused(namespace, request, current)
        begin = footprint.read_revision
        if begin is not None and begin != current:
            keys = footprint.conflicts(
                lambda key: self._last(namespace, key)[0],
                lambda revision: self._changed_since(namespace, revision),
            )
            if keys:
                raise ConflictError(tuple(keys), begin, current)
        revision = current + 1
        changes: list[tuple[str, str | None, int]] = []
        for key, body in footprint.writes.items():
            self._write(namespace, key, revision, body, changes)
        if not changes:
            return 0
        now = max(self.clock(), last_time)
        text = write_changes(changes)
        digest = link_digest(digest, revision, now, request.author, request.id, text)
        named = not request.is_new and _is_named(request.id)
        self.fault("record")
        self.sql.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, revision, now, request.author, request.id, text, digest, named),
        )
        self._heads[name] = (revision, now, digest)
        return revision

    def _check_refused(self, namespace: int, request: Request, current: int) -> None:
        refused = self.sql.execute(
            "SELECT 1 FROM refused WHERE namespace = ? AND id = ?", (namespace, request.id)
        ).fetchone()
        if refused:
            raise ConflictError((), request.footprint.read_revision or 0, current)

    def _write(
        self,
        namespace: int,
        key: str,
        revision: int,
        body: object | None,
        changes: list[tuple[str, str | None, int]],
    ) -> None:
        """Insert one version and note the change, unless it deletes what is not there."""
        previous, created, version, is_there = self._last(namespace, key)
        if not is_there:
            if body is None:
                return
            previous, created, version = 0, revision, 0
        self.fault("version")
        if isinstance(body, Body):
            numbers = (revision, created, version + 1, previous)
            self._lasts[namespace, key] = (revision, created, version + 1, True)
            changes.append((key, self._insert(namespace, key, numbers, body), previous))
        else:
            self.sql.execute(
                "INSERT INTO versions VALUES (?, ?, ?, 0, 0, ?, NULL, NULL, NULL)",
                (namespace, key, revision, previous),
            )
            self._lasts[namespace, key] = (revision, 0, 0, False)
            changes.append((key, None, previous))

    def _insert(
        self, namespace: int, key: str, numbers: tuple[int, int, int, int], body: Body
    ) -> str:
        digest = body_digest(*body)
        inline: bytes | None = body.data
        reference = None
        if len(body.data) > _LONG:
            inline, reference = None, bytes.fromhex(digest)
            self.sql.execute("INSERT OR IGNORE INTO bodies VALUES (?, ?)", (reference, body.data))
            self.fault("body")
        self.sql.execute(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, key, *numbers, body.schema, inline, reference),
        )
        return digest

    def _make_namespace(self, name: str) -> int:
        found = self.namespace_id(name)
        if found is None:
            self.sql.execute("INSERT INTO namespaces (name) VALUES (?)", (name,))
            found = self.namespace_id(name)
        if found is None:
            raise AssertionError("unreachable")
        return found

    def _last(self, namespace: int, key: str) -> tuple[int, int, int, bool]:
        """Return revision, creation, version of a key's newest row, and whether it is a value."""
        known = self._lasts.get((namespace, key))
        if known is None:
            row = self.sql.execute(
                "SELECT revision, created, version, schema IS NOT NULL FROM versions "
                "WHERE namespace = ? AND key = ? ORDER BY revision DESC LIMIT 1",
                (namespace, key),
            ).fetchone()
            known = (row[0], row[1], row[2], bool(row[3])) if row else (0, 0, 0, False)
            if len(self._lasts) >= _MAX_KNOWN:
                self._lasts.clear()
            self._lasts[namespace, key] = known
        return known

    def _changed_since(self, namespace: int, revision: int) -> Iterable[str]:
        rows = self.sql.execute(
            "SELECT changes FROM journal WHERE namespace = ? AND revision > ?",
            (namespace, revision),
        )
        return [change[0] for (text,) in rows for change in read_changes(text)]

    def show(self, name: str, owner: str, revision: int) -> None:
        """Say that an owner reads from a revision on; inside `writing`."""
        self.sql.execute(
            "INSERT OR REPLACE INTO pins VALUES (?, ?, ?)",
            (owner, self._make_namespace(name), revision),
        )

    def shown(self, name: str) -> dict[str, int]:
        """Return who reads a namespace, and from which revision on."""
        rows = self.sql.execute(
            "SELECT owner, revision FROM pins WHERE namespace = ?", (self.namespace_id(name),)
        )
        return dict(rows.fetchall())

    def forget(self, owner: str) -> None:
        """Forget an owner who is gone; inside `writing`."""
        self.sql.execute("DELETE FROM pins WHERE owner = ?", (owner,))

    def outcome(self, name: str, transaction: str) -> int | None:
        """Return a transaction's revision; None when there is none, and never will be."""
        with self.writing("outcome"):
            self._data_version = -1  # from now on there may be an id to refuse
            namespace = self._make_namespace(name)
            found = self.find(name, transaction)
            if found is None:
                self.sql.execute(
                    "INSERT OR IGNORE INTO refused VALUES (?, ?)", (namespace, transaction)
                )
        return found

    def compact(self, name: str, limit: int) -> int:
        """Forget what was overwritten up to a revision; inside `writing`.

        Costs as much as there are changes to forget, whatever the number of keys.

        Returns:
            The new floor.
        """
        floor = self.floor(name)
        if limit <= floor:
            return floor
        self._lasts.clear()
        namespace, sql = self._make_namespace(name), self.sql
        keys = {
            key
            for link in self.links(name, floor, limit - floor)
            for key, _, _ in read_changes(link.changes)
        }
        digests: set[bytes] = set()
        for key in keys:
            rows = sql.execute(
                "DELETE FROM versions WHERE namespace = ? AND key = ? AND revision < "
                "(SELECT max(revision) FROM versions "
                "WHERE namespace = ? AND key = ? AND revision <= ?) RETURNING digest",
                (namespace, key, namespace, key, limit),
            )
            digests.update(digest for (digest,) in rows if digest is not None)
            sql.execute(
                "DELETE FROM versions WHERE namespace = ? AND key = ? AND revision <= ? "
                "AND schema IS NULL",
                (namespace, key, limit),
            )
        self.fault("forget")
        for digest in digests:
            sql.execute(
                "DELETE FROM bodies WHERE digest = ? AND NOT EXISTS "
                "(SELECT 1 FROM versions WHERE digest = ?)",
                (digest, digest),
            )
        sql.execute("UPDATE namespaces SET floor = ? WHERE id = ?", (limit, namespace))
        return limit

    def drop(self, name: str) -> None:
        """Forget a namespace with its history; inside `writing`.

        Its row stays, so that its number is never that of another one.
        """
        self._heads.clear()
        self._lasts.clear()
        namespace, sql = self._make_namespace(name), self.sql
        rows = sql.execute(
            "DELETE FROM versions WHERE namespace = ? RETURNING digest", (namespace,)
        ).fetchall()
        for table in ("journal", "refused"):
            sql.execute(f"DELETE FROM {table} WHERE namespace = ?", (namespace,))  # noqa: S608
        self.fault("drop")
        for digest in {digest for (digest,) in rows if digest is not None}:
            sql.execute(
                "DELETE FROM bodies WHERE digest = ? AND NOT EXISTS "
                "(SELECT 1 FROM versions WHERE digest = ?)",
                (digest, digest),
            )
        sql.execute("UPDATE namespaces SET floor = 0 WHERE id = ?", (namespace,))

    def shrink(self) -> None:
        """Give room back to the file system when much of the file is empty; others may go first."""
        (free,) = self.sql.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.sql.execute("PRAGMA page_count").fetchone()
        if free > max(_SPARE_PAGES, pages // 4):
            with suppress(sqlite3.OperationalError):  # somebody else writes: another time
                self.sql.execute("VACUUM")
                self.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _is_named(transaction: str) -> bool:
    """Whether somebody has chosen the id, and it was not made up by a store."""
    return _MADE_UP.fullmatch(transaction) is None


def _stored(
    revision: int, created: int, version: int, previous: int, schema: int | None, body: Any
) -> Stored:
    if schema is None:
        return Stored(revision, created, version, previous, None)
    if body is None:
        raise StoreCorruptError(f"a value of revision {revision} has been lost; run verify()")
    return Stored(revision, created, version, previous, Body(schema, body))
