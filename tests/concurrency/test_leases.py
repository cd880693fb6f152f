from __future__ import annotations

import anyio
import pytest

from orchestra import ConcurrencyController
from orchestra.testing import settle


async def test_overdue_holder_is_cancelled() -> None:
    """When a lease's lifetime is over its holder is cancelled, and leaves with ``TimeoutError``."""
    begin = anyio.current_time()
    async with ConcurrencyController({"k": 1}) as controller:
        with pytest.raises(TimeoutError, match=r"lease of 'k' lasted longer than 600 s"):
            async with controller.lease("k", lifetime=600):
                await anyio.sleep_forever()
        assert anyio.current_time() - begin == pytest.approx(600)
        assert controller.statistics("k").in_use == 0


async def test_slot_is_free_only_after_the_holder_let_go() -> None:
    """While a cancelled holder cleans up its slot stays in use."""
    async with ConcurrencyController({"k": 1}) as controller:

        async def linger() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
                    assert controller.statistics("k").in_use == 1

        with pytest.raises(TimeoutError):
            async with controller.lease("k", lifetime=1):
                await linger()
        assert controller.statistics("k").in_use == 0


async def test_lease_that_ends_in_time() -> None:
    """A lease that ends before its lifetime is left alone, and so is what its task does next."""
    async with ConcurrencyController({"k": 1}, lifetime=10) as controller:
        async with controller.lease("k") as token:
            await anyio.sleep(9)
        assert token.is_released
        await anyio.sleep(100)
        with pytest.raises(KeyError):
            async with controller.lease("k"):
                raise KeyError
        async with controller.lease("k", lifetime=50):
            await anyio.sleep(20)


async def test_each_lease_has_its_own_deadline() -> None:
    """Leases of several lifetimes expire each in its time, earlier ones first."""
    ends: list[tuple[float, float]] = []

    async def hold(lifetime: float) -> None:
        with pytest.raises(TimeoutError):
            async with controller.lease("k", lifetime=lifetime):
                await anyio.sleep_forever()
        ends.append((lifetime, anyio.current_time() - begin))

    begin = anyio.current_time()
    async with (
        ConcurrencyController({"k": 9}) as controller,
        anyio.create_task_group() as tasks,
    ):
        for lifetime in (60.0, 5.0, 60.0, 1.0):
            tasks.start_soon(hold, lifetime)
            await settle()
    assert [lifetime for lifetime, _ in ends] == [1.0, 5.0, 60.0, 60.0]
    assert [end for _, end in ends] == pytest.approx([1.0, 5.0, 60.0, 60.0])


async def test_holder_that_ignores_the_cancellation_is_not_an_error() -> None:
    """A block that ends by itself after its time was up ends normally."""
    async with ConcurrencyController({"k": 1}) as controller:
        async with controller.lease("k", lifetime=1):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
        assert controller.statistics("k").in_use == 0


async def test_outer_cancellation_is_not_a_timeout() -> None:
    """A cancellation from outside goes through a lease with a lifetime as it is."""
    async with ConcurrencyController({"k": 1}) as controller:
        with anyio.move_on_after(5) as scope:
            async with controller.lease("k", lifetime=600):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert controller.statistics("k").in_use == 0


async def test_cancelled_while_waiting_for_a_lease() -> None:
    """The lifetime begins with the slot: whoever is cancelled before has no deadline."""
    async with ConcurrencyController({"k": 1}, lifetime=10) as controller:
        async with controller.lease("k"):
            with anyio.move_on_after(5):
                async with controller.lease("k"):
                    raise AssertionError("unreachable")
        assert controller.statistics("k").tasks_waiting == 0


async def test_body_error_is_not_wrapped() -> None:
    """The controller's own task puts no exception group around what its block raises."""
    with pytest.raises(KeyError):
        async with ConcurrencyController({"k": 1}):
            raise KeyError


async def test_controller_can_be_cancelled() -> None:
    """Cancelling the block of a controller ends it, its task included."""
    with anyio.move_on_after(5) as scope:
        async with ConcurrencyController({"k": 1}):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
