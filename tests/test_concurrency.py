"""The controller's public behaviour: never more than the limit, and nobody is forgotten."""

from __future__ import annotations

import anyio
import pytest

from orchestra import ConcurrencyController


async def test_never_more_than_the_limit() -> None:
    """Of many that want a slot as many work as the limit says, and all of them in the end."""
    controller = ConcurrencyController({"worker": 3})
    working = most = done = 0

    async def work() -> None:
        nonlocal working, most, done
        async with controller.lease("worker"):
            working += 1
            most = max(most, working)
            await anyio.lowlevel.checkpoint()
            working -= 1
            done += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(work)
    assert (most, done) == (3, 20)
    assert controller.statistics("worker").in_use == 0


async def test_keys_do_not_share() -> None:
    """A full key does not hold another one up; a key without a limit has the default."""
    controller = ConcurrencyController({"a": 1}, default=2)
    with anyio.fail_after(30):
        async with controller.lease("a"), controller.lease("b"), controller.lease("b"):
            assert controller.statistics("a").in_use == 1
            assert controller.statistics("b").in_use == 2
            assert controller.statistics("b").limit == 2


async def test_first_come_first_served() -> None:
    """Who waited longest is next."""
    controller = ConcurrencyController({"a": 1})
    order: list[int] = []

    async def work(number: int) -> None:
        async with controller.lease("a"):
            order.append(number)

    async with anyio.create_task_group() as group, controller.lease("a"):
        for number in range(5):
            group.start_soon(work, number)
            await anyio.wait_all_tasks_blocked()
        assert controller.statistics("a").tasks_waiting == 5
        assert order == []
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_cancelled_waiter_does_not_keep_the_slot(is_granted: bool) -> None:  # noqa: FBT001
    """Cancelled while it waits, or in the moment of the grant: the next one proceeds."""
    controller = ConcurrencyController({"a": 1})
    got: list[str] = []

    async def work(name: str) -> None:
        async with controller.lease("a"):
            await anyio.lowlevel.checkpoint()
            got.append(name)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def cancelled() -> None:
                with scope:
                    await work("cancelled")

            token = await controller.acquire("a")
            group.start_soon(cancelled)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(work, "next")
            await anyio.wait_all_tasks_blocked()
            if is_granted:
                token.release()
                scope.cancel()
            else:
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
                token.release()
    assert got == ["next"]
    assert controller.statistics("a").in_use == 0


async def test_release_is_idempotent_and_early() -> None:
    """A token may be released inside its lease, more than once, and gives back one slot."""
    controller = ConcurrencyController({"a": 1})
    async with controller.lease("a") as token:
        token.release()
        async with controller.lease("a") as second:
            token.release()
            assert token.is_released
            assert not second.is_released
            assert controller.statistics("a").in_use == 1
    assert controller.statistics("a").in_use == 0


async def test_what_the_block_raises_gives_the_slot_back() -> None:
    """An error in the block comes out as it is, and the slot is free."""
    controller = ConcurrencyController({"a": 1})
    with pytest.raises(LookupError):
        async with controller.lease("a"):
            raise LookupError
    assert controller.statistics("a").in_use == 0


async def test_acquire_is_a_checkpoint() -> None:
    """A free slot does not make the call deaf to cancellation, and a cancelled call keeps none."""
    controller = ConcurrencyController({"a": 1})
    with anyio.CancelScope() as scope:
        scope.cancel()
        await controller.acquire("a")
    assert scope.cancelled_caught
    assert controller.statistics("a").in_use == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_wrong_limits_are_refused(limit: int) -> None:
    """A limit that lets nobody in is refused at construction, by name."""
    with pytest.raises(ValueError, match="'worker'"):
        ConcurrencyController({"worker": limit})
    with pytest.raises(ValueError, match="default must be at least 1"):
        ConcurrencyController(default=limit)


async def test_repr_shows_who_is_in() -> None:
    """The representations show live state."""
    controller = ConcurrencyController({"a": 3})
    assert "unused" in repr(controller)
    async with controller.lease("a") as token:
        assert "a=1/3" in repr(controller)
        assert "held" in repr(token)
    assert "released" in repr(token)
