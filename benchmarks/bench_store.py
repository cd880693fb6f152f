"""The MVCC store beside what one would use instead: a dictionary's price, SQLite's, the disk's.

Figures of the disk depend on the disk and on who else uses it; what counts is the ratio within a
round, in which every row writes to the same file system.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
from attrs import frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import MemoryStore, RawCodec, SQLiteStore, Transaction
from orchestra._core.mvcc import VersionedMap
from orchestra.opencode.mission.todo_list import TodoList
from orchestra.opencode.mission.todo_text import TodoMark
from orchestra.revisions import Footprint

PEERS = ()

VALUE = b"x" * 100
RAW = {"": RawCodec()}


@contextmanager
def folder() -> Iterator[Path]:
    """A place on the real disk, which /tmp may not be."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIRECTORY")) as name:
        yield Path(name)


# --- the pure core ------------------------------------------------------------------------------


@frozen
class Draw:
    """So many numbers below a limit, drawn anew from a seed."""

    seed: int
    count: int
    limit: int

    def keys(self) -> list[int]:
        """The numbers."""
        return random.Random(self.seed).choices(range(self.limit), k=self.count)

    def distinct(self) -> list[int]:
        """The same, each at most once."""
        return random.Random(self.seed).sample(range(self.limit), self.count)


def draws(count: int, limit: int) -> st.SearchStrategy[Draw]:
    """A strategy for draws."""
    return st.builds(Draw, st.integers(0, 2**32 - 1), st.just(count), st.just(limit))


KEYS = draws(2_000, 1_000)


def filled(count: int) -> VersionedMap:
    """A map with so many keys."""
    versions = VersionedMap()
    footprint = Footprint()
    footprint.writes = {f"k{number}": VALUE for number in range(count)}
    versions.commit(footprint, now=0.0)
    return versions


def change(versions: VersionedMap, key: str) -> None:
    """Get, put, and commit validated."""
    footprint = Footprint()
    footprint.read_revision = revision = versions.revision
    versions.read(key, revision)
    footprint.keys.add(key)
    footprint.writes[key] = VALUE
    versions.commit(footprint, now=0.0)


def core(draw: Draw, measure: Measure, size: int = 1_000) -> None:
    """Change keys one after the other."""
    keys = draw.keys()
    versions = filled(size)
    names = [f"k{key * size // 1_000}" for key in keys]
    with measure(len(names)):
        for name in names:
            change(versions, name)
    assert versions.revision == len(keys) + 1


def large_core(draw: Draw, measure: Measure) -> None:
    """The same among 100,000 keys."""
    core(draw, measure, 100_000)


def sqlite_memory(draw: Draw, measure: Measure) -> None:
    """Get, put, and compare-and-set on a revision column, in memory."""
    keys = draw.keys()
    sql = sqlite3.connect(":memory:", isolation_level=None)
    sql.execute("CREATE TABLE t (key TEXT PRIMARY KEY, revision INT, value BLOB) WITHOUT ROWID")
    sql.executemany("INSERT INTO t VALUES (?, 1, ?)", [(f"k{n}", VALUE) for n in range(1_000)])
    names = [f"k{key}" for key in keys]
    with measure(len(names)):
        for name in names:
            sql.execute("BEGIN IMMEDIATE")
            (revision,) = sql.execute("SELECT revision FROM t WHERE key = ?", (name,)).fetchone()
            sql.execute(
                "UPDATE t SET revision = ?, value = ? WHERE key = ? AND revision = ?",
                (revision + 1, VALUE, name, revision),
            )
            sql.execute("COMMIT")
    assert sql.execute("SELECT sum(revision) FROM t").fetchone() == (1_000 + len(keys),)
    sql.close()


async def memory_store(draw: Draw, measure: Measure) -> None:
    """The same through the whole store: a transaction with a read, a write and its commit."""
    keys = draw.keys()
    async with MemoryStore(codecs=RAW) as store:
        async with store.transaction() as tx:
            for number in range(1_000):
                tx.put(f"k{number}", VALUE)
        names = [f"k{key}" for key in keys]
        with measure(len(names)):
            for name in names:
                async with store.transaction() as tx:
                    await tx.get(name)
                    tx.put(name, VALUE)
        assert await store.revision() == len(keys) + 1


async def core_and_checkpoint(draw: Draw, measure: Measure) -> None:
    """The pure core and one bare checkpoint for each change."""
    keys = draw.keys()
    versions = filled(1_000)
    names = [f"k{key}" for key in keys]
    with measure(len(names)):
        for name in names:
            await anyio.lowlevel.checkpoint()
            change(versions, name)
    assert versions.revision == len(keys) + 1


async def snapshots(draw: Draw, measure: Measure, size: int = 1_000) -> None:
    """Open and close a snapshot."""
    keys = draw.keys()
    async with MemoryStore(codecs=RAW) as store:
        async with store.transaction() as tx:
            for number in range(size):
                tx.put(f"k{number}", VALUE)
        with measure(len(keys)):
            for _ in keys:
                async with store.snapshot():
                    pass
        assert store.statistics().pins == 0


async def large_snapshots(draw: Draw, measure: Measure) -> None:
    """The same among 100,000 keys."""
    await snapshots(draw, measure, 100_000)


# --- the disk -----------------------------------------------------------------------------------

COMMITS = st.just(300)


async def durable_commits(count: int, measure: Measure) -> None:
    """One writer, one commit after the other, each of which survives the loss of power."""
    with folder() as place:
        async with SQLiteStore(place / "store.db", codecs=RAW) as store:
            await store.put("k", VALUE)
            with measure(count, waits=True):
                for _ in range(count):
                    await store.put("k", VALUE)
            assert await store.revision() == count + 1


def raw_appends(count: int, measure: Measure) -> None:
    """Append to a file and have it on the disk: the least that durability can cost."""
    with folder() as place:
        descriptor = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, VALUE)
        os.fdatasync(descriptor)
        with measure(count, waits=True):
            for _ in range(count):
                os.write(descriptor, VALUE)
                os.fdatasync(descriptor)
        assert os.fstat(descriptor).st_size == (count + 1) * len(VALUE)
        os.close(descriptor)


async def raw_appends_on_loop(count: int, measure: Measure) -> None:
    """The same from the event loop."""
    await anyio.lowlevel.checkpoint()
    raw_appends(count, measure)


async def group_commits(count: int, measure: Measure) -> None:
    """16 writers at once."""
    with folder() as place:
        async with SQLiteStore(place / "store.db", codecs=RAW) as store:
            await store.put("k", VALUE)

            async def write(key: str) -> None:
                for _ in range(count):
                    await store.put(key, VALUE)

            with measure(16 * count, waits=True):
                async with anyio.create_task_group() as group:
                    for number in range(16):
                        group.start_soon(write, f"k{number}")
            assert await store.revision() == 16 * count + 1


# --- contention ---------------------------------------------------------------------------------

CHOICES = draws(160, 100)


def threads_on_keys(draw: Draw, measure: Measure) -> None:
    """8 threads with a store each on one file add to 100 numbers, with 1 ms of work."""
    choices = draw.keys()
    runs = [0] * 8
    with folder() as place:

        async def work(thread: int) -> None:
            async def add(tx: Transaction, key: str) -> None:
                runs[thread] += 1
                value = await tx.get(key, 0)
                time.sleep(0.001)  # noqa: ASYNC251  (work of a thread whose loop has nothing else)
                tx.put(key, value + 1)

            async with SQLiteStore(place / "store.db", durability="process") as store:
                for choice in choices[thread::8]:
                    await store.transact(add, f"k/{choice}")

        async def check() -> int:
            async with SQLiteStore(place / "store.db") as store, store.snapshot() as snap:
                return sum((await snap.range("k/")).values())

        threads = [threading.Thread(target=anyio.run, args=(work, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert anyio.run(check) == len(choices), "an update was lost"
    measure.report(sum(runs) / len(choices))


async def tasks_on_keys(draw: Draw, measure: Measure) -> None:
    """8 tasks do the same on a store in memory."""
    choices = draw.keys()
    runs = 0

    async def add(tx: Transaction, key: str) -> None:
        nonlocal runs
        runs += 1
        value = await tx.get(key, 0)
        await anyio.sleep(0.001)
        tx.put(key, value + 1)

    async with MemoryStore() as store:

        async def work(mine: list[int]) -> None:
            for choice in mine:
                await store.transact(add, f"k/{choice}")

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(work, choices[number::8])
        async with store.snapshot() as snap:
            assert sum((await snap.range("k/")).values()) == len(choices)
    measure.report(runs / len(choices))


def one_attempt(_draw: Draw, measure: Measure) -> None:
    """Nobody is ever in anybody's way."""
    measure.report(1.0)


async def one_attempt_on_loop(_draw: Draw, measure: Measure) -> None:
    """The same, for rows of an event loop."""
    await anyio.lowlevel.checkpoint()
    measure.report(1.0)


# --- the TODO list ------------------------------------------------------------------------------

ITEMS = draws(50, 200)


async def fill(store: SQLiteStore, path: Path | None) -> TodoList:
    """A list of 200 items, and its file."""
    todo = TodoList(store, path=path, is_synced=False)
    for number in range(200):
        await todo.add(f"item {number:03}: something to be done")
    await todo.project()
    return todo


async def todo_updates(draw: Draw, measure: Measure) -> None:
    """Mark an item and write the file; neither waits for the disk, as the original did not."""
    items = draw.distinct()
    with folder() as place:
        async with SQLiteStore(place / "store.db", durability="process") as store:
            todo = await fill(store, place / "TODO.md")
            with measure(len(items), waits=True):
                for item in items:
                    await todo.mark(f"item {item:03}", TodoMark.DONE)
                    await todo.project()
            shown = (place / "TODO.md").read_text()
        assert shown.count("[x]") == len(items)


async def file_pair(draw: Draw, measure: Measure) -> None:
    """The original's way, in Python: a version file, a temporary file, a rename; no fsync."""
    items = draw.distinct()
    await anyio.lowlevel.checkpoint()
    with folder() as place:
        todo, version, temporary = place / "todo.md", place / "version.json", place / "todo.tmp"
        todo.write_text("".join(f"- [ ] item {n:03}: something to be done\n" for n in range(200)))
        version.write_text('{"version": 0}')
        with measure(len(items), waits=True):
            for item in items:
                known = json.loads(version.read_text())
                lines = todo.read_text().split("\n")
                lines = [
                    line.replace("[ ]", "[x]", 1) if f"item {item:03}" in line else line
                    for line in lines
                ]
                known["version"] += 1
                version.write_text(json.dumps(known))
                temporary.write_text("\n".join(lines))
                temporary.replace(todo)
        assert todo.read_text().count("[x]") == len(items)


async def recorded(_draw: Draw, measure: Measure) -> None:
    """What was measured of the original itself on such a machine, in Node: 1.37 ms."""
    await anyio.lowlevel.checkpoint()
    measure.report(1.37e-3)


async def todo_lost(_draw: Draw, measure: Measure) -> None:
    """How many of 100 updates at once are missing afterwards."""
    with folder() as place:
        async with SQLiteStore(place / "store.db", durability="process") as store:
            todo = await fill(store, place / "TODO.md")

            async def update(number: int) -> None:
                await todo.mark(f"item {number:03}", TodoMark.DONE)
                await todo.project()

            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(update, number)
            shown = (place / "TODO.md").read_text()
        measure.report(100 - shown.count("[x]"))


async def original_lost(_draw: Draw, measure: Measure) -> None:
    """What the original lost of 100, as recorded."""
    await anyio.lowlevel.checkpoint()
    measure.report(67)


BENCHMARKS: tuple[Benchmark[Draw] | Benchmark[int], ...] = (
    Benchmark(
        name="store-core",
        title="Get, put and validated commit: the pure core",
        workload=KEYS,
        rows=[
            Row(name="orchestra's core", run=core),
            Row(name="SQLite :memory:", run=sqlite_memory, at_most=0.6),
        ],
    ),
    Benchmark(
        name="store-memory",
        title="The same through MemoryStore",
        workload=KEYS,
        rows=[
            Row(name="MemoryStore", run=memory_store),
            Row(name="core and one checkpoint", run=core_and_checkpoint),
        ],
        note=(
            "A transaction lets go of the loop once, at its end; what it costs beyond that is the "
            "transaction object, a cancellation check at the read, and the encoding."
        ),
    ),
    Benchmark(
        name="store-size",
        title="Commit among 100,000 keys",
        workload=KEYS,
        rows=[
            Row(name="100,000 keys", run=large_core),
            Row(name="1,000 keys", run=core, at_most=3.0),
        ],
    ),
    Benchmark(
        name="store-snapshot",
        title="Snapshot of 100,000 keys",
        workload=KEYS,
        rows=[
            Row(name="100,000 keys", run=large_snapshots),
            Row(name="1,000 keys", run=snapshots, at_most=1.5),
        ],
    ),
    Benchmark(
        name="store-durable",
        title="Durable commit, one writer",
        workload=COMMITS,
        rows=[
            Row(name="SQLiteStore", run=durable_commits),
            Row(name="append and fdatasync", run=raw_appends_on_loop, at_most=2.0),
        ],
    ),
    Benchmark(
        name="store-group",
        title="Durable commit, 16 writers",
        workload=COMMITS,
        rows=[
            Row(name="16 writers", run=group_commits),
            Row(name="one writer", run=durable_commits, at_most=0.2),
        ],
    ),
    Benchmark(
        name="store-threads",
        title="8 threads on 100 keys, 1 ms of work",
        workload=CHOICES,
        unit="attempts per commit",
        rows=[
            Row(name="SQLiteStore", run=threads_on_keys),
            Row(name="no contention", run=one_attempt, at_most=1.1),
        ],
    ),
    Benchmark(
        name="store-tasks",
        title="8 tasks on 100 keys, 1 ms of work",
        workload=CHOICES,
        unit="attempts per commit",
        rows=[
            Row(name="MemoryStore", run=tasks_on_keys),
            Row(name="no contention", run=one_attempt_on_loop, at_most=1.1),
        ],
    ),
    Benchmark(
        name="store-todo",
        title="Update one of 200 TODO items, file included",
        workload=ITEMS,
        rows=[
            Row(name="TodoList on SQLiteStore", run=todo_updates),
            Row(name="the original, recorded", run=recorded, at_most=1.0),
            Row(name="version file and rename", run=file_pair),
        ],
        note="The original's figure was measured in Node, in another run; its way in Python is beside.",
    ),
    Benchmark(
        name="store-todo-lost",
        title="Of 100 TODO updates at once, how many are lost",
        workload=ITEMS,
        unit="updates",
        rows=[
            Row(name="TodoList on SQLiteStore", run=todo_lost),
            Row(name="the original, recorded", run=original_lost, at_most=0.0),
        ],
    ),
)
