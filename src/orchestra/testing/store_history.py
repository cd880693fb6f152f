"""Checks of what a store keeps: snapshots, watches, compaction, history, leases, namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import anyio
import anyio.lowlevel

from orchestra.errors import CompactedError, ConflictError, LeaseLostError
from orchestra.revisions import Commit, StoreLease
from orchestra.storage import MVCCStore
from orchestra.testing.store_steps import add, expect, refuses

# --- snapshots, watches, compaction -------------------------------------------------------------


async def check_snapshots(store: MVCCStore) -> None:
    """A snapshot never changes; old revisions can be read, later ones not yet."""
    for number in range(1, 6):
        async with store.transaction() as tx:
            tx.put("n", number)
            tx.put(f"k/{number}", number)
    async with store.snapshot() as now, store.snapshot(2) as then:
        async with store.transaction() as tx:
            tx.put("n", 6)
            tx.delete("k/1")
            tx.put("k/6", 6)
        expect((now.revision, then.revision) == (5, 2), "a snapshot has the wrong revision")
        expect(await now.get("n") == 5, "a snapshot changed")
        expect(len(await now.range("k/")) == 5, "a snapshot's range changed")
        expect(await then.get("n") == 2, "an old revision reads wrong")
        expect(await then.range() == {"k/1": 1, "k/2": 2, "n": 2}, "an old range reads wrong")
        expect(await then.get("k/3", "none") == "none", "an old revision knows the future")

    async def future() -> None:
        async with store.snapshot(7):
            pass

    await refuses(ValueError, future)
    await refuses(anyio.ClosedResourceError, lambda: now.get("n"))
    async with store.snapshot(0) as empty:
        expect(await empty.range() == {}, "revision 0 is not empty")


async def _take(commits: AsyncIterator[Commit], count: int) -> list[Commit]:
    found: list[Commit] = []
    async for commit in commits:
        found.append(commit)
        if len(found) == count:
            break
    return found


async def check_watch(store: MVCCStore) -> None:
    """A watch delivers every commit once, whole and in order, and may be resumed anywhere."""
    author = store.using(author="writer")
    for number in range(1, 6):
        async with author.transaction() as tx:
            tx.put("w/a", number)
            tx.put("w/b", -number)
            tx.put("other", number)
    for since in range(5):
        async with store.watch("w/", since=since, batch=2) as commits:
            found = await _take(commits, 5 - since)
        expect([c.revision for c in found] == list(range(since + 1, 6)), "commits are missing")
        for commit in found:
            values = {change.key: change.value for change in commit.changes}
            expected = {"w/a": commit.revision, "w/b": -commit.revision}
            expect(values == expected, f"a commit was torn: {commit}")
            expect(commit.author == "writer", "a commit does not name its author")
    async with store.watch("w/") as commits:
        await store.put("other", 6)
        async with store.transaction() as tx:
            tx.delete("w/a")
        [commit] = await _take(commits, 1)
    expect(commit.revision == 7, "a watch began too early, or told what nobody watches")
    [change] = commit.changes
    expect(
        (change.is_deleted, change.value, change.previous) == (True, None, 5),
        f"a deletion was told as {change}",
    )

    async def future() -> None:
        async with store.watch(since=99):
            pass

    await refuses(ValueError, future)


async def check_watch_waits(store: MVCCStore) -> None:
    """A watch that has caught up is woken by the next commit, and can be cancelled."""
    seen: list[int] = []
    ready = anyio.Event()
    done = anyio.Event()

    async def watch() -> None:
        async with store.watch("w/") as commits:
            ready.set()
            async for commit in commits:
                seen.append(commit.revision)
                if len(seen) == 10:
                    done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await ready.wait()
        for number in range(10):
            await store.put("w/x", number)
        await done.wait()
        group.cancel_scope.cancel()
    expect(seen == list(range(1, 11)), f"the watch saw {seen}")
    expect(store.statistics().watches == 0, "a watch that was left is still counted")


async def check_compaction(store: MVCCStore) -> None:
    """Compaction forgets what was overwritten, keeps what is current or pinned, and the journal."""
    for number in range(1, 11):
        async with store.transaction() as tx:
            tx.put("n", number)
            tx.put(f"k/{number}", "x" * 1000)
            if number > 5:
                tx.delete(f"k/{number - 5}")
    async with store.snapshot(4) as pinned:
        expect(await store.compact(8) == 4, "a pinned snapshot did not hold compaction up")
        expect(await pinned.get("n") == 4, "a pinned snapshot lost a value")
        expect(len(await pinned.range("k/")) == 4, "a pinned snapshot lost a key")
    async with store.transaction() as reader:
        expect(await reader.get("n") == 10, "wrong value")
        expect(await store.compact(8) == 8, "compaction stopped too early")
        expect(await store.compact(6) == 8, "compaction went back")
    for revision in (0, 7):

        async def old(revision: int = revision) -> None:
            async with store.snapshot(revision):
                pass

        await refuses(CompactedError, old)
    async with store.snapshot(8) as snap:
        expect(await snap.get("n") == 8, "the oldest revision that is kept reads wrong")
        expect(
            list(await snap.range("k/")) == [f"k/{number}" for number in (4, 5, 6, 7, 8)],
            "compaction lost or revived a key",
        )

    async def stale() -> None:
        async with store.watch(since=7) as commits:
            await _take(commits, 1)

    await refuses(CompactedError, stale)
    async with store.watch(since=8) as commits:
        found = await _take(commits, 2)
    expect([commit.revision for commit in found] == [9, 10], "a watch lost kept commits")
    expect(len(await store.journal()) == 10, "compaction shortened the journal")
    expect(await store.compact() == 10, "compaction stopped before the current revision")
    expect(await store.get("n") == 10, "compaction lost the current value")
    verification = await store.verify()
    expect(verification, f"after compaction: {verification.fault}")
    await refuses(ValueError, lambda: store.compact(11))


async def check_watch_overtaken(store: MVCCStore) -> None:
    """A slow watch that compaction overtakes says so, and loses nothing silently."""
    for number in range(6):
        await store.put("n", number)
    async with store.watch(since=0, batch=2) as commits:
        found = await _take(commits, 1)
        await store.compact()

        async def rest() -> None:
            found.extend(await _take(commits, 5))

        await refuses(CompactedError, rest)
    expect([c.revision for c in found] in ([1], [1, 2]), "commits were lost without an error")


# --- history ------------------------------------------------------------------------------------


async def check_history(store: MVCCStore) -> None:
    """The journal names author, keys and digests of every commit; versions and diffs are true."""
    one, two = store.using(author="one"), store.using(author="two")
    await one.put("a", "same")
    await two.put("b", "same")
    async with one.transaction() as tx:
        tx.delete("a")
        tx.put("c", 3)
    await one.put("a", "again")
    versions = await store.history("a")
    expect([v and v.value for v in versions] == ["same", None, "again"], f"history: {versions}")
    records = await store.journal()
    expect([r.revision for r in records] == [1, 2, 3, 4], "the journal has the wrong revisions")
    expect([r.author for r in records] == ["one", "two", "one", "one"], "authors are wrong")
    expect(records[2].transaction_id == tx.id, "the journal does not name the transaction")
    digests = {r.revision: {c.key: c.digest for c in r.changes} for r in records}
    expect(digests[1]["a"] == digests[2]["b"], "equal values have different digests")
    expect(records[3].changes[0].previous == 0, "a key that was made again has a value before")
    expect(digests[3]["a"] is None and digests[3]["c"], "a deletion's record is wrong")
    expect(all(a.time <= b.time for a, b in pairwise(records)), "times")
    expect(list(await store.journal(2, limit=1)) == [records[2]], "a part of it reads differently")
    found = {
        d.key: (d.before and d.before.value, d.after and d.after.value)
        for d in await store.diff(1, 4)
    }
    expect(
        found == {"a": ("same", "again"), "b": (None, "same"), "c": (None, 3)},
        f"the difference is {found}",
    )
    expect(list(await store.diff(2, 2)) == [], "a revision differs from itself")
    await refuses(ValueError, lambda: store.diff(2, 1))


async def check_verify(store: MVCCStore) -> None:
    """An untouched history verifies, and an anchor that does not fit is found."""
    for number in range(5):
        await store.put(f"k/{number % 2}", "x" * number * 300)
    records = await store.journal()
    verification = await store.verify(anchors={r.revision: r.digest for r in records})
    expect(verification, f"an untouched history: {verification.fault}")
    expect(
        (verification.revision, verification.digest) == (5, records[-1].digest),
        "the verification does not name the last record",
    )
    wrong = await store.verify(anchors={3: "00" * 32})
    expect(not wrong and wrong.fault_revision == 3, f"a wrong anchor passed: {wrong}")
    missing = await store.verify(anchors={6: records[-1].digest})
    expect(not missing and missing.fault_revision == 6, f"a missing record passed: {missing}")


# --- leases, namespaces, the object -------------------------------------------------------------


async def check_leases(store: MVCCStore) -> None:
    """One holds a lease at a time, fencing numbers grow, and a lease that is over protects."""
    inside = 0
    fences: list[int] = []

    async def work(number: int) -> None:
        nonlocal inside
        async with store.lease("l", owner=f"o{number}", lifetime=20.0) as lease:
            inside += 1
            expect(inside == 1, "two hold the same lease")
            fences.append(lease.fence)
            await anyio.lowlevel.checkpoint()
            async with store.transaction() as tx:
                await tx.require(lease)
                await add(tx, "done")
            inside -= 1

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(work, number)
    expect(await store.get("done") == 4, "work under a lease was lost")
    expect(fences == sorted(set(fences)), f"fencing numbers do not grow: {fences}")
    async with store.lease("l") as lease:
        pass

    async def late() -> None:
        async with store.transaction() as tx:
            await tx.require(lease)
            await add(tx, "done")

    await refuses(LeaseLostError, late)
    async with store.snapshot() as snap:
        expect(list(await snap.range()) == ["done"], "leases show up among the keys")


async def check_lease_is_given_back(store: MVCCStore) -> None:
    """A held lease is waited for; a holder that is cancelled gives it back at once."""
    taken = anyio.Event()
    held: list[StoreLease] = []

    async def hold() -> None:
        async with store.lease("l", lifetime=1000.0) as lease:
            held.append(lease)
            taken.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await taken.wait()
        with anyio.move_on_after(0.05) as scope:
            async with store.lease("l"):
                raise AssertionError("two hold the same lease")
        expect(scope.cancelled_caught, "a held lease was given away")
        async with store.lease("another"):
            pass
        group.cancel_scope.cancel()
    async with store.lease("l") as lease:
        expect(lease.fence > held[0].fence, "the fencing number did not grow")
    try:
        async with store.lease("l"):
            raise LookupError("mine")
    except LookupError:
        pass

    async def useless() -> None:
        async with store.lease("l", lifetime=0.0):
            pass

    await refuses(ValueError, useless)


async def check_namespaces(store: MVCCStore) -> None:
    """Namespaces have their own keys, revisions, histories and conflicts."""
    one, two = store.namespace(f"{store.name}/one"), store.namespace(f"{store.name}/two")
    for _ in range(3):
        await one.put("k", 1)
    expect(await two.revision() == 0, "a namespace counts another's commits")
    expect(await two.get("k") is None, "a namespace has another's keys")
    async with one.transaction() as tx:
        await tx.get("k")
        await two.put("k", 2)
        tx.put("k", 3)
    expect((await one.revision(), await two.revision()) == (4, 1), "revisions are not their own")
    await one.compact()
    async with two.snapshot(0):
        pass
    names = await store.namespaces()
    expect({one.name, two.name} <= set(names), "a namespace is not listed")
    expect(list(names) == sorted(names), "namespaces are not sorted")
    again = store.namespace(one.name)
    expect(await again.get("k") == 3, "a namespace has two contents")
    expect(await one.verify() and await two.verify(), "a namespace does not verify")


async def check_statistics(store: MVCCStore) -> None:
    """What the store counts is true, and its repr names its namespace."""
    before = store.statistics()
    async with store.snapshot(), store.transaction() as tx, store.watch():
        during = store.statistics()
        expect(during.pins == before.pins + 2, "an open snapshot or transaction is not counted")
        expect(during.watches == before.watches + 1, "an open watch is not counted")
        tx.put("a", 1)
    await refuses(ConflictError, lambda: store.put_if("a", 1, revision=0))
    after = store.statistics()
    expect(after.commits == before.commits + 1, "a commit is not counted")
    expect((after.pins, after.watches) == (before.pins, before.watches), "something leaked")
    expect(after.revision == 1, "the revision is not known")
    expect(store.name in repr(store), f"the repr {store!r} lacks the namespace")
