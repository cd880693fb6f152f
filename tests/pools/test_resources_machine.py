"""Everything at random, against what must always hold; and proof that it would see a fault."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import anyio
import pytest
from anyio.abc import TaskGroup
from attrs import frozen
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from workshop import CALLS, Thing, ToldError, Workshop

import orchestra
import orchestra.pools.resources
from orchestra import Priority
from orchestra.testing import settle, virtual_time_options

# ---- what happens ----


@frozen
class Do:
    """One thing that happens.

    Attributes:
        what: start, leave, break, cancel, invalidate, condemn, again, nowait, hold, let go, fail,
            unfit or sleep.
        which: A borrower (counted from the oldest that is not over), a thing (counted from the
            newest), a kind of call, or a time.
        at_once: Whether the next thing happens before any task runs again.
    """

    what: str
    which: int = 0
    at_once: bool = False


borrower = st.integers(0, 5)
happenings = st.one_of(
    st.builds(Do, st.just("start"), st.integers(0, 2), st.booleans()),
    st.builds(Do, st.just("start"), st.integers(0, 2), st.booleans()),
    st.builds(Do, st.sampled_from(["leave", "leave", "break", "cancel"]), borrower, st.booleans()),
    st.builds(Do, st.sampled_from(["cancel", "invalidate", "nowait"]), borrower, st.booleans()),
    st.builds(Do, st.just("hold"), st.integers(0, 3)),
    st.builds(Do, st.just("let go"), st.integers(0, 3), st.booleans()),
    st.builds(Do, st.just("let go"), st.integers(0, 3), st.booleans()),
    st.builds(Do, st.just("fail"), st.integers(0, 3)),
    st.builds(Do, st.sampled_from(["unfit", "condemn", "again"]), borrower, st.booleans()),
    st.builds(Do, st.just("sleep"), st.integers(0, 3)),
)
schedules = st.lists(happenings, min_size=10, max_size=60)

CREATE, VALIDATE, DESTROY = map(CALLS.index, ("create", "validate", "destroy"))
USED_ONCE = [Do("start"), Do("leave")]
UNFIT = [*USED_ONCE, Do("unfit"), Do("hold", DESTROY), Do("start")]
LIKELY = (  # what chance brings about too seldom
    [Do("hold", CREATE), Do("start"), Do("cancel")],
    [*USED_ONCE, Do("hold", VALIDATE), Do("start"), Do("cancel")],
    [*UNFIT, Do("cancel"), Do("let go", DESTROY)],
    [*UNFIT, Do("let go", DESTROY, at_once=True), Do("cancel", at_once=True)],
    [*USED_ONCE, Do("condemn"), Do("start")],
    [*USED_ONCE, Do("nowait"), Do("leave", at_once=True), Do("again")],
)
SECONDS = (0.5, 5.0, 40.0, 400.0)


@frozen(kw_only=True)
class Setting:
    """The kind of pool."""

    max_size: int
    min_idle: int
    calls: tuple[str, ...]
    max_uses: int | None
    max_lifetime: float | None
    is_fast: bool
    is_fifo: bool


pools = st.integers(1, 3).flatmap(
    lambda size: st.builds(
        Setting,
        max_size=st.just(size),
        min_idle=st.integers(0, size),
        calls=st.sampled_from([(), ("reset",), ("validate",), ("reset", "validate")]),
        max_uses=st.sampled_from([None, 1, 3]),
        max_lifetime=st.sampled_from([None, 30.0, 3000.0]),
        is_fast=st.booleans(),
        is_fifo=st.booleans(),
    )
)

# ---- and what must hold ----


class Borrower:
    """A task, or nobody in particular, that has or wants a lease."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.cancel: Callable[[], object] = anyio.CancelScope().cancel
        self.told = anyio.Event()
        self.breaks = False
        self.is_over = False


class Play:
    """Lets things happen to a pool, and looks at it whenever every task waits."""

    def __init__(self, module: ModuleType, kind: Setting, *, is_native: bool) -> None:
        self.kind = kind
        self.shop = Workshop(kind.max_size)
        self.is_native = is_native
        self.borrowers: list[Borrower] = []
        functions = {call: getattr(self.shop, call) for call in kind.calls}
        self.pool = module.ResourcePool(
            self.shop.create,
            destroy=self.shop.destroy,
            max_size=kind.max_size,
            min_idle=kind.min_idle,
            max_uses=kind.max_uses,
            max_lifetime=kind.max_lifetime,
            fast_acquire=kind.is_fast,
            fifo=kind.is_fifo,
            rng=lambda: 0.5,
            **functions,
        )

    async def run(self, schedule: list[Do]) -> None:
        async with self.pool, anyio.create_task_group() as tasks:
            for thing in schedule:
                self.happen(thing, tasks)
                if thing.what == "sleep":
                    await anyio.sleep(SECONDS[thing.which])
                if not thing.at_once:
                    await settle()
                    self.check()
            await self.wind_down()
        self.shop.check_over()
        now = self.pool.statistics()
        assert (now.created, now.destroyed) == (len(self.shop.made), len(self.shop.made))
        assert (now.idle, now.busy, now.in_use, now.tasks_waiting) == (0, 0, 0, 0)

    async def wind_down(self) -> None:
        """Everybody leaves, nothing fails any more, and all that there can be can be had."""
        self.shop.failing.clear()
        rounds = 0
        while self.alive():
            rounds += 1
            assert rounds < 100, f"{self.pool} never ends"
            self.shop.open()
            for one in self.alive():
                one.told.set()
                if one.lease is not None:
                    one.lease.release()
                    one.is_over = True
            await anyio.sleep(0.1)
        self.shop.open()
        await settle()
        self.check()
        assert self.pool.statistics().busy == 0
        with anyio.fail_after(0.5):
            leases = [await self.pool.acquire() for _ in range(self.kind.max_size)]
        assert len({lease.resource.number for lease in leases}) == self.kind.max_size
        for lease in leases:
            lease.release()

    def alive(self) -> list[Borrower]:
        return [one for one in self.borrowers if not one.is_over]

    def happen(self, thing: Do, tasks: TaskGroup) -> None:
        if thing.what == "start":
            one = Borrower()
            self.borrowers.append(one)
            tasks.start_soon(self.borrow, one, list(Priority)[thing.which])
        elif thing.what == "nowait":
            self.take_now()
        elif thing.what in ("hold", "let go", "fail"):
            self.instruct(thing.what, CALLS[thing.which])
        elif thing.what in ("unfit", "condemn"):
            present = [made for made in self.shop.made if not made.is_destroyed]
            for made in present[-1 - thing.which :][:1]:
                tasks.start_soon(self.condemn if thing.what == "condemn" else self.spoil, made)
        elif thing.what == "again":
            self.end_again()
        elif thing.what != "sleep" and (alive := self.alive()):
            self.disturb(alive[thing.which % len(alive)], thing.what)

    def instruct(self, what: str, call: str) -> None:
        if what == "fail":
            self.shop.failing[call] = 1
        elif what == "let go":
            self.shop.let_go(call)
        elif call not in self.shop.held:
            self.shop.hold(call)

    def disturb(self, one: Borrower, what: str) -> None:
        if what == "cancel":
            one.cancel()
        elif what in ("leave", "break"):
            one.breaks = what == "break"
            one.told.set()
            if one.lease is not None:  # taken without a task of its own
                one.lease.release()
                one.is_over = True
        elif one.lease is not None and one.lease.is_held:
            one.lease.resource.is_refused = True
            one.lease.invalidate()
            one.is_over = True

    def end_again(self) -> None:
        for one in self.borrowers:
            if one.lease is not None and one.is_over:
                one.lease.release()

    async def spoil(self, thing: Thing) -> None:
        thing.is_fit = False

    async def condemn(self, thing: Thing) -> None:
        thing.user = None  # it is taken away from whoever has it
        thing.is_refused = True
        with suppress(RuntimeError):  # it is gone by now
            await self.pool.invalidate(thing)

    def take_now(self) -> None:
        with suppress(anyio.WouldBlock):
            one = Borrower()
            one.lease = self.pool.acquire_nowait()
            assert one.lease.resource.user is None
            assert not one.lease.resource.is_refused
            self.borrowers.append(one)

    async def borrow(self, one: Borrower, priority: Priority) -> None:
        try:
            if self.is_native:
                import asyncio

                task = asyncio.current_task()
                assert task is not None
                one.cancel = task.cancel
                with suppress(asyncio.CancelledError):
                    await self.hold(one, priority)
            else:
                with anyio.CancelScope() as scope:
                    one.cancel = scope.cancel
                    await self.hold(one, priority)
        except ToldError:
            pass
        finally:
            one.is_over = True

    async def hold(self, one: Borrower, priority: Priority) -> None:
        async with self.pool.lease(priority=priority) as thing:
            assert isinstance(thing, Thing)
            assert not thing.is_destroyed
            assert not thing.is_refused
            assert thing.user is None
            thing.user = one
            try:
                await one.told.wait()
            finally:
                if thing.user is one:
                    thing.user = None
            if one.breaks:
                raise ToldError

    def check(self) -> None:
        now = self.pool.statistics()
        size = self.kind.max_size
        assert self.shop.present <= size
        assert now.in_use + now.idle + now.busy <= size
        assert self.shop.present == now.in_use + now.idle + now.busy
        if now.tasks_waiting:
            assert now.in_use + now.busy == size, f"{self.pool} lets a task wait"
        held = [holder.resource for holder in self.pool.holders()]
        assert len({id(thing) for thing in held}) == len(held)
        assert not any(thing.is_destroyed for thing in held)
        used = [thing for thing in self.shop.made if isinstance(thing.user, Borrower)]
        assert all(any(thing is other for other in held) for thing in used)


VALIDATING = Setting(
    max_size=1,
    min_idle=0,
    calls=("validate",),
    max_uses=None,
    max_lifetime=None,
    is_fast=False,
    is_fifo=False,
)

BACKENDS = ["asyncio", "asyncio native", "trio"]


def check(module: ModuleType, backend: str, kind: Setting, schedule: list[Do]) -> None:
    """Run one example to its end on one event loop."""
    name = backend.partition(" ")[0]
    play = Play(module, kind, is_native=backend == "asyncio native")
    anyio.run(play.run, schedule, backend=name, backend_options=virtual_time_options(name))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What fails as told need not be read thousands of times."""
    logger = logging.getLogger("orchestra")
    logger.disabled = True
    yield
    logger.disabled = False


F = TypeVar("F", bound=Callable[..., None])


def likely(**others: object) -> Callable[[F], F]:
    """Give a property the examples that chance brings about too seldom."""

    def decorate(function: F) -> F:
        for schedule in LIKELY:
            function = example(kind=VALIDATING, schedule=schedule, **others)(function)
        return function

    return decorate


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=max(1, settings().max_examples // 4))
@likely()
@given(kind=pools, schedule=schedules)
def test_pool_keeps_its_promises(backend: str, kind: Setting, schedule: list[Do]) -> None:
    """Whatever happens: never too many, no waiter beside a free place, nobody shares, all end once."""
    check(orchestra.pools.resources, backend, kind, schedule)


# ---- and the same with a fault in it ----

MODULES = ("_core.pool", "pools._leasing", "pools._stock", "pools.resources")

MUTANTS: dict[str, tuple[str, ...]] = {
    "lost place: a failed creation keeps it": (
        "pools._stock",
        "            self.counts.create_failures += 1\n            self.lane.give_back(1)\n",
        "            self.counts.create_failures += 1\n",
    ),
    "lost place: only an error of the factory gives it back, not a cancellation": (
        "pools._stock",
        "        except BaseException:\n            self.counts.create_failures += 1\n",
        "        except Exception:\n            self.counts.create_failures += 1\n",
    ),
    "lost place: a cancelled wait for a destruction takes it along": (
        "pools._stock",
        "                destruction.has_heir = False\n",
        "                pass\n",
    ),
    "lost place: cancelled in the tick in which the destruction ended": (
        "pools._stock",
        "            if destruction.over.is_set():\n                self.lane.give_back(1)\n",
        "            if destruction.over.is_set():\n                pass\n",
    ),
    "lost place: a destroyed resource keeps it": (
        "pools._stock",
        "            if not destruction.has_heir:\n                self.lane.give_back(1)\n",
        "",
    ),
    "a place twice: the heir of a destruction does not keep it": (
        "pools._stock",
        "        destruction.has_heir = True\n",
        "",
    ),
    "lost resource: cancelled while it is validated": (
        "pools._stock",
        "        except BaseException:\n            self.discard(entry, ResourceEnd.INTERRUPTED)\n",
        "        except BaseException:\n",
    ),
    "lost resource: a failed reset": (
        "pools._stock",
        "            else:\n                self.discard(entry, cause)\n\n    # ---- the end",
        "\n    # ---- the end",
    ),
    "too many: what is destroyed gives its place back at once": (
        "pools._stock",
        "        self._start(self._destroy, entry, destruction)\n        return destruction\n",
        "        self._start(self._destroy, entry, destruction)\n        self.lane.give_back(1)\n        destruction.has_heir = True\n        return destruction\n",
    ),
    "too many: what is created to idle needs no place": (
        "pools._stock",
        "        for _ in range(chores.missing):\n            if not self._take_slot():\n",
        "        for _ in range(chores.missing):\n            self.lane.free -= 1\n            if False:\n",
    ),
    "lost wake-up: a released resource wakes nobody": (
        "pools._stock",
        "        if not lane.is_open:\n            lane.settle()\n",
        "",
    ),
    "shared: what is leased goes on idling": (
        "pools._stock",
        "        del idle[self._head]\n",
        "",
    ),
    "shared: a lease ends twice": (
        "pools._leasing",
        "            self._entry = None\n            self._stock.take_back(entry)\n",
        "            self._stock.take_back(entry)\n",
    ),
    "destroyed twice: by its holder and by who invalidates it": (
        "pools._stock",
        "            entry.holder._lose(ResourceEnd.INVALIDATED)  # noqa: SLF001 - the lease\n",
        "            self.discard(entry, ResourceEnd.INVALIDATED)\n",
    ),
    "never destroyed: what idles when the pool is closed": (
        "pools._stock",
        "                self.discard(entry, ResourceEnd.CLOSED)\n        self._look_empty()\n",
        "                pass\n        self._look_empty()\n",
    ),
    "lent although invalidated": (
        "pools._stock",
        '        entry.expires_at = float("-inf")\n',
        "",
    ),
    "unfit is lent": (
        "pools._stock",
        "                if await validate(entry.resource):\n                    return True\n",
        "                await validate(entry.resource)\n                return True\n",
    ),
}


@contextmanager
def mutated(name: str, *changes: str) -> Iterator[ModuleType]:
    """Import the pool again with changes in one source: old text, new text, and so on."""
    root = Path(orchestra.__file__).parent
    with ExitStack() as stack:
        for module_name in (f"orchestra.{module}" for module in MODULES):
            original = sys.modules.pop(module_name)
            stack.callback(sys.modules.__setitem__, module_name, original)
        for module_name in MODULES:
            path = root / f"{module_name.replace('.', '/')}.py"
            source = path.read_text("utf-8")
            if module_name == name:
                for old, new in zip(changes[::2], changes[1::2], strict=True):
                    assert source.count(old) == 1, f"{old!r} is not in {path} exactly once"
                    source = source.replace(old, new)
            module = ModuleType(f"orchestra.{module_name}")
            module.__file__ = str(path)
            sys.modules[module.__name__] = module
            exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - our own source
        yield sys.modules["orchestra.pools.resources"]


def fails(run: Callable[[], object]) -> bool:
    """Whether a property fails, in whatever way."""
    try:
        run()
    except BaseException:  # noqa: BLE001 - a fault may end the loop itself
        return True
    return False


# A fault may leave a loop with tasks that it can no longer end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", MUTANTS)
def test_fault_is_seen(fault: str) -> None:
    """The property above fails for a pool with this fault."""

    @settings(
        max_examples=600,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @likely(backend="asyncio native")
    @likely(backend="trio")
    @given(backend=st.sampled_from(BACKENDS), kind=pools, schedule=schedules)
    def property_(backend: str, kind: Setting, schedule: list[Do]) -> None:
        check(module, backend, kind, schedule)

    with mutated(*MUTANTS[fault]) as module:
        assert fails(property_)
