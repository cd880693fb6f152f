"""A pool of sessions under cancellation, at every moment: nothing is lost, nothing is left."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from inn import Guest, Inn

from orchestra import SessionPool
from orchestra.errors import CapacityError, TransportError
from orchestra.testing import virtual_time_options

HERE = Path("/here")
Policy = Literal["fresh", "reset"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test here runs on both event loops, in virtual time."""
    return request.param, virtual_time_options(request.param)


async def work(pool: SessionPool, mission: str, prompts: int = 1) -> None:
    """Use a session, and see that it knows of nobody else."""
    title = f"for {mission}"
    async with pool.lease("worker", directory=HERE, mission=mission, title=title) as session:
        assert isinstance(session, Guest)
        for n in range(1, prompts + 1):
            answer = await session.prompt(mission)
            assert answer.text.split() == [mission] * n


@pytest.mark.parametrize("policy", ["fresh", "reset"])
@pytest.mark.parametrize("elapsed", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5])
@pytest.mark.parametrize("is_contended", [False, True])
async def test_cancelled_at_any_moment(
    policy: Policy, elapsed: float, *, is_contended: bool
) -> None:
    """Cancelled while it waits, opens, relabels, works or ends: the next one gets a session."""
    inn = Inn()
    async with SessionPool(inn, policy=policy, max_size=1, min_idle=0) as pool:
        async with anyio.create_task_group() as tasks:
            if is_contended:
                tasks.start_soon(work, pool, "other")
                await anyio.sleep(0.25)
            with anyio.CancelScope(deadline=anyio.current_time() + elapsed):
                await work(pool, "mine")
        with anyio.fail_after(60):
            await work(pool, "next")
        assert pool.statistics().in_use == 0
    assert inn.open_now == []
    assert inn.most == 1


@pytest.mark.parametrize("policy", ["fresh", "reset"])
async def test_a_slot_granted_to_a_cancelled_task_goes_on(policy: Policy) -> None:
    """Released and cancelled in the same moment: the slot is the next waiter's."""
    inn = Inn()
    served = []
    async with SessionPool(inn, policy=policy, max_size=1) as pool:
        lease = await pool.acquire("worker", directory=HERE)
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def cancelled() -> None:
                with scope:
                    await work(pool, "cancelled")

            async def waiting() -> None:
                await work(pool, "waiting")
                served.append("waiting")

            tasks.start_soon(cancelled)
            await anyio.sleep(1)
            tasks.start_soon(waiting)
            await anyio.sleep(1)
            lease.release()
            scope.cancel()
    assert served == ["waiting"]
    assert inn.open_now == []


@pytest.mark.parametrize("policy", ["fresh", "reset"])
@pytest.mark.parametrize("seed", range(2))
async def test_two_hundred_missions_cancelled_at_random(policy: Policy, seed: int) -> None:
    """With failures and cancellations at random, no session is left and none is shared."""
    rng = random.Random(seed)
    inn = Inn()
    finished = []
    async with SessionPool(inn, policy=policy, max_size=5, idle_timeout=20.0) as pool:

        async def mission(name: str) -> None:
            await anyio.sleep(rng.uniform(0, 200))
            with anyio.move_on_after(rng.uniform(0, 30)):
                try:
                    await work(pool, name, prompts=rng.randint(0, 3))
                    await work(pool, name)
                except TransportError:
                    inn.refusals = 0
                finished.append(name)

        async def disturb() -> None:
            for _ in range(40):
                await anyio.sleep(5)
                inn.refusals = rng.randint(0, 2)
                if inn.open_now:
                    rng.choice(inn.open_now).is_well = rng.random() < 0.5
                assert len(pool.holders()) <= 5

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disturb)
            for n in range(200):
                tasks.start_soon(mission, f"m{n}")
        inn.refusals = 0
        held = pool.statistics()
        assert (held.in_use, held.tasks_waiting) == (0, 0)
        with anyio.fail_after(60):  # every place of the role is there
            leases = [await pool.acquire("worker", directory=HERE) for _ in range(5)]
        for lease in leases:
            lease.release()
    assert inn.open_now == []
    assert 20 < len(finished) < 200, "the test does not do both, finish and cancel"
    end = pool.statistics()
    assert end.opened == end.closed == inn.opened
    assert (end.in_use, end.idle, end.busy) == (0, 0, 0)


@pytest.mark.parametrize("elapsed", [0.0, 0.5, 1.0, 1.5, 2.5, 3.5, 4.5, 6.0])
async def test_left_at_any_moment(elapsed: float) -> None:
    """Left while sessions are opened, used, emptied and wanted: all end, and nothing is left."""
    inn = Inn()
    refused = []
    pool = SessionPool(inn, policy="reset", max_size=2, grace_period=60.0)
    async with anyio.create_task_group() as tasks, pool:

        async def use(name: str) -> None:
            try:
                await work(pool, name)
            except CapacityError:
                refused.append(name)

        for n in range(6):
            tasks.start_soon(use, f"m{n}")
        await pool.prewarm(HERE, ["planner", "worker"])
        await anyio.sleep(elapsed)
    assert refused
    assert inn.open_now == []
    assert pool.statistics().tasks_waiting == 0
