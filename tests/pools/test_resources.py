from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from workshop import Thing, Workshop

from orchestra import Priority, ResourcePool
from orchestra.errors import CapacityError
from orchestra.events import ResourceCreated, ResourceDestroyed, ResourceEnd
from orchestra.testing import settle

# ---- leasing ----


async def test_last_released_is_first_leased() -> None:
    """What was released last is leased first; with ``fifo``, what has idled longest."""
    for fifo, expected in ((False, 2), (True, 0)):
        async with Workshop(3).pool(fifo=fifo) as pool:
            leases = [await pool.acquire() for _ in range(3)]
            for lease in leases:
                lease.release()
            async with pool.lease() as thing:
                assert thing.number == expected


@pytest.mark.parametrize("fast", [False, True])
async def test_idle_is_reused(fast: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """One task after the other gets the same resource, reset in between."""
    shop = Workshop(3)
    async with shop.pool("reset", fast_acquire=fast) as pool:
        for resets in range(3):
            async with pool.lease() as thing:
                assert thing.resets == resets
            await settle()
    assert len(shop.made) == 1
    shop.check_over()


async def test_size_is_a_limit_with_priorities() -> None:
    """No more than ``max_size`` are lent; who waits is served by priority, then by arrival."""
    shop = Workshop()
    order: list[str] = []

    async def use(name: str, priority: Priority) -> None:
        async with pool.lease(priority=priority, owner=name) as thing:
            with thing.used_by(name):
                order.append(name)
                await anyio.sleep(1)

    async with shop.pool() as pool, anyio.create_task_group() as tasks:
        for name, priority in (
            ("a", Priority.NORMAL),
            ("b", Priority.NORMAL),
            ("low", Priority.LOW),
            ("normal", Priority.NORMAL),
            ("high", Priority.HIGH),
        ):
            tasks.start_soon(use, name, priority)
            await settle()
        assert pool.statistics().tasks_waiting == 4
    assert order == ["a", "high", "b", "normal", "low"]
    shop.check_over()


async def test_acquire_is_a_checkpoint() -> None:
    """Acquiring lets others run, also when something idles; with ``fast_acquire`` it does not."""
    for fast in (False, True):
        async with Workshop().pool(fast_acquire=fast) as pool:
            async with pool.lease():
                pass
            with anyio.CancelScope() as scope:
                scope.cancel()
                (await pool.acquire()).release()
            assert scope.cancelled_caught is not fast
            assert pool.statistics().in_use == 0


async def test_acquire_nowait() -> None:
    """It takes what idles, and raises where it would have to wait or to create."""
    async with Workshop(2).pool() as pool:
        with pytest.raises(anyio.WouldBlock):
            pool.acquire_nowait()
        async with pool.lease() as thing:
            with pytest.raises(anyio.WouldBlock):
                pool.acquire_nowait()
        lease = pool.acquire_nowait(owner="me")
        assert lease.resource is thing
        assert [holder.owner for holder in pool.holders()] == ["me"]
        lease.release()


async def test_acquire_nowait_leaves_out_what_is_outdated() -> None:
    """It does not hand out what is past its lifetime, and that does not go on idling either."""
    shop = Workshop(1)
    async with shop.pool(max_lifetime=10.0, jitter=0.0) as pool:
        lease = await pool.acquire()
        await anyio.sleep(20)
        lease.release()
        with pytest.raises(anyio.WouldBlock):
            pool.acquire_nowait()
        await settle()
        assert shop.made[0].is_destroyed
        async with pool.lease() as thing:
            assert thing.number == 1


async def test_lease_ends_once() -> None:
    """Whatever comes after the first end of a lease does nothing, also with its next holder."""
    shop = Workshop()
    async with shop.pool() as pool:
        first = await pool.acquire()
        first.release()
        second = await pool.acquire()
        assert second.resource is shop.made[0]
        first.release()
        first.invalidate()
        assert second.is_held
        assert pool.statistics().in_use == 1
        with pytest.raises(anyio.WouldBlock):
            pool.acquire_nowait()
        with pytest.raises(RuntimeError, match="no resource"):
            _ = first.resource
        second.release()


async def test_lease_is_entered_once() -> None:
    """A lease cannot be entered again, since it would stand for two resources."""
    async with Workshop(2).pool() as pool:
        lease = pool.lease()
        async with lease:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            async with lease:
                pass


async def test_lease_with_a_lifetime_cancels_its_holder() -> None:
    """Who holds a resource for longer than its lease may last is cancelled; others are not."""
    shop = Workshop(2)
    async with shop.pool() as pool:
        async with pool.lease(lifetime=5.0):
            await anyio.sleep(4.0)
        with pytest.raises(TimeoutError, match="lasted longer than 5 s"):
            async with pool.lease(lifetime=5.0):
                await anyio.sleep_forever()
        assert anyio.current_time() == pytest.approx(9.0)
        await settle()
        assert pool.statistics().in_use == 0
        assert shop.made[0].is_destroyed  # nobody knows in which state it was left
        with pytest.raises(ValueError, match="lifetime"):
            pool.lease(lifetime=0.0)


# ---- what ends a resource ----


async def test_max_uses() -> None:
    """A resource is leased as often as it may be and then replaced."""
    shop = Workshop()
    async with shop.pool("reset", max_uses=2) as pool:
        numbers = []
        for _ in range(5):
            async with pool.lease() as thing:
                numbers.append(thing.number)
    assert numbers == [0, 0, 1, 1, 2]
    assert shop.calls["reset"] == 3  # what is worn is not reset any more
    shop.check_over()


async def test_idle_timeout_and_minimum() -> None:
    """What idles for too long is destroyed, but not below the minimum, which is kept for ever."""
    shop = Workshop(4)
    async with shop.pool(min_idle=1, idle_timeout=300.0) as pool:
        leases = [await pool.acquire() for _ in range(4)]
        for lease in leases:
            lease.release()
        await anyio.sleep(299)
        assert pool.statistics().idle == 4
        await anyio.sleep(2)
        assert pool.statistics().idle == 1
        await anyio.sleep(3600)
        assert pool.statistics().idle == 1
        assert not shop.made[3].is_destroyed  # the one that was released last


async def test_minimum_is_created_in_the_background() -> None:
    """The pool creates what shall idle, and creates it again when it is leased."""
    shop = Workshop(3)
    async with shop.pool(min_idle=2, fast_acquire=True) as pool:
        await settle()
        assert pool.statistics().idle == 2
        first = pool.acquire_nowait()
        await settle()
        assert (pool.statistics().idle, len(shop.made)) == (2, 3)
        second = await pool.acquire()
        await settle()
        assert (pool.statistics().idle, len(shop.made)) == (1, 3)  # there is no room for more
        first.invalidate()
        await settle()
        assert (pool.statistics().idle, len(shop.made)) == (2, 4)
        second.release()


async def test_creating_in_the_background_backs_off(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be created in the background is tried again, ever more rarely, and logged."""
    shop = Workshop(2)
    shop.failing["create"] = 3
    async with shop.pool(min_idle=1):
        for seconds, calls in ((0.5, 1), (1.0, 2), (2.0, 3), (4.0, 4)):
            await anyio.sleep(seconds)
            assert shop.calls["create"] == calls
        await anyio.sleep(3600)
        assert shop.calls["create"] == 4
    assert "the next try is in 4 s" in caplog.text
    shop.check_over()


async def test_creating_in_the_background_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A creation in the background that hangs gives its place back."""
    shop = Workshop(1)
    shop.hold("create")
    async with shop.pool(min_idle=1, call_timeout=10.0) as pool:
        await anyio.sleep(10.5)
        shop.open()
        with anyio.fail_after(0.1):
            async with pool.lease():
                pass
    assert "TimeoutError" in caplog.text
    shop.check_over()


async def test_lifetime_is_jittered() -> None:
    """Lifetimes are cut by chance, so that what was created together is not replaced together."""
    draws = iter([0.0, 0.5, 1.0])
    shop = Workshop(3)
    async with shop.pool(
        max_lifetime=100.0, jitter=0.2, rng=lambda: next(draws), idle_timeout=None
    ) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        for seconds, idle in ((79, 3), (2, 2), (8, 2), (2, 1), (8, 1), (2, 0)):
            await anyio.sleep(seconds)
            assert pool.statistics().idle == idle


async def test_lifetime_of_what_is_leased() -> None:
    """A lifetime that ends during a lease ends the resource after it."""
    shop = Workshop()
    events: list[Any] = []
    async with shop.pool("reset", max_lifetime=10.0, listener=events.append) as pool:
        async with pool.lease():
            await anyio.sleep(60)
        async with pool.lease() as thing:
            assert thing.number == 1
    assert [e.cause for e in events if isinstance(e, ResourceDestroyed)] == [
        ResourceEnd.OUTDATED,
        ResourceEnd.CLOSED,
    ]


async def test_health_is_checked_while_idle() -> None:
    """What idles is validated each minute, keeps its place in the order, and is replaced if unfit."""
    shop = Workshop(3)
    async with shop.pool("validate", min_idle=3, idle_timeout=None) as pool:
        await anyio.sleep(1)
        first, second, third = shop.made
        await anyio.sleep(125)
        assert [thing.checks for thing in shop.made] == [2, 2, 2]
        second.is_fit = False
        await anyio.sleep(60)
        assert second.is_destroyed
        assert pool.statistics().idle == 3
        first.is_fit = third.is_fit = False
        async with pool.lease() as thing:
            assert thing is shop.made[3]
    shop.check_over()


async def test_use_counts_as_a_health_check() -> None:
    """What is used more often than it would be checked is validated before its leases only."""
    shop = Workshop()
    async with shop.pool("validate", max_uses=None) as pool:
        for _ in range(10):
            async with pool.lease():
                await anyio.sleep(1)
            await anyio.sleep(40)
    assert shop.calls["validate"] == 9


async def test_unfit_is_replaced_before_a_lease() -> None:
    """A lease tries one idle resource after the other, and creates when none is fit."""
    shop = Workshop(3)
    async with shop.pool("validate") as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        shop.made[2].is_fit = False
        async with pool.lease() as thing:
            assert thing is shop.made[1]
        shop.made[0].is_fit = shop.made[1].is_fit = False
        async with pool.lease() as thing:
            assert thing.number == 3
        assert pool.statistics().validation_failures == 3
    shop.check_over()


async def test_validation_that_raises_or_hangs_means_unfit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Raising is a no, and so is an answer that does not come."""
    shop = Workshop()
    async with shop.pool("validate", call_timeout=5.0) as pool:
        async with pool.lease():
            pass
        shop.failing["validate"] = 1
        async with pool.lease() as thing:
            assert thing.number == 1
        shop.hold("validate")
        async with pool.lease() as thing:
            assert thing.number == 2
        assert anyio.current_time() == pytest.approx(5.0)
    assert "validate fails as told" in caplog.text
    shop.check_over()


# ---- invalidate ----


async def test_invalidate_ends_the_lease() -> None:
    """An invalidated resource is destroyed at once and its place is free; its lease is over."""
    shop = Workshop()
    async with shop.pool("reset") as pool, pool.lease() as thing:
        await pool.invalidate(thing)
        assert thing.is_destroyed
        assert pool.holders() == ()
        async with pool.lease() as other:
            assert other is not thing
    assert shop.calls["reset"] == 1
    shop.check_over()


async def test_invalidate_what_nobody_holds() -> None:
    """What idles, or is being reset, can be invalidated too, and is not lent any more."""
    shop = Workshop()
    async with shop.pool("reset") as pool:
        async with pool.lease() as thing:
            shop.hold("reset")
        await settle()
        await pool.invalidate(thing)
        shop.open()
        async with pool.lease() as other:
            assert other is not thing
        await settle()
        await pool.invalidate(other)
        await settle()
        assert other.is_destroyed
        with pytest.raises(RuntimeError, match="is not in the pool"):
            await pool.invalidate(other)
    shop.check_over()


async def test_invalidate_a_foreign_resource() -> None:
    """What the pool has not lent is an error, not somebody else's loss."""
    async with Workshop().pool() as pool:
        with pytest.raises(RuntimeError, match="is not in the pool"):
            await pool.invalidate(Thing(7))


async def test_a_broken_off_block_needs_a_reset() -> None:
    """After an exception a resource is used again only where a reset vouches for it."""
    for calls, numbers in (((), [0, 1]), (("reset",), [0, 0])):
        shop = Workshop()
        async with shop.pool(*calls) as pool:
            with pytest.raises(OSError, match="half an answer"):
                async with pool.lease():
                    raise OSError("half an answer")
            async with pool.lease() as thing:
                assert [0, thing.number] == numbers
        shop.check_over()


async def test_a_resource_twice_is_refused() -> None:
    """A factory that gives what the pool has already would let two tasks share it."""
    one = object()

    async def factory() -> object:
        return one

    async with ResourcePool(factory, max_size=2) as pool, pool.lease():
        with pytest.raises(RuntimeError, match="has already"):
            await pool.acquire()
        assert pool.statistics().busy == 0


# ---- what fails ----


async def test_failed_create_frees_the_place() -> None:
    """A factory's error comes out as it is, and the next task creates."""
    shop = Workshop()
    shop.hold("create")
    shop.failing["create"] = 1
    got: list[object] = []

    async def use() -> None:
        try:
            async with pool.lease() as thing:
                got.append(thing.number)
        except OSError as exc:
            got.append(str(exc))

    async with shop.pool() as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await settle()
            tasks.start_soon(use)
            await settle()
            assert pool.statistics().tasks_waiting == 1
            shop.let_go("create")
            await settle()
            shop.let_go("create")
        assert got == ["create fails as told", 0]
        assert pool.statistics().create_failures == 1


async def test_failed_reset_frees_the_place(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be reset, or not in time, is destroyed, and who waits is served."""
    shop = Workshop()
    shop.failing["reset"] = 1
    async with shop.pool("reset", call_timeout=5.0) as pool:
        lease = await pool.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_use_once, pool)
            await settle()
            assert pool.statistics().tasks_waiting == 1
            shop.hold("reset")
            lease.release()
            await settle()
            assert pool.statistics().tasks_waiting == 1
            shop.let_go("reset")
        await anyio.sleep(6)  # the second one hangs
        assert pool.statistics().reset_failures == 2
        async with pool.lease() as thing:
            assert thing.number == 2
        shop.open()
    assert "reset fails as told" in caplog.text
    assert "took too long" in caplog.text
    shop.check_over()


async def _use_once(pool: ResourcePool[Thing]) -> None:
    async with pool.lease():
        pass


async def test_failed_destroy_frees_the_place(caplog: pytest.LogCaptureFixture) -> None:
    """A destruction that fails or hangs is logged and over; it is not tried again."""
    shop = Workshop()
    async with shop.pool(call_timeout=5.0) as pool:
        for hold in (False, True):
            shop.failing["destroy"] = not hold
            if hold:
                shop.hold("destroy")
            async with pool.lease() as thing:
                await pool.invalidate(thing)
        shop.open()
        async with pool.lease() as thing:
            assert thing.number == 2
        assert pool.statistics().destroy_failures == 2
    assert "destroy fails as told" in caplog.text
    shop.check_over()


async def test_never_more_than_max_size_while_destroying() -> None:
    """A place is free when the old resource is gone, and not before."""
    shop = Workshop()
    shop.hold("destroy")
    async with shop.pool() as pool, anyio.create_task_group() as tasks:
        (await pool.acquire()).invalidate()
        tasks.start_soon(_use_once, pool)
        await settle()
        assert (pool.statistics().tasks_waiting, pool.statistics().busy) == (1, 1)
        shop.open()
    shop.check_over()


# ---- the block, and its end ----


async def test_background_has_the_context_of_the_pool() -> None:
    """What is reset and destroyed does not see the variables of whoever had it; a factory does."""
    variable = ContextVar("variable", default="pool")
    seen: list[str] = []

    async def look(_: object = None) -> object:
        seen.append(variable.get())
        return object()

    async with ResourcePool(look, reset=look, destroy=look) as pool:
        variable.set("borrower")
        async with pool.lease():
            pass
        await settle()
        async with pool.lease() as thing:
            await pool.invalidate(thing)
    assert seen == ["borrower", "pool", "pool"]


async def test_must_be_entered() -> None:
    """A pool that has not been entered lends nothing, and one that was left is not entered again."""
    shop = Workshop()
    pool = shop.pool()
    for acquire in (pool.acquire, pool.acquire_nowait):
        with pytest.raises(RuntimeError, match="enter it with"):
            await acquire()  # type: ignore[misc]  # one of them raises before it gives anything
    async with pool:
        pass
    with pytest.raises(CapacityError, match="is closed"):
        await pool.acquire()
    with pytest.raises(CapacityError, match="is closed"):
        pool.acquire_nowait()
    with pytest.raises(RuntimeError, match="entered once"):
        async with pool:
            pass


async def test_aclose_drains() -> None:
    """Closing refuses who waits and who comes, destroys what idles, and waits for who holds."""
    shop = Workshop(2)
    refused: list[str] = []

    async def wait() -> None:
        try:
            await pool.acquire()
        except CapacityError as exc:
            refused.append(exc.message)

    async with shop.pool() as pool:
        held = await pool.acquire()
        other = await pool.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            other.release()  # grants it to the one that waits, upon whom the pool is closed at once
            with anyio.move_on_after(1):
                await pool.aclose()
            tasks.start_soon(wait)
            await settle()
            assert shop.made[1].is_destroyed
            assert not shop.made[0].is_destroyed
            held.release()
        assert len(refused) == 2
        await pool.aclose()
        assert repr(pool) == "<ResourcePool 'pool' closed 0 in use, 0 idle, 0 busy of 2; 0 waiting>"
    shop.check_over()


async def test_leaving_cancels_what_others_have_created() -> None:
    """Who waits for a resource to be created is refused too, also when the factory goes on."""
    shop = Workshop(3)
    shop.hold("create")
    refused: list[str] = []

    async def stubborn() -> Thing:
        shop.present += 1
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        thing = Thing(7)
        shop.made.append(thing)
        return thing

    async def use(pool: ResourcePool[Thing]) -> None:
        with pytest.raises(CapacityError, match="is closed"):
            await pool.acquire()
        refused.append(pool.name)

    async with anyio.create_task_group() as tasks:
        async with shop.pool(name="plain") as pool:
            tasks.start_soon(use, pool)
            await settle()
        assert anyio.current_time() == 0.0
        late = ResourcePool(stubborn, destroy=shop.destroy, call_timeout=5.0, name="late")
        async with late:
            tasks.start_soon(use, late)
            await settle()
        assert anyio.current_time() == pytest.approx(15.0)  # 5.0 of grace and twice 5.0
    assert refused == ["plain", "late"]
    shop.check_over()


async def test_leaving_takes_away_what_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """After the grace period a held resource is destroyed, and the log names its holder."""
    shop = Workshop()
    events: list[Any] = []
    async with shop.pool(grace_period=3.0, listener=events.append) as pool:
        lease = await pool.acquire(owner="forgetful")
    assert anyio.current_time() == pytest.approx(3.0)
    assert "forgetful" in caplog.text
    assert __file__ in caplog.text
    assert events[-1].cause is ResourceEnd.KEPT
    assert not lease.is_held
    lease.release()
    shop.check_over()


async def test_leaving_by_an_exception() -> None:
    """An error of the block comes out as it is, and everything is destroyed."""
    shop = Workshop(2)
    with pytest.raises(OSError, match="boom"):
        async with shop.pool("reset", min_idle=2) as pool, pool.lease():
            raise OSError("boom")
    shop.check_over()


# ---- what it shows ----


async def test_holders() -> None:
    """The pool tells who has what, since when, and where it was leased."""
    async with Workshop(3).pool() as pool:
        async with pool.lease(owner="first") as thing:
            await anyio.sleep(5)
            lease = await pool.acquire(owner="second")
            await anyio.sleep(2)
            first, second = pool.holders()
            assert (first.owner, second.owner) == ("first", "second")
            assert first.resource is thing
            assert (first.held_for, second.held_for) == pytest.approx((7.0, 2.0))
            path, _, line = first.place.rpartition(":")
            assert path == __file__
            assert second.place == lease.place == f"{__file__}:{int(line) + 2}"
            assert repr(lease).startswith("<PoolLease of 'pool' by 'second', from ")
            lease.release()
            assert lease.held_for == 0.0
        assert pool.holders() == ()


async def test_events_and_statistics() -> None:
    """A listener is told what was created and destroyed; one that raises is dropped."""
    events: list[Any] = []
    shop = Workshop()
    async with shop.pool(max_uses=2, name="things", listener=events.append) as pool:
        for _ in range(3):
            async with pool.lease():
                await anyio.sleep(1)
        now = pool.statistics()
        assert (now.leased, now.created, now.destroyed, now.max_size) == (3, 2, 1, 1)
        assert repr(pool).startswith("<ResourcePool 'things' 0 in use, 1 idle, 0 busy of 1; 0")
    assert [type(event) for event in events] == [
        ResourceCreated,
        ResourceDestroyed,
        ResourceCreated,
        ResourceDestroyed,
    ]
    assert events[1] == ResourceDestroyed(
        pool="things", cause=ResourceEnd.WORN, uses=2, age=2.0, is_clean=True
    )


async def test_a_listener_that_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged and changes nothing."""
    shop = Workshop()
    with caplog.at_level(logging.ERROR):
        async with shop.pool(listener=lambda _: 1 / 0) as pool:
            await _use_once(pool)
    assert "is dropped" in caplog.text
    shop.check_over()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": 1.0}, TypeError),
        ({"min_idle": 2}, ValueError),
        ({"min_idle": True}, TypeError),
        ({"idle_timeout": 0}, ValueError),
        ({"max_uses": 0}, ValueError),
        ({"max_lifetime": float("inf")}, ValueError),
        ({"jitter": 1.1}, ValueError),
        ({"validate": Workshop().validate, "health_interval": -1}, ValueError),
        ({"call_timeout": 0}, ValueError),
        ({"grace_period": -1}, ValueError),
        ({"reset": 7}, TypeError),
        ({"listener": 7}, TypeError),
    ],
)
def test_configuration(options: dict[str, Any], error: type[Exception]) -> None:
    """A bad argument is refused at once, by its name."""
    with pytest.raises(error, match=next(reversed(options))):
        Workshop().pool(**options)
