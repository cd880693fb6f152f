"""A mission's cap against children that all try to overspend, on the embedded backend."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from orchestra import Amount, Budget, EmbeddedBackend, Turn
from orchestra.errors import BudgetExceededError
from orchestra.events import Usage, UsageReported

CAP = 1_000_000


class Spender:
    """A model whose every answer costs more than anybody expected."""

    def __init__(self, costs: list[int], *, steps: int = 1) -> None:
        self.costs = costs
        self.steps = steps
        self.paid = 0
        self.calls = 0

    async def __call__(self, turn: Turn) -> str:
        cost = self.costs[self.calls % len(self.costs)]
        self.calls += 1
        for _ in range(self.steps):
            await anyio.sleep(0.1 + cost % 7)
            await turn.usage(Usage(output_tokens=cost // self.steps))
            self.paid += cost // self.steps
        return "more"


async def spend_all(
    mission: Budget, spender: Spender, folder: Path, *, estimate: int, children: int = 8
) -> None:
    """Let children prompt until the mission's budget refuses each of them."""
    async with EmbeddedBackend({"worker": spender}) as backend, anyio.create_task_group() as tasks:

        async def child(number: int) -> None:
            budget = mission.child(f"task {number}").child("attempt")
            async with backend.lease("worker", directory=folder) as session:
                while True:
                    try:
                        reservation = await budget.reserve(Amount(tokens=estimate))
                    except BudgetExceededError:
                        return
                    used = Amount()
                    async with session.stream("go on") as events:
                        async for event in events:
                            if isinstance(event, UsageReported):
                                used += Amount(tokens=event.usage.output_tokens)
                                if not reservation.record(used):
                                    break
                    reservation.settle(used)

        for number in range(children):
            tasks.start_soon(child, number)


@pytest.mark.parametrize("children", [1, 8, 50])
async def test_a_cap_holds_whatever_the_fan_out(tmp_path: Path, children: int) -> None:
    """Children that cost up to twice their estimate exceed the cap by one request's error."""
    rng = random.Random(children)
    spender = Spender([rng.randint(9_000, 20_000) for _ in range(97)])
    mission = Budget("mission", tokens=CAP)
    await spend_all(mission, spender, tmp_path, estimate=10_000, children=children)
    assert mission.statistics().spent == Amount(tokens=spender.paid)
    assert CAP - 10_000 < spender.paid <= CAP + 10_000
    assert mission.statistics().held == Amount()


async def test_the_first_wave_cannot_break_the_cap(tmp_path: Path) -> None:
    """Eight estimates that fill the cap exactly, each half of what is then paid, stay within it."""
    spender = Spender([250_000])
    mission = Budget("mission", tokens=CAP)
    await spend_all(mission, spender, tmp_path, estimate=125_000)
    assert CAP - 125_000 < spender.paid <= CAP + 125_000


async def test_an_error_seen_once_is_not_made_eight_times(tmp_path: Path) -> None:
    """Children that cost eight times their estimate do so unforeseen in the first wave only."""
    spender = Spender([80_000])
    mission = Budget("mission", tokens=CAP)
    await spend_all(mission, spender, tmp_path, estimate=10_000)
    assert CAP - 10_000 < spender.paid <= CAP + 70_000


async def test_work_that_runs_away_is_told_to_stop(tmp_path: Path) -> None:
    """Turns without end, which no check before or after them would stop, end with the budget."""
    spender = Spender([100_000_000], steps=10_000)
    mission = Budget("mission", tokens=CAP)
    await spend_all(mission, spender, tmp_path, estimate=10_000)
    assert CAP - 8 * 10_000 <= spender.paid <= CAP + 10_000


async def test_checking_before_each_request_would_not_do(tmp_path: Path) -> None:
    """Without holds and margins the same children overspend by a whole wave: the test can see it."""
    spender = Spender([20_000])
    spent = 0

    async with EmbeddedBackend({"worker": spender}) as backend, anyio.create_task_group() as tasks:

        async def child() -> None:
            nonlocal spent
            async with backend.lease("worker", directory=tmp_path) as session:
                while spent < CAP - 10_000:
                    spent += (await session.prompt("go on")).usage.output_tokens

        for _ in range(8):
            tasks.start_soon(child)
    assert spender.paid > CAP + 20_000
