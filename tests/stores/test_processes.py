"""One file, several processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from orchestra import Commit, MVCCStore, SQLiteStore, StoreLease
from orchestra.errors import CompactedError, LeaseLostError

CHILD = Path(__file__).with_name("process_child.py")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteStore]:
    """A store that does not wait for the disk, and soon sees what others commit."""
    async with SQLiteStore(path, durability="process", poll_interval=0.01) as store:
        yield store


@asynccontextmanager
async def child(path: Path, *command: object) -> AsyncIterator[Process]:
    """A process that is gone at the end of the block."""
    async with await anyio.open_process(
        [sys.executable, str(CHILD), str(path), *map(str, command)], stderr=None
    ) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def first_line(process: Process) -> str:
    """What the process says first."""
    assert process.stdout is not None
    with anyio.fail_after(30):
        async for text in TextReceiveStream(process.stdout):
            return text.strip()
    raise AssertionError("the child ended without a word")


async def run(path: Path, *command: object) -> list[str]:
    """Run a child to its end and return its lines."""
    done = await anyio.run_process(
        [sys.executable, str(CHILD), str(path), *map(str, command)], stderr=None
    )
    return done.stdout.decode().split()


async def test_four_processes_lose_no_update(tmp_path: Path) -> None:
    """4 processes that add 50 times each to one number arrive at 200."""
    path = tmp_path / "store.db"
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run, path, "add", "n", 50)
    async with opened(path) as store:
        assert await store.get("n") == 200
        assert await store.revision() == 200
        assert await store.verify()


async def test_each_task_is_claimed_once(tmp_path: Path) -> None:
    """Of processes that claim the same tasks at the same time exactly one gets each."""
    path = tmp_path / "store.db"
    got: list[list[str]] = []

    async def claim(name: str) -> None:
        got.append(await run(path, "claim", name, 30))

    async with anyio.create_task_group() as group:
        for name in ("one", "two", "three"):
            group.start_soon(claim, name)
    assert sorted(int(number) for numbers in got for number in numbers) == list(range(30))


async def test_a_watch_sees_other_processes_commits(tmp_path: Path) -> None:
    """A watch delivers the commits of other processes in order, without a gap."""
    path = tmp_path / "store.db"
    seen: list[Commit] = []
    async with (
        opened(path) as store,
        store.watch("n") as commits,
        anyio.create_task_group() as group,
    ):
        group.start_soon(run, path, "put", "n", 30)
        with anyio.fail_after(30):
            async for commit in commits:
                seen.append(commit)
                if len(seen) == 30:
                    break
    assert [commit.revision for commit in seen] == list(range(1, 31))
    assert [commit.changes[0].value for commit in seen] == list(range(30))


async def test_another_process_does_not_compact_what_is_read(tmp_path: Path) -> None:
    """compact() keeps the snapshots of other processes for as long as they live, and no longer."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        for number in range(1, 11):
            await store.put("n", number)
        async with child(path, "read", 4) as reader:
            assert await first_line(reader) == "ready"
            assert await store.compact(8) == 4
            assert reader.stdin is not None
            await reader.stdin.send(b"\n")
            assert await first_line(reader) == "4"
            await reader.wait()
        assert await store.compact(8) == 8
        async with child(path, "read", 9) as reader:
            assert await first_line(reader) == "ready"
            reader.kill()
            await reader.wait()
        assert await store.compact() == 10, "a dead process holds compaction up"
    assert [name.name for name in path.parent.iterdir()] == ["store.db"]


async def test_our_snapshot_holds_another_process_up(tmp_path: Path) -> None:
    """What this process reads is kept by the compaction of another one."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        for number in range(1, 11):
            await store.put("n", number)
        async with store.snapshot(3) as snap:
            assert await run(path, "compact", 10) == ["3"]
            assert await snap.get("n") == 3
        async with store.transaction() as tx:
            assert await tx.get("n") == 10
            assert int((await run(path, "compact", 10))[0]) <= 10
            tx.put("n", 11)
        await store.compact()
        with pytest.raises(CompactedError):
            async with store.snapshot(3):
                pass


async def test_a_reader_that_never_commits_moves_on(tmp_path: Path) -> None:
    """A process that only reads does not hold compaction up at where it once began."""
    path = tmp_path / "store.db"
    async with opened(path) as writer, opened(path) as reader:
        assert await reader.get("n", 0) == 0
        for number in range(300):
            await writer.put("n", number)
        assert await reader.get("n") == 299
        with anyio.fail_after(30):
            while await writer.compact() < 200:
                assert await reader.get("n") == 299


async def test_two_stores_in_one_process_are_as_two_processes(tmp_path: Path) -> None:
    """Two stores on one file see each other's commits at once, and their pins."""
    path = tmp_path / "store.db"
    async with opened(path) as one, opened(path) as two:
        for number in range(1, 6):
            await one.put("n", number)
            assert await two.get("n") == number
        async with two.snapshot(2) as snap:
            assert await one.compact() <= 2
            assert await snap.get("n") == 2
        async with two.transaction() as tx:
            tx.put("n", await tx.get("n") + 1)
        assert await one.get("n") == 6


async def test_a_reader_that_holds_nobody_up_is_told(tmp_path: Path) -> None:
    """A read-only store never reads what has been compacted under it: it gets an error."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        for number in range(1, 6):
            await store.put("n", number)
        reader: MVCCStore
        async with SQLiteStore(path, read_only=True) as reader, reader.snapshot(2) as snap:
            assert await snap.get("n") == 2
            assert await store.compact() == 5
            with pytest.raises(CompactedError):
                await snap.get("n")


async def test_the_lease_of_a_killed_process_runs_out(tmp_path: Path) -> None:
    """After kill -9 the next one gets the lease when its lifetime is over, with a higher fence."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        async with child(path, "hold", "planner", 1.5) as holder:
            fence = int(await first_line(holder))
            with anyio.move_on_after(2.0) as scope:
                async with store.lease("planner", owner="impatient"):
                    pass
            assert scope.cancelled_caught, "a lease that is renewed was given away"
            holder.kill()
            await holder.wait()
        with anyio.fail_after(30):
            async with store.lease("planner", owner="next") as lease:
                assert lease.fence > fence


async def test_who_lost_its_lease_is_stopped(tmp_path: Path) -> None:
    """When somebody else has the lease the block is cancelled, and its commits are refused."""
    path = tmp_path / "store.db"
    seen: list[str] = []

    async def act(store: SQLiteStore, lease: StoreLease) -> None:
        async with store.transaction() as tx:
            await tx.require(lease)
            tx.put("n", 1)

    async def lose(store: SQLiteStore) -> None:
        async with store.lease("planner", lifetime=0.2) as lease:
            await act(store, lease)
            # What another process does that takes it over.
            async with store.transaction() as tx:
                tx.write("\x01lease/planner", {"owner": "other", "lifetime": 9.0})
            with pytest.raises(LeaseLostError):
                await act(store, lease)
            try:
                await anyio.sleep_forever()
            finally:
                seen.append("cancelled")

    async with opened(path) as store:
        with pytest.raises(LeaseLostError, match=r"'planner' .* take a new lease"):
            await lose(store)
        assert seen == ["cancelled"]
        async with store.snapshot() as snap:
            entry = await snap.entry("n")
        assert entry is not None
        assert entry.version == 1
