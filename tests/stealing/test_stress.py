"""The deque under real threads: nothing lost, nothing doubled, every reference accounted for."""

from __future__ import annotations

import gc
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from time import perf_counter_ns
from types import ModuleType
from typing import Any, ClassVar

import pytest
from linearizability import Call, atomic_deque, is_linearizable

from orchestra import WorkStealingDeque, WorkStealingPool

NOTHING: tuple[Hashable, ...] = ()
SEED = random.SystemRandom().randrange(2**32)


@pytest.fixture(autouse=True)
def _switch_threads_often() -> Iterator[None]:
    """Let the GIL change hands a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


class Item:
    """Something that is counted when it dies, and that is part of a cycle."""

    died: ClassVar[list[int]] = []

    def __init__(self, number: int) -> None:
        self.number = number
        self.me = self if number % 16 == 0 else None

    def __del__(self) -> None:
        Item.died.append(self.number)


def run_all(*calls: Callable[[], object]) -> None:
    """Run the calls in threads of their own, started together; an error in one is raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(30)
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_objects_are_taken_once(deques: ModuleType) -> None:  # noqa: C901 - four threads
    """An owner, three thieves and the collector: each object comes out once, and then dies."""
    count = 20_000
    taken: list[list[int]] = [[] for _ in range(4)]
    deque = deques.WorkStealingDeque(capacity=2)
    done = threading.Event()
    Item.died.clear()

    def own() -> None:
        deque.adopt()
        choice = random.Random(SEED)
        made = 0
        while made < count:
            batch = [
                Item(made + offset) for offset in range(min(choice.randrange(9), count - made))
            ]
            made += len(batch)
            if choice.randrange(2):
                deque.push_many(batch)
            else:
                for item in batch:
                    deque.push(item)
            del batch
            if choice.randrange(2):
                taken[0].extend(item.number for item in deque.pop_many(choice.randrange(6)))
            elif (popped := deque.pop()) is not None:
                taken[0].append(popped.number)
                del popped
        done.set()

    def steal(number: int) -> None:
        mine = deques.WorkStealingDeque(capacity=2)
        choice = random.Random(SEED + number)
        while not done.is_set() or len(deque):
            kind = choice.randrange(3)
            if kind == 0:
                deque.stealer.steal_into(mine, choice.randrange(5))
                taken[number].extend(item.number for item in mine.pop_many(99))
            elif kind == 1:
                taken[number].extend(item.number for item in deque.stealer.steal_many(7))
            elif (item := deque.stealer.steal()) is not None:
                taken[number].append(item.number)
                del item

    def collect() -> None:
        while not done.wait(0.001):  # without a GIL each collection stops all threads
            gc.collect(1)

    run_all(own, *(lambda number=number: steal(number) for number in (1, 2, 3)), collect)
    assert sorted(chain.from_iterable(taken)) == list(range(count)), f"seed {SEED}"
    gc.collect()
    assert sorted(Item.died) == list(range(count)), f"seed {SEED}"


def test_references_balance_under_thieves(deques: ModuleType) -> None:
    """One object pushed many times over, taken by three threads, ends with the count it had."""
    thing = object()
    deque = deques.WorkStealingDeque(capacity=2)
    done = threading.Event()
    before = sys.getrefcount(thing)

    def own() -> None:
        deque.adopt()
        for _ in range(1500):
            deque.push_many([thing] * 5)
            deque.pop()
            deque.push(thing)
            deque.pop_many(2)
        done.set()

    def steal() -> None:
        while not done.is_set():
            deque.stealer.steal()
            deque.stealer.steal_many(3)

    run_all(own, steal, steal)
    held = len(deque)
    assert sys.getrefcount(thing) == before + held
    deque.adopt()
    deque.clear()
    assert sys.getrefcount(thing) == before


def test_integers_are_taken_once_without_the_gil(native: ModuleType) -> None:
    """Through cffi the threads really run at the same time; each integer comes out once."""
    from orchestra._native._loader import ffi, lib

    count = 200_000
    deque = lib.wsd_new(2)
    done = threading.Event()
    taken: list[list[int]] = [[], [], []]

    def own() -> None:
        buffer = ffi.new("int64_t[64]")
        choice = random.Random(SEED)
        made = 0
        while made < count:
            size = min(choice.randrange(1, 65), count - made)
            buffer[0:size] = range(made, made + size)
            made += size
            assert lib.wsd_push_many(deque, buffer, size)
            got = lib.wsd_pop_many(deque, buffer, choice.randrange(40))
            taken[0].extend(ffi.unpack(buffer, got))
        done.set()

    def steal(number: int) -> None:
        buffer = ffi.new("int64_t[32]")
        while not done.is_set() or lib.wsd_size(deque):
            got = lib.wsd_steal_many(deque, buffer, 32)
            taken[number].extend(ffi.unpack(buffer, got))

    run_all(own, lambda: steal(1), lambda: steal(2))
    lib.wsd_delete(deque)
    assert sorted(chain.from_iterable(taken)) == list(range(count)), f"seed {SEED}"


class Recorder:
    """Calls something and notes when the call began and ended."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, name: str, call: Callable[[], Any], argument: int | None = None) -> None:
        began = perf_counter_ns()
        outcome = call()
        self.calls.append(Call(name, argument, outcome, began, perf_counter_ns()))


def record(
    push: Callable[[int], object],
    pop: Callable[[], int | None],
    steal: Callable[[], int | None],
    adopt: Callable[[], object],
    choice: random.Random,
) -> list[Call]:
    """A history of at most 12 calls by an owner and two thieves."""
    recorders = [Recorder(), Recorder(), Recorder()]
    plan = [choice.random() < 0.6 for _ in range(6)]

    def own() -> None:
        adopt()
        for number, is_push in enumerate(plan):
            if is_push:
                recorders[0]("push", lambda: push(number), number)  # noqa: B023 - called at once
            else:
                recorders[0]("pop", pop)

    def thieve(number: int) -> None:
        for _ in range(3):
            recorders[number]("steal", steal)

    run_all(own, lambda: thieve(1), lambda: thieve(2))
    return [call for recorder in recorders for call in recorder.calls]


def test_object_histories_are_linearizable(deques: ModuleType) -> None:
    """Short histories of objects could all have been made by one call at a time."""
    choice = random.Random(SEED)
    for _ in range(150):
        deque = deques.WorkStealingDeque(capacity=2)
        history = record(deque.push, deque.pop, deque.stealer.steal, deque.adopt, choice)
        assert is_linearizable(history, NOTHING, atomic_deque), f"seed {SEED}: {history}"


def test_parallel_histories_are_linearizable(native: ModuleType) -> None:
    """So are short histories of integers by threads that really run at the same time."""
    from orchestra._native._loader import ffi, lib

    local = threading.local()

    def buffer() -> Any:
        if not hasattr(local, "words"):
            local.words = ffi.new("int64_t[1]")
        return local.words

    def one(take: Callable[[object, object, int], int]) -> int | None:
        words = buffer()
        return int(words[0]) if take(deque, words, 1) else None

    def push(number: int) -> None:
        words = buffer()
        words[0] = number
        lib.wsd_push_many(deque, words, 1)

    choice = random.Random(SEED)
    for _ in range(200):
        deque = lib.wsd_new(2)
        history = record(
            push,
            lambda: one(lib.wsd_pop_many),
            lambda: one(lib.wsd_steal_many),
            lambda: None,
            choice,
        )
        lib.wsd_delete(deque)
        assert is_linearizable(history, NOTHING, atomic_deque), f"seed {SEED}: {history}"


def test_recorded_histories_tell_a_broken_deque() -> None:
    """A steal that looks first and takes later is caught: the histories do overlap."""
    choice = random.Random(SEED)

    def is_caught() -> bool:
        items: list[int] = []
        both_looked = threading.Barrier(2)

        def steal() -> int | None:
            oldest = items[0] if items else None
            both_looked.wait(30)
            if oldest in items:
                items.remove(oldest)
            return oldest

        def pop() -> int | None:
            return items.pop() if items else None

        history = record(items.append, pop, steal, lambda: None, choice)
        return not is_linearizable(history, NOTHING, atomic_deque)

    assert any(is_caught() for _ in range(100)), f"seed {SEED}"


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([("push", 1, None, 0, 1), ("steal", None, 1, 2, 3)], True),
        ([("push", 1, None, 0, 1), ("steal", None, None, 2, 3)], False),  # it was there
        ([("push", 1, None, 0, 5), ("steal", None, None, 2, 3)], True),  # not yet, perhaps
        ([("push", 1, None, 0, 1), ("steal", None, 1, 2, 3), ("pop", None, 1, 4, 5)], False),
        (
            [
                ("push", 1, None, 0, 1),
                ("push", 2, None, 2, 3),
                ("steal", None, 2, 4, 5),
                ("pop", None, 1, 4, 5),
            ],
            False,  # the wrong ends
        ),
    ],
)
def test_checker_knows_right_from_wrong(history: list[Any], *, verdict: bool) -> None:
    """The checker accepts what an atomic deque can do, and nothing else."""
    calls = [Call(*call) for call in history]
    assert is_linearizable(calls, NOTHING, atomic_deque) is verdict


def test_pool_under_fire(pools: str) -> None:
    """Scopes, errors and cancellations from several threads at once: every count is right."""
    counts: list[int] = []
    failures: list[int] = []

    def use(number: int) -> None:
        choice = random.Random(SEED + number)
        for _ in range(40):
            size = choice.randrange(60)
            if choice.randrange(4) == 0:
                with pytest.raises(ExceptionGroup), pool.scope() as scope:  # noqa: PT012
                    scope.submit_many(abs, range(size))
                    scope.submit(divmod, 1, 0)
                failures.append(1)
            else:
                counts.append(sum(pool.map(lambda value: 1 + 0 * value, range(size))) - size)

    with WorkStealingPool(3) as pool:
        run_all(*(lambda number=number: use(number) for number in range(3)))
        assert pool.statistics().queued == 0
    assert len(counts) + len(failures) == 120, f"seed {SEED}"
    assert set(counts) <= {0}, f"seed {SEED}"


def test_free_threaded_python_keeps_the_gil_off() -> None:
    """On a free-threaded build the extension does not bring the GIL back."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python has a GIL; run the tests on a free-threaded build, too")
    WorkStealingDeque()
    assert not sys._is_gil_enabled()  # type: ignore[attr-defined,unused-ignore]
