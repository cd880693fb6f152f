"""`SQLiteStore`: the MVCC store in one SQLite file that several processes may open."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, final

import anyio
import anyio.lowlevel
import anyio.to_thread

from orchestra.errors import AmbiguousCommitError, ConflictError, StoreError
from orchestra.revisions import Contention, Footprint, Link, Logged, Stored, Verification
from orchestra.storage import Codec
from orchestra.stores._checking import check_file
from orchestra.stores._database import Database, Request
from orchestra.stores._file import Durability
from orchestra.stores._readers import Presence, is_present, remove_traces
from orchestra.stores._worker import Job, Worker
from orchestra.stores.engine import Pin, StoreEngine
from orchestra.stores.store import EngineStore

__all__ = ("SQLiteStore",)

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_MAX_LAG: Final = 100
"""Revisions that what is told to other processes lags behind, so that not each commit tells."""

_MAX_GROUP: Final = 256
"""Commits that share one write transaction at most, so that the first does not wait for long."""


class _SQLiteEngine(StoreEngine):
    """Two threads with a connection each: one writes, in groups, and one reads."""

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        is_read_only: bool,
        patience: float,
        poll_interval: float,
        clock: Callable[[], float],
        fault: Callable[[str], None] | None,
    ) -> None:
        self._path = path
        self._is_read_only = is_read_only
        self._patience = patience
        self._poll_interval = poll_interval
        self._connect: Callable[[], Database] = lambda: Database(
            path,
            durability=durability,
            patience=patience,
            is_read_only=is_read_only,
            clock=clock,
            fault=fault,
        )
        self._write = self._connect()
        self._read = Database(
            path,
            durability="process",  # the reader writes nothing but its own pins
            patience=patience,
            is_read_only=is_read_only,
            clock=clock,
        )
        self._owner = secrets.token_hex(8)
        self._presence: Presence | None = None
        self._writer: Worker | None = None
        self._reader: Worker | None = None
        self._groups = 0
        self._changed: anyio.Event | None = None
        # Pins are taken in the event loop, get their revision in the reader's thread, and bound
        # what the writer's thread may forget. The lock is between those two threads, who hold it
        # for a moment; the event loop never takes it.
        self._lock = threading.Lock()
        self._pins: dict[Pin, None] = {}
        self._shown: dict[str, int] = {}
        self._showing: Job[None] | None = None

    @property
    def groups(self) -> int:
        return self._groups

    # --- life ---

    async def open(self) -> None:
        self._writer = Worker(f"{self._path.name} writer", self._handle_writes)
        self._reader = Worker(f"{self._path.name} reader", _handle_reads)
        try:
            await self._writer.run(self._open_writer)
            await self._reader.run(self._read.open)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    def _open_writer(self) -> None:
        self._write.open()
        if not self._is_read_only:
            try:
                self._presence = Presence(self._path, self._owner)
            except OSError as exc:
                raise StoreError(
                    f"no file can be made beside {self._path}: {exc}; open it with read_only=True"
                ) from exc

    async def aclose(self) -> None:
        self._tell()
        for worker, close in ((self._reader, self._read.close), (self._writer, self._leave)):
            if worker is not None:
                job = Job(close)
                worker.submit(job)
                await worker.aclose(self._patience + 1.0)
                if job.error is not None:
                    _logger.warning("closing %s failed: %s", self._path, job.error)
        self._reader = self._writer = None

    def _leave(self) -> None:
        try:
            if self._shown and self._presence is not None:
                with self._write.writing("leave"):
                    self._write.sql.execute("DELETE FROM pins WHERE owner = ?", (self._owner,))
        finally:
            self._write.close()
            if self._presence is not None:
                self._presence.leave()

    # --- the writer's thread ---

    def _handle_writes(self, jobs: Sequence[Job[Any]]) -> None:
        """Run jobs in order; neighbouring commits share one write transaction."""
        group: list[Job[Any]] = []
        for job in jobs:
            if job.group is None or len(group) == _MAX_GROUP:
                self._commit_group(group)
                group = []
            if job.group is None:
                job.run()
            else:
                group.append(job)
        self._commit_group(group)

    def _commit_group(self, jobs: Sequence[Job[Any]]) -> None:
        if not jobs:
            return
        requests = [job.group for job in jobs if isinstance(job.group, Request)]
        try:
            results = self._write.commit(requests, self._show)
        except BaseException as failure:  # noqa: BLE001  (raised where it is waited for)
            exc = failure
            if isinstance(failure, sqlite3.Error):
                exc = self._write.translated(failure)
            for job, request in zip(jobs, requests, strict=True):
                job.error = (
                    AmbiguousCommitError(request.id, f"the disk failed in the middle of it ({exc})")
                    if self._write.is_commit_unknown
                    else exc
                )
            return
        self._groups += 1
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, ConflictError):
                job.error = result
            else:
                job.result = result

    def _pinned(self, name: str) -> list[int]:
        return [
            pin.revision
            for pin in list(self._pins)
            if pin.namespace == name and pin.revision is not None
        ]

    def _show(self, lag: int = _MAX_LAG) -> None:
        """Inside a write transaction: tell others from where on we read, when that is far behind.

        Called before the transaction writes: no pin gets a revision that is older than the
        current one, which is what the reader's thread sees until the commit.
        """
        for name, shown in self._shown.items():
            with self._lock:
                oldest = min([self._write.revision(name), *self._pinned(name)])
            if oldest > shown + lag:
                self._write.show(name, self._owner, oldest)
                self._shown[name] = oldest

    def _show_later(self, pin: Pin) -> None:
        """Have it told, without waiting for it, by one who reads and never commits."""
        shown = self._shown.get(pin.namespace)
        if shown is None or pin.revision is None or pin.revision <= shown + 2 * _MAX_LAG:
            return
        if self._showing is None or self._showing.is_finished:
            self._showing = Job(self._show_now)
            self._open_worker(self._writer).submit(self._showing)

    def _show_now(self) -> None:
        with self._write.writing("show"):
            self._show()

    def _introduce(self, name: str) -> None:
        """Say that we are going to read a namespace: once, before the first pin on it."""
        if name not in self._shown:
            with self._write.writing("show"):
                revision = self._write.revision(name)
                self._write.show(name, self._owner, revision)
            self._shown[name] = revision

    def _settle_at(self, pin: Pin, revision: int) -> int:
        """Pin a given revision, which others may be about to compact."""
        name = pin.namespace
        if self._is_read_only or self._shown[name] <= revision:
            with self._lock:
                self._write.check(name, revision)
                pin.revision = revision
        else:
            with self._write.writing("show"):
                self._write.check(name, revision)
                self._write.show(name, self._owner, revision)
            pin.revision = self._shown[name] = revision
        return revision

    # --- the reader's thread ---

    def _settle(self, pin: Pin) -> int:
        """Give a pin the current revision, if it has none; the writer does not look meanwhile."""
        with self._lock:
            if pin.revision is None:
                pin.revision = self._read.revision(pin.namespace)
            return pin.revision

    def _look(self, pin: Pin, read: Callable[[int], T]) -> T:
        """Read at a pin. One that holds nobody up is checked each time, with what is read."""
        if not self._is_read_only:
            return read(self._settle(pin))
        with self._read.reading():
            revision = self._settle(pin)
            self._read.check(pin.namespace, revision)
            return read(revision)

    # --- the engine's methods ---

    def pin(self, namespace: str) -> Pin:
        pin = Pin(namespace)
        self._pins[pin] = None
        return pin

    def unpin(self, pin: Pin) -> None:
        self._pins.pop(pin, None)

    async def _get_ready(self, pin: Pin) -> None:
        if pin.namespace not in self._shown and not self._is_read_only:
            await self._on_writer(lambda: self._introduce(pin.namespace))

    async def settle(self, pin: Pin, revision: int | None) -> int:
        await self._get_ready(pin)
        if revision is not None:
            return await self._on_writer(lambda: self._settle_at(pin, revision))
        settled = await self._on_reader(lambda: self._settle(pin))
        self._show_later(pin)
        return settled

    async def read(self, pin: Pin, key: str) -> Stored | None:
        await self._get_ready(pin)
        found = await self._on_reader(
            lambda: self._look(pin, lambda revision: self._read.read(pin.namespace, key, revision))
        )
        self._show_later(pin)
        return found

    async def scan(self, pin: Pin, prefix: str) -> Sequence[tuple[str, Stored]]:
        await self._get_ready(pin)
        found = await self._on_reader(
            lambda: self._look(
                pin, lambda revision: self._read.scan(pin.namespace, prefix, revision)
            )
        )
        self._show_later(pin)
        return found

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
        await anyio.lowlevel.checkpoint_if_cancelled()
        job: Job[int] = Job(_nothing, Request(namespace, footprint, author, transaction_id, is_new))
        self._open_worker(self._writer).submit(job)
        try:
            await job.wait()
        except BaseException:
            # Cancelled. What has not begun never will; what has begun is seen through.
            if not job.claim():
                with anyio.move_on_after(self._patience, shield=True):
                    await job.wait()
                if job.is_finished and job.result:
                    note(job.result)
            raise
        finally:
            self._tell()
        revision = job.take()
        if revision:
            note(revision)
        return revision

    def _tell(self) -> None:
        """Wake those who wait for a commit."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def outcome(self, namespace: str, transaction_id: str) -> int | None:
        # The writer's jobs are done in order, so a commit under this id is over by then.
        return await self._on_writer(lambda: self._write.outcome(namespace, transaction_id))

    async def log(self, namespace: str, after: int, limit: int) -> Sequence[Logged]:
        return await self._on_reader(lambda: self._read.log(namespace, after, limit))

    async def wait(self, namespace: str, after: int) -> None:
        while True:
            if self._changed is None:
                self._changed = anyio.Event()
            changed = self._changed
            if await self._on_reader(lambda: self._read.revision(namespace)) > after:
                return
            # Other processes do not call: look again after a while.
            with anyio.move_on_after(self._poll_interval):
                await changed.wait()

    async def compact(self, namespace: str, revision: int | None) -> int:
        return await self._on_writer(lambda: self._compact(namespace, revision))

    def _compact(self, name: str, revision: int | None) -> int:
        write = self._write
        with write.writing("compact"):
            current = write.revision(name)
            wanted = current if revision is None else revision
            if wanted > current:
                write.check(name, wanted)
            others = self._others(name)
            self._show(0)
            with self._lock:
                pinned = self._pinned(name)
            return write.compact(name, min([wanted, *pinned, *others.values()]))

    def _others(self, name: str) -> dict[str, int]:
        """Inside `writing`: from where on others may read; who is gone is forgotten."""
        others = self._write.shown(name)
        for owner in [owner for owner in others if owner != self._owner]:
            if not is_present(self._path, owner):
                del others[owner]
                self._write.forget(owner)
                remove_traces(self._path, owner)
        others.pop(self._owner, None)
        return others

    async def drop(self, namespace: str) -> bool:
        return await self._on_writer(lambda: self._drop(namespace))

    def _drop(self, name: str) -> bool:
        with self._write.writing("drop"):
            with self._lock:
                is_read = any(pin.namespace == name for pin in self._pins)
            if is_read or self._others(name):
                return False
            self._write.drop(name)
        self._write.shrink()
        return True

    async def versions(self, namespace: str, key: str) -> Sequence[Stored]:
        return await self._on_reader(lambda: self._read.versions(namespace, key))

    async def links(self, namespace: str, after: int, limit: int) -> Sequence[Link]:
        return await self._on_reader(lambda: self._read.links(namespace, after, limit))

    async def verify(self, namespace: str, anchors: Mapping[int, str]) -> Verification:
        def check() -> Verification:
            # It takes long and must not keep others from reading: a connection of its own.
            database = self._connect()
            database.open()
            try:
                with database.translating():
                    return check_file(database, namespace, anchors)
            finally:
                database.close()

        return await anyio.to_thread.run_sync(check, abandon_on_cancel=True)

    async def namespaces(self) -> Sequence[str]:
        return await self._on_reader(self._read.namespaces)

    async def _on_reader(self, do: Callable[[], T]) -> T:
        def translated() -> T:
            with self._read.translating():
                return do()

        return await self._open_worker(self._reader).run(translated)

    async def _on_writer(self, do: Callable[[], T]) -> T:
        def translated() -> T:
            with self._write.translating():
                return do()

        return await self._open_worker(self._writer).run(translated)

    def _open_worker(self, worker: Worker | None) -> Worker:
        if worker is None:
            raise anyio.ClosedResourceError
        return worker

    def __repr__(self) -> str:
        return f"<{self._path} groups={self._groups} pins={len(self._pins)}>"


def _nothing() -> int:
    return 0


def _handle_reads(jobs: Sequence[Job[Any]]) -> None:
    for job in jobs:
        job.run()


@final
class SQLiteStore(EngineStore):
    """An `MVCCStore` in one file, which several processes on one machine may have open.

    The event loop never waits for the disk: a thread writes, and takes all commits that are waiting
    at once, so that many writers pay for one ``fsync``; another thread reads. The file is an SQLite
    database with a write-ahead log; do not put it on a network file system.

    Args:
        path: The file; made when it does not exist. Beside it there are ``-wal``, ``-shm`` and
            ``-reader-`` files while it is open.
        durability: What a commit that has returned survives: ``full``, the loss of power;
            ``process``, the end of this process, however it ends (after a loss of power the store
            is whole, but the last commits may be missing).
        read_only: Nothing is written, and a compaction by another process is not held up.
        patience: Seconds to wait for another process's lock, and for the disk by those who are
            cancelled or leave the store.
        poll_interval: Seconds after which a watch looks for commits of other processes.
        codecs: For each prefix the codec of its keys' values; the longest prefix counts. Keys
            without one hold plain JSON values.
        contention: How ``transact`` behaves when it meets others.
        clock: Returns seconds since the epoch, for the history.
        random: Makes ids and jitter; None: seeded by the operating system.
        fault: Called in a worker thread with the name of each point at which the file is written,
            so that tests can stop or kill the process there.

    Raises:
        ValueError: ``durability``, ``patience`` or ``poll_interval`` is wrong.
        StoreError: The file cannot be opened, is damaged, or a newer program has written it (on
            entering).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        read_only: bool = False,
        patience: float = 5.0,
        poll_interval: float = 0.05,
        codecs: Mapping[str, Codec] | None = None,
        contention: Contention | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        fault: Callable[[str], None] | None = None,
    ) -> None:
        if durability not in {"full", "process"}:
            raise ValueError(f"durability is {durability!r}, it must be 'full' or 'process'")
        for name, value in (("patience", patience), ("poll_interval", poll_interval)):
            if not value > 0:
                raise ValueError(f"{name} is {value!r}, it must be positive")
        engine = _SQLiteEngine(
            Path(path),
            durability=durability,
            is_read_only=read_only,
            patience=patience,
            poll_interval=poll_interval,
            clock=clock,
            fault=fault,
        )
        super().__init__(engine, codecs=codecs, contention=contention, random=random)
