"""Time limits that do nothing in a process that has slept."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from orchestra.opencode.mission.alarms import Alarms
from orchestra.testing import virtual_time_options


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test here runs on both event loops, in virtual time."""
    return request.param, virtual_time_options(request.param)


@pytest.mark.parametrize("is_ours", [True, False])
async def test_whose_time_is_over(is_ours: bool) -> None:  # noqa: FBT001
    """Each block is cut off at its time, whatever the order; none in a process that was followed."""
    over: dict[int, float] = {}
    start = anyio.current_time()

    async def may_ring() -> bool:
        await anyio.lowlevel.checkpoint()
        return is_ours

    alarms = Alarms(may_ring)

    async def work(number: int, seconds: float) -> None:
        with alarms.move_on_after(seconds) as scope:
            await anyio.sleep(1_000)
        if scope.cancelled_caught:
            over[number] = round(anyio.current_time() - start)

    async with anyio.create_task_group() as group:
        group.start_soon(alarms.keep)
        await anyio.sleep(1)
        with alarms.move_on_after(5) as quick:
            await anyio.sleep(1)
        for number, seconds in ((1, 60), (2, 30), (3, 60), (4, 2_000)):
            group.start_soon(work, number, seconds)
        await anyio.sleep(1_500)
        group.cancel_scope.cancel()
    assert not quick.cancelled_caught
    assert over == ({2: 32, 1: 62, 3: 62} if is_ours else {})
