"""The SQLite file of a store: opening it, its tables, write transactions, and what goes wrong.

Everything here blocks, and runs in an engine's worker thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from orchestra.errors import (
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)

__all__ = ("Durability", "StoreFile")

Durability = Literal["full", "process"]

_APPLICATION: Final = 0x6F726368  # "orch"
_FORMAT: Final = 1

_TABLES: Final = """
CREATE TABLE namespaces (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, floor INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE versions (
    namespace INTEGER NOT NULL, key TEXT NOT NULL, revision INTEGER NOT NULL,
    created INTEGER NOT NULL, version INTEGER NOT NULL, previous INTEGER NOT NULL,
    schema INTEGER, body BLOB, digest BLOB,
    PRIMARY KEY (namespace, key, revision)
) WITHOUT ROWID;
CREATE INDEX long_versions ON versions (digest) WHERE digest IS NOT NULL;
CREATE TABLE bodies (digest BLOB NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE VIEW kept AS
    SELECT v.namespace, v.key, v.revision, v.created, v.version, v.previous, v.schema,
        coalesce(v.body, b.body) AS body
    FROM versions v LEFT JOIN bodies b ON b.digest = v.digest;
CREATE TABLE journal (
    namespace INTEGER NOT NULL, revision INTEGER NOT NULL, time REAL NOT NULL,
    author TEXT NOT NULL, id TEXT NOT NULL, changes TEXT NOT NULL, digest BLOB NOT NULL,
    named INTEGER NOT NULL,
    PRIMARY KEY (namespace, revision)
) WITHOUT ROWID;
CREATE UNIQUE INDEX named_transactions ON journal (namespace, id) WHERE named;
CREATE TABLE refused (
    namespace INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
CREATE TABLE pins (
    owner TEXT NOT NULL, namespace INTEGER NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (owner, namespace)
) WITHOUT ROWID;
"""

_LOG_PAGES: Final = 250
"""Pages of the write-ahead log, 1 MB, before it is emptied into the file and written from the start.

A log that grows makes each ``fdatasync`` write the file system's own records too, so it is short.
"""

_FULL: Final = {sqlite3.SQLITE_FULL}
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _nothing(_point: str) -> None:
    pass


class StoreFile:
    """One connection to the file.

    Args:
        path: The file.
        durability: What a commit that has returned survives.
        patience: Seconds to wait for another process's lock.
        clock: Returns seconds since the epoch.
        fault: Called with the name of each point at which the file is about to be, or has been,
            written; for crash tests.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        patience: float,
        is_read_only: bool,
        clock: Callable[[], float],
        fault: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path
        self._durability = durability
        self._patience = patience
        self._is_read_only = is_read_only
        self.clock = clock
        self.fault = fault or _nothing
        self._sql: sqlite3.Connection | None = None
        self.is_commit_unknown = False
        """Whether the last write transaction failed while the disk was being told to keep it."""

    @property
    def sql(self) -> sqlite3.Connection:
        """The connection."""
        if self._sql is None:
            raise StoreError(f"{self.path} is closed")
        return self._sql

    # --- opening and closing ---

    def open(self) -> None:
        """Connect, and make the tables in a new file.

        Raises:
            StoreCorruptError: The file is damaged, or something else.
            SchemaError: A newer program has written it.
            StoreError: It cannot be opened, for the reason given.
        """
        try:
            with self.translating():
                self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        is_new = not self.path.exists()
        mode = "ro" if self._is_read_only else "rwc"
        self._sql = sql = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        if not self._is_read_only:
            if not is_new and not os.access(self.path, os.W_OK):
                raise StoreReadOnlyError(
                    f"{self.path} cannot be written; allow it, or open it with read_only=True"
                )
            self._patiently("PRAGMA journal_mode = WAL")
            level = "FULL" if self._durability == "full" else "NORMAL"
            sql.execute(f"PRAGMA synchronous = {level}")
            sql.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            self._make_tables()
        (application,) = sql.execute("PRAGMA application_id").fetchone()
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        self._check_format(application, version)
        if is_new and self._durability == "full":
            _sync_directory(self.path.parent)

    def _make_tables(self) -> None:
        sql = self.sql
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        if version:
            return
        with self.writing("create"):
            # Another process may have been faster.
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version or tables:
                return
            for statement in _TABLES.split(";"):
                self.fault("create table")
                sql.execute(statement)
            sql.execute(f"PRAGMA application_id = {_APPLICATION}")
            sql.execute(f"PRAGMA user_version = {_FORMAT}")

    def _check_format(self, application: int, version: int) -> None:
        if application != _APPLICATION:
            raise StoreCorruptError(
                f"{self.path} is an SQLite file but not a store; choose another name"
            )
        if version > _FORMAT:
            raise SchemaError(
                f"{self.path} has format {version} and this program knows format {_FORMAT}; "
                "use a newer program"
            )

    def _patiently(self, statement: str) -> None:
        """Run a statement for which SQLite does not wait for locks by itself."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.sql.execute(statement)
            except sqlite3.OperationalError as exc:
                if _code(exc) not in _BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def close(self) -> None:
        """Disconnect; the last one to do so empties the write-ahead log."""
        sql, self._sql = self._sql, None
        if sql is not None:
            self.fault("close")
            sql.close()

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as exc:
            raise self.translated(exc) from exc

    def translated(self, exc: sqlite3.Error) -> StoreError:
        """Return our error for one of SQLite's."""
        code = _code(exc)
        if code in _BUSY:
            return StoreBusyError(
                f"another process has kept {self.path} locked for {self._patience:g} s; try again",
                retry_after=self._patience,
            )
        if code in _FULL:
            return StoreFullError(f"there is no room for {self.path}; make some and try again")
        if code == sqlite3.SQLITE_READONLY:
            return StoreReadOnlyError(f"{self.path} cannot be written; it was opened read-only")
        if code in _CORRUPT:
            return StoreCorruptError(f"{self.path} is damaged ({exc}); restore it from a copy")
        if code == sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"{self.path} cannot be opened; check that its directory exists")
        return StoreError(f"{self.path} failed: {exc}; see whether its disk is well")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """One write transaction of the file: all of the block, or nothing."""
        self.begin(what)
        try:
            yield
            self.commit_all(what)
        except BaseException as exc:
            self.roll_back(exc)
            raise
        self.fault(f"{what}: committed")

    def begin(self, what: str) -> None:
        """Begin a write transaction; `commit_all` or `roll_back` ends it."""
        self.is_commit_unknown = False
        self.fault(f"{what}: begin")
        self.sql.execute("BEGIN IMMEDIATE")

    def commit_all(self, what: str) -> None:
        """Have the disk keep the transaction."""
        self.fault(f"{what}: commit")
        self.is_commit_unknown = True
        self.sql.execute("COMMIT")
        self.is_commit_unknown = False

    def roll_back(self, exc: BaseException) -> None:
        """Undo the transaction because of an error."""
        # Only an I/O error leaves it open: the commit may be in the log and be found there.
        self.is_commit_unknown &= (
            isinstance(exc, sqlite3.Error) and _code(exc) == sqlite3.SQLITE_IOERR
        )
        if self.sql.in_transaction:
            self.sql.execute("ROLLBACK")
        self.forget_rows()

    def forget_rows(self) -> None:
        """Called when a write transaction failed: what it has inserted is not there."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let all reads of the block see the same state of the file."""
        self.sql.execute("BEGIN")
        try:
            yield
        finally:
            self.sql.execute("ROLLBACK")


def _code(exc: sqlite3.Error) -> int:
    """Return the primary result code."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _sync_directory(path: Path) -> None:
    """Make a new file's name survive a power loss."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
