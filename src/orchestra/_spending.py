"""Where requests for a budget's room are let in, put off or refused; the shell of the pure core.

A request waits in one queue at a time: that of the first budget, from the root down, that has no
room for it or in which others are before it. When that budget has room and another one has not,
the request moves on to that one's queue. So who waits for room in one task never holds up another
task, and who waits for room in the mission is not overtaken by any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final, final

import anyio

from orchestra._core.amounts import Amount
from orchestra._core.budget import Account, BudgetTree, Hold
from orchestra._core.waiters import Priority
from orchestra._listeners import Teller
from orchestra._waiting import Order, WaitQueue, checkpoint, park
from orchestra.errors import BudgetExceededError
from orchestra.events import BudgetAction, BudgetChanged

__all__ = ("Desk", "Office", "Request", "Reservation", "ended_error", "reservation_of")


@final
class Office:
    """What all budgets of a tree share.

    Args:
        core: The tree.
        clock: Gives monotonic seconds.
        listener: Told of everything.

    Attributes:
        desks: One for each account, by path.
        awaited: The ids for which somebody waits.
    """

    def __init__(
        self,
        core: BudgetTree,
        clock: Callable[[], float],
        listener: Callable[[BudgetChanged], object] | None,
    ) -> None:
        self.core: Final = core
        self.clock: Final = clock
        self.desks: dict[str, Desk] = {}
        self.awaited: set[str] = set()
        self._is_told = listener is not None
        self._teller: Final[Teller[BudgetChanged]] = Teller(listener)
        for account in core.accounts.values():
            self.add(account)

    def add(self, account: Account) -> Desk:
        """Make the desk of a new account."""
        self.core.accounts[account.path] = account
        desk = self.desks[account.path] = Desk(self, account)
        return desk

    def settle(self, hold: Hold, actual: Amount) -> bool:
        """Settle a hold; see ``Reservation.settle``."""
        is_first = self.core.settle(hold, actual)
        if is_first:
            self._ended(hold, BudgetAction.SETTLED, actual.or_more(hold.used))
        return is_first

    def settle_id(self, account: Account, name: str, actual: Amount) -> bool:
        """Settle by id; see ``Budget.settle``."""
        hold = self.core.find(name)
        if hold is not None:
            return self.settle(hold, actual)
        if not self.core.spend(account, name, actual):
            return False
        self.tell(account, BudgetAction.SETTLED, name, actual)
        self.serve(self.desks[account.path].line)
        return True

    def release(self, hold: Hold) -> None:
        """Release a hold; see ``Reservation.release``."""
        if self.core.release(hold):
            self._ended(hold, BudgetAction.RELEASED, hold.used)

    def undo(self, hold: Hold) -> None:
        """Take back a hold whose task was cancelled before it could know of it."""
        self.core.undo(hold)
        self._ended(hold, BudgetAction.RELEASED, hold.used)

    def _ended(self, hold: Hold, action: BudgetAction, amount: Amount) -> None:
        self.tell(hold.account, action, hold.id, amount)
        self.serve(self.desks[hold.account.path].line)

    def serve(self, desks: Iterable[Desk]) -> None:
        """Let in whom these desks can let in now, and tell what has happened."""
        for desk in desks:
            if desk.queue.order.size:
                desk.serve()
        self.deliver()

    def tell(self, account: Account, action: BudgetAction, name: str, amount: Amount) -> None:
        """Keep an event until `deliver`."""
        if self._is_told:
            self._teller.put(
                BudgetChanged(
                    budget=account.path,
                    action=action,
                    reservation=name,
                    tokens=amount.tokens,
                    microdollars=amount.microdollars,
                )
            )

    def deliver(self) -> None:
        """Call the listener."""
        if self._is_told:
            self._teller.deliver()


@final
class Desk:
    """Where requests wait for room in one account.

    Attributes:
        office: What it shares with the other desks.
        account: Whose room it is.
        line: The desks from the root's down to this one.
        queue: Who waits here.
    """

    __slots__ = ("account", "line", "office", "queue")

    def __init__(self, office: Office, account: Account) -> None:
        self.office: Final = office
        self.account: Final = account
        self.line: Final[tuple[Desk, ...]] = (
            *(office.desks[above.path] for above in account.line[:-1]),
            self,
        )
        self.queue: Final[WaitQueue[Request]] = WaitQueue()

    def serve(self) -> None:
        """Let in those who wait here and fit; send on those whom another account holds up."""
        queue = self.queue
        while (request := queue.next()) is not None:
            request.error = request.refusal()
            if request.error is not None:
                queue.wake_next(granted=False)
                continue
            obstacle = request.obstacle(here=self)
            if obstacle is self:
                return
            if obstacle is None:
                request.take(here=self)
                queue.wake_next()
            else:
                request.move(self, obstacle)


@final
class Request:
    """One request for an amount.

    Args:
        desk: Who asks.
        estimate: How much.
        wrap_up: Whether it may use what is kept for wrap-up.
        priority: How urgent it is.
        name: The id that it shall have; None: a new one.

    Attributes:
        error: Why it was refused while it waited.
    """

    __slots__ = (
        "_desk",
        "_estimate",
        "_hold",
        "_name",
        "_orders",
        "_priority",
        "_wrap_up",
        "error",
    )

    def __init__(
        self,
        desk: Desk,
        estimate: Amount,
        *,
        wrap_up: bool,
        priority: Priority,
        name: str | None,
    ) -> None:
        self._desk = desk
        self._estimate = estimate
        self._wrap_up = wrap_up
        self._priority = priority
        self._name = name
        self._hold: Hold | None = None
        self._orders: list[Order[Request]] = []
        self.error: BudgetExceededError | None = None

    async def enter(self) -> Hold:
        """Take the amount, after waiting if need be. Always a checkpoint.

        Raises:
            BudgetExceededError: It can never fit, or the time is over.
            ValueError: Its id was settled while it waited.
        """
        obstacle = self.admit()
        if obstacle is None:
            hold = self.taken
            try:
                await checkpoint()
            except BaseException:
                self._desk.office.undo(hold)
                raise
            return hold
        office, name = self._desk.office, self._name or ""
        office.awaited.add(name)
        try:
            while obstacle is not None:
                await self._wait(obstacle)
                # Without a hold the time is over, or was extended meanwhile.
                obstacle = self.admit() if self._hold is None else None
        finally:
            office.awaited.discard(name)
        if office.core.was_told(name):
            office.undo(self.taken)
            raise ended_error(name)
        return self.taken

    async def _wait(self, obstacle: Desk) -> None:
        desk = self._desk
        self._tell(BudgetAction.WAITING)
        desk.office.deliver()
        self._orders[:] = [obstacle.queue.order]
        left = desk.account.ends_at(wrap_up=self._wrap_up) - desk.office.clock()
        with anyio.move_on_after(left):
            await park(self._orders, self, self._priority, self._returned)
        if self.error is not None:
            error, self.error = self.error, None
            try:
                self._refuse(error)
            finally:
                del error  # which refers to this frame

    def _returned(self, was_granted: bool) -> None:  # noqa: FBT001 - called by `park` alone
        office, hold, self._hold = self._desk.office, self._hold, None
        if was_granted and hold is not None:
            office.undo(hold)
        else:
            office.serve(self._desk.line)

    def admit(self) -> Desk | None:
        """Take the amount if it is free.

        Returns:
            None when it was taken, else where to wait.

        Raises:
            BudgetExceededError: It can never fit, or the time is over.
        """
        obstacle = self.obstacle()
        if obstacle is not None or self._desk.account.is_timed:
            error = self.refusal()
            if error is not None:
                self._refuse(error)
        if obstacle is None:
            self.take()
            self._desk.office.deliver()
        return obstacle

    @property
    def taken(self) -> Hold:
        """What was taken."""
        if self._hold is None:
            raise AssertionError("unreachable")
        return self._hold

    def obstacle(self, *, here: Desk | None = None) -> Desk | None:
        """Return the first desk, from the root down, at which it cannot pass now.

        Args:
            here: Where it is next.
        """
        ask, wrap_up, fits = self._estimate, self._wrap_up, self._desk.office.core.fits
        for desk in self._desk.line:
            if not fits(desk.account, ask, wrap_up=wrap_up):
                return desk
            queue = desk.queue
            if queue.order.size and desk is not here and not queue.lets_pass(self._priority, self):
                return desk
        return None

    def take(self, *, here: Desk | None = None) -> None:
        """Hold the amount; to be called when there is no obstacle.

        Args:
            here: Where it is next.
        """
        desk, core = self._desk, self._desk.office.core
        name = core.new_id(desk.account) if self._name is None else self._name
        self._hold = core.hold(desk.account, self._estimate, name, wrap_up=self._wrap_up)
        self._tell(BudgetAction.HELD)
        for each in desk.line:
            if each.queue.order.size and each is not here:
                each.queue.let_pass(self._priority, self)

    def move(self, here: Desk, there: Desk) -> None:
        """Go from the head of one queue to the end of another."""
        head = here.queue.order.next()
        if head is None:
            raise AssertionError("unreachable")
        waiter: Any = head[0]
        here.queue.order.discard(waiter)
        there.queue.order.add(waiter, self._priority, self)
        self._orders[:] = [there.queue.order]

    def refusal(self) -> BudgetExceededError | None:
        """Tell why it can never be let in; None if it can."""
        desk, wrap_up = self._desk, self._wrap_up
        if desk.account.is_timed:
            now = desk.office.clock()
            if now >= desk.account.ends_at(wrap_up=wrap_up):
                return _time_is_over(desk.account, now, wrap_up=wrap_up)
        shortage = desk.office.core.shortage(desk.account, self._estimate, wrap_up=wrap_up)
        if shortage is None:
            return None
        account, resource = shortage
        is_money = resource == "dollars"
        meter = account.micros if is_money else account.tokens
        asked = self._estimate.microdollars if is_money else self._estimate.tokens
        kept = 0 if wrap_up else meter.kept
        figures: list[Any] = [asked, meter.spent, meter.held, meter.limit, kept]
        if is_money:
            figures = [Decimal(figure).scaleb(-6) for figure in figures]
        return BudgetExceededError(
            account.path,
            resource,
            asked=figures[0],
            spent=figures[1],
            held=figures[2],
            limit=figures[3],
            kept=figures[4],
        )

    def _refuse(self, error: BudgetExceededError) -> None:
        self._tell(BudgetAction.REFUSED)
        self._desk.office.deliver()
        raise error

    def _tell(self, action: BudgetAction) -> None:
        name = self._name or ("" if self._hold is None else self._hold.id)
        self._desk.office.tell(self._desk.account, action, name, self._estimate)


@final
class Reservation:
    """The right to spend an amount; comes from a `Budget` only.

    It ends once, with `settle` or `release`; what comes after does nothing, but for a `settle`
    after a `release`, which counts: what was paid is paid. One that is forgotten stays held, since
    nobody knows whether its work still runs.

    Attributes:
        id: Unique in the tree of budgets.
    """

    __slots__ = ("_hold", "_office", "id")

    _hold: Hold
    _office: Office
    id: str

    def __init__(self) -> None:
        raise TypeError("a Reservation comes from a Budget: reserve one")

    @property
    def budget(self) -> str:
        """The path of the budget whose it is."""
        return self._hold.account.path

    @property
    def estimate(self) -> Amount:
        """What the work was expected to cost."""
        return self._hold.estimate

    @property
    def held(self) -> Amount:
        """What is held for it now."""
        return self._hold.held

    @property
    def is_open(self) -> bool:
        """Whether it was neither settled nor released."""
        return self._hold.is_open

    def record(self, so_far: Amount, *, steps: int = 1) -> bool:
        """Tell what the work has used while it goes on; no checkpoint.

        What is held grows with it, so that others cannot take what is gone already. Beyond the
        estimate each step asks for one more of its size: work that stops when it is told to stays
        within the budget, if its steps do not grow.

        Args:
            so_far: What was used altogether, not since the last call.
            steps: For how many such steps there shall be room. 2: the next step has begun when this
                is told, and cannot be kept from its end.

        Returns:
            Whether there is room for so many more such steps; if not, or if the reservation has
            ended, the work shall stop.
        """
        return self._office.core.record(self._hold, so_far, steps)

    def settle(self, actual: Amount) -> bool:
        """Say what the work has cost, and give back the rest; no checkpoint.

        More than the estimate is recorded as it is. What was recorded before is the least.

        Args:
            actual: What was used altogether.

        Returns:
            Whether this was the first settlement; a repeated one changes nothing.
        """
        return self._office.settle(self._hold, actual)

    def release(self) -> None:
        """Give back what is held; only what was recorded is spent. No checkpoint."""
        self._office.release(self._hold)

    def __repr__(self) -> str:
        state = f"holds {self.held}" if self.is_open else "ended"
        return f"<Reservation {self.id!r} {state}>"


def reservation_of(office: Office, hold: Hold) -> Reservation:
    """Return what a user gets of a hold."""
    reservation = object.__new__(Reservation)
    reservation._office = office
    reservation._hold = hold
    reservation.id = hold.id
    return reservation


def ended_error(name: str) -> ValueError:
    """Return what meets a request whose id was used up."""
    return ValueError(f"reservation {name!r} has ended; give new work an id of its own")


def _time_is_over(account: Account, now: float, *, wrap_up: bool) -> BudgetExceededError:
    over = min(account.line, key=lambda each: each.own_end(wrap_up=wrap_up))
    limit = over.seconds or 0.0
    return BudgetExceededError(
        over.path,
        "seconds",
        asked=0.0,
        spent=now - over.started,
        held=0.0,
        limit=limit,
        kept=0.0 if wrap_up else limit * over.wrap_up,
    )
