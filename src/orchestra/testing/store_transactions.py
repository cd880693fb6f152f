"""Checks of a store's transactions: what they see, when they conflict, how they are repeated."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel

from orchestra.errors import ConflictError
from orchestra.storage import MVCCStore, Transaction
from orchestra.testing.store_steps import add, conflict, expect, refuses

# --- transactions -------------------------------------------------------------------------------


async def check_revisions(store: MVCCStore) -> None:
    """Each commit makes exactly one revision, whatever it writes; one without changes makes none."""
    expect(await store.revision() == 0, "a new namespace has a revision")
    async with store.transaction() as tx:
        tx.put("a", 1)
        tx.put("b", [1, {"x": None}])
        expect(tx.revision is None, "a transaction has a revision before its commit")
    expect(tx.revision == 1, f"the first commit made revision {tx.revision}")
    async with store.transaction() as tx:
        expect(await tx.get("a") == 1, "a committed value is not read")
    expect(tx.revision is None, "a transaction that only reads made a revision")
    async with store.transaction() as tx:
        tx.delete("not there")
    expect(tx.revision is None, "deleting what is not there made a revision")
    expect(await store.put("a", 2) == 2, "put() does not return the next revision")
    expect(await store.revision() == 2, "the store is not at the revision of the last commit")
    async with store.snapshot() as snap:
        entry = await snap.entry("a")
    expect(
        entry and (entry.value, entry.revision, entry.created, entry.version) == (2, 2, 1, 2),
        f"the entry of a key written twice is {entry!r}",
    )


async def check_values(store: MVCCStore) -> None:
    """What is read is what was stored, and nothing that a caller does afterwards changes it."""
    value = {"text": "grüße, 世界 \U0001f3bb \x00", "list": [1, -2.5, True, None, ""], "empty": {}}
    async with store.transaction() as tx:
        tx.put("v", value)
        value["list"] = "changed"
        seen = await tx.get("v")
        seen["empty"] = "changed"
    stored = await store.get("v")
    expect(stored["list"] == [1, -2.5, True, None, ""], f"the stored list is {stored['list']!r}")
    expect(stored["empty"] == {}, "a value that was read was changed in the store")
    expect(stored["text"] == value["text"], "text came back different")
    large = "x" * 100_000
    await store.put("large", large)
    await store.put("larger", large)
    expect(await store.get("large") == large, "a large value came back different")
    for wrong in (object(), {1: 2}, (1, 2), float("nan")):
        await refuses(TypeError, lambda wrong=wrong: store.put("w", wrong))  # type: ignore[misc]
    expect(await store.get("w", "nothing") == "nothing", "a refused value was stored")
    await store.put("null", None)
    async with store.snapshot() as snap:
        expect(await snap.entry("null") is not None, "a stored None counts as missing")


async def check_keys(store: MVCCStore) -> None:
    """Keys come in the order of their characters, prefixes select exactly, bad keys are refused."""
    keys = ["a", "a/", "a/b", "a/é", "a/\uffff", "a/\U0010ffff", "a0", "b", "\U0010ffff", "é"]
    async with store.transaction() as tx:
        for number, key in enumerate(keys):
            tx.put(key, number)
    async with store.snapshot() as snap:
        for prefix in ("", "a", "a/", "a/\uffff", "\U0010ffff", "b", "c", "a/b/"):
            found = await snap.range(prefix)
            expected = sorted(key for key in keys if key.startswith(prefix))
            expect(list(found) == expected, f"range({prefix!r}) is {list(found)}")
    for wrong in ("", "\x00", "\x01lease/x", "\ud800"):
        await refuses(ValueError, lambda wrong=wrong: store.put(wrong, 1))  # type: ignore[misc]
        await refuses(ValueError, lambda wrong=wrong: store.get(wrong))  # type: ignore[misc]


async def check_own_writes(store: MVCCStore) -> None:
    """A transaction sees its own writes, and nobody else does before the commit."""
    await store.put("k/1", "old")
    await store.put("k/2", "old")
    async with store.transaction() as tx:
        tx.put("k/1", "new")
        tx.delete("k/2")
        tx.put("k/3", "new")
        expect(await tx.get("k/1") == "new", "a written key reads as before")
        expect(await tx.get("k/2", "gone") == "gone", "a deleted key is still read")
        expect(await tx.entry("k/2") is None, "a deleted key still has an entry")
        found = await tx.range("k/")
        expect(found == {"k/1": "new", "k/3": "new"}, f"range() sees {found}")
        expect(await store.get("k/1") == "old", "a write is seen before its commit")
    async with store.snapshot() as snap:
        found = await snap.range("k/")
    expect(found == {"k/1": "new", "k/3": "new"}, f"after the commit there is {found}")


async def check_rollback(store: MVCCStore) -> None:
    """A block that raises writes nothing, its error comes out, and the transaction is over."""
    ended: list[Transaction] = []
    try:
        async with store.transaction() as tx:
            ended.append(tx)
            tx.put("a", 1)
            raise LookupError("mine")
    except LookupError:
        pass
    expect(await store.revision() == 0, "a failed transaction made a revision")
    await refuses(anyio.ClosedResourceError, lambda: ended[0].get("a"))
    try:
        ended[0].put("a", 1)
    except anyio.ClosedResourceError:
        pass
    else:
        raise AssertionError("a transaction that is over took a write")


async def check_lost_update(store: MVCCStore) -> None:
    """Of two that read and write the same key only one is committed."""
    await store.put("n", 0)
    for snapshot_isolation in (False, True):
        before = await store.get("n")
        with conflict("n", "an update was lost"):
            async with store.transaction(snapshot_isolation=snapshot_isolation) as one:
                value = await one.get("n")
                await store.put("n", value + 10)
                one.put("n", value + 1)
        expect(await store.get("n") == before + 10, "a refused transaction wrote something")


async def check_write_skew(store: MVCCStore) -> None:
    """Two that read what the other one writes are not both committed, unless they asked for it."""
    await store.put("x", 1)
    await store.put("y", 1)
    with conflict("y", "write skew was let through"):
        async with store.transaction() as one:
            expect(await one.get("x") + await one.get("y") == 2, "wrong values")
            async with store.transaction() as two:
                await two.get("x")
                two.put("y", 0)
            one.put("x", 0)
    await store.put("y", 1)
    async with store.transaction(snapshot_isolation=True) as one:
        await one.get("y")
        await store.put("y", 0)
        one.put("x", 0)
    expect(one.revision is not None, "snapshot isolation validated a read")


async def check_phantom(store: MVCCStore) -> None:
    """A key that appears, changes or goes away below a prefix that was ranged over is a conflict."""
    await store.put("task/1", "open")
    steps: tuple[Callable[[Transaction], None], ...] = (
        lambda tx: tx.put("task/2", "open"),
        lambda tx: tx.put("task/1", "done"),
        lambda tx: tx.delete("task/2"),
    )
    for step, key in zip(steps, ("task/2", "task/1", "task/2"), strict=True):
        with conflict(key, "a phantom was not seen"):
            async with store.transaction() as tx:
                found = await tx.range("task/")
                async with store.transaction() as other:
                    step(other)
                tx.put("count", len(found))
    async with store.transaction() as tx:
        await tx.range("task/")
        await store.put("tasks", "not below the prefix")
        tx.put("count", 1)
    expect(tx.revision is not None, "a change outside the prefix was a conflict")


async def check_no_false_conflicts(store: MVCCStore) -> None:
    """Blind writes and transactions that only read conflict with nobody; nor do different keys."""
    await store.put("a", 0)
    async with store.transaction() as blind:
        blind.put("a", 1)
        await store.put("a", 2)
    expect(await store.get("a") == 1, "a blind write was lost")
    async with store.transaction() as reader:
        expect(await reader.get("a") == 1, "wrong value")
        await store.put("a", 3)
        expect(await reader.get("a") == 1, "a transaction saw a later commit")
    async with store.transaction() as tx:
        await tx.get("a")
        await store.put("b", 1)
        tx.put("a", 4)
    expect(tx.revision is not None, "another key's change was a conflict")


async def check_deletion(store: MVCCStore) -> None:
    """Deleting counts as a change, and a key made again begins anew."""
    await store.put("k", "one")
    with conflict("k", "a deletion was not seen"):
        async with store.transaction() as tx:
            await tx.get("k")
            async with store.transaction() as other:
                other.delete("k")
            tx.put("x", 1)
    with conflict("k", "a key that went away and came back was not seen"):
        async with store.transaction() as tx:
            await tx.get("k")
            await store.put("k", "two")
            async with store.transaction() as other:
                other.delete("k")
            tx.put("x", 1)
    await store.put("k", "three")
    async with store.snapshot() as snap:
        entry = await snap.entry("k")
    expect(
        entry is not None and entry.version == 1 and entry.created == entry.revision,
        f"a key that was made again has the entry {entry!r}",
    )


async def check_put_if(store: MVCCStore) -> None:
    """put_if() writes only over the revision that it names; 0 stands for no key at all."""
    first = await store.put_if("k", "one", revision=0)
    await refuses(ConflictError, lambda: store.put_if("k", "two", revision=0))
    second = await store.put_if("k", "two", revision=first)
    await refuses(ConflictError, lambda: store.put_if("k", "three", revision=first))
    await refuses(ConflictError, lambda: store.put_if("new", "x", revision=second))
    expect(await store.get("k") == "two", "put_if() wrote although it refused")


# --- running again ------------------------------------------------------------------------------


async def check_transact(store: MVCCStore) -> None:
    """However many add to one number at once, nothing is lost, and each gets its own result."""
    results: list[int] = []

    async def add_slowly(tx: Transaction) -> int:
        total = await tx.get("n", 0)
        await anyio.lowlevel.checkpoint()
        tx.put("n", total + 1)
        return int(total) + 1

    async def worker() -> None:
        results.extend([await store.transact(add_slowly) for _ in range(5)])

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(worker)
    expect(await store.get("n") == 40, f"{40 - await store.get('n')} of 40 updates were lost")
    expect(sorted(results) == list(range(1, 41)), "two transactions saw the same number")

    async def fail(tx: Transaction) -> None:
        await add(tx, "n")
        raise LookupError("mine")

    await refuses(LookupError, lambda: store.transact(fail))
    expect(await store.get("n") == 40, "a failed function wrote something")
    expect(await store.transact(add, "m", amount=3) == 3, "arguments are not passed on")


async def check_transact_gives_up(store: MVCCStore) -> None:
    """A function that always meets a conflict is not run for ever."""
    runs = 0

    async def hopeless(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.get("n")
        await store.put("n", runs)
        tx.put("n", -1)

    await refuses(ConflictError, lambda: store.transact(hopeless))
    expect(runs > 1, "transact() did not run the function again")
    expect(await store.get("n") == runs, "a refused transaction wrote something")


async def check_merge(store: MVCCStore) -> None:
    """A merge function resolves conflicts on what was written, without a second run."""
    seen: list[tuple[object, ...]] = []

    def union(key: str, base: list[str], mine: list[str], theirs: list[str]) -> list[str]:
        seen.append((key, base, mine, theirs))
        return sorted({*mine, *theirs})

    await store.put("set", ["a"])
    merging = store.using(author="merger", merge=union)
    runs = 0

    async def append(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        value = await tx.get("set")
        if runs == 1:
            await store.put("set", ["a", "b"])
        tx.put("set", [*value, "c"])

    await merging.transact(append)
    expect(await store.get("set") == ["a", "b", "c"], f"merged to {await store.get('set')}")
    expect(runs == 1, "the function was run again although its conflict could be merged")
    expect(seen == [("set", ["a"], ["a", "c"], ["a", "b"])], f"merge was asked {seen}")
    runs = 0

    async def depends(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        other = await tx.get("other", 0)
        if runs == 1:
            await store.put("other", 1)
        tx.put("set", [str(other)])

    await merging.transact(depends)
    expect(runs == 2, "a read that changed was merged away")
    expect(await store.get("set") == ["1"], "a stale read was committed")


async def check_outcome(store: MVCCStore) -> None:
    """A transaction's id tells what became of it, applies once, and can be settled as void."""
    async with store.transaction(transaction_id="mine") as tx:
        await add(tx, "n")
    expect(tx.id == "mine", "the given id is not the transaction's")
    expect(await store.outcome("mine") == tx.revision, "a committed transaction is not found")
    async with store.transaction(transaction_id="mine") as again:
        again.put("n", 100)
    expect(again.revision == tx.revision, "an id was committed twice")
    expect(await store.get("n") == 1, "an id was applied twice")
    expect(await store.outcome("never") is None, "an unknown transaction was found")

    async def late() -> None:
        async with store.transaction(transaction_id="never") as tx:
            tx.put("n", 7)

    await refuses(ConflictError, late)
    expect(await store.get("n") == 1, "a transaction was applied after it was settled as void")
    async with store.transaction() as tx, store.transaction() as other:
        expect(tx.id != other.id, "two transactions have the same id")


async def check_cancellation(store: MVCCStore) -> None:
    """A cancelled transaction writes nothing, or all of it and its id tells."""
    with anyio.CancelScope() as scope:
        async with store.transaction() as tx:
            await add(tx, "n")
            scope.cancel()
    expect(scope.cancelled_caught, "a cancelled commit did not end in cancellation")
    expect(await store.outcome(tx.id) is None, "a commit began after it was cancelled")
    expect(await store.get("n", 0) == 0, "a cancelled transaction wrote something")
    began = anyio.Event()
    ids: list[Transaction] = []

    async def write() -> None:
        async with store.transaction() as tx:
            ids.append(tx)
            tx.put("m", 1)
            began.set()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        await began.wait()
        group.cancel_scope.cancel()
    revision = await store.outcome(ids[0].id)
    expect(
        (revision is not None) == (await store.get("m") == 1), "the outcome of a commit is not true"
    )
    await store.put("m", 2)
