"""What a fleet may spend: nested budgets of tokens, money and time."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, final

from anyio import WouldBlock
from attrs import frozen

from orchestra._core.amounts import Amount, microdollars
from orchestra._core.budget import Account, BudgetTree, Hold
from orchestra._core.checks import check_callable, finite
from orchestra._core.cost_tree import CostTree, cost_tree
from orchestra._core.estimates import CostEstimator
from orchestra._core.prices import Price, PriceList, UnknownPrice
from orchestra._core.waiters import Priority
from orchestra._spending import Desk, Office, Request, Reservation, ended_error, reservation_of
from orchestra._waiting import checkpoint
from orchestra.events import BudgetChanged

__all__ = (
    "Amount",
    "Budget",
    "CostEstimator",
    "CostTree",
    "Price",
    "PriceList",
    "Reservation",
    "SpendingStatistics",
    "UnknownPrice",
)


@final
@frozen(kw_only=True)
class SpendingStatistics:
    """One budget's state; all figures include its descendants.

    Attributes:
        spent: What was used.
        held: What those in flight hold.
        limit_tokens: How many tokens there are; None: no limit.
        limit_dollars: How many dollars; None: no limit.
        reservations: How many are in flight.
        tasks_waiting: How many tasks wait for room in this budget, not in another.
        seconds_left: Until ordinary work may not begin any more; None: no limit.
    """

    spent: Amount
    held: Amount
    limit_tokens: int | None
    limit_dollars: Decimal | None
    reservations: int
    tasks_waiting: int
    seconds_left: float | None


@final
class Budget:
    """What a fleet may spend, in tokens, money and time; budgets nest.

    ::

        mission = Budget("mission", tokens=1_000_000, dollars=20, seconds=3600, wrap_up=0.05)
        task = mission.child("parser", tokens=200_000)
        async with task.lease(Amount(tokens=12_000)) as reservation:
            finished = await session.prompt(...)
            reservation.settle(prices.cost(model, finished.usage))

    A request reserves its estimate before it starts: in its own budget and in all above it, in one
    step, or in none. Afterwards it settles for what it has cost.

    **The bound.** What is spent and held stays within every limit as long as no estimate is too
    low. Since some are, requests start side by side only where their errors fit too, by the worst
    that was seen and at least by ``margin``: as the limit comes near fewer run at once, at last
    one alone. So all of them together exceed the limit by the error of one request, however many
    run side by side. A request that errs by more than was ever seen is beyond this promise;
    `Reservation.record` notices it while it runs.

    **Order.** First come, first served within a priority, as in `ConcurrencyController`, among
    those who wait for the same budget. Who waits for room in a child does not hold up the others.
    What can never fit is refused at once, and so is a waiter as soon as that is so when its turn
    has come.

    **Time.** ``seconds`` begin when the budget is made. Nothing can be reserved after they are
    over, nor after those of a budget above; what runs is not interrupted (see `seconds_left`).

    A task that holds a reservation while it waits for another can wait for itself for ever. A tree
    of budgets belongs to one event loop at a time and is not thread-safe.

    Args:
        name: For people, and the first part of its path; without ``/`` and ``#``.
        tokens: How many model tokens there are; None: no limit.
        dollars: How many US dollars there are; None: no limit.
        seconds: How long it lasts; None: for ever.
        wrap_up: Which share of all three only ``reserve(..., wrap_up=True)`` may use, to summarise
            and save what there is; from 0.0, below 1.0.
        margin: By which share a request is assumed to exceed its estimate at most, until worse is
            seen; 0.0 trusts the estimates.
        clock: Gives monotonic seconds.
        listener: Called with each `BudgetChanged` of the whole tree, in order; one that raises is
            logged and dropped.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range.
    """

    __slots__ = ("_account", "_children", "_desk", "_office")

    _account: Account
    _children: dict[str, Budget]
    _desk: Desk
    _office: Office

    def __init__(
        self,
        name: str = "budget",
        *,
        tokens: int | None = None,
        dollars: float | Decimal | None = None,
        seconds: float | None = None,
        wrap_up: float = 0.0,
        margin: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[BudgetChanged], object] | None = None,
    ) -> None:
        check_callable("clock", clock)
        if finite("margin", margin) < 0:
            raise ValueError(f"margin must be at least 0, not {margin!r}")
        account = _account(
            name,
            None,
            tokens=tokens,
            dollars=dollars,
            seconds=seconds,
            wrap_up=wrap_up,
            now=clock(),
        )
        self._office = Office(BudgetTree(account, margin), clock, listener)
        self._account = account
        self._desk = self._office.desks[account.path]
        self._children = {}

    def child(
        self,
        name: str,
        *,
        tokens: int | None = None,
        dollars: float | Decimal | None = None,
        seconds: float | None = None,
        wrap_up: float = 0.0,
    ) -> Budget:
        """Return the child of a name, made with these limits if there is none yet.

        Its limits may be larger than what its parent has left: the parent's count as well.

        Args:
            name: Unique among its siblings.
            tokens: As of the root.
            dollars: As of the root.
            seconds: From now.
            wrap_up: As of the root.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field is out of range.
        """
        child = self._children.get(name)
        if child is None:
            account = _account(
                name,
                self._account,
                tokens=tokens,
                dollars=dollars,
                seconds=seconds,
                wrap_up=wrap_up,
                now=self._office.clock(),
            )
            self._office.add(account)
            child = self._children[name] = _budget(self._office, account)
        return child

    # ---- reserving ----

    async def reserve(
        self,
        estimate: Amount,
        *,
        wrap_up: bool = False,
        priority: Priority = Priority.NORMAL,
        id: str | None = None,  # noqa: A002 - the word for it
    ) -> Reservation:
        """Hold an amount here and in every budget above; wait for room if need be.

        Always a checkpoint. Nothing is held while it waits.

        Args:
            estimate: What the work may cost.
            wrap_up: Whether it may use what is kept for wrap-up, here and above.
            priority: How urgent it is.
            id: Names the work in a journal, so that it can be settled by `settle` after a restart;
                without ``#``. One that is in flight gives its reservation again. None: a new one.

        Raises:
            BudgetExceededError: It can never fit, or the time is over.
            ValueError: The id is that of work that has ended, or for which another task waits.
        """
        request = self._request(estimate, wrap_up, priority, id)
        if isinstance(request, Hold):
            await checkpoint()
            return reservation_of(self._office, request)
        return reservation_of(self._office, await request.enter())

    def reserve_nowait(
        self,
        estimate: Amount,
        *,
        wrap_up: bool = False,
        priority: Priority = Priority.NORMAL,
        id: str | None = None,  # noqa: A002 - as above
    ) -> Reservation:
        """Hold an amount here and in every budget above, if nobody is to be waited for.

        Args:
            estimate: As for `reserve`.
            wrap_up: As for `reserve`.
            priority: As for `reserve`.
            id: As for `reserve`.

        Raises:
            anyio.WouldBlock: It would have to wait.
            BudgetExceededError: It can never fit, or the time is over.
            ValueError: The id is that of work that has ended, or for which another task waits.
        """
        request = self._request(estimate, wrap_up, priority, id)
        if isinstance(request, Hold):
            return reservation_of(self._office, request)
        if request.admit() is not None:
            raise WouldBlock
        return reservation_of(self._office, request.taken)

    @asynccontextmanager
    async def lease(
        self,
        estimate: Amount,
        *,
        wrap_up: bool = False,
        priority: Priority = Priority.NORMAL,
        id: str | None = None,  # noqa: A002 - as above
    ) -> AsyncIterator[Reservation]:
        """Reserve for the length of a block, which should settle.

        A block that does not, because it raised or was cancelled, has spent what it recorded.
        Entering is a checkpoint like `reserve`; leaving is none.

        Args:
            estimate: As for `reserve`.
            wrap_up: As for `reserve`.
            priority: As for `reserve`.
            id: As for `reserve`.

        Raises:
            BudgetExceededError: As `reserve`.
            ValueError: As `reserve`.
        """
        reservation = await self.reserve(estimate, wrap_up=wrap_up, priority=priority, id=id)
        try:
            yield reservation
        finally:
            reservation.release()

    def settle(self, id: str, actual: Amount) -> bool:  # noqa: A002 - as above
        """Settle by id, e.g. what a journal tells; no checkpoint.

        Args:
            id: Of a reservation in this tree of budgets. One that was never made, say because the
                snapshot is older, is spent in this budget.
            actual: What was used altogether.

        Returns:
            Whether this was the first settlement of the id; a repeated one changes nothing.
        """
        return self._office.settle_id(self._account, id, actual)

    def reservations(self) -> tuple[Reservation, ...]:
        """Return what is in flight here and below, e.g. after `restore`, to settle or release."""
        mine = f"{self._account.path}/"
        return tuple(
            reservation_of(self._office, hold)
            for hold in self._office.core.open.values()
            if f"{hold.account.path}/".startswith(mine)
        )

    def extend(
        self, *, tokens: int = 0, dollars: float | Decimal = 0, seconds: float = 0.0
    ) -> None:
        """Raise limits by so much; what has no limit stays without. Wakes those who fit now.

        Args:
            tokens: How many more.
            dollars: How many more.
            seconds: How many more.

        Raises:
            TypeError: One is no number.
            ValueError: One is negative.
        """
        more = Amount.of(tokens=tokens, dollars=dollars)
        if finite("seconds", seconds) < 0:
            raise ValueError(f"seconds must be at least 0, not {seconds!r}")
        account = self._account
        for meter, amount in (account.tokens, more.tokens), (account.micros, more.microdollars):
            if meter.limit is not None:
                meter.change(meter.limit + amount, account.wrap_up)
        if account.seconds is not None:
            account.seconds += seconds
        self._office.serve(self._desk.line)

    # ---- state ----

    @property
    def name(self) -> str:
        """Its name among its siblings."""
        return self._account.name

    @property
    def path(self) -> str:
        """The names from the root down, joined by ``/``."""
        return self._account.path

    def seconds_left(self, *, wrap_up: bool = False) -> float | None:
        """Return how long work may still go on; None: no limit. Below 0.0 when time is over.

        Args:
            wrap_up: Whether the share that is kept for wrap-up counts.
        """
        end = self._account.ends_at(wrap_up=wrap_up)
        return None if math.isinf(end) else end - self._office.clock()

    def tree(self) -> CostTree:
        """Return who has spent what, from here down."""
        return cost_tree(self._account)

    def statistics(self) -> SpendingStatistics:
        """Return the state of this budget."""
        account = self._account
        micros = account.micros.limit
        return SpendingStatistics(
            spent=account.spent(),
            held=account.held(),
            limit_tokens=account.tokens.limit,
            limit_dollars=None if micros is None else Decimal(micros).scaleb(-6),
            reservations=account.count,
            tasks_waiting=self._desk.queue.order.size,
            seconds_left=self.seconds_left(),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the whole tree as plain data, for a store: what is spent, held and used of time.

        Raises:
            RuntimeError: This is not the root.
        """
        if len(self._account.line) > 1:
            raise RuntimeError(f"{self.path!r} is part of a tree; take the snapshot of its root")
        return self._office.core.snapshot(self._office.clock())

    @staticmethod
    def restore(
        data: Mapping[str, Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[BudgetChanged], object] | None = None,
    ) -> Budget:
        """Make a tree of budgets from a snapshot.

        What was held is held again: settle or release it when it is known what became of the work
        (`reservations`, or ``reserve`` with the same id). The time in between does not count.

        Args:
            data: From `snapshot`.
            clock: Gives monotonic seconds.
            listener: As of the root.

        Raises:
            ValueError: The data is of another version.
        """
        core = BudgetTree.restore(dict(data), clock())
        return _budget(Office(core, clock, listener), next(iter(core.accounts.values())))

    def __repr__(self) -> str:
        account = self._account
        limits = [
            f"{meter.spent:,}+{meter.held:,}/{'-' if meter.limit is None else f'{meter.limit:,}'}"
            for meter in (account.tokens, account.micros)
        ]
        return (
            f"<Budget {self.path!r} tokens={limits[0]} microdollars={limits[1]} "
            f"waiting={self._desk.queue.order.size}>"
        )

    # ---- the inside ----

    def _request(
        self,
        estimate: Amount,
        wrap_up: bool,  # noqa: FBT001 - private
        priority: Priority,
        name: str | None,
    ) -> Request | Hold:
        if name is None:
            return Request(self._desk, estimate, wrap_up=wrap_up, priority=priority, name=None)
        core = self._office.core
        if (hold := core.open.get(name)) is not None:
            return hold
        if not name or "#" in name:
            raise ValueError(f"id must be a text without '#', not {name!r}")
        if core.is_closed(name):
            raise ended_error(name)
        if name in self._office.awaited:
            raise ValueError(f"another task waits to reserve {name!r}; let one task do that work")
        return Request(self._desk, estimate, wrap_up=wrap_up, priority=priority, name=name)


def _budget(office: Office, account: Account) -> Budget:
    budget = object.__new__(Budget)
    budget._office = office
    budget._account = account
    budget._desk = office.desks[account.path]
    budget._children = {name: _budget(office, child) for name, child in account.children.items()}
    return budget


def _account(
    name: str,
    parent: Account | None,
    *,
    tokens: int | None,
    dollars: float | Decimal | None,
    seconds: float | None,
    wrap_up: float,
    now: float,
) -> Account:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    if not name or "/" in name or "#" in name:
        raise ValueError(f"name must be a text without '/' and '#', not {name!r}")
    if seconds is not None and finite("seconds", seconds) <= 0:
        raise ValueError(f"seconds must be above 0 seconds, not {seconds!r}")
    if not 0 <= finite("wrap_up", wrap_up) < 1:
        raise ValueError(f"wrap_up must be at least 0 and below 1, not {wrap_up!r}")
    return Account(
        name,
        parent,
        tokens=None if tokens is None else Amount(tokens=tokens).tokens,
        micros=None if dollars is None else microdollars("dollars", dollars),
        seconds=seconds,
        wrap_up=wrap_up,
        started=now,
    )


# Users import these from here or from `orchestra`; where they are written is nobody's business.
for _public in (Amount, CostEstimator, CostTree, Price, PriceList, Reservation):
    _public.__module__ = __name__
