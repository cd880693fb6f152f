from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import CircuitBreaker, ConcurrencyController, Pipeline, Priority, RateLimit
from orchestra.errors import CapacityError, CircuitOpenError
from orchestra.testing import Job, play, random_schedule, settle, virtual_time_options


async def test_all_or_nothing() -> None:
    """While one thing is missing none is held; when all are there all are taken."""
    controller = ConcurrencyController({"a": 2, "b": 1})
    busy = await controller.acquire("b")
    done = anyio.Event()

    async def work() -> None:
        async with controller.admit("a", "b", "a") as tokens:
            assert [(token.key, token.count) for token in tokens] == [("a", 2), ("b", 1)]
            assert controller.statistics("a").in_use == 2
            done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await settle()
        assert controller.statistics("a").in_use == 0
        assert controller.statistics("b").tasks_waiting == 1
        busy.release()
    assert done.is_set()
    assert controller.statistics("a").in_use == controller.statistics("b").in_use == 0


async def test_opposite_orders_do_not_deadlock() -> None:
    """Two crowds that want the same things in opposite order all get them."""
    controller = ConcurrencyController({"a": 1, "b": 1})
    done = 0

    async def work(*keys: str) -> None:
        nonlocal done
        async with controller.admit(*keys):
            assert controller.statistics("a").in_use == controller.statistics("b").in_use == 1
            await anyio.sleep(1)
        done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(work, "a", "b")
            tasks.start_soon(work, "b", "a")
    assert done == 20


async def test_open_breaker_rejects_before_any_wait() -> None:
    """With an open breaker nothing is waited for and nothing is taken."""
    controller = ConcurrencyController({"a": 1})
    breaker = CircuitBreaker("llm", on=OSError, failure_threshold=1)
    with pytest.raises(OSError, match="down"), breaker:
        raise OSError("down")
    token = await controller.acquire("a")
    with pytest.raises(CircuitOpenError):
        async with controller.admit("a", breaker=breaker):
            raise AssertionError("unreachable")
    token.release()
    assert controller.statistics("a").in_use == 0


async def test_breaker_that_opens_during_the_wait() -> None:
    """A request that waited for a slot is rejected if the circuit opened meanwhile, slot and all."""
    controller = ConcurrencyController({"a": 1})
    breaker = CircuitBreaker("llm", on=OSError, failure_threshold=1)
    token = await controller.acquire("a")

    async def fail() -> None:
        await anyio.sleep(1)
        with pytest.raises(OSError, match="down"), breaker:
            raise OSError("down")
        token.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        with pytest.raises(CircuitOpenError):
            async with controller.admit("a", breaker=breaker):
                raise AssertionError("unreachable")
    assert controller.statistics("a").in_use == 0


async def test_outcome_goes_to_the_breaker() -> None:
    """The breaker judges the block as its own ``with`` would."""
    controller = ConcurrencyController({"a": 1})
    breaker = CircuitBreaker("llm", on=OSError, failure_threshold=1)
    async with controller.admit("a", breaker=breaker):
        pass
    with pytest.raises(OSError, match="down"):
        async with controller.admit("a", breaker=breaker):
            raise OSError("down")
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert controller.statistics("a").in_use == 0


async def test_no_probe_is_held_while_waiting() -> None:
    """In half-open the only probe is not kept from others by somebody who waits for a slot."""
    controller = ConcurrencyController({"a": 1})
    now = 0.0
    breaker = CircuitBreaker(
        "llm", on=OSError, failure_threshold=1, recovery_timeout=1, clock=lambda: now
    )
    with pytest.raises(OSError, match="down"), breaker:
        raise OSError("down")
    now = 2.0
    token = await controller.acquire("a")

    async def work() -> None:
        async with controller.admit("a", breaker=breaker):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await settle()
        with breaker:
            pass
        token.release()


async def test_rate_and_slot_together() -> None:
    """A request waits for the rate without a slot and for the slot without a share of the rate."""
    controller = ConcurrencyController(
        {"x/a": 1, "y/b": 1}, rates={"x": RateLimit(requests_per_minute=60, burst=1)}
    )
    begin = anyio.current_time()
    async with controller.admit("x/a", "y/b"):
        pass

    async def other() -> None:
        async with controller.lease("y/b"):
            assert anyio.current_time() == begin

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        async with controller.admit("y/b", "x/a", priority=Priority.HIGH):
            assert anyio.current_time() - begin == pytest.approx(1.0)


async def test_impossible_wishes() -> None:
    """What could never be admitted is refused when it is asked for."""
    controller = ConcurrencyController({"a": 1}, default=None)
    with pytest.raises(ValueError, match="at most 1"):
        controller.admit("a", "a")
    with pytest.raises(ValueError, match="'b'"):
        controller.admit("a", "b")
    async with controller:
        pass
    with pytest.raises(CapacityError, match="closed"):
        async with controller.admit("a"):
            raise AssertionError("unreachable")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(seed=st.integers(0, 1 << 32), is_limited=st.booleans())
def test_admissions_under_any_schedule(backend: str, seed: int, *, is_limited: bool) -> None:
    """Under any schedule no limit is passed, nothing is held while waiting, and all end."""
    wishes = [("a",), ("a", "b"), ("b", "a"), ("b", "c"), ("c", "c", "a"), ("c",), ("d", "a")]
    keys = {"a": 2, "b": 1, "c": 2, "d": 1}
    holding: dict[int, tuple[str, ...]] = {}

    async def main() -> None:
        rates = {"d": RateLimit(requests_per_minute=6, burst=1)} if is_limited else {}
        controller = ConcurrencyController(keys, rates=rates)
        finished = 0

        async def body(job: Job) -> None:
            nonlocal finished
            wish = wishes[job.number % len(wishes)]
            try:
                async with controller.admit(*wish, priority=list(Priority)[job.number % 3]):
                    holding[job.number] = wish
                    await job.work()
            finally:
                holding.pop(job.number, None)
                finished += 1

        def check() -> None:
            for key, limit in keys.items():
                held = sum(wish.count(key) for wish in holding.values())
                assert controller.statistics(key).in_use == held <= limit

        schedule = random_schedule(seed, jobs=14, steps=60)
        await play(schedule, body, check=check)
        assert finished == sum(step.action.value == "start" for step in schedule)
        assert all(controller.statistics(key).tasks_waiting == 0 for key in keys)

    anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))


async def test_closing_refuses_parked_admissions() -> None:
    """An admission that waits in several queues is refused once, and leaves all of them."""
    refused = 0

    async def work(*keys: str) -> None:
        nonlocal refused
        with pytest.raises(CapacityError, match="closed"):
            async with controller.admit(*keys):
                raise AssertionError("unreachable")
        refused += 1

    async with (
        anyio.create_task_group() as tasks,
        ConcurrencyController({"a": 1, "b": 1}) as controller,
    ):
        controller.acquire_nowait("a")
        controller.acquire_nowait("b")
        for keys in (("a", "b"), ("b", "a"), ("a",)):
            tasks.start_soon(work, *keys)
        await settle()
    assert refused == 3
    assert controller.statistics("a").tasks_waiting == 0
    assert controller.statistics("b").tasks_waiting == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_cancellation_of_an_admission_after_the_grant() -> None:
    """All slots of an admission that is cancelled after it was granted go to the next one."""
    import asyncio

    controller = ConcurrencyController({"a": 1, "b": 1})

    async def work() -> None:
        async with controller.admit("a", "b"):
            await asyncio.sleep(1)

    tokens = [controller.acquire_nowait(key) for key in "ab"]
    waiters = [asyncio.create_task(work()) for _ in range(2)]
    await settle()
    for token in tokens:
        token.release()
    waiters[0].cancel()
    await settle()
    assert waiters[0].cancelled()
    assert controller.statistics("a").in_use == controller.statistics("b").in_use == 1
    await waiters[1]
    assert controller.statistics("a").in_use == controller.statistics("b").in_use == 0


async def test_bulkhead_is_a_policy() -> None:
    """A bulkhead holds a slot around a call, alone, in a pipeline and as a decorator."""
    controller = ConcurrencyController({"k": 2})
    bulkhead = controller.at("k", priority=Priority.HIGH)

    async def busy(amount: int, *, extra: int = 0) -> int:
        return bulkhead.statistics().in_use + amount + extra

    assert await bulkhead.call(busy, 10, extra=5) == 16
    assert await bulkhead(busy)(20) == 21
    assert await Pipeline(bulkhead).call(busy, 30) == 31
    with pytest.raises(TypeError, match="async"):
        bulkhead(len)  # type: ignore[arg-type]
    token = bulkhead.acquire_nowait()
    assert repr(bulkhead) == "<Bulkhead 'k' 1/2 HIGH>"
    token.release()
    (await bulkhead.acquire()).release()
    async with bulkhead.lease():
        assert bulkhead.statistics().in_use == 1

    async def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await bulkhead.call(fail)
    assert bulkhead.statistics().in_use == 0
