"""The budgets of a mission under any schedule: turns that err, are cut off, and pay twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import Amount, Budget, CostTree, Price, Reservation
from orchestra.errors import BudgetExceededError, UnknownPriceError
from orchestra.events import Usage
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings
from orchestra.opencode.mission.orders import Ask
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.spending import Bill, Spending
from orchestra.testing import Job, play, random_schedule, virtual_time_options

TASKS = ("t1", "t2", "t1.a", None)
PRICES = {"p/m": Price(input=1, output=3)}


def settings_of(dice: random.Random) -> BudgetSettings:
    return BudgetSettings(
        mission=Allowance(tokens=dice.randint(400, 1_500), dollars=dice.choice([None, 0.002])),
        task=Allowance(
            tokens=dice.choice([None, 900]), seconds=dice.choice([None, None, 50.0]), dollars=0.001
        ),
        attempt=Allowance(tokens=dice.choice([None, 400])),
        wrap_up=dice.choice([0.0, 0.1, 0.5]),
        first_tokens=dice.choice([1, 30, 200]),
        prices=PRICES,
        unknown_price=dice.choice(["refuse", "free", Price(input=2, output=2)]),
    )


@define
class Books:
    """A mission's spending, and what it should be.

    Attributes:
        spending: What is tried.
        dice: Decide.
        paid: Tokens that were used, by the path of the budget.
        error: The largest excess of a turn over its estimate, in tokens and in microdollars.
    """

    spending: Spending
    dice: random.Random
    paid: dict[str, int] = field(factory=dict)
    error: list[int] = field(factory=lambda: [0, 0])
    places: set[Budget] = field(factory=set)

    async def turn(self, job: Job) -> None:
        """Take a turn that errs by at most its estimate at first, and whose steps do not grow."""
        dice = self.dice
        role = dice.choice([Role.WORKER, Role.WORKER, Role.REVIEWER, Role.COMMANDER])
        ask = Ask(
            ticket=job.number,
            session=f"{role.value}/{job.number}",
            role=role,
            message="x" * dice.choice([60, 600, 900]),
            task_id=dice.choice(TASKS),
            round=dice.randint(1, 2),
        )
        prompt = Amount(tokens=len(ask.message) // 3)
        estimate, last = self.spending._estimate(ask, prompt), None
        try:
            async with self.spending.turn(ask, dice.choice(["p/m", "p/m", "p/other"])) as bill:
                last = bill
                await self.work(job, bill, estimate)
        except (BudgetExceededError, UnknownPriceError):
            pass
        finally:
            if last is not None and dice.random() < 0.3:  # after its release or settlement
                self.settle(last, last._used.tokens)

    async def work(self, job: Job, bill: Bill, estimate: Amount) -> None:
        dice, reservation = self.dice, bill._reservation
        assert reservation is not None
        self.places |= set(self.spending._line(bill._budget))
        path, used = reservation.budget, 0
        self.paid.setdefault(path, 0)
        step = dice.randint(0, 2 * estimate.tokens)
        await job.work()
        for _ in range(dice.randint(0, 6)):
            used, step = used + step, dice.randint(0, step)
            self.paid[path] += used - bill._used.tokens
            is_over = bill.record(Usage(input_tokens=used)) is not None
            self.note(estimate, bill._used)
            if is_over:
                break
            await anyio.sleep(dice.choice([0.0, 0.1, 1.0, 5.0]))
        if dice.random() < 0.8:
            self.settle(bill, used)
            self.settle(bill, used + 50)  # a repetition, whatever it says

    def settle(self, bill: Bill, used: int) -> None:
        bill.settle(Usage(input_tokens=used))

    def note(self, estimate: Amount, used: Amount) -> None:
        excess = used.tokens - estimate.tokens, used.microdollars - estimate.microdollars
        self.error = [max(pair) for pair in zip(self.error, excess, strict=True)]

    def check(self) -> None:
        """Nobody has more than its limit, but for one turn's error, and sums are inclusive."""
        for budget in self.places:
            now = budget.statistics()
            if now.limit_tokens is not None:
                assert now.spent.tokens + now.held.tokens <= now.limit_tokens + self.error[0]
            if now.limit_dollars is not None:
                limit = round(now.limit_dollars * 1_000_000) + self.error[1]
                assert now.spent.microdollars + now.held.microdollars <= limit
        self.check_sums(self.spending.tree())

    def check_sums(self, tree: CostTree) -> None:
        assert tree.spent == sum((each.spent for each in tree.children), tree.own)
        for each in tree.children:
            self.check_sums(each)

    def check_end(self) -> None:
        """All that was used is paid, once, and nothing is held any more."""
        tree = self.spending.tree()
        assert tree.held == Amount()
        assert tree.spent.tokens == sum(self.paid.values())
        assert self.spending._root.statistics().reservations == 0


def run(backend: str, seed: int) -> None:
    """Play one schedule, in virtual time."""

    async def main() -> None:
        dice = random.Random(seed)
        books = Books(Spending(settings_of(dice)), dice)
        books.spending.add_part("t1.a", "t1")
        with anyio.fail_after(1e4):  # in no time, when somebody waits for ever
            await play(random_schedule(seed, jobs=12, steps=50), books.turn, check=books.check)
        books.check_end()

    anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_no_schedule_breaks_a_limit_or_loses_a_token(backend: str, seed: int) -> None:
    """Spent and held stay below each cap, but for one turn's error; each turn pays once."""
    run(backend, seed)


def run_many(seeds: range) -> None:
    for seed in seeds:
        run("asyncio", seed)


def release_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was settled gives back what it held once more."""
    settle: Callable[..., bool] = Reservation.settle

    def wrong(self: Reservation, actual: Amount) -> bool:
        held, is_open = self.held, self.is_open
        done = settle(self, actual)
        if is_open:
            for each in self._hold.account.line:
                each.tokens.held -= held.tokens
        return done

    monkeypatch.setattr(Reservation, "settle", wrong)


def settle_without_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn begins without holding anything, and is paid at its end."""
    reserve = Budget.reserve

    async def wrong(self: Budget, amount: Amount, **options: Any) -> Reservation:
        return await reserve(self, Amount(), **options)

    monkeypatch.setattr(Budget, "reserve", wrong)


def forget_on_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is cut off does not give back."""
    monkeypatch.setattr(Reservation, "release", lambda _self: None)


def pay_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated settlement is paid again."""
    settle: Callable[..., bool] = Reservation.settle

    def wrong(self: Reservation, actual: Amount) -> bool:
        if not self.is_open:
            self._office.core.spend(self._hold.account, f"{self.id} again", actual)
        return settle(self, actual)

    monkeypatch.setattr(Reservation, "settle", wrong)


@pytest.mark.parametrize("plant", [release_twice, settle_without_hold, forget_on_cancel, pay_twice])
def test_planted_bugs_are_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The property sees a double release, work that holds nothing, and a forgotten hold."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup, TimeoutError)):
        run_many(range(100))
