"""Everything at random against a model of a few lines; and proof that it would see a fault."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from anyio import CancelScope, WouldBlock
from attrs import frozen
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import orchestra
import orchestra.concurrency
from orchestra.testing import settle, virtual_time_options

# ---- what happens ----


@frozen
class Do:
    """One thing that happens.

    Attributes:
        what: start, nowait, end, cancel or limit.
        which: A priority, or a job (counted from the oldest that is not over), or a limit.
        need: How many slots.
        at_once: Whether the next thing happens before any task runs again.
    """

    what: str
    which: int = 0
    need: int = 1
    at_once: bool = False


needs = st.sampled_from([1, 1, 1, 1, 2, 3])
things = st.lists(
    st.one_of(
        st.builds(Do, st.just("start"), st.sampled_from([0, 0, 1, 1, 2]), needs),
        st.builds(Do, st.just("start"), st.sampled_from([0, 0, 0, 0, 1, 2]), st.just(1)),
        st.builds(Do, st.just("nowait"), st.integers(0, 2), needs, st.booleans()),
        st.builds(Do, st.just("end"), st.integers(0, 5), st.just(0), st.booleans()),
        st.builds(Do, st.just("end"), st.integers(0, 2), st.just(0), st.booleans()),
        st.builds(Do, st.just("cancel"), st.integers(0, 9), st.just(0), st.booleans()),
        st.builds(Do, st.just("limit"), st.integers(1, 4), st.just(0), st.booleans()),
    ),
    min_size=20,
    max_size=100,
)

# So long a flood is rare among random ones: the last LOW waits for 17 grants of HIGH.
FLOOD = [Do("start"), Do("start", 2), Do("start", 1), *[Do("start"), Do("end")] * 24]

# ---- what should come of it ----


class Model:
    """The limiter as lists and searches, one thing after the other."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.holders: dict[int, int] = {}
        self.waiters: dict[int, tuple[int, int]] = {}  # job: priority (0 is HIGH), need
        self.ages = Counter[int]()

    @property
    def in_use(self) -> int:
        return sum(self.holders.values())

    def first(self, priority: int) -> int | None:
        return next((job for job, (p, _) in self.waiters.items() if p == priority), None)

    def next(self) -> int | None:
        for priority, patience in ((2, 16), (1, 4), (0, 0), (1, 0), (2, 0)):
            job = self.first(priority)
            if job is not None and self.ages[priority] >= patience:
                return job
        return None

    def forget(self, job: int, *, is_served: bool) -> None:
        priority, _ = self.waiters.pop(job)
        for other in range(3):
            if self.first(other) is None or (is_served and other == priority):
                self.ages[other] = 0
            elif is_served:
                self.ages[other] += 1

    def arrive(self, job: int, priority: int, need: int) -> None:
        self.waiters[job] = (priority, need)
        if self.next() == job and self.in_use + need <= self.limit:
            self.forget(job, is_served=True)
            self.holders[job] = need

    def leave(self, job: int) -> None:
        if job in self.waiters:
            self.forget(job, is_served=False)
        self.holders.pop(job, None)
        self.grant()

    def grant(self) -> None:
        while (job := self.next()) is not None:
            need = self.waiters[job][1]
            if self.in_use and self.in_use + need > self.limit:
                return
            self.forget(job, is_served=True)
            self.holders[job] = need


# ---- both together ----


class Play:
    """Lets things happen to a controller and to the model, and compares."""

    def __init__(self, module: ModuleType, limit: int, *, is_native: bool, is_fast: bool) -> None:
        self.priorities = list(module.Priority)
        self.controller = module.ConcurrencyController({"k": limit}, fast_acquire=is_fast)
        self.model = Model(limit)
        self.is_native = is_native
        self.tokens: dict[int, Any] = {}
        self.cancellers: dict[int, Any] = {}
        self.order: list[int] = []
        self.jobs = 0

    async def run(self, happenings: list[Do]) -> None:
        async with anyio.create_task_group() as tasks:
            for thing in happenings:
                await self.happen(thing, tasks)
            while self.model.holders or self.model.waiters:
                await self.happen(Do("end"), tasks)
            tasks.cancel_scope.cancel()
        assert self.controller.statistics("k").in_use == 0

    async def happen(self, thing: Do, tasks: anyio.abc.TaskGroup) -> None:
        alive = [*self.model.holders, *self.model.waiters]
        job = alive[thing.which % len(alive)] if alive else None
        may_hurry = True
        if thing.what in ("start", "nowait"):
            job, self.jobs = self.jobs, self.jobs + 1
            if thing.need > self.model.limit:
                return
            if thing.what == "start":
                tasks.start_soon(self.take, job, thing.which, thing.need)
                self.model.arrive(job, thing.which, thing.need)
                may_hurry = False
            else:
                self.take_now(job, thing.which, thing.need)
        elif thing.what == "limit":
            self.controller.set_limit("k", thing.which)
            self.model.limit = thing.which
            self.model.grant()
        elif job is None:
            return
        elif thing.what == "cancel":
            # What a cancelled task makes room for is granted when it runs, and not before.
            holders = dict(self.model.holders)
            self.cancellers[job]()
            self.model.leave(job)
            may_hurry = holders == self.model.holders
        elif job in self.tokens and job in self.model.holders:
            self.tokens[job].release()
            self.model.leave(job)
        if not (thing.at_once and may_hurry):
            await settle()
            self.compare()

    def take_now(self, job: int, priority: int, need: int) -> None:
        self.model.arrive(job, priority, need)
        try:
            token = self.controller.acquire_nowait(
                "k", count=need, priority=self.priorities[priority]
            )
        except WouldBlock:
            assert job not in self.model.holders
            del self.model.waiters[job]
            for other in range(3):
                if self.model.first(other) is None:
                    self.model.ages[other] = 0
            return
        self.tokens[job] = token
        self.cancellers[job] = token.release

    async def take(self, job: int, priority: int, need: int) -> None:
        if self.is_native:
            import asyncio

            task = asyncio.current_task()
            assert task is not None
            self.cancellers[job] = task.cancel
            with suppress(asyncio.CancelledError):  # the schedule's, not the group's
                await self.hold(job, priority, need)
            return
        with CancelScope() as scope:
            self.cancellers[job] = scope.cancel
            await self.hold(job, priority, need)

    async def hold(self, job: int, priority: int, need: int) -> None:
        if need == 1:
            token = await self.controller.acquire("k", priority=self.priorities[priority])
        else:
            token = await self.controller.acquire_many(
                "k", need, priority=self.priorities[priority]
            )
        self.tokens[job] = token
        try:
            await anyio.sleep_forever()
        finally:
            token.release()

    def compare(self) -> None:
        held = {job for job, token in self.tokens.items() if not token.is_released}
        assert held == set(self.model.holders)
        statistics = self.controller.statistics("k")
        assert statistics.in_use == self.model.in_use
        assert statistics.tasks_waiting == len(self.model.waiters)
        assert statistics.limit == self.model.limit


BACKENDS = ["asyncio", "asyncio native", "trio"]


def check(
    module: ModuleType, backend: str, happenings: list[Do], limit: int, *, is_fast: bool
) -> None:
    """Run one example to its end on one event loop."""
    name = backend.partition(" ")[0]
    play = Play(module, limit, is_native=backend == "asyncio native", is_fast=is_fast)
    anyio.run(play.run, happenings, backend=name, backend_options=virtual_time_options(name))


@pytest.mark.parametrize("backend", BACKENDS)
@example(happenings=FLOOD, limit=1, is_fast=False)
@given(happenings=things, limit=st.integers(1, 4), is_fast=st.booleans())
def test_controller_equals_its_model(
    backend: str, happenings: list[Do], limit: int, *, is_fast: bool
) -> None:
    """After any sequence of arrivals, ends, cancellations and limits, who holds is as modelled."""
    check(orchestra.concurrency, backend, happenings, limit, is_fast=is_fast)


# ---- and the same with a fault in it ----

MODULES = (
    "_core.waiters",
    "_waiting",
    "_lane",
    "_admission",
    "_lease",
    "bulkhead",
    "concurrency",
)


@contextmanager
def mutated(name: str, *changes: str) -> Iterator[ModuleType]:
    """Import the controller again with changes in one source: old text, new text, and so on."""
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
        yield sys.modules["orchestra.concurrency"]


MUTANTS: dict[str, tuple[str, ...]] = {
    "lost wake-up: nobody is woken by a release": (
        "_lane",
        "            if not lane.is_open:\n                lane.settle(self)\n",
        "",
    ),
    "lost wake-up: a raised limit wakes nobody": (
        "_lane",
        "            self._state.epoch = self.epoch\n        self.settle()\n",
        "            self._state.epoch = self.epoch\n",
    ),
    "lost wake-up: only one of several is woken": (
        "_lane",
        "                queue.wake_next()\n",
        "                queue.wake_next()\n                break\n",
    ),
    "lost slot: a waiter cancelled after the grant keeps it": (
        "_waiting",
        "returned(future.done() and not future.cancelled() and future.result())",
        "returned(False)",
    ),
    "lost wake-up: a cancelled waiter blocks those behind it": (
        "_waiting",
        "        returned(False)\n",
        "",
    ),
    "dead waiter: a cancelled waiter keeps its place": (
        "_waiting",
        "if not (isinstance(waiter, Future) and waiter.done()):",
        "if True:",
    ),
    "barging: a newcomer takes what is free although others wait": (
        "_lane",
        "return not self.order.size or self._queue.lets_pass(priority, 1)",
        "return True",
    ),
    "barging: the slot is not handed over before the wake-up": (
        "_lane",
        "                self.free -= 1\n                queue.wake_next()\n",
        "                queue.wake_next()\n                return\n",
        "            if not await park(self._orders, 1, priority, self.give_back):\n",
        "            if await park(self._orders, 1, priority, self.give_back):\n                self.free -= 1\n            else:\n",
    ),
    "over-admission: one too many": (
        "_lane",
        "        if self.is_open and self.free > 0:\n",
        "        if self.is_open and self.free >= 0:\n",
    ),
    "over-admission: several slots are counted as one": (
        "_lane",
        "            self.free -= count\n            token",
        "            self.free -= 1\n            token",
    ),
    "double release: a token gives back twice": (
        "_lane",
        "            self._epoch = None\n            lane = self._lane\n",
        "            lane = self._lane\n",
    ),
    "revocation: lowering the limit forgets slots in use": (
        "_lane",
        "self.free += limit - self.limit",
        "self.free = min(limit, self.free)",
    ),
    "stuck: what needs more than a lowered limit waits for ever": (
        "_lane",
        "return self.free >= count or (self.free == self.limit < count)",
        "return self.free >= count",
    ),
    "overtaking: one slot goes to who is behind a request for several": (
        "_lane",
        "            elif not self._grant_all(need):\n                return\n",
        "            elif not self._grant_all(need):\n                queue.order.pop()\n",
    ),
    "last come, first served": (
        "_core.waiters",
        "self._normal.popitem(last=False)",
        "self._normal.popitem(last=True)",
    ),
    "starvation: LOW never grows impatient": (
        "_core.waiters",
        "if self._low_age >= LOW_PATIENCE:",
        "if False:",
    ),
    "impatience: being served does not make NORMAL patient again": (
        "_core.waiters",
        "            self._normal_age = 0\n            self.size -= 1\n",
        "            self.size -= 1\n",
    ),
    "impatience: NORMAL goes before HIGH": (
        "_core.waiters",
        "NORMAL_PATIENCE: Final = 4",
        "NORMAL_PATIENCE: Final = 1",
    ),
}


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
    """The property above fails for a controller with this fault."""

    @settings(
        max_examples=2000,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @example(backend="trio", happenings=FLOOD, limit=1, is_fast=False)
    @given(
        backend=st.sampled_from(BACKENDS),
        happenings=things,
        limit=st.integers(1, 4),
        is_fast=st.booleans(),
    )
    def run(backend: str, happenings: list[Do], limit: int, *, is_fast: bool) -> None:
        check(module, backend, happenings, limit, is_fast=is_fast)

    with mutated(*MUTANTS[fault]) as module:
        assert fails(run)
    gc.collect()  # what is left of the loops, while this test ignores its complaints


def test_no_fault_without_a_change() -> None:
    """The machinery of the test above does not fail by itself."""
    with mutated("_waiting") as module:
        happenings = [Do("start"), Do("start", 2), Do("end"), Do("end")]
        check(module, "trio", happenings, 1, is_fast=False)
