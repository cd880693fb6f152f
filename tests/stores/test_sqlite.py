"""How the engine treats its threads, its groups, the disk, and cancellation."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import sniffio

from orchestra import SQLiteStore
from orchestra.errors import ConflictError


class Gate:
    """A fault hook that stops the writer's thread at a point until it is let through."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.is_armed = False
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, point: str) -> None:
        if self.is_armed and point == self.point:
            self.is_armed = False
            self.reached.set()
            assert self.opened.wait(30)

    async def wait_reached(self) -> None:
        """Wait until the thread stands at the gate."""
        assert await anyio.to_thread.run_sync(self.reached.wait, 30)


def at(path: Path, gate: Gate | None = None, patience: float = 5.0) -> SQLiteStore:
    """A store that does not wait for the disk."""
    return SQLiteStore(
        path / "store.db", durability="process", patience=patience, poll_interval=0.01, fault=gate
    )


def store_threads() -> list[str]:
    """The threads that stores own."""
    return [thread.name for thread in threading.enumerate() if "store.db" in thread.name]


async def test_waiting_commits_are_one_group(tmp_path: Path) -> None:
    """Commits that wait while the disk is busy share the next write, and each has its own fate."""
    gate = Gate("group: commit")
    async with at(tmp_path, gate) as store:
        await store.put("n", 0)
        groups = store.statistics().groups
        gate.is_armed = True
        outcomes: dict[int, object] = {}

        async def commit(number: int) -> None:
            try:
                async with store.transaction(transaction_id=f"t{number}") as tx:
                    if number == 3:
                        tx.footprint.read_revision = 0
                        tx.footprint.keys.add("n")
                    tx.put(f"k/{number}", number)
            except ConflictError as exc:
                outcomes[number] = exc.keys
            else:
                outcomes[number] = tx.revision

        async with anyio.create_task_group() as group:
            group.start_soon(commit, 0)
            await gate.wait_reached()
            for number in range(1, 8):
                group.start_soon(commit, number)
            await anyio.wait_all_tasks_blocked()
            gate.opened.set()
        assert store.statistics().groups == groups + 2
        assert outcomes[3] == ("n",)
        revisions = [outcomes[number] for number in range(8) if number != 3]
        assert sorted(revisions) == list(range(2, 9))  # type: ignore[type-var]
        assert await store.revision() == 8
        assert await store.verify()


async def test_the_loop_runs_while_the_disk_does_not(tmp_path: Path) -> None:
    """While a commit hangs on the disk other tasks run, and the store can be read."""
    gate = Gate("group: commit")
    async with at(tmp_path, gate) as store:
        await store.put("n", 0)
        assert await store.get("n") == 0
        gate.is_armed = True
        async with anyio.create_task_group() as group:
            group.start_soon(store.put, "n", 1)
            await gate.wait_reached()
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            assert await store.get("n") == 0
            gate.opened.set()
        assert await store.get("n") == 1


async def test_a_commit_that_has_begun_is_seen_through(tmp_path: Path) -> None:
    """Cancelling a commit that the disk is at waits for it, and the transaction tells the truth."""
    gate = Gate("group: commit")
    async with at(tmp_path, gate) as store:
        gate.is_armed = True
        tx = store.transaction()
        steps: list[str] = []

        async def commit() -> None:
            try:
                async with tx:
                    tx.put("n", 1)
            finally:
                steps.append(f"ended in revision {tx.revision}")

        async with anyio.create_task_group() as group:
            group.start_soon(commit)
            await gate.wait_reached()
            group.cancel_scope.cancel()
            threading.Timer(0.05, gate.opened.set).start()
        assert steps == ["ended in revision 1"]
        assert await store.outcome(tx.id) == 1
        assert await store.get("n") == 1


async def test_a_cancelled_commit_that_hangs_is_found_out_later(tmp_path: Path) -> None:
    """Whoever is cancelled does not wait for ever; afterwards the transaction's id tells."""
    gate = Gate("group: commit")
    async with at(tmp_path, gate, patience=0.1) as store:
        gate.is_armed = True
        tx = store.transaction()

        async def commit() -> None:
            async with tx:
                tx.put("n", 1)

        async with anyio.create_task_group() as group:
            group.start_soon(commit)
            await gate.wait_reached()
            group.cancel_scope.cancel()
        assert tx.revision is None
        gate.opened.set()
        assert await store.outcome(tx.id) == 1
        assert await store.get("n") == 1


async def test_a_commit_cancelled_by_the_loop_itself_is_seen_through(tmp_path: Path) -> None:
    """Cancellation by asyncio itself, which knows no scopes, is treated in the same way."""
    if sniffio.current_async_library() != "asyncio":
        pytest.skip("asyncio only")
    import asyncio

    gate = Gate("group: commit")
    async with at(tmp_path, gate) as store:
        gate.is_armed = True
        tx = store.transaction()

        async def commit() -> None:
            async with tx:
                tx.put("n", 1)

        task = asyncio.create_task(commit())
        await gate.wait_reached()
        task.cancel()
        threading.Timer(0.05, gate.opened.set).start()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tx.revision == 1
        assert await store.outcome(tx.id) == 1
        assert await store.get("n") == 1


async def test_a_commit_that_was_not_begun_is_withdrawn(tmp_path: Path) -> None:
    """A commit that is cancelled while it waits for the disk is never applied."""
    gate = Gate("group: commit")
    async with at(tmp_path, gate) as store:
        await store.put("n", 0)
        gate.is_armed = True
        async with anyio.create_task_group() as group:
            group.start_soon(store.put, "n", 1)
            await gate.wait_reached()
            with anyio.move_on_after(0.05) as scope:
                async with store.transaction() as tx:
                    tx.put("m", 1)
            assert scope.cancelled_caught
            gate.opened.set()
        assert await store.outcome(tx.id) is None
        assert await store.get("m") is None
        assert await store.get("n") == 1


async def test_leaving_ends_both_threads(tmp_path: Path) -> None:
    """A store that was left, however it was left, has no thread and no file open."""
    async with at(tmp_path) as store:
        await store.put("n", 1)
        assert len(store_threads()) == 2
    assert store_threads() == []
    with anyio.CancelScope() as scope:
        async with at(tmp_path) as store:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert store_threads() == []
    (tmp_path / "store.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(Exception, match="damaged"):
        await at(tmp_path).__aenter__()
    assert store_threads() == []


async def test_cancelling_the_opening_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled while it makes its file, a store closes again; the next one opens it."""
    gate = Gate("create: commit")
    gate.is_armed = True
    async with anyio.create_task_group() as group:

        async def enter() -> None:
            async with at(tmp_path, gate):
                pass

        group.start_soon(enter)
        await gate.wait_reached()
        group.cancel_scope.cancel()
        gate.opened.set()
    assert store_threads() == []
    async with at(tmp_path) as store:
        assert await store.put("n", 1) == 1


async def test_closing_finishes_what_was_handed_in(tmp_path: Path) -> None:
    """A commit under way when the store is left is done before the file is closed."""
    gate = Gate("group: commit")
    ready = anyio.Event()
    async with anyio.create_task_group() as group:
        async with at(tmp_path, gate) as store:
            gate.is_armed = True

            async def commit() -> None:
                assert await store.put("n", 1) == 1
                ready.set()

            group.start_soon(commit)
            await gate.wait_reached()
            threading.Timer(0.05, gate.opened.set).start()
        await ready.wait()
    async with at(tmp_path) as again:
        assert await again.get("n") == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SQLiteStore("x", durability="none"), "durability is 'none'"),  # type: ignore[arg-type]
        (lambda: SQLiteStore("x", patience=0), "patience is 0"),
        (lambda: SQLiteStore("x", poll_interval=-1), "poll_interval is -1"),
    ],
)
def test_bad_configuration_is_refused(make: Callable[[], object], message: str) -> None:
    """A wrong argument is refused at construction, and named."""
    with pytest.raises(ValueError, match=message):
        make()


async def test_a_store_is_entered_once(tmp_path: Path) -> None:
    """Entering again is refused, and says what to do."""
    store = at(tmp_path)
    async with store:
        with pytest.raises(RuntimeError, match="make a new one"):
            await store.__aenter__()
        tx = store.transaction()
        async with tx:
            tx.put("n", 1)
        with pytest.raises(RuntimeError, match="entered once"):
            await tx.__aenter__()


async def test_a_snapshot_reads_what_checkpointing_moves(tmp_path: Path) -> None:
    """Moving the write-ahead log into the file changes nothing for who reads."""
    async with at(tmp_path) as store:
        for number in range(10):
            await store.put("n", number)
        async with store.snapshot(3) as snap:
            with sqlite3.connect(tmp_path / "store.db") as sql:
                sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sql.close()
            assert await snap.get("n") == 2
        assert await store.get("n") == 9
