"""Reservations around turns: what is held, paid, told to the store, and taken back from it."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from orchestra import Amount, EmbeddedBackend, Price
from orchestra.abc import Agent
from orchestra.errors import BudgetExceededError, UnknownPriceError
from orchestra.events import FinishReason, TurnError, Usage
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings
from orchestra.opencode.mission.orders import AgentAnswered, Ask
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.recovery import ErrorClass, classify
from orchestra.opencode.mission.spending import Bill, Spending, as_cost_node

PRICES = {"p/m": Price(input=1, output=2)}


def ask(task_id: str | None = "t1", *, turn: int = 1, role: Role = Role.WORKER) -> Ask:
    return Ask(
        ticket=1,
        session=f"{role.value}/{task_id}/1",
        role=role,
        message="do it",
        task_id=task_id,
        round=1,
        turn=turn,
    )


def spending(**limits: object) -> Spending:
    settings = BudgetSettings(**{"wrap_up": 0.0, "prices": PRICES, **limits})  # type: ignore[arg-type]
    return Spending(settings)


async def pay(book: Spending, what: Ask, tokens: int) -> None:
    async with book.turn(what, "p/m") as bill:
        bill.record(Usage(input_tokens=tokens))
        bill.settle(Usage(input_tokens=tokens))
        bill.settle(Usage(input_tokens=tokens))  # a repetition does nothing


def stopped(bill: Bill, step: int) -> TurnError:
    """Use so many tokens again and again until the turn must end."""
    for number in range(1, 1_000):
        if (error := bill.record(Usage(input_tokens=step * number))) is not None:
            return error
    raise AssertionError("nothing stops it")


async def test_each_turn_pays_once_up_to_the_mission() -> None:
    """Mission, tasks and attempts: the sums are inclusive, and nothing stays held."""
    book = spending()
    book.add_part("t1.a", "t1")
    for number, task in enumerate(("t1", "t2", "t1.a", None)):
        role = Role.WORKER if task else Role.PLANNER
        await pay(book, ask(task, role=role), 10**number)
    tree = as_cost_node(book.tree())
    assert (tree.tokens, tree.own_tokens, tree.dollars) == (1111, 0, 0.001111)
    costs = {part.name: part.tokens for part in tree.parts}
    assert costs == {"task t1": 101, "task t2": 10, "planner": 1000}
    first = tree.parts[0]
    assert [part.name for part in first.parts] == ["attempt 1", "task t1.a"]
    assert book.tree().held == Amount()


async def test_a_turn_that_is_cut_off_has_spent_what_it_recorded() -> None:
    """Cancellation gives back what was held, and pays what was used."""
    book = spending(mission=Allowance(tokens=100_000))
    with anyio.CancelScope() as scope:
        async with book.turn(ask(), "p/m") as bill:
            bill.record(Usage(input_tokens=70))
            scope.cancel()
            await anyio.sleep_forever()
    assert (book.tree().spent.tokens, book.tree().held.tokens) == (70, 0)


async def test_what_was_paid_survives_a_restart_and_is_paid_once() -> None:
    """Told in any pieces, taken back at once; a turn whose end is told again costs nothing more."""
    book = spending()
    pieces = {}
    for turn in (1, 2, 3):
        await pay(book, ask(turn=turn), 100 * turn)
        await anyio.sleep(2.0)
        pieces.update(book.take_news())
    assert book.take_news() == {}
    assert pieces.pop("clock") > 0

    again = spending(mission=Allowance(tokens=700, seconds=60.0))
    again.restore({**pieces, "clock": 50.0})
    assert again.tree().spent.tokens == 600
    assert again.seconds_left() == pytest.approx(10.0)
    await pay(again, ask(turn=3), 300)  # the same end, told again
    assert again.tree().spent.tokens == 600
    assert again.take_news() == {}
    async with again.turn(ask(turn=3), "p/m") as bill:  # it was lost, and worked on anew
        bill.settle(Usage(input_tokens=40))
    assert again.tree().spent.tokens == 640
    assert set(again.take_news()) == {"worker/t1/1:3+", "clock"}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"mission": Allowance(tokens=1_000)}, ErrorClass.BUDGET),
        ({"mission": Allowance(dollars=0.001)}, ErrorClass.BUDGET),
        ({"task": Allowance(tokens=1_000)}, ErrorClass.TASK_BUDGET),
        ({"attempt": Allowance(tokens=1_000)}, ErrorClass.ATTEMPT_BUDGET),
    ],
)
async def test_a_turn_that_runs_away_is_stopped_and_says_whose_budget_it_was(
    limits: dict[str, Allowance], expected: ErrorClass
) -> None:
    """Step by step until there is no room for one more: the error names the level."""
    book = spending(**limits)
    async with book.turn(ask(), "p/m") as bill:
        error = stopped(bill, 100)
    finished = AgentAnswered(ticket=1, reason=FinishReason.ABORTED, error=error)
    assert classify(finished) is expected
    assert "budget 'mission" in error.message
    assert book.tree().spent.tokens <= 1_000


async def test_a_turn_without_room_beside_others_is_stopped_but_the_budget_is_not_over() -> None:
    """What others hold may come back: the turn ends as overspent, not the mission."""
    book = spending(mission=Allowance(tokens=1_000), first_tokens=100)
    async with book.turn(ask("t1"), "p/m"), book.turn(ask("t2"), "p/m") as bill:
        error = stopped(bill, 50)
    assert error.name in {"OverspentError", "BudgetExceededError"}
    assert book.tree().spent.tokens <= 1_000


async def test_refusals_tell_the_level_too() -> None:
    """A budget that is used up refuses the next turn, before it starts."""
    book = spending(task=Allowance(tokens=500))
    await pay(book, ask(), 460)
    with pytest.raises(BudgetExceededError) as caught:
        async with book.turn(ask(turn=2), "p/m"):
            raise AssertionError("it must not start")
    assert book.explain(caught.value).name == "TaskBudgetError"
    await pay(book, ask("t2"), 100)  # the other task has its own


async def test_only_who_judges_may_use_what_is_kept() -> None:
    """The wrap-up share is for commander and reviewers: what was worked for can be judged."""
    book = spending(mission=Allowance(tokens=1_000), wrap_up=0.2)
    await pay(book, ask(), 780)
    with pytest.raises(BudgetExceededError):
        await pay(book, ask("t2"), 100)
    await pay(book, ask(role=Role.REVIEWER), 50)


async def test_a_model_without_a_price_is_refused_when_money_counts(tmp_path: Path) -> None:
    """Refuse is the default; free and an assumed price are choices; without a limit nobody asks."""
    limit = Allowance(dollars=1.0)
    with pytest.raises(UnknownPriceError):
        async with spending(mission=limit).turn(ask(), "p/other"):
            raise AssertionError("it must not start")
    for rule in ("free", Price(input=5, output=5)):
        async with spending(mission=limit, unknown_price=rule).turn(ask(), "p/other") as bill:
            bill.settle(Usage(input_tokens=1))
    async with spending().turn(ask(), "p/other") as bill:
        bill.settle(Usage(input_tokens=1))
    # Who has no list of prices may still tell the cost of each call; if not, the turn ends.
    book = Spending(BudgetSettings(mission=limit))
    async with EmbeddedBackend({"worker": lambda _turn: "done"}) as backend:
        assert await book.begin(backend, tmp_path, [Agent("worker")]) == ""
    async with book.turn(ask(), None) as bill:
        assert bill.record(Usage(input_tokens=1, cost=0.2)) is None
        error = bill.record(Usage(input_tokens=1))
        assert error is not None
        assert error.name == "UnknownPriceError"


async def test_time_is_a_budget_too() -> None:
    """A turn gets what is left of the seconds, less what is kept, and nothing begins afterwards."""
    book = spending(mission=Allowance(seconds=100.0), wrap_up=0.1)
    async with book.turn(ask(), "p/m") as bill:
        assert bill.seconds_left == pytest.approx(90.0)
        await anyio.sleep(91.0)
        assert bill.seconds_left < 0
        assert bill.time_over().name == "BudgetExceededError"
        assert "'mission'" in bill.time_over().message
    with pytest.raises(BudgetExceededError):
        await pay(book, ask("t2"), 1)
    async with book.turn(ask(role=Role.REVIEWER), "p/m") as bill:
        assert bill.seconds_left == pytest.approx(9.0)
