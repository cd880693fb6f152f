from __future__ import annotations

import functools
import gc
import random
import threading
import weakref
from typing import Any

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from interrupted import interrupted

from orchestra import ObjectPool


class Node:
    """Can be referenced weakly."""

    def __init__(self) -> None:
        self.peer: Node | None = None
        self.owners = 0


class Slim:
    """Cannot be referenced weakly."""

    __slots__ = ("owners",)

    def __init__(self) -> None:
        self.owners = 0


@define
class Dirt:
    """A record that shows whether it was cleaned."""

    notes: list[str]


def clean(dirt: Dirt) -> None:
    """Reset a record."""
    dirt.notes.clear()


def spoil(dirt: Dirt) -> None:
    """Write into a record, and fail."""
    dirt.notes.append("secret")
    raise ZeroDivisionError


KINDS = pytest.mark.parametrize("kind", [Node, Slim], ids=["weakly referenced", "by address"])


@KINDS
def test_an_object_is_lent_again(kind: type[Any]) -> None:
    """What was returned last is lent next, and nothing is made for it."""
    pool = ObjectPool(kind, prewarm=0)
    first = pool.acquire()
    second = pool.acquire()
    assert first is not second
    pool.release(first)
    pool.release(second)
    assert pool.acquire() is second
    assert pool.acquire() is first
    now = pool.statistics()
    assert (now.created, now.reused, now.in_use, now.idle) == (2, 2, 2, 0)


@KINDS
def test_a_second_release_is_refused(kind: type[Any]) -> None:
    """An object is taken back once, and the refused release changes nothing."""
    pool = ObjectPool(kind, prewarm=0)
    lent = pool.acquire()
    pool.release(lent)
    with pytest.raises(RuntimeError, match="not lent by this pool"):
        pool.release(lent)
    assert pool.statistics().idle == 1
    assert pool.acquire() is not pool.acquire()


@KINDS
def test_a_foreign_object_is_refused(kind: type[Any]) -> None:
    """A pool takes back neither what another pool lent nor what no pool knows."""
    pool = ObjectPool(kind, prewarm=0)
    other = ObjectPool(kind, prewarm=0)
    lent = other.acquire()
    for stranger in (lent, kind()):
        with pytest.raises(RuntimeError, match="to the pool that it came from"):
            pool.release(stranger)
    other.release(lent)
    assert pool.statistics().idle == 0


def test_an_idle_object_cannot_be_returned() -> None:
    """What waits in the pool is not lent, so returning it is refused."""
    made: list[Node] = []

    def make() -> Node:
        made.append(Node())
        return made[-1]

    pool = ObjectPool(make, prewarm=3)
    with pytest.raises(RuntimeError, match="not lent"):
        pool.release(made[0])


def test_defaults() -> None:
    """A pool begins with 50 objects and keeps 200."""
    pool = ObjectPool(Node)
    assert pool.statistics().idle == 50
    lent = [pool.acquire() for _ in range(300)]
    for node in lent:
        pool.release(node)
    now = pool.statistics()
    assert (now.created, now.idle, now.discarded) == (300, 200, 100)


def test_the_newest_stay() -> None:
    """When too many are idle, the one that was idle longest is given up."""
    pool = ObjectPool(Node, max_idle=2, prewarm=0)
    first, second, third = (pool.acquire() for _ in range(3))
    for node in (first, second, third):
        pool.release(node)
    assert [pool.acquire(), pool.acquire()] == [third, second]
    assert pool.acquire() is not first


def test_a_pool_that_keeps_nothing() -> None:
    """With no idle objects allowed, every object is new."""
    pool = ObjectPool(Node, max_idle=0)
    with pool.lease():
        assert pool.statistics().in_use == 1
    assert pool.statistics().created == 1
    assert pool.statistics().idle == 0


def test_an_object_is_clean_when_it_is_lent_again() -> None:
    """The reset runs when an object comes back, also after a block that raised."""
    pool = ObjectPool(lambda: Dirt([]), reset=clean, prewarm=1)
    with pytest.raises(ZeroDivisionError), pool.lease() as lent:
        spoil(lent)
    assert lent.notes == []
    with pool.lease() as again:
        assert again is lent


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_reset_gives_the_object_up(error: type[BaseException]) -> None:
    """The error of a reset is raised to who returned the object, which is not lent again."""

    def fail(_node: Node) -> None:
        raise error("no")

    pool = ObjectPool(Node, reset=fail, prewarm=0)
    with pytest.raises(error, match="no"), pool.lease():
        pass
    now = pool.statistics()
    assert (now.in_use, now.idle, now.discarded) == (0, 0, 1)


def test_both_errors_are_told() -> None:
    """If the block raises and so does the reset, the reset's error names the block's."""

    def fail(_node: Node) -> None:
        raise ValueError("reset")

    pool = ObjectPool(Node, reset=fail, prewarm=0)
    with pytest.raises(ValueError, match="reset") as caught, pool.lease():
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_a_failing_factory_changes_nothing() -> None:
    """An error of the factory is raised, and nothing counts as lent."""

    def fail() -> Node:
        raise OSError("none left")

    pool = ObjectPool(fail, prewarm=0)
    with pytest.raises(OSError, match="none left"), pool.lease():
        pass
    assert pool.statistics().in_use == 0
    assert pool.statistics().created == 0


def test_a_factory_that_repeats_itself_is_found_out() -> None:
    """One object is never lent to two borrowers, even if the factory gives it twice."""
    only = Node()
    pool = ObjectPool(lambda: only, prewarm=0)
    assert pool.acquire() is only
    with pytest.raises(RuntimeError, match="new object each time"):
        pool.acquire()
    pool.release(only)


def test_a_lease_is_for_one_block() -> None:
    """A lease cannot be entered or ended twice, and keeps no object alive after its end."""
    pool = ObjectPool(Node, max_idle=0)
    lease = pool.lease()
    with pytest.raises(RuntimeError, match="holds nothing"):
        lease.__exit__(None, None, None)
    with lease as node:
        seen = weakref.ref(node)
        with pytest.raises(RuntimeError, match="entered before"):
            lease.__enter__()
    with pytest.raises(RuntimeError, match="holds nothing"):
        lease.__exit__(None, None, None)
    del node
    assert seen() is None


def test_returning_a_leased_object_early_is_an_error() -> None:
    """The end of the block tells that its object was returned behind its back."""
    pool = ObjectPool(Node, prewarm=0)
    with pytest.raises(RuntimeError, match="not lent"), pool.lease() as node:
        pool.release(node)
    assert pool.statistics().idle == 1


def test_clear_forgets_idle_objects_only() -> None:
    """After clear() what is lent can still be returned, and the counts stay true."""
    pool = ObjectPool(Node, prewarm=5)
    lent = pool.acquire()
    pool.clear()
    now = pool.statistics()
    assert (now.in_use, now.idle, now.discarded) == (1, 0, 4)
    pool.release(lent)
    assert pool.acquire() is lent


@pytest.mark.parametrize("is_cyclic", [False, True])
def test_what_is_dropped_is_freed(is_cyclic: bool) -> None:  # noqa: FBT001 - a parameter
    """The pool keeps no lent object alive, tells how many were lost, and keeps no trace of them."""
    pool = ObjectPool(Node, prewarm=0)
    refs = []
    node = None
    for _ in range(1000):
        node = pool.acquire()
        if is_cyclic:
            node.peer = node
        refs.append(weakref.ref(node))
    del node
    gc.collect()
    assert not any(ref() for ref in refs)
    now = pool.statistics()
    assert (now.in_use, now.lost, now.discarded) == (0, 1000, 0)
    assert not pool._marks


def test_a_stranger_at_a_dead_object_s_address_is_refused() -> None:
    """An address that was lent is struck out when the object there dies."""
    pool = ObjectPool(Node, prewarm=0)
    address = id(pool.acquire())  # dropped at once
    strangers = [Node() for _ in range(1000)]
    assert address in map(id, strangers), "the allocator did not use the address again"
    for stranger in strangers:
        with pytest.raises(RuntimeError, match="not lent"):
            pool.release(stranger)


def test_addresses_alone_are_corrected() -> None:
    """Objects known by address alone leave no growing trace when they are dropped."""
    pool = ObjectPool(Slim, prewarm=0)
    for _ in range(10_000):
        pool.acquire()
    now = pool.statistics()
    assert now.in_use + now.lost == 10_000
    assert now.in_use < 100


def test_a_pool_is_freed_at_once() -> None:
    """A pool is in no reference cycle, also while what it lent is alive."""
    gc.disable()
    try:
        pool = ObjectPool(Node)
        lent = pool.acquire()
        seen = weakref.ref(pool)
        del pool
        assert seen() is None
        del lent
    finally:
        gc.enable()


@KINDS
@pytest.mark.parametrize("idle", [0, 1, 3])
def test_an_acquire_may_be_interrupted_anywhere(kind: type[Any], idle: int) -> None:
    """Whatever another thread acquires between two instructions, each object is lent once."""
    for at in range(1000):
        pool = ObjectPool(kind, max_idle=3, prewarm=idle)
        others: list[Any] = []

        def intrude(pool: ObjectPool[Any] = pool, others: list[Any] = others) -> None:
            others.append(pool.acquire())

        mine, is_inside = interrupted(pool.acquire, intrude, at=at, within="/orchestra/pools/")
        if not is_inside:
            break
        assert others != [mine]
        assert pool.statistics().in_use == 2
        pool.release(mine)
        pool.release(others[0])
    assert at > 10


@KINDS
def test_a_release_may_be_interrupted_anywhere(kind: type[Any]) -> None:
    """Of two threads that return the same object one is refused, and the object is idle once."""
    for at in range(1000):
        pool = ObjectPool(kind, prewarm=0)
        lent = pool.acquire()
        refused: list[RuntimeError] = []

        def release(
            pool: ObjectPool[Any] = pool,
            lent: Any = lent,
            refused: list[RuntimeError] = refused,
        ) -> None:
            try:
                pool.release(lent)
            except RuntimeError as error:
                refused.append(error)

        _, is_inside = interrupted(release, release, at=at, within="/orchestra/pools/")
        if not is_inside:
            break
        assert len(refused) == 1
        assert pool.statistics().idle == 1
    assert at > 10


@KINDS
def test_threads_never_share_an_object(kind: type[Any]) -> None:
    """However threads interleave, an object has one borrower, and nothing is lost."""
    pool = ObjectPool(kind, max_idle=4, prewarm=4)
    faults: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            held = [pool.acquire() for _ in range(chance.randrange(1, 4))]
            for lent in held:
                lent.owners += 1
            faults.extend(lent.owners for lent in held if lent.owners != 1)
            for lent in held:
                lent.owners -= 1
                pool.release(lent)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    now = pool.statistics()
    assert now.in_use == 0
    assert now.idle <= 4


async def anew() -> Node:
    """An async factory, which a sync pool cannot call."""
    return Node()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factory": None}, TypeError, "factory must be callable"),
        ({"factory": anew}, TypeError, "factory must not be async"),
        ({"reset": 1}, TypeError, "reset must be callable"),
        ({"reset": functools.partial(anew)}, TypeError, "reset must not be async"),
        ({"max_idle": -1}, ValueError, "max_idle must be at least 0"),
        ({"max_idle": 1.5}, TypeError, "max_idle must be an int"),
        ({"prewarm": True}, TypeError, "prewarm must be an int"),
    ],
)
def test_bad_configuration(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """What cannot work is refused at construction, by the field's name."""
    with pytest.raises(error, match=message):
        ObjectPool(**{"factory": Node, **options})


def test_repr() -> None:
    """A pool shows what is lent and what is idle."""
    pool = ObjectPool(Node, max_idle=10, prewarm=3)
    with pool.lease():
        assert repr(pool) == "<ObjectPool 1 in use, 2/10 idle>"


class PoolMachine(RuleBasedStateMachine):
    """A pool beside the simplest thing that could be right: a list of idle objects."""

    lent = Bundle("lent")
    returned = Bundle("returned")

    def __init__(self) -> None:
        super().__init__()
        self.idle: list[Node] = []
        self.in_use = 0
        self.created = 0
        self.lost = 0
        self.pool = ObjectPool(self.make, max_idle=3, prewarm=0)

    def make(self) -> Node:
        self.created += 1
        return Node()

    @rule(target=lent)
    def acquire(self) -> Node:
        node = self.pool.acquire()
        if self.idle:
            assert node is self.idle.pop()
        self.in_use += 1
        return node

    @rule(target=returned, node=consumes(lent))
    def release(self, node: Node) -> Node:
        self.pool.release(node)
        self.idle = [*self.idle, node][-3:]
        self.in_use -= 1
        return node

    @rule(node=consumes(returned))
    def release_again(self, node: Node) -> None:
        if node not in self.idle:
            return  # it may be lent again, and the model does not say to whom
        with pytest.raises(RuntimeError, match="not lent"):
            self.pool.release(node)

    @rule()
    def lose(self) -> None:
        node = self.pool.acquire()
        if self.idle:
            assert node is self.idle.pop()
            node_is_known = True
        else:
            node_is_known = False
        if node_is_known:  # a bundle may still hold it
            self.pool.release(node)
            self.idle.append(node)
        else:
            self.lost += 1

    @rule(amount=st.integers(1, 3))
    def release_strangers(self, amount: int) -> None:
        for stranger in [Node() for _ in range(amount)]:
            with pytest.raises(RuntimeError, match="not lent"):
                self.pool.release(stranger)

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        self.idle.clear()

    @invariant()
    def counts_agree(self) -> None:
        now = self.pool.statistics()
        assert (now.created, now.in_use, now.idle, now.lost) == (
            self.created,
            self.in_use,
            len(self.idle),
            self.lost,
        )
        assert now.discarded == self.created - self.in_use - len(self.idle) - self.lost


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
