"""What is left of a store when its process, its file or its disk fails."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from orchestra import MVCCStore, SQLiteStore
from orchestra.errors import (
    AmbiguousCommitError,
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)
from orchestra.stores._database import Database
from orchestra.stores._file import Durability

CHILD = Path(__file__).with_name("crash_child.py")


def at(path: Path, **options: object) -> SQLiteStore:
    """A store that does not wait for the disk."""
    return SQLiteStore(path, **{"durability": "process", **options})  # type: ignore[arg-type]


async def check_whole(store: MVCCStore, acknowledged: int) -> int:
    """What was acknowledged is there, the next commit is there as a whole or not at all."""
    revision = await store.revision()
    assert revision in {acknowledged, acknowledged + 1}
    verification = await store.verify()
    assert verification, verification.fault
    async with store.snapshot() as snap:
        found = await snap.range()
    if revision:
        large = str(found.pop("large"))
        assert large.startswith(f"{revision} long")
        odd = {"odd": revision} if revision % 2 else {}
        assert found == {"first": revision, "last": revision, **odd}
    else:
        assert found == {}
    return revision


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_kill_at_any_write_point_loses_nothing(tmp_path: Path, durability: Durability) -> None:
    """After kill -9 at each point what was acknowledged is there, and the rest whole or absent."""
    command = [sys.executable, str(CHILD), str(tmp_path), durability]
    subprocess.run(command, check=True, timeout=600)
    names = (tmp_path / "names").read_text().split("\n")
    assert len(names) > 50
    assert {"create: commit", "group: committed", "record", "body", "forget", "close"} <= set(names)
    lost = []

    async def check(place: Path, acknowledged: int) -> None:
        async with at(place / "store.db") as store:
            revision = await check_whole(store, acknowledged)
            assert await store.put("after", "the crash") == revision + 1
            assert await store.compact() == revision + 1, "a dead process holds compaction up"
            assert await store.verify()

    for number in range(len(names)):
        try:
            acknowledged = (tmp_path / str(number) / "acknowledged").read_text().split()
            anyio.run(check, tmp_path / str(number), len(acknowledged))
        except Exception as exc:  # noqa: BLE001  (each point is reported)
            lost.append(f"{number} {names[number]}: {exc!r}")
    assert lost == []


async def fill(path: Path, commits: int = 6) -> None:
    """A store with some commits."""
    async with at(path) as store:
        for number in range(1, commits + 1):
            async with store.transaction() as tx:
                tx.put("first", number)
                tx.put("large", f"{number} " + "long" * 500)
                if number % 2:
                    tx.put("odd", number)
                else:
                    tx.delete("odd")
                tx.put("last", number)


def copy_open(path: Path, target: Path) -> None:
    """Copy a store's files as they are while it is open, as a power loss would leave them."""
    for source in (path, path.with_name(path.name + "-wal")):
        shutil.copy(source, target / source.name)


async def test_a_torn_log_loses_only_its_tail(tmp_path: Path) -> None:
    """However the write-ahead log is cut, the store opens with a prefix of its commits, whole."""
    live = tmp_path / "live"
    live.mkdir()
    async with at(live / "store.db") as store:
        await fill(live / "store.db")
        log = live / "store.db-wal"
        size = log.stat().st_size
        step = max(1, size // 40)
        seen = set()
        for number, length in enumerate(range(size, -1, -step)):
            place = tmp_path / str(number)
            place.mkdir()
            copy_open(live / "store.db", place)
            os.truncate(place / "store.db-wal", length)
            async with at(place / "store.db") as torn:
                revision = await torn.revision()
                seen.add(revision)
                await check_whole(torn, revision)
                await torn.put("after", 1)
                assert await torn.verify()
        assert await store.revision() == 6
    assert {0, 6} <= seen
    assert len(seen) > 3


async def test_a_corrupted_log_loses_only_its_tail(tmp_path: Path) -> None:
    """A byte that is wrong in the write-ahead log ends the store there; what is left is whole."""
    live = tmp_path / "live"
    live.mkdir()
    async with at(live / "store.db"):
        await fill(live / "store.db")
        size = (live / "store.db-wal").stat().st_size
        for number, offset in enumerate(range(40, size, size // 24)):
            place = tmp_path / str(number)
            place.mkdir()
            copy_open(live / "store.db", place)
            with (place / "store.db-wal").open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 0xFF]))
            async with at(place / "store.db") as store:
                await check_whole(store, await store.revision())


def damage_header(path: Path) -> None:
    """Overwrite the file's beginning."""
    with path.open("r+b") as file:
        file.write(b"nothing of an SQLite file")


def truncate_half(path: Path) -> None:
    """Cut the file."""
    os.truncate(path, path.stat().st_size // 2)


def fill_middle(path: Path) -> None:
    """Overwrite a page in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4096 // 2 * 4096)
        file.write(b"\xaa" * 4096)


def empty(path: Path) -> None:
    """Cut everything."""
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [damage_header, truncate_half, fill_middle])
async def test_a_damaged_file_is_never_taken_for_a_good_one(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A damaged file is refused, or its damage is found by verify(); with a typed error."""
    path = tmp_path / "store.db"
    await fill(path, 40)
    damage(path)
    try:
        async with at(path) as store:
            verification = await store.verify()
    except StoreCorruptError as exc:
        said = str(exc)
        assert "store.db is" in said
    else:
        said = verification.fault
        assert not verification
    assert said
    assert "\n" not in said


async def test_an_emptied_file_is_seen_by_an_anchor(tmp_path: Path) -> None:
    """A file that was emptied is a new store; only who noted a digest can see the loss."""
    path = tmp_path / "store.db"
    await fill(path)
    async with at(path) as store:
        noted = await store.verify()
    empty(path)
    async with at(path) as store:
        assert await store.revision() == 0
        verification = await store.verify(anchors={noted.revision: noted.digest})
        assert (verification.fault_revision, bool(verification)) == (1, False)


ALTERATIONS = {
    "author": ("UPDATE journal SET author = 'somebody else' WHERE revision = 3", 3),
    "time": ("UPDATE journal SET time = time - 1 WHERE revision = 3", 3),
    "changes": (
        "UPDATE journal SET changes = replace(changes, 'odd', 'eve') WHERE revision = 3",
        3,
    ),
    "digest": ("UPDATE journal SET digest = zeroblob(32) WHERE revision = 3", 3),
    "missing": ("DELETE FROM journal WHERE revision = 3", 3),
    "moved": ("UPDATE journal SET revision = 100 WHERE revision = 3", 3),
    "swapped": (
        """UPDATE journal SET revision = -revision WHERE revision IN (3, 4);
        UPDATE journal SET revision = revision + 7 WHERE revision < 0""",
        3,
    ),
    "cut": ("DELETE FROM journal WHERE revision >= 5", 5),
    "value": ("UPDATE versions SET body = x'39' WHERE key = 'first' AND revision = 4", 4),
    "long value": ("UPDATE bodies SET body = 'short' WHERE rowid = 2", 2),
    "lost value": ("DELETE FROM versions WHERE key = 'last' AND revision = 2", 2),
    "lost long value": ("DELETE FROM bodies WHERE rowid = 5", 5),
    "revived": ("UPDATE versions SET schema = 1, body = '1' WHERE key = 'odd' AND revision = 4", 4),
    "smuggled in": ("INSERT INTO versions VALUES (1, 'x', 4, 4, 1, 0, 1, '1', NULL)", 4),
}


@pytest.mark.parametrize("name", ALTERATIONS)
async def test_verify_finds_the_first_alteration(tmp_path: Path, name: str) -> None:
    """Whatever is altered behind the store's back, verify() names its revision."""
    path = tmp_path / "store.db"
    await fill(path)
    script, revision = ALTERATIONS[name]
    with closing(sqlite3.connect(path)) as sql:
        sql.executescript(script)
        sql.commit()
    async with at(path) as store:
        verification = await store.verify()
    assert not verification
    assert verification.fault_revision == revision, verification.fault
    assert str(revision) in verification.fault


async def test_verify_knows_what_compaction_forgot(tmp_path: Path) -> None:
    """After compaction an untouched store verifies, and a value lost since is still found."""
    path = tmp_path / "store.db"
    await fill(path)
    async with at(path) as store:
        assert await store.compact(4) == 4
        assert await store.verify()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("DELETE FROM versions WHERE key = 'last' AND revision = 4")
        sql.commit()
    async with at(path) as store:
        assert (await store.verify()).fault_revision == 4


async def test_no_body_is_stored_twice(tmp_path: Path) -> None:
    """The same large value under many keys and revisions takes its room once, the journal none."""
    path = tmp_path / "store.db"
    large = os.urandom(200_000).hex()
    async with at(path) as store:
        for number in range(20):
            await store.put(f"k/{number % 4}", large)
        await store.put("k/0", "short")
        assert await store.compact() == 21
        assert await store.get("k/1") == large
        for number in range(4):
            await store.put(f"k/{number}", "short")
        await store.compact()
        assert await store.verify()
    assert path.stat().st_size < 2 * len(large)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT count(*) FROM bodies").fetchone() == (0,)
        longest = sql.execute("SELECT max(length(changes)) FROM journal").fetchone()
    assert longest < (200,)


async def test_a_full_disk_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room a commit fails as a whole, and works again when there is some."""
    path = tmp_path / "store.db"
    await fill(path)
    async with at(path) as store:
        writer: Database = store._engine._write  # type: ignore[attr-defined]
        (pages,) = writer.sql.execute("PRAGMA page_count").fetchone()
        writer.sql.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreFullError, match="there is no room"):
            await store.put("much", os.urandom(100_000).hex())
        assert await store.get("much") is None
        await check_whole(store, 6)
        writer.sql.execute("PRAGMA max_page_count = 1000000")
        assert await store.put("much", os.urandom(100_000).hex()) == 7
        assert await store.verify()


async def test_a_file_size_limit_is_survived(tmp_path: Path) -> None:
    """A real write error in the middle of a commit loses nothing that was acknowledged."""
    path = tmp_path / "store.db"
    script = """
import anyio, os, resource, signal, sys
from orchestra import SQLiteStore
from orchestra.errors import StoreError
async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with SQLiteStore(sys.argv[1]) as store:
        for number in range(1, 6):
            await store.put("n", number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        for number in range(6, 100):
            try:
                await store.put("n", number)
                await store.put("x", os.urandom(20_000).hex())
            except StoreError as exc:
                print(number, type(exc).__name__, await store.get("n"))
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script, str(path)])
    number, _error, seen = done.stdout.decode().split()
    async with at(path) as store:
        assert await store.get("n") in {int(number) - 1, int(number)}
        assert seen in {number, str(int(number) - 1)}
        assert await store.verify()


async def test_an_io_error_in_the_middle_of_a_commit_is_ambiguous(tmp_path: Path) -> None:
    """When the disk fails while it is told to keep a commit, the caller learns that nobody knows."""
    path = tmp_path / "store.db"
    await fill(path)
    async with at(path) as store:
        writer: Database = store._engine._write  # type: ignore[attr-defined]
        real = writer.sql

        class Failing:
            in_transaction = True

            def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
                if statement == "COMMIT":
                    real.execute("ROLLBACK")
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                    writer._sql = real
                    raise error
                return real.execute(statement, *arguments)  # type: ignore[arg-type]

        writer._sql = Failing()  # type: ignore[assignment]
        with pytest.raises(AmbiguousCommitError, match="ask outcome"):
            async with store.transaction() as tx:
                tx.put("first", 7)
        assert await store.outcome(tx.id) is None
        await check_whole(store, 6)
        # transact() finds out by itself, and does it again.
        writer._sql = Failing()  # type: ignore[assignment]
        runs = []

        async def put(tx: object) -> None:
            runs.append(tx)
            await tx.get("first")  # type: ignore[attr-defined]
            tx.put("first", 8)  # type: ignore[attr-defined]

        await store.transact(put)
        assert len(runs) == 2
        assert await store.get("first") == 8
        assert store.statistics().ambiguous == 2


async def test_an_error_at_any_write_point_loses_nothing(tmp_path: Path) -> None:
    """Whatever goes wrong in the middle of a commit, it is undone, and the next one succeeds."""
    fail_at = -1
    points: list[str] = []

    def point(name: str) -> None:
        points.append(name)
        if len(points) == fail_at:
            raise OSError(f"no {name}")

    async with at(tmp_path / "store.db", fault=point) as store:
        await store.put("n", 0)
        points.clear()
        await store.put("n", 0)
        names = list(points)
        assert names == ["group: begin", "version", "record", "group: commit", "group: committed"]
        for number, name in enumerate(names[:-1], 1):
            before = await store.revision()
            points.clear()
            fail_at = number
            with pytest.raises(OSError, match=f"no {name}"):
                await store.put("n", name)
            fail_at = -1
            assert await store.get("n") != name
            assert await store.put("n", number) == before + 1
        verification = await store.verify()
        assert verification, verification.fault


async def test_a_read_only_store_reads_and_says_so(tmp_path: Path) -> None:
    """A store opened read-only reads everything and refuses to write with a typed error."""
    path = tmp_path / "store.db"
    await fill(path)
    before = path.read_bytes()
    async with at(path, read_only=True) as store:
        await check_whole(store, 6)
        with pytest.raises(StoreReadOnlyError, match="cannot be written"):
            await store.put("first", 7)
        with pytest.raises(StoreReadOnlyError):
            await store.compact()
        async with store.snapshot(2) as old:
            assert await old.get("first") == 2
    assert path.read_bytes() == before


async def test_a_write_protected_file_is_a_typed_error(tmp_path: Path) -> None:
    """A file that must not be written is refused on opening, with what to do."""
    path = tmp_path / "store.db"
    await fill(path)
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everything")
    with pytest.raises(StoreReadOnlyError, match="read_only=True"):
        async with at(path):
            pass


async def test_a_held_lock_is_a_typed_error(tmp_path: Path) -> None:
    """While another program holds the lock a commit is refused, was not begun, and works later."""
    path = tmp_path / "store.db"
    await fill(path)
    async with at(path, patience=0.05) as store:
        assert await store.get("first") == 6
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await store.get("first") == 6, "a reader waited for a writer"
            with pytest.raises(StoreBusyError, match="locked") as caught:
                await store.put("first", 7)
            assert caught.value.retry_after == 0.05
            other.execute("ROLLBACK")
        assert await store.put("first", 7) == 7


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A file of a newer program is refused and left as it is."""
    path = tmp_path / "store.db"
    await fill(path)
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA user_version = 99")
    with pytest.raises(SchemaError, match=r"format 99 .* newer program"):
        async with at(path):
            pass
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT count(*) FROM journal").fetchone() == (6,)


async def test_another_database_is_refused(tmp_path: Path) -> None:
    """An SQLite file that is not a store is refused and left as it is."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE mine (x)")
    with pytest.raises(StoreCorruptError, match="not a store"):
        async with at(path):
            pass
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    with pytest.raises(StoreError, match="directory exists"):
        async with at(tmp_path / "nowhere" / "store.db"):
            pass


async def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path) -> None:
    """Times in the journal never go back, and nothing else depends on them."""
    times = iter([1000.0, 2000.0, 500.0, 600.0, 2500.0])
    async with at(tmp_path / "store.db", clock=lambda: next(times)) as store:
        for number in range(5):
            await store.put("n", number)
        records = await store.journal()
        assert [record.time for record in records] == [1000.0, 2000.0, 2000.0, 2000.0, 2500.0]
        assert await store.verify()
