"""Running again: how often, in which order, and what cancellation does to those who wait."""

from __future__ import annotations

import types
from collections.abc import Generator
from random import Random

import anyio
import anyio.lowlevel
import pytest

from orchestra import Contention, MemoryStore, Transaction
from orchestra.errors import ConflictError
from orchestra.stores._lines import Lines


async def work(steps: int) -> None:
    """Take a while."""
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()


async def add_all(store: MemoryStore, keys: int, workers: int, rounds: int, seed: int) -> int:
    """Let workers add to random ones of some numbers; return how often their function ran."""
    runs = 0
    random = Random(seed)

    async def add(tx: Transaction, key: str) -> None:
        nonlocal runs
        runs += 1
        value = await tx.get(key, 0)
        await work(20)
        tx.put(key, value + 1)

    async def worker() -> None:
        for _ in range(rounds):
            await store.transact(add, f"k/{random.randrange(keys)}")

    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(worker)
    async with store.snapshot() as snap:
        assert sum((await snap.range("k/")).values()) == workers * rounds
    return runs


async def test_contended_keys_are_worked_on_in_turn() -> None:
    """8 workers on one key need hardly more attempts than commits, where optimism needs many."""
    async with MemoryStore(contention=Contention(delay=0.0)) as store:
        runs = await add_all(store, keys=1, workers=8, rounds=20, seed=1)
    assert runs <= 160 * 1.25
    hopeful = Contention(delay=0.0, ticket_after=1000, attempts=1000)
    async with MemoryStore(contention=hopeful) as store:
        assert await add_all(store, keys=1, workers=8, rounds=20, seed=1) > 160 * 2


async def test_uncontended_keys_cost_one_attempt() -> None:
    """8 workers on 100 keys are in each other's way in less than one case of ten."""
    async with MemoryStore() as store:
        assert await add_all(store, keys=100, workers=8, rounds=25, seed=2) <= 200 * 1.1


async def test_places_in_line_are_given_in_order_and_cancelled_ones_are_skipped() -> None:
    """The next place goes to who has waited longest and still does; an empty line is forgotten."""
    lines = Lines()
    order: list[int] = []
    scopes: dict[int, anyio.CancelScope] = {}
    first = await lines.join("k")

    async def wait(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes[number] = scope
            place = await lines.join("k")
            order.append(number)
            place.leave()
            place.leave()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
        scopes[1].cancel()
        await anyio.wait_all_tasks_blocked()
        first.leave()
        scopes[0].cancel()  # in the moment in which it gets the place
    assert order in ([2, 3, 4], [0, 2, 3, 4])
    assert len(lines) == 0


async def test_a_cancelled_transact_gives_its_place_up() -> None:
    """Whoever is cancelled at the head of a line, or in it, holds nobody up."""
    async with MemoryStore(contention=Contention(ticket_after=1, delay=0.0)) as store:
        blocked = anyio.Event()

        async def stuck(tx: Transaction) -> None:
            await tx.get("n")
            if not blocked.is_set():
                await store.put("n", -1)
                tx.put("n", -2)
                blocked.set()
                return
            await anyio.sleep_forever()

        async def add(tx: Transaction) -> None:
            tx.put("n", await tx.get("n") + 1)

        async with anyio.create_task_group() as outer, anyio.create_task_group() as group:
            group.start_soon(store.transact, stuck)
            await blocked.wait()
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                outer.start_soon(store.transact, add)
            await anyio.wait_all_tasks_blocked()
            assert store.statistics().tickets == 4, "not everybody stands in line"
            group.cancel_scope.cancel()
        assert await store.get("n") == 2
        assert len(store._lines) == 0
        assert store.statistics().pins == 0


async def test_a_conflict_of_the_functions_own_is_not_repeated() -> None:
    """A ConflictError that the function raises itself comes out; only its own commit repeats it."""
    async with MemoryStore() as store:
        await store.put("n", 1)
        runs = 0

        async def fail(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            await store.put_if("n", 2, revision=0)

        with pytest.raises(ConflictError):
            await store.transact(fail)
        assert runs == 1


async def test_attempts_are_bounded_by_the_rules() -> None:
    """A function in conflict every time runs as often as the rules allow."""
    async with MemoryStore(contention=Contention(attempts=5, delay=0.0)) as store:
        runs = 0

        async def hopeless(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            await tx.get("n")
            await store.put("n", runs)
            tx.put("n", 0)

        with pytest.raises(ConflictError, match="'n' changed between revision 4"):
            await store.transact(hopeless)
        assert runs == 5
        assert store.statistics().conflicts == 5


async def test_a_merge_that_gives_up_runs_the_function_again() -> None:
    """A merge function may refuse, and may remove the key."""
    async with MemoryStore() as store:
        runs = 0

        def refuse(key: str, base: object, mine: object, theirs: object) -> object:
            raise ConflictError((key,), 1, 2)

        async def write(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            await tx.get("n")
            if runs == 1:
                await store.put("n", "theirs")
            tx.put("n", "mine")

        await store.using(merge=refuse).transact(write)
        assert (runs, await store.get("n")) == (2, "mine")
        runs = 0
        await store.using(merge=lambda *_: None).transact(write)
        assert (runs, await store.get("n", "gone")) == (1, "gone")


async def test_merging_is_repeated_while_others_commit() -> None:
    """A merged commit that meets another conflict is merged again, from what it was merged with."""
    async with MemoryStore() as store:
        await store.put("set", [])
        seen: list[tuple[list[int], list[int], list[int]]] = []

        def union(key: str, base: list[int], mine: list[int], theirs: list[int]) -> list[int]:
            seen.append((base, mine, theirs))
            if len(seen) < 4:
                # Somebody commits while we merge: straight into the engine, without waiting.
                tx = store.transaction()
                tx.begin()
                tx.put("set", [*theirs, len(seen)])
                store._engine._space("").versions.commit(tx.footprint, now=0.0)  # type: ignore[attr-defined]
                tx.end()
            return sorted({*mine, *theirs})

        async def append(tx: Transaction) -> None:
            value = await tx.get("set")
            await store.put("set", [0])
            tx.put("set", [*value, 99])

        await store.using(merge=union).transact(append)
        assert await store.get("set") == [0, 1, 2, 3, 99]
        assert seen[1] == ([0], [0, 99], [0, 1])
        assert store.statistics().merges == 4
        assert store.statistics().pins == 0


@types.coroutine
def count_yields(awaitable: Generator[object, object, object]) -> Generator[object, object, int]:
    """Run an awaitable and count how often it lets go of the loop."""
    yields = 0
    value: object = None
    iterator = awaitable
    while True:
        try:
            step = iterator.send(value)
        except StopIteration:
            return yields
        yields += 1
        value = yield step


async def test_the_shell_adds_one_checkpoint() -> None:
    """A whole transaction in memory lets go of the loop exactly once: at its end."""
    async with MemoryStore() as store:

        async def change() -> None:
            async with store.transaction() as tx:
                tx.put("n", await tx.get("n", 0) + 1)
                await tx.range("n")

        async def bare() -> None:
            await anyio.lowlevel.checkpoint()

        once = await count_yields(bare().__await__())
        assert await count_yields(change().__await__()) == once
