"""Who gets room in a budget, and when; every way in which a waiter can go away."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import anyio
import pytest
from anyio import CancelScope, WouldBlock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import Amount, Budget, Priority, Reservation
from orchestra.errors import BudgetExceededError
from orchestra.testing import Job, play, random_schedule, settle, virtual_time_options


def tokens(count: int) -> Amount:
    """An amount of tokens."""
    return Amount(tokens=count)


class Asker:
    """A task that reserves, and keeps what it gets."""

    def __init__(
        self, budget: Budget, amount: Amount, priority: Priority = Priority.NORMAL
    ) -> None:
        self.budget = budget
        self.amount = amount
        self.priority = priority
        self.scope = CancelScope()
        self.got: Reservation | None = None
        self.refused: BudgetExceededError | None = None
        self.is_over = False

    async def run(self) -> None:
        try:
            with self.scope:
                self.got = await self.budget.reserve(self.amount, priority=self.priority)
        except BudgetExceededError as exc:
            self.refused = exc
        self.is_over = True

    @property
    def is_in(self) -> bool:
        return self.got is not None

    @property
    def is_parked(self) -> bool:
        return not self.is_over


async def start(tasks: anyio.abc.TaskGroup, *askers: Asker) -> None:
    """Start askers one after the other, until each has what it wants or waits."""
    for asker in askers:
        tasks.start_soon(asker.run)
        await settle()


async def test_room_goes_to_those_who_wait_in_order() -> None:
    """Waiters are let in first come first served, as far as there is room, and not past another."""
    budget = Budget(tokens=10, margin=0)
    first = await budget.reserve(tokens(4))
    second = await budget.reserve(tokens(4))
    large, small = Asker(budget, tokens(6)), Asker(budget, tokens(1))
    async with anyio.create_task_group() as tasks:
        await start(tasks, large, small)
        assert large.is_parked
        assert small.is_parked  # one would fit, but it is not its turn
        assert budget.statistics().tasks_waiting == 2
        with pytest.raises(WouldBlock):
            budget.reserve_nowait(tokens(1))
        first.settle(tokens(0))
        await settle()
        assert large.is_in
        assert small.is_parked
        second.release()
        await settle()
        assert small.is_in


async def test_urgent_requests_go_first() -> None:
    """A request of HIGH priority goes before those of NORMAL and LOW that came earlier."""
    budget = Budget(tokens=10, margin=0)
    holder = await budget.reserve(tokens(10))
    low = Asker(budget, tokens(10), Priority.LOW)
    normal = Asker(budget, tokens(10))
    high = Asker(budget, tokens(10), Priority.HIGH)
    async with anyio.create_task_group() as tasks:
        await start(tasks, low, normal, high)
        for asker in (high, normal, low):
            assert not asker.is_in
            holder.release()
            await settle()
            assert asker.got is not None
            holder = asker.got


async def test_urgent_newcomers_pass_a_waiter_four_times() -> None:
    """HIGH requests that fit go past a NORMAL one that does not, but not for ever."""
    budget = Budget(tokens=20, margin=0)
    await budget.reserve(tokens(5))
    large = Asker(budget, tokens(18))
    async with anyio.create_task_group() as tasks:
        await start(tasks, large)
        for _ in range(4):
            budget.reserve_nowait(tokens(1), priority=Priority.HIGH).release()
        with pytest.raises(WouldBlock):
            budget.reserve_nowait(tokens(1), priority=Priority.HIGH)
        tasks.cancel_scope.cancel()


async def test_a_full_task_does_not_hold_up_another() -> None:
    """Who waits for room in one child does not keep a sibling's request from the parent's room."""
    mission = Budget(tokens=100, margin=0)
    full, free = mission.child("full", tokens=10), mission.child("free")
    held = await full.reserve(tokens(10))
    waiter = Asker(full, tokens(5))
    async with anyio.create_task_group() as tasks:
        await start(tasks, waiter)
        assert waiter.is_parked
        (await free.reserve(tokens(80))).release()
        held.release()
        await settle()
        assert waiter.is_in


async def test_who_waits_for_the_mission_is_not_overtaken_by_a_task() -> None:
    """A large request that waits for the parent's room goes before later small ones of any child."""
    mission = Budget(tokens=100, margin=0)
    one, other = mission.child("one"), mission.child("other")
    held = await one.reserve(tokens(60))
    large, small = Asker(one, tokens(90)), Asker(other, tokens(10))
    async with anyio.create_task_group() as tasks:
        await start(tasks, large, small)
        assert large.is_parked
        assert small.is_parked
        held.release()
        await settle()
        assert large.is_in
        assert small.is_in


async def test_a_waiter_moves_to_where_room_is_short_now() -> None:
    """A waiter whose task has room again waits on for the mission's, and then gets it."""
    mission = Budget(tokens=100, margin=0)
    task, other = mission.child("task", tokens=50), mission.child("other")
    mine = await task.reserve(tokens(40))
    waiter = Asker(task, tokens(30))
    async with anyio.create_task_group() as tasks:
        await start(tasks, waiter)
        assert task.statistics().tasks_waiting == 1
        theirs = await other.reserve(tokens(60))
        before_it = Asker(other, tokens(45))
        await start(tasks, before_it)
        assert mission.statistics().tasks_waiting == 1
        mine.settle(tokens(20))  # the task has room again, the mission has 20
        await settle()
        assert task.statistics().tasks_waiting == 0
        assert mission.statistics().tasks_waiting == 2
        theirs.settle(tokens(5))
        await settle()
        assert before_it.is_in
        assert waiter.is_in
    assert mission.statistics().held == tokens(75)


async def test_a_moved_waiter_can_be_cancelled() -> None:
    """A waiter that was sent on to another queue leaves that one when it is cancelled."""
    mission = Budget(tokens=100, margin=0)
    task = mission.child("task", tokens=50)
    mine = await task.reserve(tokens(40))
    waiter = Asker(task, tokens(30))
    async with anyio.create_task_group() as tasks:
        await start(tasks, waiter)
        theirs = await mission.reserve(tokens(60))
        mine.settle(tokens(20))
        await settle()
        assert mission.statistics().tasks_waiting == 1
        waiter.scope.cancel()
        await settle()
        assert mission.statistics().tasks_waiting == 0
        theirs.release()
    assert mission.statistics().held == tokens(0)


async def test_fan_out_narrows_as_the_limit_comes_near() -> None:
    """Requests run side by side only where their errors fit too, and alone up to the limit."""
    budget = Budget(tokens=100)  # a request may cost twice its estimate
    first = budget.reserve_nowait(tokens(30))
    second = budget.reserve_nowait(tokens(30))
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(30))
    first.settle(tokens(30))
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(20))
    second.settle(tokens(30))
    budget.reserve_nowait(tokens(40)).settle(tokens(40))
    assert budget.statistics().spent == tokens(100)


async def test_errors_that_were_seen_are_expected_again() -> None:
    """One request that cost ten times its estimate makes room for the next ones' errors."""
    budget = Budget(tokens=1000, margin=0)
    (await budget.reserve(tokens(10))).settle(tokens(100))
    budget.reserve_nowait(tokens(400))
    budget.reserve_nowait(tokens(300))  # 400 + 90 + 300 of the 900 left
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(100))


async def test_errors_count_in_money_as_in_tokens() -> None:
    """A request that cost ten times its dollars makes room for the next ones' errors too."""
    budget = Budget(dollars=1000, margin=0)
    budget.reserve_nowait(Amount.of(dollars=10)).settle(Amount.of(dollars=100))
    budget.reserve_nowait(Amount.of(dollars=400))
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(Amount.of(dollars=411))
    budget.reserve_nowait(Amount.of(dollars=410))


async def test_an_error_is_known_before_its_work_is_over() -> None:
    """What a running request records above its estimate is expected of others at once."""
    budget = Budget(tokens=1000, margin=0)
    running = budget.reserve_nowait(tokens(10))
    assert running.record(tokens(100))
    assert running.held == tokens(200)
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(711))
    budget.reserve_nowait(tokens(710))


async def test_work_that_was_thought_to_be_free_can_err() -> None:
    """Where an estimate was 0 there is no share to go by: the worst that was seen is expected."""
    budget = Budget(tokens=100)
    budget.reserve_nowait(tokens(0)).settle(tokens(30))
    budget.reserve_nowait(tokens(0))
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(50))
    budget.reserve_nowait(tokens(40))


# ---- refusals ----


async def test_what_can_never_fit_is_refused_at_once() -> None:
    """A request above what is left after all that is held came back does not wait."""
    mission = Budget("mission", tokens=100, margin=0)
    task = mission.child("task", dollars=0.5)
    mission.reserve_nowait(tokens(60)).settle(tokens(70))
    held = mission.reserve_nowait(tokens(10))
    with pytest.raises(BudgetExceededError) as caught:
        await task.reserve(tokens(31))
    error = caught.value
    assert (error.budget, error.resource, error.asked) == ("mission", "tokens", 31)
    assert (error.spent, error.held, error.limit) == (70, 10, 100)
    with pytest.raises(BudgetExceededError, match=r"'mission/task' cannot pay 0\.6.* dollars"):
        task.reserve_nowait(Amount.of(dollars=0.6))
    held.release()
    task.reserve_nowait(tokens(30))


async def test_a_waiter_that_can_no_longer_fit_is_refused() -> None:
    """A settlement above its estimate refuses a waiter for whom there is no room any more."""
    budget = Budget(tokens=100, margin=0)
    holder = await budget.reserve(tokens(80))
    hopeless, modest = Asker(budget, tokens(50)), Asker(budget, tokens(5))
    async with anyio.create_task_group() as tasks:
        await start(tasks, hopeless, modest)
        holder.settle(tokens(90))
        await settle()
        assert hopeless.refused is not None
        assert hopeless.refused.spent == 90
        assert modest.is_in
    assert budget.statistics().held == tokens(5)


async def test_after_an_overshoot_everything_is_refused() -> None:
    """More than the estimate is recorded as it is, and then not one token more is given."""
    budget = Budget(tokens=100, margin=0)
    (await budget.reserve(tokens(100))).settle(tokens(130))
    assert budget.statistics().spent == tokens(130)
    for amount in (tokens(0), tokens(1)):
        with pytest.raises(BudgetExceededError):
            await budget.reserve(amount)


async def test_only_wrap_up_gets_at_what_is_kept() -> None:
    """Ordinary work stops before the share that is kept, which wrap-up may use to the end."""
    budget = Budget(tokens=1000, wrap_up=0.1, margin=0)
    budget.reserve_nowait(tokens(850)).settle(tokens(850))
    with pytest.raises(BudgetExceededError, match="of 1,000, 100 of them kept for wrap-up"):
        await budget.reserve(tokens(51))
    task = budget.child("task")
    (await task.reserve(tokens(150), wrap_up=True)).settle(tokens(150))
    with pytest.raises(BudgetExceededError):
        await budget.reserve(tokens(1), wrap_up=True)


@pytest.mark.parametrize(("limit", "kept"), [(70, 7), (71, 8), (5, 1), (0, 0)])
async def test_the_share_for_wrap_up_is_exact(limit: int, kept: int) -> None:
    """What is kept is the share of the limit, rounded up, also after the limit was raised."""
    budget = Budget(tokens=0, wrap_up=0.1, margin=0)
    budget.extend(tokens=limit)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve_nowait(tokens(limit - kept + 1))
    assert caught.value.kept == kept
    budget.reserve_nowait(tokens(limit - kept))


async def test_more_budget_wakes_those_who_fit_now() -> None:
    """A limit that is raised lets in who waits for it, and who was refused before."""
    budget = Budget(tokens=10, dollars=1, margin=0)
    with pytest.raises(BudgetExceededError):
        await budget.reserve(tokens(30))
    await budget.reserve(Amount.of(tokens=10, dollars=1))
    waiter = Asker(budget, tokens(10))
    async with anyio.create_task_group() as tasks:
        await start(tasks, waiter)
        budget.extend(tokens=5)
        await settle()
        assert waiter.is_parked
        budget.extend(tokens=5, dollars=1)
        await settle()
        assert waiter.is_in
    assert budget.statistics().limit_tokens == 20
    assert budget.statistics().limit_dollars == 2


# ---- time ----


async def test_time_ends_with_the_budget_above() -> None:
    """Nothing is reserved after the earliest deadline on the way up; wrap-up has its share more."""
    mission = Budget("mission", seconds=100.0, wrap_up=0.1, clock=anyio.current_time)
    task = mission.child("task", seconds=1000.0)
    await anyio.sleep(89.0)
    assert task.seconds_left() == pytest.approx(1.0)
    assert task.seconds_left(wrap_up=True) == pytest.approx(11.0)
    await task.reserve(tokens(1))
    await anyio.sleep(2.0)
    with pytest.raises(BudgetExceededError, match="the time of budget 'mission' is over after 91"):
        await task.reserve(tokens(1))
    await task.reserve(tokens(1), wrap_up=True)
    await anyio.sleep(10.0)
    with pytest.raises(BudgetExceededError) as caught:
        task.reserve_nowait(tokens(1), wrap_up=True)
    assert caught.value.resource == "seconds"
    mission.extend(seconds=50)
    task.reserve_nowait(tokens(1))


async def test_a_waiter_is_refused_when_its_time_is_over() -> None:
    """Waiting ends at the deadline, unless that was put off meanwhile; nothing is left behind."""
    budget = Budget(tokens=10, seconds=60.0, clock=anyio.current_time)
    holder = await budget.reserve(tokens(10))
    begin = anyio.current_time()
    waiter = Asker(budget, tokens(10))
    async with anyio.create_task_group() as tasks:
        await start(tasks, waiter)
        await anyio.sleep(30.0)
        budget.extend(seconds=60.0)
        await anyio.sleep(60.0)
        assert waiter.is_parked
    assert anyio.current_time() - begin == pytest.approx(120.0)
    assert waiter.refused is not None
    assert waiter.refused.resource == "seconds"
    assert budget.statistics().tasks_waiting == 0
    holder.release()
    assert budget.statistics().held == tokens(0)


# ---- ids ----


async def test_one_task_waits_for_an_id() -> None:
    """A second request for an id that is waited for is refused, until the first one gives up."""
    budget = Budget(tokens=10, margin=0)
    await budget.reserve(tokens(10))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(budget.reserve, tokens(5), id="job"))
        await settle()
        with pytest.raises(ValueError, match="another task waits to reserve 'job'"):
            await budget.reserve(tokens(5), id="job")
        tasks.cancel_scope.cancel()
    with pytest.raises(WouldBlock):
        budget.reserve_nowait(tokens(5), id="job")


async def test_work_that_was_settled_while_it_waited_is_not_done() -> None:
    """A waiter whose id is settled by somebody else is refused when its turn comes."""
    budget = Budget(tokens=10, margin=0)
    holder = await budget.reserve(tokens(10))
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(ValueError, match="'job' has ended"):
                await budget.reserve(tokens(5), id="job")

        tasks.start_soon(wait)
        await settle()
        assert budget.settle("job", tokens(1))
        holder.settle(tokens(0))
    assert not budget.settle("job", tokens(1))
    assert budget.statistics().spent == tokens(1)
    assert budget.statistics().held == tokens(0)


# ---- cancellation ----


async def test_cancelled_before_the_start() -> None:
    """A request of a cancelled task takes nothing, though there is room."""
    budget = Budget(tokens=10)
    with CancelScope() as scope:
        scope.cancel()
        await budget.reserve(tokens(10))
    assert scope.cancelled_caught
    assert budget.statistics().held == tokens(0)
    budget.reserve_nowait(tokens(10))


async def test_cancelled_while_parked() -> None:
    """A waiter that is cancelled leaves its place, and those behind it move up at once."""
    budget = Budget(tokens=10, margin=0)
    await budget.reserve(tokens(6))
    large, small = Asker(budget, tokens(8)), Asker(budget, tokens(4))
    async with anyio.create_task_group() as tasks:
        await start(tasks, large, small)
        assert small.is_parked
        large.scope.cancel()
        await settle()
        assert small.is_in
    assert budget.statistics().held == tokens(10)


@pytest.mark.parametrize("is_cancelled_first", [True, False])
async def test_cancelled_in_the_moment_of_the_grant(*, is_cancelled_first: bool) -> None:
    """What is granted to a task that is cancelled in the same step is given to the next one."""
    budget = Budget(tokens=10, margin=0)
    holder = await budget.reserve(tokens(10))
    unlucky, lucky = Asker(budget, tokens(10)), Asker(budget, tokens(10))
    async with anyio.create_task_group() as tasks:
        await start(tasks, unlucky, lucky)
        if is_cancelled_first:
            unlucky.scope.cancel()
        holder.settle(tokens(0))
        unlucky.scope.cancel()
        await settle()
        if unlucky.got is not None:  # on trio nobody is cancelled who was woken before
            unlucky.got.release()
            await settle()
        assert lucky.is_in
    assert budget.statistics().held == tokens(10)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_in_the_moment_of_the_grant() -> None:
    """An asyncio task that is cancelled after the grant, before it runs, gives to the next one."""
    budget = Budget(tokens=10, margin=0)
    holder = await budget.reserve(tokens(10))
    unlucky = asyncio.create_task(budget.reserve(tokens(10)))
    await settle()
    lucky = asyncio.create_task(budget.reserve(tokens(10)))
    await settle()
    holder.settle(tokens(0))
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    assert (await lucky).is_open
    assert budget.statistics().held == tokens(10)
    assert budget.statistics().reservations == 1


async def test_a_block_that_is_cancelled_gives_back() -> None:
    """A lease that is left without a settlement has spent what was recorded, and holds nothing."""
    budget = Budget(tokens=100)
    with CancelScope() as scope:
        async with budget.lease(tokens(50)) as reservation:
            reservation.record(tokens(20))
            scope.cancel()
            await anyio.sleep(1)
    assert budget.statistics().spent == tokens(20)
    with pytest.raises(LookupError):
        async with budget.lease(tokens(50)):
            raise LookupError
    async with budget.lease(tokens(50)) as reservation:
        reservation.settle(tokens(60))
    assert budget.statistics().spent == tokens(80)
    assert budget.statistics().held == tokens(0)


@pytest.mark.parametrize("id", [None, "again"])
async def test_reserving_is_a_checkpoint(id: str | None) -> None:  # noqa: A002 - as the API says
    """Reserving lets others run, also when there is room and when it was reserved before."""
    budget = Budget(tokens=10)
    if id is not None:
        budget.reserve_nowait(tokens(1), id=id)
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(2):  # trio may run the two tasks of a batch in any order
            await budget.reserve(tokens(1), id=id)
        assert seen == ["other"]


# ---- any order ----


def budgets() -> tuple[Budget, list[Budget]]:
    """A small tree, and the budgets of it that are asked."""
    mission = Budget("mission", tokens=40, wrap_up=0.1)
    tasks = [mission.child("a", tokens=20), mission.child("b", tokens=30)]
    return mission, [mission, *tasks, *(task.child("x") for task in tasks)]


def nobody_waits_in_vain(budget: Budget) -> None:
    """Assert that the first in each queue is there because that budget has no room for it."""
    for desk in budget._office.desks.values():
        request = desk.queue.next()
        if request is not None:
            assert request.refusal() is None
            ask, is_wrap_up = request._estimate, request._wrap_up
            assert not desk.office.core.fits(desk.account, ask, wrap_up=is_wrap_up)
            assert desk.account.count > 0  # somebody will give back


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_schedule_keeps_the_limits_and_forgets_nobody(backend: str, seed: int) -> None:
    """After any starts, ends and cancellations no limit is broken and nobody waits beside room."""
    rng = random.Random(seed)
    mission, places = budgets()

    async def body(job: Job) -> None:
        budget = rng.choice(places)
        priority = rng.choice(list(Priority))
        estimate, is_wrap_up = rng.randint(0, 12), rng.random() < 0.2
        try:
            async with budget.lease(
                tokens(estimate), wrap_up=is_wrap_up, priority=priority
            ) as reservation:
                await job.work()
                reservation.settle(tokens(rng.randint(0, estimate)))
        except BudgetExceededError:
            pass

    def check() -> None:
        nobody_waits_in_vain(mission)
        for budget in places:
            now = budget.statistics()
            if now.limit_tokens is not None:
                assert now.spent.tokens + now.held.tokens <= now.limit_tokens

    async def main() -> None:
        await play(random_schedule(seed, jobs=14, steps=60), body, check=check)
        now = mission.statistics()
        assert now.held == tokens(0)
        assert now.reservations == 0

    anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))
