from __future__ import annotations

import gc
import math
import re
import warnings
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from anyio import CancelScope, WouldBlock
from anyio.abc import TaskGroup

from orchestra import (
    ConcurrencyController,
    ConcurrencyStatistics,
    ConcurrencyToken,
    Fixed,
    Limit,
    MemoryPressure,
    Priority,
    RateLimit,
    Streak,
)
from orchestra.errors import CapacityError
from orchestra.testing import settle


class Crowd:
    """Tasks that each take a token and say when."""

    def __init__(self, controller: ConcurrencyController, tasks: TaskGroup) -> None:
        self.controller = controller
        self.tasks = tasks
        self.granted: list[str] = []
        self.tokens: dict[str, ConcurrencyToken] = {}
        self.scopes: dict[str, CancelScope] = {}
        self.errors: dict[str, Exception] = {}

    async def come(
        self,
        *names: str,
        key: str = "k",
        count: int = 1,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Start one task after the other; each has taken or waits when the next one starts."""
        for name in names:
            self.scopes[name] = CancelScope()
            self.tasks.start_soon(self._take, name, key, count, priority)
            await settle()

    async def _take(self, name: str, key: str, count: int, priority: Priority) -> None:
        with self.scopes[name]:
            try:
                if count == 1:
                    token = await self.controller.acquire(key, priority=priority)
                else:
                    token = await self.controller.acquire_many(key, count, priority=priority)
            except CapacityError as exc:
                self.errors[name] = exc
                return
            self.tokens[name] = token
            self.granted.append(name)


async def test_never_more_than_the_limit() -> None:
    """However many come, as many as the limit get in, and each later one when another leaves."""
    controller = ConcurrencyController({"k": 2})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("a", "b", "c", "d")
        assert crowd.granted == ["a", "b"]
        assert controller.statistics("k") == ConcurrencyStatistics(
            limit=2, in_use=2, tasks_waiting=2
        )
        crowd.tokens["b"].release()
        await settle()
        assert crowd.granted == ["a", "b", "c"]
        crowd.tokens["a"].release()
        await settle()
        assert crowd.granted == ["a", "b", "c", "d"]
    assert controller.statistics("k").in_use == 2


async def test_priorities() -> None:
    """HIGH goes before NORMAL before LOW, and first come first served within one."""
    controller = ConcurrencyController({"k": 1})
    first = await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        for priority in reversed(Priority):
            await crowd.come(f"{priority.name} 1", f"{priority.name} 2", priority=priority)
        first.release()
        for _ in range(6):
            await settle()
            crowd.tokens[crowd.granted[-1]].release()
    assert crowd.granted == ["HIGH 1", "HIGH 2", "NORMAL 1", "NORMAL 2", "LOW 1", "LOW 2"]


async def test_nobody_barges() -> None:
    """A slot that was handed to a waiter is gone for a newcomer, also before the waiter runs."""
    controller = ConcurrencyController({"k": 1}, fast_acquire=True)
    token = await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("waiter")
        token.release()
        with pytest.raises(WouldBlock):
            controller.acquire_nowait("k")
        await crowd.come("newcomer")
        assert crowd.granted == ["waiter"]
        crowd.scopes["newcomer"].cancel()


async def test_raising_the_limit_wakes_waiters_at_once() -> None:
    """A higher limit lets in as many waiters as it adds, in order."""
    controller = ConcurrencyController({"k": 1})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come(*"abcd")
        controller.set_limit("k", 3)
        await settle()
        assert sorted(crowd.granted) == ["a", "b", "c"]
        assert controller.statistics("k") == ConcurrencyStatistics(
            limit=3, in_use=3, tasks_waiting=1
        )
        crowd.scopes["d"].cancel()


async def test_lowering_the_limit_revokes_nothing() -> None:
    """After a lower limit nobody gets in until enough have left; then the new limit holds."""
    controller = ConcurrencyController({"k": 3})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come(*"abcd")
        controller.set_limit("k", 1)
        assert controller.statistics("k").in_use == 3
        assert not any(token.is_released for token in crowd.tokens.values())
        for name in "ab":
            crowd.tokens[name].release()
            await settle()
            assert crowd.granted == ["a", "b", "c"]
        with pytest.raises(WouldBlock):
            controller.acquire_nowait("k")
        crowd.tokens["c"].release()
        await settle()
        assert crowd.granted == ["a", "b", "c", "d"]


async def test_acquire_many_is_all_or_nothing() -> None:
    """Several slots come together; while they are waited for nothing is held, nobody passes."""
    controller = ConcurrencyController({"k": 3})
    one = await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("three", count=3)
        await crowd.come("one")
        assert crowd.granted == []
        assert controller.statistics("k").in_use == 1
        with pytest.raises(WouldBlock):
            controller.acquire_nowait("k")
        one.release()
        await settle()
        assert crowd.granted == ["three"]
        assert crowd.tokens["three"].count == 3
        crowd.tokens["three"].release()
        await settle()
        assert crowd.granted == ["three", "one"]
    assert controller.statistics("k").in_use == 1


async def test_more_urgent_newcomer_passes_a_large_waiter() -> None:
    """A free slot is no use to who needs three; who would be next anyway may take it at once."""
    controller = ConcurrencyController({"k": 3})
    await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("three", count=3)
        await crowd.come("urgent", priority=Priority.HIGH)
        assert crowd.granted == ["urgent"]
        controller.acquire_nowait("k", priority=Priority.HIGH)
        assert controller.statistics("k").in_use == 3
        await crowd.come("urgent 2", priority=Priority.HIGH)
        assert crowd.granted == ["urgent"]
        for name in ("three", "urgent 2"):
            crowd.scopes[name].cancel()


async def test_cancelling_a_large_waiter_lets_the_next_in() -> None:
    """Whoever waits behind a request that was too large gets the free slot when that one goes."""
    controller = ConcurrencyController({"k": 3})
    await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("three", count=3)
        await crowd.come("a", "b", "c")
        crowd.scopes["three"].cancel()
        await settle()
        assert sorted(crowd.granted) == ["a", "b"]
        crowd.scopes["c"].cancel()


async def test_request_above_a_lowered_limit_goes_alone() -> None:
    """A waiter that needs more than a lowered limit is served when nobody else is, not never."""
    controller = ConcurrencyController({"k": 3})
    one = await controller.acquire("k")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("three", count=3)
        await crowd.come("one")
        controller.set_limit("k", 2)
        await settle()
        assert crowd.granted == []
        one.release()
        await settle()
        assert crowd.granted == ["three"]
        assert controller.statistics("k").in_use == 3
        crowd.tokens["three"].release()
        await settle()
        assert crowd.granted == ["three", "one"]


async def test_count_that_cannot_be() -> None:
    """A count above the highest limit is a mistake, one above the limit of now is bad luck."""
    controller = ConcurrencyController({"k": Limit(2, maximum=4)})
    with pytest.raises(ValueError, match="at most 4"):
        await controller.acquire_many("k", 5)
    with pytest.raises(ValueError, match="at least 1"):
        controller.acquire_nowait("k", count=0)
    with pytest.raises(CapacityError, match="limit is 2 now"):
        await controller.acquire_many("k", 3)
    assert controller.acquire_nowait("k", count=2).count == 2
    with pytest.raises(WouldBlock):
        controller.acquire_nowait("k", count=2)


async def test_bounded_queue() -> None:
    """When as many wait as may, the next one is rejected and nothing else changes."""
    controller = ConcurrencyController({"k": Limit(1, max_waiting=1)})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("a", "b", "c")
        assert crowd.granted == ["a"]
        assert "max_waiting" in str(crowd.errors["c"])
        crowd.tokens["a"].release()
        await settle()
        assert crowd.granted == ["a", "b"]


# ---- cancellation: before, while parked, granted in the same tick, during the yield ----


@pytest.mark.parametrize("count", [1, 2])
async def test_cancelled_before_start(count: int) -> None:
    """A cancelled task gets no slot, even if one is free."""
    controller = ConcurrencyController({"k": 2})
    with CancelScope() as scope:
        scope.cancel()
        await controller.acquire_many("k", count)
    assert scope.cancelled_caught
    with CancelScope() as scope:
        scope.cancel()
        await controller.acquire("k")
    assert scope.cancelled_caught
    assert controller.statistics("k").in_use == 0


async def test_cancelled_while_parked() -> None:
    """A waiter that gives up leaves no trace, and the next waiter proceeds."""
    controller = ConcurrencyController({"k": 1})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("a", "b", "c")
        crowd.scopes["b"].cancel()
        await settle()
        assert controller.statistics("k").tasks_waiting == 1
        crowd.tokens["a"].release()
        await settle()
        assert crowd.granted == ["a", "c"]


@pytest.mark.parametrize("grants_first", [True, False])
async def test_granted_and_cancelled_in_the_same_tick(*, grants_first: bool) -> None:
    """When the grant and the cancellation meet, the slot ends with a live task, in either order."""
    controller = ConcurrencyController({"k": 1})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("a", "b", "c")
        if grants_first:
            crowd.tokens["a"].release()
            crowd.scopes["b"].cancel()
        else:
            crowd.scopes["b"].cancel()
            crowd.tokens["a"].release()
        await settle()
        if "b" in crowd.tokens:  # on trio a grant beats a cancellation
            crowd.tokens["b"].release()
            await settle()
        assert crowd.granted[-1] == "c"
        assert controller.statistics("k") == ConcurrencyStatistics(
            limit=1, in_use=1, tasks_waiting=0
        )


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_cancellation_after_the_grant() -> None:
    """``Task.cancel()`` after the grant passes the slot on, which anyio itself never does."""
    import asyncio

    controller = ConcurrencyController({"k": 1})
    token = await controller.acquire("k")
    waiters = [asyncio.create_task(controller.acquire("k")) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    token.release()
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    assert not (await waiters[1]).is_released
    assert controller.statistics("k").in_use == 1


async def test_cancelled_during_the_checkpoint_of_a_free_slot() -> None:
    """A task that is cancelled while it yields gives the slot back."""
    controller = ConcurrencyController({"k": 1})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        crowd.scopes["a"] = CancelScope()
        tasks.start_soon(crowd._take, "a", "k", 1, Priority.NORMAL)
        while not controller.statistics("k").in_use:
            await anyio.lowlevel.checkpoint()
        crowd.scopes["a"].cancel()
        await settle()
        assert controller.statistics("k").in_use == len(crowd.granted)
        if not crowd.granted:
            assert crowd.scopes["a"].cancelled_caught


async def test_waiter_whose_coroutine_is_closed() -> None:
    """A parked coroutine that is thrown away takes its place in the queue with it."""
    controller = ConcurrencyController({"k": 1})
    token = await controller.acquire("k")
    coroutine = controller.acquire("k")
    coroutine.send(None)
    assert controller.statistics("k").tasks_waiting == 1
    coroutine.close()
    assert controller.statistics("k").tasks_waiting == 0
    token.release()
    assert controller.statistics("k").in_use == 0


# ---- checkpoints ----


async def is_checkpoint(call: Callable[[], Awaitable[object]]) -> bool:
    """Whether a cancellation is taken in during an awaited call."""
    with CancelScope() as scope:
        scope.cancel()
        await call()
    return scope.cancelled_caught


async def is_schedule_point(call: Callable[[], Awaitable[object]]) -> bool:
    """Whether another task may run during an awaited call."""
    runs = 0

    async def other() -> None:
        nonlocal runs
        while True:
            runs += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        while runs < 1:
            await anyio.lowlevel.checkpoint()
        before = runs
        for _ in range(20):  # trio draws the order in which tasks run
            await call()
        tasks.cancel_scope.cancel()
    return runs > before


async def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.acquire("k"),
        lambda c: c.acquire_many("k", 2),
        lambda c: c.lease("k").__aenter__(),
        lambda c: c.admit("k", "j").__aenter__(),
        lambda c: c.at("k").acquire(),
        lambda c: c.at("k").call(nothing),
    ],
    ids=["acquire", "acquire_many", "lease", "admit", "at", "call"],
)
async def test_acquiring_is_a_checkpoint(
    call: Callable[[ConcurrencyController], Awaitable[object]],
) -> None:
    """Acquiring a free slot lets others run, unless ``fast_acquire`` was asked for."""
    normal = ConcurrencyController({"k": 99, "j": 99})
    fast = ConcurrencyController({"k": 99, "j": 99}, fast_acquire=True)
    assert await is_checkpoint(lambda: call(normal))
    assert normal.statistics("k").in_use == 0
    assert await is_schedule_point(lambda: call(normal))
    assert not await is_checkpoint(lambda: call(fast))
    assert not await is_schedule_point(lambda: call(fast))


# ---- tokens ----


async def test_token_is_released_once() -> None:
    """Whatever ends a token first counts; everything after does nothing."""
    controller = ConcurrencyController({"k": Limit(2, rule=Streak(down_after=1))})
    token = await controller.acquire("k")
    assert not token.is_released
    assert token.key == "k"
    token.release()
    for end in (token.release, token.success, token.ignore, token.dropped):
        end()
    assert token.is_released
    assert controller.statistics("k") == ConcurrencyStatistics(limit=2, in_use=0, tasks_waiting=0)


async def test_any_task_may_release() -> None:
    """A token is not bound to the task that took it."""
    controller = ConcurrencyController({"k": 1})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come("a")
    crowd.tokens["a"].release()
    assert controller.statistics("k").in_use == 0


async def test_outcomes_move_the_limit() -> None:
    """Success raises an adaptive limit, a drop lowers it, ignoring leaves it."""
    controller = ConcurrencyController(
        {"k": Limit(2, maximum=3, rule=Streak(up_after=1, down_after=1))}
    )
    (await controller.acquire("k")).success()
    assert controller.statistics("k").limit == 3
    (await controller.acquire("k")).ignore()
    assert controller.statistics("k").limit == 3
    (await controller.acquire("k")).dropped()
    statistics = controller.statistics("k")
    assert (statistics.limit, statistics.in_use, statistics.dropped) == (2, 0, 1)


async def test_growth_wakes_waiters() -> None:
    """A limit that rises by a success lets one more in than left."""
    controller = ConcurrencyController({"k": Limit(1, maximum=9)})
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.come(*"abcd")
        crowd.tokens["a"].success()
        await settle()
        assert sorted(crowd.granted) == ["a", "b", "c"]
        crowd.scopes["d"].cancel()


async def test_one_overload_cuts_once() -> None:
    """Drops of requests that began before the cut, or under a replaced limit, do not cut again."""
    controller = ConcurrencyController({"k": 10})
    controller.set_limit("k", Limit(10))
    tokens = [controller.acquire_nowait("k") for _ in range(10)]
    for token in tokens[:5]:
        token.dropped()
    assert controller.statistics("k").limit == 7
    controller.set_limit("k", Limit(20))
    for token in tokens[5:]:
        token.dropped()
    assert controller.statistics("k").limit == 20
    controller.acquire_nowait("k").dropped()
    assert controller.statistics("k").limit == 14


async def test_lease_ends_with_the_outcome_of_its_block() -> None:
    """A normal end is a success, an exception of ``dropped_on`` a drop, any other says nothing."""
    controller = ConcurrencyController(
        {"k": Limit(5, maximum=9, rule=Streak(up_after=1, down_after=1))}, dropped_on=OSError
    )
    async with controller.lease("k") as token:
        assert controller.statistics("k").in_use == 1
    assert token.is_released
    assert controller.statistics("k").limit == 6
    with pytest.raises(OSError, match="no"):
        async with controller.lease("k"):
            raise OSError("no")
    assert controller.statistics("k").limit == 5
    with pytest.raises(KeyError):
        async with controller.lease("k"):
            raise KeyError
    with CancelScope() as scope:
        async with controller.lease("k"):
            scope.cancel()
            await anyio.sleep(1)
    async with controller.lease("k") as token:
        token.ignore()
    assert controller.statistics("k") == ConcurrencyStatistics(
        limit=5, in_use=0, tasks_waiting=0, dropped=1
    )


async def test_forgotten_token_is_reported() -> None:
    """A token that is collected unreleased warns with the place where it was taken."""
    controller = ConcurrencyController({"k": 9}, trace_leaks=True)
    forgotten = [await controller.acquire("k"), controller.acquire_nowait("k")]
    assert len(forgotten) == 2
    here = re.escape(__file__)
    with pytest.warns(ResourceWarning, match=f"'k' taken at {here}:\\d+ was never") as caught:
        forgotten.clear()  # the last reference, so they die here
    assert len(caught) == 2
    assert controller.statistics("k").in_use == 2, "a token is never released for its owner"


@pytest.mark.parametrize("trace_leaks", [True, False])
async def test_released_token_is_not_reported(*, trace_leaks: bool) -> None:
    """A token that was ended, or that is not traced, goes silently."""
    controller = ConcurrencyController({"k": 9}, trace_leaks=trace_leaks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (await controller.acquire("k")).release()
        (await controller.acquire("k")).success()
        if not trace_leaks:
            await controller.acquire("k")
        gc.collect()


def test_token_cannot_be_made() -> None:
    """Only a controller gives tokens."""
    with pytest.raises(TypeError, match="ConcurrencyController"):
        ConcurrencyToken()


# ---- which limit ----


def test_lookup() -> None:
    """A limit is looked up by key, model, provider and role, and else it is the default."""
    controller = ConcurrencyController(
        {"acme/own": 1},
        models={"acme/own": 91, "acme/big": 2},
        providers={"acme": 3},
        roles={"worker": 4, "acme/role": 92},
        default=5,
    )
    expected = {"acme/own": 1, "acme/big": 2, "acme/other": 3, "acme": 3, "worker": 4, "x/y": 5}
    assert {key: controller.statistics(key).limit for key in expected} == expected


def test_provider_limit_is_shared() -> None:
    """All keys of a provider without a limit of their own share the provider's slots."""
    controller = ConcurrencyController(providers={"acme": 2}, default=1)
    controller.acquire_nowait("acme/a")
    token = controller.acquire_nowait("acme/b")
    assert token.key == "acme"
    with pytest.raises(WouldBlock):
        controller.acquire_nowait("acme/c")
    controller.acquire_nowait("other/a")
    controller.acquire_nowait("other/b")
    controller.set_limit("acme/c", 3)
    controller.acquire_nowait("acme/c")
    assert repr(controller) == "<ConcurrencyController acme=3/3, other/a=1/1, other/b=1/1>"


def test_unknown_key() -> None:
    """Without a default a key that is not named is an error that names it."""
    controller = ConcurrencyController({"k": 1}, default=None)
    with pytest.raises(ValueError, match="'other'"):
        controller.acquire_nowait("other")
    with pytest.raises(ValueError, match="'other'"):
        _ = controller.acquire("other")
    with pytest.raises(TypeError, match="key must be a str"):
        controller.statistics(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"limits": {"k": 0}}, ValueError, r"limits\['k'\]"),
        ({"limits": {"k": "3"}}, TypeError, r"limits\['k'\]"),
        ({"limits": {"k": True}}, TypeError, r"limits\['k'\]"),
        ({"models": {"k": -1}}, ValueError, r"models\['k'\]"),
        ({"providers": {"k": 0}}, ValueError, r"providers\['k'\]"),
        ({"roles": {"k": 0}}, ValueError, r"roles\['k'\]"),
        ({"default": 0}, ValueError, "default"),
        ({"rates": {"k": 60}}, TypeError, r"rates\['k'\]"),
        ({"lifetime": 0}, ValueError, "lifetime"),
        ({"lifetime": math.nan}, ValueError, "lifetime"),
        ({"lifetime": "1"}, TypeError, "lifetime"),
        ({"dropped_on": BaseException}, TypeError, "dropped_on"),
        ({"dropped_on": (OSError, 3)}, TypeError, "dropped_on"),
        ({"pressure": 0.8}, TypeError, "pressure"),
    ],
    ids=str,
)
def test_bad_configuration(fields: dict[str, object], error: type[Exception], named: str) -> None:
    """A bad argument is an error at construction that names it."""
    with pytest.raises(error, match=named):
        ConcurrencyController(**fields)  # type: ignore[arg-type]


def test_bad_calls() -> None:
    """A bad argument of a method is an error that names it."""
    controller = ConcurrencyController({"k": 1})
    with pytest.raises(ValueError, match="limit must be at least 1"):
        controller.set_limit("k", 0)
    with pytest.raises(TypeError, match="limit must be"):
        controller.set_limit("k", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lifetime"):
        controller.lease("k", lifetime=-1)
    with pytest.raises(RuntimeError, match="async with"):
        controller.lease("k", lifetime=1)
    with pytest.raises(TypeError, match="keys"):
        controller.admit()
    token = controller.acquire_nowait("k")
    for bad in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="retry_after"):
            token.dropped(retry_after=bad)
    assert not token.is_released


def test_configuration_objects_are_accepted() -> None:
    """Every kind of configuration can be given together."""
    controller = ConcurrencyController(
        {"k": Limit(3, rule=Fixed())},
        rates={"k": RateLimit(requests_per_minute=60)},
        pressure=MemoryPressure(),
        lifetime=600,
        dropped_on=(OSError, ValueError),
    )
    assert controller.statistics("k").limit == 3


async def test_repr() -> None:
    """The representations show the live state."""
    controller = ConcurrencyController({"k": 3})
    assert repr(controller) == "<ConcurrencyController unused>"
    token = controller.acquire_nowait("k", count=2)
    assert repr(token) == "<ConcurrencyToken 'k' 2 slots held>"
    assert repr(controller) == "<ConcurrencyController k=2/3>"
    token.release()
    assert repr(token) == "<ConcurrencyToken 'k' 2 slots released>"
    assert repr(controller.acquire_nowait("k")) == "<ConcurrencyToken 'k' held>"
