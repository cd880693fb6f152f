from __future__ import annotations

import anyio
import pytest
from anyio import WouldBlock

from orchestra import ConcurrencyController, Limit, Priority, RateLimit
from orchestra.errors import CapacityError
from orchestra.testing import settle


def steady(limits: dict[str, int | Limit], **options: object) -> ConcurrencyController:
    """A controller whose jitter is always half of the spread."""
    return ConcurrencyController(limits, rng=lambda: 0.5, **options)  # type: ignore[arg-type]


async def test_nobody_starts_during_a_cooldown() -> None:
    """After a drop with ``retry_after`` newcomers and waiters of the provider wait until its end."""
    controller = steady({}, providers={"acme": 2})
    starts: list[float] = []

    async def work(key: str) -> None:
        async with controller.lease(key):
            starts.append(anyio.current_time() - begin)

    begin = anyio.current_time()
    tokens = [await controller.acquire("acme/a") for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, "acme/a")  # parked before the cooldown
        await settle()
        tokens[0].dropped(retry_after=10.0)
        tasks.start_soon(work, "acme/b")  # comes during it
        await settle()
        assert controller.statistics("acme/b").cooldown == pytest.approx(10.0)
        assert controller.statistics("acme/b").tasks_waiting == 2
        assert controller.statistics("acme/b").in_use == 1, "nobody holds a slot while it waits"
        with pytest.raises(WouldBlock):
            controller.acquire_nowait("acme/c")
        async with controller.lease("other/a"):
            assert anyio.current_time() == begin
        tokens[1].success()
    # Half of the spread, which is a tenth of the cooldown.
    assert starts == [pytest.approx(10.5)] * 2
    await anyio.sleep(1)
    assert controller.statistics("acme/b").cooldown == 0.0
    controller.acquire_nowait("acme/b").release()
    assert controller.statistics("acme/b").in_use == 0


async def test_longest_retry_after_wins() -> None:
    """A shorter wish does not shorten a cooldown that is on, a longer one extends it."""
    controller = steady({"k": 9})
    begin = anyio.current_time()
    tokens = [await controller.acquire("k") for _ in range(3)]
    for token, retry_after in zip(tokens, (5.0, 20.0, 1.0), strict=True):
        token.dropped(retry_after=retry_after)
    assert controller.statistics("k").cooldown == pytest.approx(20.0)
    await controller.acquire("k")
    assert anyio.current_time() - begin == pytest.approx(21.0)


async def test_return_from_a_cooldown_is_spread() -> None:
    """Each request draws its own moment within a tenth of the cooldown after its end."""
    draws = iter([0.0, 0.25, 1.0])
    controller = ConcurrencyController({"k": 9}, rng=lambda: next(draws))
    starts: list[float] = []

    async def work() -> None:
        async with controller.lease("k"):
            starts.append(anyio.current_time() - begin)

    begin = anyio.current_time()
    (await controller.acquire("k")).dropped(retry_after=100)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(work)
            await settle()
    assert starts == pytest.approx([100.0, 102.5, 110.0])


async def test_cancelled_during_a_cooldown() -> None:
    """Whoever gives up during a cooldown leaves no trace."""
    controller = steady({"k": 1})
    (await controller.acquire("k")).dropped(retry_after=60)
    with anyio.move_on_after(5) as scope:
        await controller.acquire("k")
    assert scope.cancelled_caught
    assert controller.statistics("k").tasks_waiting == 0
    await controller.acquire("k")


async def test_without_retry_after_there_is_no_cooldown() -> None:
    """A drop without ``retry_after``, or with 0.0, only tells the limit."""
    controller = steady({"k": 1})
    (await controller.acquire("k")).dropped()
    (await controller.acquire("k")).dropped(retry_after=0.0)
    controller.acquire_nowait("k").release()
    assert controller.statistics("k").dropped == 2


async def test_lease_takes_retry_after_from_the_exception() -> None:
    """An exception that leaves a lease starts the cooldown that it asks for."""

    class RefusedError(Exception):
        retry_after = 30.0

    controller = steady({"k": 3}, dropped_on=(RefusedError, OSError))
    with pytest.raises(RefusedError):
        async with controller.lease("k"):
            raise RefusedError
    assert controller.statistics("k").cooldown == pytest.approx(30.0)
    with pytest.raises(OSError, match="plain"):
        async with controller.lease("k"):
            raise OSError("plain")
    assert controller.statistics("k").cooldown == 0.0


async def test_requests_per_minute() -> None:
    """A burst goes at once, the others at the rate, in the order of their priority."""
    controller = steady({"k": 99}, rates={"k": RateLimit(requests_per_minute=60, burst=2)})
    starts: list[tuple[str, float]] = []

    async def work(name: str, priority: Priority) -> None:
        async with controller.lease("k", priority=priority):
            starts.append((name, anyio.current_time() - begin))

    begin = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name, priority in [
            ("a", Priority.LOW),
            ("b", Priority.LOW),
            ("c", Priority.LOW),
            ("d", Priority.LOW),
            ("e", Priority.NORMAL),
            ("f", Priority.HIGH),
        ]:
            tasks.start_soon(work, name, priority)
            await settle()
        assert controller.statistics("k").tasks_waiting == 4
        with pytest.raises(WouldBlock):
            controller.acquire_nowait("k")
    # "c" was first in line when "f" came.
    assert [name for name, _ in starts] == list("abcfed")
    assert [start for _, start in starts] == pytest.approx([0, 0, 1, 2, 3, 4])


async def test_tokens_per_minute() -> None:
    """Model tokens are counted beside the requests."""
    controller = steady({"k": 99}, rates={"k": RateLimit(tokens_per_minute=6000)})
    begin = anyio.current_time()
    await controller.acquire("k", model_tokens=6000)
    await controller.acquire("k")
    assert anyio.current_time() == begin
    await controller.acquire_many("k", 2, model_tokens=300)
    assert anyio.current_time() - begin == pytest.approx(3.0)
    await anyio.sleep(60)
    controller.acquire_nowait("k", model_tokens=6000)
    with pytest.raises(WouldBlock):
        controller.acquire_nowait("k", model_tokens=1)


async def test_rate_is_not_spent_while_the_slots_are_taken() -> None:
    """A request takes its share of the rate when it starts, not when it comes."""
    controller = steady({"k": 1}, rates={"k": RateLimit(requests_per_minute=60, burst=3)})
    token = await controller.acquire("k")
    async with anyio.create_task_group() as tasks:

        async def work() -> None:
            async with controller.lease("k"):
                pass

        tasks.start_soon(work)
        await anyio.sleep(30)
        assert controller.statistics("k").tasks_waiting == 1
        token.release()
    # Full at the release, then one went.
    for _ in range(2):
        controller.acquire_nowait("k").release()
    with pytest.raises(WouldBlock):
        controller.acquire_nowait("k")


@pytest.mark.parametrize("is_first", [True, False])
async def test_cancelled_in_line_for_the_rate(*, is_first: bool) -> None:
    """Whoever gives up in the line, first or second, lets the next proceed in time."""
    controller = steady({"k": 9}, rates={"k": RateLimit(requests_per_minute=60, burst=1)})
    await controller.acquire("k")
    begin = anyio.current_time()
    scopes = [anyio.CancelScope(), anyio.CancelScope()]
    got: list[int] = []

    async def work(number: int) -> None:
        with scopes[number]:
            await controller.acquire("k")
            got.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(work, number)
            await settle()
        await anyio.sleep(0.5)
        scopes[0 if is_first else 1].cancel()
    assert got == [1 if is_first else 0]
    assert anyio.current_time() - begin == pytest.approx(1.0)
    assert controller.statistics("k").tasks_waiting == 0
    assert controller.statistics("k").in_use == 2


async def test_closing_ends_every_wait() -> None:
    """Leaving the controller refuses those who wait for a slot, a cooldown or a rate, and later ones."""
    refused: list[str] = []

    async def work(key: str) -> None:
        with pytest.raises(CapacityError, match="closed"):
            await controller.acquire(key)
        refused.append(key)

    async with anyio.create_task_group() as tasks:
        async with steady(
            {"slot": 1, "rate": 9, "cool": 9}, rates={"rate": RateLimit(requests_per_minute=1)}
        ) as controller:
            token = await controller.acquire("slot")
            await controller.acquire("rate")
            (await controller.acquire("cool")).dropped(retry_after=1000)
            for key in ("slot", "rate", "rate", "cool"):
                tasks.start_soon(work, key)
            await settle()
            assert refused == []
            begin = anyio.current_time()
        await settle()
        assert sorted(refused) == ["cool", "rate", "rate", "slot"]
        assert anyio.current_time() == begin
    for key in ("slot", "new"):
        with pytest.raises(CapacityError, match="closed"):
            await controller.acquire(key)
        with pytest.raises(CapacityError, match="closed"):
            controller.acquire_nowait(key)
    token.release()
    assert controller.statistics("slot").in_use == 0
