"""The life of a reservation, by object and by id; events, snapshots, and what people see."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import anyio
import pytest

from orchestra import Amount, Budget, CostTree, Reservation
from orchestra.errors import BudgetExceededError, RejectedError, UnknownPriceError
from orchestra.events import BudgetAction, BudgetChanged


def tokens(count: int) -> Amount:
    """An amount of tokens."""
    return Amount(tokens=count)


def test_amounts_are_exact() -> None:
    """Dollars become whole millionths without drift, and a fraction of one is rounded up."""
    tenth = Amount.of(dollars=0.1)
    assert sum([tenth] * 30, Amount()) == Amount(microdollars=3_000_000)
    assert tenth.dollars == Decimal("0.1")
    assert Amount.of(dollars=Decimal("0.0000001")).microdollars == 1
    assert Amount.of(dollars=Decimal(10) ** 30).microdollars == 10**36
    assert str(Amount.of(tokens=1200, dollars=2)) == "1,200 tokens, $2.000000"


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: Amount(tokens=-1), ValueError, "tokens must be at least 0, not -1"),
    (lambda: Amount(tokens=1.5), TypeError, r"tokens must be an int, not 1\.5"),  # type: ignore[arg-type]
    (lambda: Amount(microdollars=True), TypeError, "microdollars must be an int"),
    (lambda: Amount.of(dollars=-1), ValueError, "dollars must be at least 0"),
    (lambda: Amount.of(dollars=float("nan")), ValueError, "dollars must be finite"),
    (lambda: Amount.of(dollars="1"), TypeError, "dollars must be a number"),  # type: ignore[arg-type]
    (lambda: Budget("a/b"), ValueError, "name must be a text without '/' and '#'"),
    (lambda: Budget("a#b"), ValueError, "name must be a text"),
    (lambda: Budget(""), ValueError, "name must be a text"),
    (lambda: Budget(3), TypeError, "name must be a str"),  # type: ignore[arg-type]
    (lambda: Budget(tokens=-1), ValueError, "tokens must be at least 0"),
    (lambda: Budget(dollars=-1), ValueError, "dollars must be at least 0"),
    (lambda: Budget(seconds=0), ValueError, "seconds must be above 0 seconds"),
    (lambda: Budget(wrap_up=1.0), ValueError, "wrap_up must be at least 0 and below 1"),
    (lambda: Budget(margin=-0.1), ValueError, "margin must be at least 0"),
    (lambda: Budget(clock=3), TypeError, "clock must be callable"),  # type: ignore[arg-type]
    (lambda: Budget(listener=3), TypeError, "listener must be callable"),  # type: ignore[arg-type]
    (lambda: Budget().child("a/b"), ValueError, "name must be a text"),
    (lambda: Budget().extend(tokens=-1), ValueError, "tokens must be at least 0"),
    (lambda: Budget().extend(seconds=-1), ValueError, "seconds must be at least 0"),
    (Reservation, TypeError, "comes from a Budget"),
    (lambda: Budget().reserve_nowait(Amount(), id="a#1"), ValueError, "id must be a text"),
    (lambda: Budget().reserve_nowait(Amount(), id=""), ValueError, "id must be a text"),
    (lambda: Budget.restore({"version": 0}), ValueError, "must be of version 1, not 0"),
    (lambda: Budget().child("a").snapshot(), RuntimeError, "take the snapshot of its root"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_is_named(number: int) -> None:
    """Wrong arguments raise at once, in one sentence that names the field."""
    make, error, message = WRONG[number]
    with pytest.raises(error, match=message):
        make()


def test_a_reservation_ends_once() -> None:
    """Only the first settlement counts, and a release after it does nothing."""
    budget = Budget(tokens=100)
    reservation = budget.reserve_nowait(tokens(50))
    assert (reservation.estimate, reservation.held, reservation.is_open) == (
        tokens(50),
        tokens(50),
        True,
    )
    assert reservation.settle(tokens(30))
    assert not reservation.settle(tokens(40))
    reservation.release()
    assert not reservation.is_open
    assert not reservation.record(tokens(90))
    assert budget.statistics().spent == tokens(30)
    assert budget.statistics().held == tokens(0)


def test_what_was_paid_after_a_release_counts() -> None:
    """A settlement after a release is recorded, once, without what was recorded already."""
    budget = Budget()
    reservation = budget.reserve_nowait(tokens(50))
    reservation.record(tokens(10))
    reservation.release()
    reservation.release()
    assert budget.statistics().spent == tokens(10)
    assert reservation.settle(tokens(30))
    assert not reservation.settle(tokens(30))
    assert budget.statistics().spent == tokens(30)


def test_what_is_recorded_is_out_of_reach_for_others() -> None:
    """Work beyond its estimate holds what it has used and its next step, as long as that fits."""
    budget = Budget(tokens=99, margin=0)
    reservation = budget.reserve_nowait(tokens(10))
    assert reservation.record(tokens(8))
    assert reservation.held == tokens(16)
    assert reservation.record(tokens(40))
    assert reservation.held == tokens(72)
    assert not reservation.record(tokens(70))
    assert reservation.held == tokens(72)
    assert not reservation.record(tokens(120))
    assert budget.statistics().held == tokens(120)
    reservation.settle(tokens(100))  # what was recorded was paid
    assert budget.statistics().spent == tokens(120)


def test_an_id_names_one_piece_of_work() -> None:
    """An id in flight gives its reservation again, one that has ended is refused."""
    budget = Budget(tokens=100)
    first = budget.reserve_nowait(tokens(50), id="task-1 round 1")
    again = budget.reserve_nowait(tokens(80), id="task-1 round 1")
    assert again.held == tokens(50)
    assert budget.statistics().reservations == 1
    assert again.settle(tokens(20))
    assert not first.settle(tokens(30))
    with pytest.raises(ValueError, match="'task-1 round 1' has ended"):
        budget.reserve_nowait(tokens(1), id="task-1 round 1")


def test_settling_by_id_is_idempotent() -> None:
    """A journal may be told again and again, in any order, and even before the reservation."""
    budget = Budget("mission")
    task = budget.child("task")
    named = task.reserve_nowait(tokens(50), id="named")
    numbered = task.reserve_nowait(tokens(50))
    for _ in range(2):
        budget.settle("named", tokens(10))
        budget.settle(numbered.id, tokens(20))
        task.settle("unheard of", tokens(5))
    assert not named.is_open
    assert not numbered.settle(tokens(1))
    assert task.statistics().spent == tokens(35)
    with pytest.raises(ValueError, match="has ended"):
        task.reserve_nowait(tokens(1), id="unheard of")


def test_a_snapshot_carries_everything_over_a_restart() -> None:
    """After a restart spent, held and used time are as before, and work can be settled by id."""
    now = 1000.0
    mission = Budget("mission", tokens=1000, dollars=2, seconds=60, wrap_up=0.1, clock=lambda: now)
    attempt = mission.child("task", tokens=500).child("attempt")
    attempt.reserve_nowait(Amount.of(tokens=100, dollars=0.25)).settle(
        Amount.of(tokens=150, dollars=0.3)
    )
    attempt.reserve_nowait(tokens(10), id="in flight")
    unnamed = attempt.reserve_nowait(tokens(20))
    unnamed.record(tokens(15))
    now = 1020.0
    data = json.loads(json.dumps(mission.snapshot()))

    restored = Budget.restore(data, clock=lambda: 7.0)
    assert restored.tree() == mission.tree()
    assert restored.statistics() == mission.statistics()
    assert restored.seconds_left() == pytest.approx(34.0)
    task = restored.child("task", tokens=1)
    assert task.statistics().limit_tokens == 500
    again = task.child("attempt").reserve_nowait(tokens(10), id="in flight")
    assert again.settle(tokens(11))
    assert {each.id for each in restored.reservations()} == {unnamed.id}
    assert task.reservations()[0].held == tokens(30)
    assert restored.child("other").reservations() == ()
    assert restored.settle(unnamed.id, tokens(25))
    assert not restored.settle("in flight", tokens(11))
    assert restored.statistics().spent.tokens == 150 + 11 + 25
    assert restored.child("task").child("attempt").reserve_nowait(tokens(1)).id != unnamed.id


def test_snapshot_does_not_grow_with_what_is_over() -> None:
    """Reservations that were settled leave nothing behind but their sum."""
    budget = Budget()
    before = len(json.dumps(budget.snapshot()))
    for _ in range(1000):
        budget.reserve_nowait(tokens(1)).settle(tokens(1))
    assert len(json.dumps(budget.snapshot())) < before + 20


def test_the_tree_shows_who_spent_what() -> None:
    """Each node of the tree has its own spending, and that of everything below it."""
    mission = Budget("mission")
    mission.reserve_nowait(tokens(5)).settle(tokens(5))
    task = mission.child("task")
    for number, cost in enumerate((10, 20)):
        task.child(f"attempt {number}").reserve_nowait(tokens(10)).settle(
            Amount.of(tokens=cost, dollars=0.5)
        )
    task.child("attempt 1").reserve_nowait(tokens(7))
    tree = mission.tree()
    assert isinstance(tree, CostTree)
    assert tree.spent == Amount.of(tokens=35, dollars=1)
    assert tree.own == tokens(5)
    assert tree.held == tokens(7)
    (only,) = tree.children
    assert (only.path, only.own, only.spent.tokens) == ("mission/task", Amount(), 30)
    assert [child.spent.tokens for child in only.children] == [10, 20]
    assert str(tree).splitlines() == [
        "mission: 35 tokens, $1.000000",
        "  task: 30 tokens, $1.000000",
        "    attempt 0: 10 tokens, $0.500000",
        "    attempt 1: 20 tokens, $0.500000",
    ]


async def test_the_listener_hears_everything_in_order() -> None:
    """Each step of each reservation is told once, with its budget, id and amount."""
    heard: list[BudgetChanged] = []
    mission = Budget("mission", tokens=100, margin=0, listener=heard.append)
    task = mission.child("task")
    held = await task.reserve(tokens(90), id="first")
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            (await mission.reserve(tokens(20))).release()

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        held.settle(tokens(70))
        held.settle(tokens(70))
    with pytest.raises(BudgetExceededError):
        mission.reserve_nowait(tokens(40))
    assert [(each.budget, each.action, each.reservation, each.tokens) for each in heard] == [
        ("mission/task", BudgetAction.HELD, "first", 90),
        ("mission", BudgetAction.WAITING, "", 20),
        ("mission/task", BudgetAction.SETTLED, "first", 70),
        ("mission", BudgetAction.HELD, "mission#1", 20),
        ("mission", BudgetAction.RELEASED, "mission#1", 0),
        ("mission", BudgetAction.REFUSED, "", 40),
    ]


def test_a_journal_of_events_repeats_the_spending() -> None:
    """What a listener was told, told to an older snapshot, gives the same sums, also told twice."""
    heard: list[BudgetChanged] = []
    mission = Budget("mission", listener=heard.append)
    task = mission.child("task")
    open_then = task.reserve_nowait(tokens(10))
    data = mission.snapshot()
    open_then.settle(tokens(12))
    for cost in (5, 6, 7):
        task.reserve_nowait(tokens(5)).settle(tokens(cost))
    restored = Budget.restore(data)
    for event in (*heard, *heard):
        if event.action is BudgetAction.SETTLED:
            restored.child("task").settle(event.reservation, tokens(event.tokens))
    assert restored.tree() == mission.tree()
    fresh = restored.child("task").reserve_nowait(tokens(1))
    assert fresh.id not in {event.reservation for event in heard}


def test_a_listener_that_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A broken listener never reaches the work; it is logged once."""

    def listen(event: BudgetChanged) -> None:
        raise LookupError(event.reservation)

    budget = Budget(listener=listen)
    budget.reserve_nowait(tokens(1)).settle(tokens(1))
    assert len(caplog.records) == 1


def test_repr_shows_the_state() -> None:
    """A printed budget tells what is spent and held of what, and how many wait."""
    budget = Budget("mission", tokens=1000)
    reservation = budget.reserve_nowait(Amount.of(tokens=10, dollars=0.5))
    assert repr(budget) == "<Budget 'mission' tokens=0+10/1,000 microdollars=0+500,000/- waiting=0>"
    assert repr(reservation) == "<Reservation 'mission#1' holds 10 tokens, $0.500000>"
    reservation.release()
    assert repr(reservation) == "<Reservation 'mission#1' ended>"
    assert (budget.name, budget.child("a").path, reservation.budget) == (
        "mission",
        "mission/a",
        "mission",
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            BudgetExceededError("m/t", "tokens", asked=500, spent=900, held=10, limit=1000),
            (
                "budget 'm/t' cannot pay 500 tokens: of 1,000, 900 are spent and 10 held; ask for less "
                "or give it more with extend()"
            ),
        ),
        (
            BudgetExceededError(
                "m", "seconds", asked=0.0, spent=91.0, held=0.0, limit=100.0, kept=10.0
            ),
            (
                "the time of budget 'm' is over after 91.0 of 100.0 seconds, 10.0 of them kept for "
                "wrap-up; give it more with extend()"
            ),
        ),
        (
            UnknownPriceError("a/b"),
            (
                "model 'a/b' has no price; put it on the price list, or give the list another rule for "
                "unknown prices"
            ),
        ),
    ],
    ids=["tokens", "seconds", "price"],
)
def test_errors_say_what_to_do_and_pickle(error: RejectedError, message: str) -> None:
    """The errors are rejections, state facts and what to do in one sentence, and pickle."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert str(copy) == str(error) == message
    assert copy.__dict__ == error.__dict__
    assert copy.retry_after is None
