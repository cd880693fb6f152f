from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from orchestra import DequeStatistics, Stealer, WorkStealingDeque, _native
from orchestra._native import _fallback


def in_thread(call: Callable[[], object]) -> object:
    """What a call returns or raises in another thread."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # noqa: BLE001 - handed to the test
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


class Item:
    """Something that can be watched dying."""


def test_owner_takes_the_newest_thief_the_oldest(deques: ModuleType) -> None:
    """Pop returns what was pushed last, steal what was pushed first."""
    deque = deques.WorkStealingDeque([1, 2, 3])
    deque.push(4)
    assert deque.pop() == 4
    assert deque.stealer.steal() == 1
    assert len(deque) == len(deque.stealer) == 2
    assert deque.pop_many(10) == [3, 2]
    assert not deque


def test_empty_deque_returns_the_default(deques: ModuleType) -> None:
    """On empty, pop and steal return the default, None at first, and the batches return nothing."""
    deque = deques.WorkStealingDeque()
    marker = object()
    assert deque.pop() is deque.stealer.steal() is None
    assert deque.pop(marker) is deque.stealer.steal(marker) is marker
    assert deque.pop_many(3) == deque.stealer.steal_many(3) == []
    assert deque.stealer.steal_into(deques.WorkStealingDeque()) == 0


def test_any_object_is_an_item(deques: ModuleType) -> None:
    """None and unhashable objects go through unchanged, the very same objects."""
    items: list[object] = [None, [], {}, NotImplemented, ...]
    deque = deques.WorkStealingDeque(items)
    taken = deque.pop_many(5)
    assert all(mine is theirs for mine, theirs in zip(taken, reversed(items), strict=True))
    deque.push(None)
    assert deque.pop("empty") is None
    assert deque.pop("empty") == "empty"


def test_grows_from_any_capacity(deques: ModuleType) -> None:
    """Order and items survive growth, also when the ring has wrapped around."""
    deque = deques.WorkStealingDeque(capacity=1)
    expected = []
    for number in range(2000):
        deque.push(number)
        expected.append(number)
        if number % 3 == 0:
            assert deque.stealer.steal() == expected.pop(0)
    assert deque.pop_many(10**6) == expected[::-1]


def test_steal_many_takes_at_most_half_and_at_most_32(deques: ModuleType) -> None:
    """A thief's batch leaves the other half, rounded down, and is never longer than 32."""
    deque = deques.WorkStealingDeque(range(5))
    assert deque.stealer.steal_many(100) == [0, 1, 2]
    assert deque.stealer.steal_many(1) == [3]
    assert deque.stealer.steal_many(0) == []
    deque.push_many(range(1000))
    assert deque.stealer.steal_many(100) == [4, *range(31)]


def test_steal_into_keeps_the_order(deques: ModuleType) -> None:
    """Moved items keep their order: the youngest of them is popped first."""
    victim = deques.WorkStealingDeque(range(10))
    mine = deques.WorkStealingDeque()
    assert victim.stealer.steal_into(mine, 3) == 3
    assert victim.stealer.steal_into(mine, limit=2) == 2
    assert mine.pop_many(9) == [4, 3, 2, 1, 0]
    assert victim.stealer.steal_into(mine) == 3
    assert mine.pop_many(9) == [7, 6, 5]
    assert victim.stealer.steal_into(mine, 0) == 0


@pytest.mark.parametrize("count", [-1, -(10**30)])
def test_negative_count_is_refused(deques: ModuleType, count: int) -> None:
    """A negative count is a ValueError that names it, and takes nothing."""
    deque = deques.WorkStealingDeque([1, 2])
    other = deques.WorkStealingDeque()
    calls: list[Callable[[], object]] = [
        lambda: deque.pop_many(count),
        lambda: deque.stealer.steal_many(count),
        lambda: deque.stealer.steal_into(other, count),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"cannot take {count} items"):
            call()
    assert len(deque) == 2


def test_huge_count_takes_what_there_is(deques: ModuleType) -> None:
    """A count beyond every machine word is as good as all."""
    deque = deques.WorkStealingDeque([1, 2, 3, 4])
    assert deque.stealer.steal_many(10**30) == [1, 2]
    assert deque.pop_many(10**30) == [4, 3]


@pytest.mark.parametrize("count", ["1", 1.0, None])
def test_count_is_an_integer(deques: ModuleType, count: object) -> None:
    """What is not an integer is a TypeError."""
    deque = deques.WorkStealingDeque([1])
    for call in (deque.pop_many, deque.stealer.steal_many):
        with pytest.raises(TypeError):
            call(count)


@pytest.mark.parametrize("capacity", [0, -1, 2**41, 10**30])
def test_capacity_out_of_range_is_refused(deques: ModuleType, capacity: int) -> None:
    """A capacity below 1 or beyond all memory is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"capacity of {capacity} is out of range"):
        deques.WorkStealingDeque(capacity=capacity)


def test_wrong_arguments_are_refused(deques: ModuleType) -> None:
    """Too many or unknown arguments are a TypeError."""
    deque = deques.WorkStealingDeque([1])
    wrong: list[Callable[[], object]] = [
        lambda: deques.WorkStealingDeque(1),
        lambda: deques.WorkStealingDeque([], 64),
        lambda: deques.WorkStealingDeque(capacity="64"),
        lambda: deque.pop(1, 2),
        lambda: deque.stealer.steal(1, 2),
        lambda: deque.push_many(7),
        lambda: deque.stealer.steal_into([]),
        deques.Stealer,
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    assert deque.pop_many(9) == [1]


def test_iterable_that_fails_pushes_nothing(deques: ModuleType) -> None:
    """push_many takes all items or, when the iterable raises, none."""
    deque = deques.WorkStealingDeque()

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        deque.push_many(broken())
    assert len(deque) == 0


def test_iterable_may_use_the_deque(deques: ModuleType) -> None:
    """push_many runs the iterable before it pushes, so that the iterable may push, too."""
    deque = deques.WorkStealingDeque(capacity=2)

    def busy() -> Iterator[int]:
        for number in range(10):
            deque.push(-number)
            yield number

    deque.push_many(busy())
    assert deque.pop_many(99) == [*range(9, -1, -1), *range(-9, 1)]


def test_steal_into_itself_is_refused(deques: ModuleType) -> None:
    """A deque cannot steal from itself."""
    deque = deques.WorkStealingDeque([1])
    with pytest.raises(ValueError, match="cannot steal from itself"):
        deque.stealer.steal_into(deque)
    assert len(deque) == 1


def test_only_the_owner_has_the_owners_end(deques: ModuleType) -> None:
    """Each owner call raises in another thread, says whose deque it is, and changes nothing."""
    deque = deques.WorkStealingDeque([1, 2])
    other = deques.WorkStealingDeque([3])
    calls: dict[str, Callable[[], object]] = {
        "push": lambda: deque.push(1),
        "push_many": lambda: deque.push_many([1]),
        "pop": deque.pop,
        "pop_many": lambda: deque.pop_many(1),
        "clear": deque.clear,
        "steal_into": lambda: other.stealer.steal_into(deque),
    }
    for name, call in calls.items():
        error = in_thread(call)
        assert isinstance(error, RuntimeError)
        assert str(error).startswith(f"{name}() was called from thread ")
        assert f"thread {threading.get_ident()} owns this deque" in str(error)
    assert (len(deque), len(other)) == (2, 1)


def test_adopt_moves_the_ownership(deques: ModuleType) -> None:
    """After adopt() the new thread may push and pop, and the old one may not."""
    deque = deques.WorkStealingDeque([1, 2])

    def adopt() -> list[int]:
        deque.adopt()
        assert deque.owner == threading.get_ident()
        return [deque.pop()]

    assert in_thread(adopt) == [2]
    # The other thread is gone; its identity may have been given to nobody else.
    with pytest.raises(RuntimeError, match="owns this deque"):
        deque.pop()
    deque.adopt()
    assert deque.pop() == 1


def test_references_are_handed_on(deques: ModuleType) -> None:
    """The deque holds one reference for each item, and gives it to whoever takes the item."""
    item = Item()
    deque = deques.WorkStealingDeque()
    other = deques.WorkStealingDeque()
    before = sys.getrefcount(item)
    deque.push_many([item] * 8)
    deque.push(item)
    assert sys.getrefcount(item) == before + 9
    taken = [deque.pop(), deque.stealer.steal(), *deque.pop_many(2), *deque.stealer.steal_many(2)]
    assert deque.stealer.steal_into(other) == 2
    assert sys.getrefcount(item) == before + 9
    del taken[:]
    assert sys.getrefcount(item) == before + 3
    other.clear()
    del deque
    assert sys.getrefcount(item) == before


def test_default_is_not_consumed(deques: ModuleType) -> None:
    """Returning the default takes its own reference."""
    default = Item()
    deque = deques.WorkStealingDeque()
    before = sys.getrefcount(default)
    for _ in range(10):
        deque.pop(default)
        deque.stealer.steal(default)
    assert sys.getrefcount(default) == before


def test_items_die_with_the_deque(deques: ModuleType) -> None:
    """Items are dropped by clear() and by the end of the deque, which a stealer puts off."""
    deque = deques.WorkStealingDeque()
    items = [Item(), Item()]
    watched = [weakref.ref(item) for item in items]
    deque.push(items.pop())
    deque.clear()
    assert watched[1]() is None
    deque.push(items.pop())
    stealer = deque.stealer
    alive = weakref.ref(deque)
    del deque
    assert alive() is not None
    assert watched[0]() is not None
    del stealer
    assert alive() is None
    assert watched[0]() is None


@pytest.mark.parametrize("through", ["deque", "stealer"])
def test_cycles_are_collected(deques: ModuleType, through: str) -> None:
    """The collector finds a cycle that goes through a deque or its stealer."""
    item: Any = Item()
    deque = deques.WorkStealingDeque([item], capacity=2)
    item.back = deque if through == "deque" else deque.stealer
    watched = weakref.ref(item)
    del item, deque
    gc.collect()
    assert watched() is None


def test_deeply_nested_deques_can_die(deques: ModuleType) -> None:
    """Deques in deques in deques do not exhaust the stack when the last reference goes."""
    outer = deques.WorkStealingDeque()
    for _ in range(100_000):
        outer = deques.WorkStealingDeque([outer], capacity=2)
    watched = weakref.ref(outer)
    del outer
    assert watched() is None


def test_finaliser_may_use_the_deque(deques: ModuleType) -> None:
    """An item's finaliser may push to the deque that is being cleared; clear() still ends."""
    deque = deques.WorkStealingDeque()

    class Phoenix:
        def __del__(self) -> None:
            deque.push(1)

    deque.push_many([Phoenix(), Phoenix()])
    deque.clear()
    assert set(deque.pop_many(9)) <= {1}


def test_statistics_and_repr_tell_the_implementation(deques: ModuleType) -> None:
    """Both say which implementation is active, and what is inside."""
    deque = deques.WorkStealingDeque(range(100))
    name = "fallback" if deques is _fallback else "native"
    assert deque.statistics() == deque.stealer.statistics()
    assert deque.statistics() == DequeStatistics(
        implementation="native" if name == "native" else "fallback",
        size=100,
        capacity=128 if name == "native" else None,
        arrays=2 if name == "native" else None,
        owner=threading.get_ident(),
    )
    ident = threading.get_ident()
    assert repr(deque) == f"<WorkStealingDeque {name}: 100 items, owned by thread {ident}>"
    assert repr(deque.stealer) == f"<Stealer {name}: 100 items, owned by thread {ident}>"


def test_cannot_be_copied(deques: ModuleType) -> None:
    """Copying or pickling is a TypeError."""
    deque = deques.WorkStealingDeque()
    for thing in (deque, deque.stealer):
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                call(thing)


def test_types_are_closed(deques: ModuleType) -> None:
    """Neither type can be derived from, or written to."""
    for base in (deques.WorkStealingDeque, deques.Stealer):
        with pytest.raises(TypeError):
            type("Derived", (base,), {})
    with pytest.raises(AttributeError):
        deques.WorkStealingDeque().colour = "red"


def test_generic(deques: ModuleType) -> None:
    """The types take a type argument."""
    assert isinstance(deques.WorkStealingDeque[int]([1]), deques.WorkStealingDeque)
    assert repr(deques.Stealer[int]) == "orchestra.stealing.Stealer[int]"


def test_fork_keeps_the_items(deques: ModuleType) -> None:
    """A forked child has its own copy, owned by the thread that forked."""
    deque = deques.WorkStealingDeque([1, 2, 3], capacity=2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            taken = [deque.pop(), deque.stealer.steal(), deque.pop(), deque.pop("empty")]
            os.write(writing, repr(taken).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"[3, 1, 2, 'empty']"
    os.close(reading)
    os.close(writing)
    assert len(deque) == 3


def shape(call: Callable[..., object]) -> list[tuple[str, object, object]]:
    """The parameters of a method, apart from annotations."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_native_and_fallback_have_the_same_face(native: ModuleType) -> None:
    """Both have the same public names, and the native ones the same docstrings and signatures."""
    for name in ("WorkStealingDeque", "Stealer"):
        mine, theirs = getattr(native, name), getattr(_fallback, name)
        public = {member for member in vars(theirs) if not member.startswith("_")}
        assert {member for member in vars(mine) if not member.startswith("_")} == public
        assert inspect.getdoc(mine) == inspect.getdoc(theirs)
        for member in public:
            ours, other = getattr(mine, member), getattr(theirs, member)
            assert inspect.getdoc(ours) == inspect.getdoc(other)
            if callable(other):
                assert shape(ours) == shape(other)


def test_public_names_are_the_active_implementation() -> None:
    """`orchestra` exports the types that `_native` chose."""
    assert WorkStealingDeque is _native.WorkStealingDeque
    assert Stealer is _native.Stealer


def test_environment_chooses_the_fallback() -> None:
    """With ORCHESTRA_PURE_PYTHON=1 the fallback is active, and says why."""
    code = (
        "import orchestra, orchestra.stealing as s\n"
        "print(orchestra.WorkStealingDeque(), s.IMPLEMENTATION, s.REASON)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ORCHESTRA_PURE_PYTHON": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "<WorkStealingDeque fallback: 0 items" in run.stdout
    assert "fallback ORCHESTRA_PURE_PYTHON is set" in run.stdout
