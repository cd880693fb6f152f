from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import (
    ConcurrencyController,
    ConcurrencyToken,
    MemoryStore,
    MVCCStore,
    SQLiteStore,
    Transaction,
    WorkStealingDeque,
)
from orchestra.errors import ConflictError
from orchestra.testing import (
    History,
    NotLinearizableError,
    Operation,
    SequentialModel,
    check_linearizable,
)

PROCESS = Path(__file__).parents[1] / "stores" / "process_child.py"


def register(state: Hashable, name: str, argument: Any) -> tuple[Hashable, Any]:
    """A value that is read, written, and written if it is still another one."""
    if name == "read":
        return state, state
    if name == "write":
        return argument, None
    old, new = argument
    return (new, True) if state == old else (state, False)


def claim(owner: Hashable, name: str, me: Any) -> tuple[Hashable, Any]:
    """A task that goes to the first who claims it."""
    return (me, True) if owner is None else (owner, False)


REGISTER = SequentialModel(initial=0, apply=register)
CLAIM = SequentialModel(initial=None, apply=claim)


def is_linearizable(operations: Sequence[Operation], model: SequentialModel) -> bool:
    """What the checker says."""
    try:
        check_linearizable(operations, model)
    except NotLinearizableError:
        return False
    return True


def by_brute_force(operations: Sequence[Operation], model: SequentialModel) -> bool:
    """Try every order of every choice of the operations that have not returned."""
    open_ones = [o for o in operations if o.returned is None]
    for left_out in range(2 ** len(open_ones)):
        chosen = [
            o
            for o in operations
            if o.returned is not None or not left_out >> open_ones.index(o) & 1
        ]
        for order in permutations(chosen):
            if any(
                later.returned is not None and later.returned < sooner.called
                for place, sooner in enumerate(order)
                for later in order[place + 1 :]
            ):
                continue
            state = model.initial
            for operation in order:
                state, result = model.apply(state, operation.name, operation.argument)
                if operation.returned is not None and result != operation.result:
                    break
            else:
                return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """A few operations on a register with results that may or may not be explained."""
    moments = draw(st.permutations(range(10)))
    operations = []
    for client in range(draw(st.integers(1, 5))):
        called, returned = sorted(moments[2 * client : 2 * client + 2])
        name = draw(st.sampled_from(["read", "write", "swap"]))
        number = st.integers(0, 2)
        argument = {"read": st.none(), "write": number, "swap": st.tuples(number, number)}[name]
        result = {"read": number, "write": st.none(), "swap": st.booleans()}[name]
        operations.append(
            Operation(
                client=client,
                name=name,
                argument=draw(argument),
                result=draw(result),
                called=called,
                returned=draw(st.sampled_from([returned, returned, returned, None])),
            )
        )
    return operations


@settings(max_examples=400, deadline=None)
@given(histories())
def test_the_checker_agrees_with_trying_everything(operations: list[Operation]) -> None:
    """On small histories of any shape the search finds an order exactly if there is one."""
    assert is_linearizable(operations, REGISTER) == by_brute_force(operations, REGISTER)


def op(client: str, name: str, argument: Any, result: Any, called: int, returned: int) -> Operation:
    """An operation in one line."""
    return Operation(
        client=client, name=name, argument=argument, result=result, called=called, returned=returned
    )


def test_a_stale_read_is_explained_to_the_reader() -> None:
    """The error shows the operations, their moments, and how far an explanation gets."""
    operations = [
        op("a", "write", 1, None, 0, 10),
        op("b", "read", None, 1, 20, 30),
        op("c", "read", None, 0, 40, 50),
    ]
    with pytest.raises(NotLinearizableError) as caught:
        check_linearizable(operations, REGISTER)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("no order of these 3 operations explains their results")
    assert lines[1].split() == ["1", "[0,", "1]", "a:", "write(1)", "->", "None"]
    assert lines[3].split() == ["-", "[4,", "5]", "c:", "read(None)", "->", "0"]


def test_objects_are_checked_one_by_one() -> None:
    """Each key has its own state, and the message names the one that is wrong."""
    good = [
        Operation(client="a", name="write", argument=1, key=k, called=k, returned=k + 1)
        for k in range(50)
    ]
    check_linearizable(good, REGISTER)
    bad = Operation(client="b", name="read", result=0, key=7, called=100, returned=101)
    with pytest.raises(NotLinearizableError, match="2 operations on 7"):
        check_linearizable([*good, bad], REGISTER)


def test_an_operation_without_an_end_may_have_happened_or_not() -> None:
    """What never returned explains a read of its value, and its absence."""
    history = History()
    history.begin("a", "write", 5)
    for seen in (0, 5):
        ticket = history.begin("b", "read")
        history.end(ticket, seen)
    check_linearizable(history, REGISTER)
    ticket = history.begin("b", "read")
    history.end(ticket, 0)
    assert not is_linearizable(list(history), REGISTER)
    history.drop(ticket)
    assert (len(history), repr(history)) == (3, "<History operations=3 open=1>")
    check_linearizable(history, REGISTER)


def test_a_search_that_takes_too_long_says_so() -> None:
    """What was not decided is neither called good nor bad."""
    operations = [op(str(n), "write", n, None, 0, 100) for n in range(30)]
    operations.append(op("x", "read", None, -1, 50, 60))
    with pytest.raises(RuntimeError, match="not decided after 1000 steps"):
        check_linearizable(operations, REGISTER, limit=1000)


def test_long_histories_are_decided_quickly() -> None:
    """Thousands of operations of many clients take a search about as long as they are."""
    generator = random.Random(5)
    history, state = History(), 0
    for _ in range(1000):
        tickets = [history.begin(client, "write", generator.randrange(3)) for client in range(3)]
        generator.shuffle(tickets)
        for ticket in tickets:
            history.end(ticket)
            state = history._operations[ticket].argument
        ticket = history.begin("reader", "read")
        history.end(ticket, state)
    check_linearizable(history, REGISTER, limit=200_000)


# --- used on our own ----------------------------------------------------------------------------

Make = Callable[[], AbstractAsyncContextManager[MVCCStore]]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Both engines."""
    if request.param == "memory":
        return MemoryStore
    return lambda: SQLiteStore(tmp_path / "store.db", durability="process")


async def operate(store: MVCCStore, client: str, history: History, seed: str) -> None:
    """Do this and that with two registers."""
    generator = random.Random(seed)
    for _ in range(12):
        key = generator.choice("xy")
        value = generator.randrange(3)
        for _ in range(generator.randrange(3)):
            await anyio.lowlevel.checkpoint()
        kind = generator.choice(["read", "write", "swap"])
        if kind == "read":
            await history.call(client, "read", key=key, do=partial(store.get, key, 0))
        elif kind == "write":
            ticket = history.begin(client, "write", value, key=key)
            await store.put(key, value)
            history.end(ticket)
        else:
            old = generator.randrange(3)

            async def swap(tx: Transaction, key: str, old: int, new: int) -> bool:
                if await tx.get(key, 0) != old:
                    return False
                tx.put(key, new)
                return True

            await history.call(
                client,
                "swap",
                (old, value),
                key=key,
                do=partial(store.transact, swap, key, old, value),
            )


async def test_the_engines_are_linearizable(make_store: Make) -> None:
    """Registers in a store behave as if one operation came after the other."""
    async with make_store() as store:
        for run in range(10):
            history = History()
            space = store.namespace(str(run))
            async with anyio.create_task_group() as group:
                for client in "abcd":
                    group.start_soon(operate, space, client, history, f"{run}{client}")
            assert len(history) == 48
            check_linearizable(history, REGISTER)


async def claim_rightly(tx: Transaction, task: str, me: str) -> bool:
    """Claim a task in a transaction."""
    if await tx.get(task) is not None:
        return False
    tx.put(task, me)
    return True


async def claims(store: MVCCStore, run: int, *, is_planted: bool) -> History:
    """Let clients claim tasks, with the check in the transaction or before it."""
    history = History()
    space = store.namespace(f"{is_planted}{run}")

    async def check_then_act(task: str, me: str) -> bool:
        if await space.get(task) is not None:
            return False
        await space.put(task, me)
        return True

    async def work(me: str) -> None:
        generator = random.Random(f"{run}{me}")
        for task in ("t1", "t2"):
            for _ in range(generator.randrange(12)):
                await anyio.lowlevel.checkpoint()
            act = (
                partial(check_then_act, task, me)
                if is_planted
                else partial(space.transact, claim_rightly, task, me)
            )
            await history.call(me, "claim", me, key=task, do=act)

    async with anyio.create_task_group() as group:
        for me in ("one", "two", "three"):
            group.start_soon(work, me)
    return history


async def test_claims_are_linearizable_and_a_planted_race_is_caught(make_store: Make) -> None:
    """A claim in a transaction has one winner; checking first and then acting is caught soon."""
    async with make_store() as store:
        for run in range(40):
            check_linearizable(await claims(store, run, is_planted=False), CLAIM)
        for run in range(200):
            if not is_linearizable(list(await claims(store, run, is_planted=True)), CLAIM):
                return
    raise AssertionError("a check-then-act claim was not caught in 200 runs")


async def test_processes_on_one_file_are_linearizable(tmp_path: Path) -> None:
    """Registers in one file behave so for three processes together."""
    path = tmp_path / "store.db"
    operations: list[Operation] = []

    async def child(name: str) -> None:
        done = await anyio.run_process(
            [sys.executable, str(PROCESS), str(path), "operate", name, "40"], stderr=None
        )
        for line in done.stdout.splitlines():
            kind, argument, result, key, called, returned = json.loads(line)
            operations.append(
                Operation(
                    client=name,
                    name=kind,
                    argument=tuple(argument) if kind == "swap" else argument,
                    result=result,
                    key=key,
                    called=called,
                    returned=returned,
                )
            )

    async with anyio.create_task_group() as group:
        for name in ("p1", "p2", "p3"):
            group.start_soon(child, name)
    assert len(operations) == 120
    check_linearizable(operations, REGISTER)


async def test_the_controller_is_linearizable() -> None:
    """Slots are taken and given back as if one client came after the other, never too many."""

    def slots(used: Any, name: str, _argument: Any) -> tuple[Hashable, Any]:
        # An acquire that returned got a slot; that it returns at all means that there was one.
        return (used + 1, used < 2) if name == "acquire" else (used - 1, None)

    controller = ConcurrencyController({"k": 2})
    history = History()

    async def acquire() -> bool:
        tokens.append(await controller.acquire("k"))
        return True

    tokens: list[ConcurrencyToken] = []

    async def work(me: str) -> None:
        generator = random.Random(me)
        for _ in range(6):
            await history.call(me, "acquire", do=acquire)
            for _ in range(generator.randrange(4)):
                await anyio.lowlevel.checkpoint()
            ticket = history.begin(me, "release")
            tokens.pop().release()
            history.end(ticket)

    async with anyio.create_task_group() as group:
        for me in "abcde":
            group.start_soon(work, me)
    check_linearizable(history, SequentialModel(initial=0, apply=slots))


def work_stealing(state: Any, name: str, argument: Any) -> tuple[Hashable, Any]:
    """The owner pushes and pops at one end, thieves take from the other."""
    if name == "push":
        return (*state, argument), None
    if not state:
        return state, None
    return (state[:-1], state[-1]) if name == "pop" else (state[1:], state[0])


def race_on_deque(items: WorkStealingDeque[int], history: History, seed: int) -> None:
    """An owner and two thieves, each in a thread, begin at the same moment."""
    ready = threading.Barrier(3)
    generator = random.Random(seed)

    def take(me: str, name: str, do: Callable[[], Any]) -> None:
        ticket = history.begin(me, name)
        history.end(ticket, do())

    def own() -> None:
        items.adopt()
        ready.wait(10)
        for number in range(1, 25):
            if generator.random() < 0.6:
                ticket = history.begin("owner", "push", number)
                items.push(number)
                history.end(ticket)
            else:
                take("owner", "pop", items.pop)

    def steal(me: str) -> None:
        ready.wait(10)
        for _ in range(8):
            take(me, "steal", items.stealer.steal)

    threads = [threading.Thread(target=own)]
    threads += [threading.Thread(target=steal, args=(f"thief {n}",)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_deque_is_linearizable() -> None:
    """An owner and two thieves in threads see what one after the other would see."""
    for run in range(20):
        history = History()
        race_on_deque(WorkStealingDeque[int](), history, run)
        check_linearizable(history, SequentialModel(initial=(), apply=work_stealing))


async def test_a_refused_operation_is_dropped() -> None:
    """A conflict is known to have done nothing, so the history goes on without it."""
    async with MemoryStore() as store:
        await store.put("x", 1)
        history = History()
        ticket = history.begin("a", "write", 2, key="x")
        with pytest.raises(ConflictError):
            await store.put_if("x", 2, revision=0)
        history.drop(ticket)
        await history.call("a", "read", key="x", do=lambda: store.get("x"))
        check_linearizable(history, SequentialModel(initial=1, apply=register))
