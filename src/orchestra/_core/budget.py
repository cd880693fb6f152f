"""Nested budgets: what is spent, what is held, and who may still begin. Pure: no clock, no tasks.

A request holds its estimate in its own account and in every account above before it starts, and
settles afterwards with what it really cost. Since an estimate may be too low, requests that run
side by side could all be wrong at once. So nobody starts beside others unless their worst errors
fit too: with ``others`` in flight, a newcomer is let in when

    spent + held + margin(others) + estimate <= limit

where the margin is what the others may cost beyond their estimates, by the worst that has been
seen. As the limit comes near, fewer run side by side and at last one alone. What is spent in the
end then exceeds the limit by the error of the one that was let in last, and by no other's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, final

from orchestra._core.amounts import NOTHING, Amount, Meter, Overruns

__all__ = ("Account", "BudgetTree", "Hold", "Resource")

_VERSION = 1

Resource: TypeAlias = Literal["tokens", "dollars"]


@final
class Account:
    """One budget of a tree.

    Attributes:
        name: Its name among its siblings.
        path: The names from the root down, joined by ``/``.
        line: The accounts from the root down to this one.
        children: Its children by name.
        tokens: What of the tokens is used.
        micros: What of the money is used, in millionths of a dollar.
        seconds: How long it lasts; None: for ever.
        started: When it began, in the clock's seconds.
        wrap_up: Which share of everything only wrap-up may use.
        count: How many requests are in flight, descendants' included.
        issued: The number of the last reservation that it has named.
    """

    __slots__ = (
        "_is_timed",
        "children",
        "count",
        "issued",
        "line",
        "micros",
        "name",
        "path",
        "seconds",
        "started",
        "tokens",
        "wrap_up",
    )

    def __init__(
        self,
        name: str,
        parent: Account | None,
        *,
        tokens: int | None,
        micros: int | None,
        seconds: float | None,
        wrap_up: float,
        started: float,
    ) -> None:
        self.name = name
        self.path: str = name if parent is None else f"{parent.path}/{name}"
        self.line: tuple[Account, ...] = (self,) if parent is None else (*parent.line, self)
        self.children: dict[str, Account] = {}
        self.tokens = Meter(tokens, wrap_up)
        self.micros = Meter(micros, wrap_up)
        self.seconds = seconds
        self.started = started
        self.wrap_up = wrap_up
        self.count = 0
        self.issued = 0
        # Once and for all: limits are raised, but none comes or goes.
        self._is_timed = any(each.seconds is not None for each in self.line)
        if parent is not None:
            parent.children[name] = self

    def ends_at(self, *, wrap_up: bool) -> float:
        """When its time, and that of those above, is over; infinity where no time is limited."""
        return min(account.own_end(wrap_up=wrap_up) for account in self.line)

    def own_end(self, *, wrap_up: bool) -> float:
        """When its own time is over; infinity where it is not limited."""
        if self.seconds is None:
            return math.inf
        return self.started + self.seconds * (1.0 if wrap_up else 1.0 - self.wrap_up)

    @property
    def is_timed(self) -> bool:
        """Whether its time is limited, or that of one above."""
        return self._is_timed

    def spent(self) -> Amount:
        """Return what was used, descendants included."""
        return Amount(tokens=self.tokens.spent, microdollars=self.micros.spent)

    def held(self) -> Amount:
        """Return what is held, descendants included."""
        return Amount(tokens=self.tokens.held, microdollars=self.micros.held)

    def own(self) -> Amount:
        """Return what was used without what descendants used."""
        children = self.children.values()
        return Amount(
            tokens=self.tokens.spent - sum(child.tokens.spent for child in children),
            microdollars=self.micros.spent - sum(child.micros.spent for child in children),
        )

    def walk(self) -> Iterator[Account]:
        """Iterate over this account and its descendants, parents first."""
        yield self
        for child in self.children.values():
            yield from child.walk()


@final
class Hold:
    """What one request holds, until it is settled or released.

    Attributes:
        id: Unique in the tree.
        account: Whose request it is.
        estimate: What it was expected to cost.
        held: What it holds now; more than the estimate once it was found to be too low.
        used: What it is known to have used.
        wrap_up: Whether it may use what is kept for wrap-up.
        is_open: Whether it is in flight.
    """

    __slots__ = ("account", "estimate", "held", "id", "is_open", "used", "wrap_up")

    def __init__(self, name: str, account: Account, estimate: Amount, *, wrap_up: bool) -> None:
        self.id = name
        self.account = account
        self.estimate = estimate
        self.held = estimate
        self.used = NOTHING
        self.wrap_up = wrap_up
        self.is_open = True


@final
class BudgetTree:
    """A root account with its descendants, and every hold of theirs.

    Args:
        root: The root account.
        margin: By which share requests are assumed to exceed their estimates at most.

    Attributes:
        open: The holds in flight by id.
        accounts: Every account by path.
    """

    def __init__(self, root: Account, margin: float) -> None:
        self._margin = margin
        prior = math.ceil(margin * 1000)
        self._token_overruns = Overruns(prior)
        self._micro_overruns = Overruns(prior)
        self.open: dict[str, Hold] = {}
        self.accounts: dict[str, Account] = {account.path: account for account in root.walk()}
        # Of the ids that an account has made itself only those that are not settled are kept.
        self._released: dict[str, Hold] = {}
        self._settled: set[str] = set()

    # ---- may it start? ----

    def shortage(
        self, account: Account, ask: Amount, *, wrap_up: bool
    ) -> tuple[Account, Resource] | None:
        """Tell where and of what there is too little, however the requests in flight end.

        Args:
            account: Who asks.
            ask: How much.
            wrap_up: Whether it may use what is kept for wrap-up.
        """
        for each in account.line:
            if not each.tokens.could_have(ask.tokens, wrap_up=wrap_up):
                return each, "tokens"
            if not each.micros.could_have(ask.microdollars, wrap_up=wrap_up):
                return each, "dollars"
        return None

    def fits(self, account: Account, ask: Amount, *, wrap_up: bool) -> bool:
        """Whether so much can be held in this account now, beside those in flight.

        Args:
            account: This account alone, without those above.
            ask: How much.
            wrap_up: Whether it may use what is kept for wrap-up.
        """
        tokens, micros, count = account.tokens, account.micros, account.count
        more_tokens, more_micros = ask.tokens, ask.microdollars
        if count:
            more_tokens += self._token_overruns.margin(count, tokens.held)
            more_micros += self._micro_overruns.margin(count, micros.held)
        return tokens.has(more_tokens, wrap_up=wrap_up) and micros.has(more_micros, wrap_up=wrap_up)

    # ---- the life of a hold ----

    def new_id(self, account: Account) -> str:
        """Name a reservation."""
        while True:
            account.issued += 1
            name = f"{account.path}#{account.issued}"
            if name not in self._settled:  # told by a journal before this account was asked
                return name

    def is_closed(self, name: str) -> bool:
        """Whether a reservation of this id was settled or released."""
        if name in self.open:
            return False
        if name in self._released or name in self._settled:
            return True
        path, mark, number = name.rpartition("#")
        account = self.accounts.get(path)
        if not mark or account is None or not number.isdecimal():
            return False
        return 0 < int(number) <= account.issued

    def was_told(self, name: str) -> bool:
        """Whether an id that somebody chose was settled, even if it is held by now."""
        return name in self._settled

    def hold(self, account: Account, ask: Amount, name: str, *, wrap_up: bool) -> Hold:
        """Hold an amount in an account and all above it; the caller has seen that it fits.

        Args:
            account: Who asks.
            ask: How much.
            name: The id.
            wrap_up: Whether it may use what is kept for wrap-up.
        """
        hold = self.open[name] = Hold(name, account, ask, wrap_up=wrap_up)
        tokens, micros = ask.tokens, ask.microdollars
        self._token_overruns.expect(tokens)
        self._micro_overruns.expect(micros)
        for each in account.line:
            each.count += 1
            each.tokens.held += tokens
            each.micros.held += micros
        return hold

    def record(self, hold: Hold, so_far: Amount, steps: int = 1) -> bool:
        """Take in what a request in flight has used, and hold room for its next step.

        Args:
            hold: The request.
            so_far: What it has used altogether.
            steps: For how many more steps there shall be room.

        Returns:
            Whether so many more steps as large as the last one fit; False also when it is not open.
        """
        if not hold.is_open:
            return False
        before, used = hold.used, so_far.or_more(hold.used)
        hold.used = used
        self._note(hold.estimate, used)
        self._hold_anew(hold, hold.held.or_more(used))
        tokens = used.tokens + steps * (used.tokens - before.tokens)
        micros = used.microdollars + steps * (used.microdollars - before.microdollars)
        ahead = hold.held.or_more(Amount(tokens=tokens, microdollars=micros))
        tokens = ahead.tokens - hold.held.tokens
        micros = ahead.microdollars - hold.held.microdollars
        if not all(
            each.tokens.has(tokens, wrap_up=hold.wrap_up)
            and each.micros.has(micros, wrap_up=hold.wrap_up)
            for each in hold.account.line
        ):
            return False
        self._hold_anew(hold, ahead)
        return True

    def settle(self, hold: Hold, actual: Amount) -> bool:
        """Replace what is held by what was used, once.

        Args:
            hold: The request.
            actual: What it has used altogether; at least what was recorded counts.

        Returns:
            Whether it had not been settled before.
        """
        actual = actual.or_more(hold.used)
        if hold.is_open:
            self._close(hold, actual)
        elif self._released.pop(hold.id, None) is not None:
            # It was given up and has cost something nevertheless: what was paid is paid.
            self._spend(hold.account, actual, hold.used)
        else:
            return False
        self._note(hold.estimate, actual)
        self._remember(hold.account, hold.id)
        return True

    def find(self, name: str) -> Hold | None:
        """Return the hold of an id that can still be settled; None if there is none."""
        return self.open.get(name) or self._released.get(name)

    def spend(self, account: Account, name: str, actual: Amount) -> bool:
        """Settle what was never held, e.g. because a snapshot is older than a journal.

        Args:
            account: Who pays.
            name: The id.
            actual: What was used.

        Returns:
            Whether the id had not been settled before.
        """
        if self.is_closed(name):
            return False
        self._settled.add(name)
        self._spend(account, actual, NOTHING)
        return True

    def release(self, hold: Hold) -> bool:
        """Give back what was not used; what was recorded is spent.

        Args:
            hold: The request.

        Returns:
            Whether it was open.
        """
        if not hold.is_open:
            return False
        self._close(hold, hold.used)
        self._released[hold.id] = hold
        return True

    def undo(self, hold: Hold) -> None:
        """Forget a hold of which nobody knows."""
        self._close(hold, NOTHING)
        # An id that somebody chose may be used again. One that was made here was never told.

    def _close(self, hold: Hold, actual: Amount) -> None:
        hold.is_open = False
        del self.open[hold.id]
        held, hold.held = hold.held, NOTHING
        held_tokens, held_micros = held.tokens, held.microdollars
        spent_tokens, spent_micros = actual.tokens, actual.microdollars
        for each in hold.account.line:
            each.count -= 1
            meter = each.tokens
            meter.held -= held_tokens
            meter.spent += spent_tokens
            meter = each.micros
            meter.held -= held_micros
            meter.spent += spent_micros

    def _hold_anew(self, hold: Hold, amount: Amount) -> None:
        tokens = amount.tokens - hold.held.tokens
        micros = amount.microdollars - hold.held.microdollars
        hold.held = amount
        for each in hold.account.line:
            each.tokens.held += tokens
            each.micros.held += micros

    @staticmethod
    def _spend(account: Account, actual: Amount, before: Amount) -> None:
        for each in account.line:
            each.tokens.spent += actual.tokens - before.tokens
            each.micros.spent += actual.microdollars - before.microdollars

    def _note(self, estimate: Amount, actual: Amount) -> None:
        self._token_overruns.note(estimate.tokens, actual.tokens)
        self._micro_overruns.note(estimate.microdollars, actual.microdollars)

    def _remember(self, account: Account, name: str) -> None:
        if not name.startswith(f"{account.path}#"):
            self._settled.add(name)

    # ---- as plain data ----

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return everything as plain data.

        Args:
            now: The clock.
        """
        return {
            "version": _VERSION,
            "margin": self._margin,
            "accounts": [_plain_account(account, now) for account in self.accounts.values()],
            "holds": [
                _plain_hold(hold) for hold in (*self.open.values(), *self._released.values())
            ],
            "settled": sorted(self._settled),
            "overruns": [
                [overruns.worst, overruns.permille]
                for overruns in (self._token_overruns, self._micro_overruns)
            ],
        }

    @classmethod
    def restore(cls, data: dict[str, Any], now: float) -> BudgetTree:
        """Make a tree from plain data; time goes on from where it was.

        Args:
            data: From `snapshot`.
            now: The clock.

        Raises:
            ValueError: It is of another version.
        """
        if data.get("version") != _VERSION:
            raise ValueError(
                f"a budget's snapshot must be of version {_VERSION}, not {data.get('version')!r}"
            )
        accounts: dict[str, Account] = {}
        for plain in data["accounts"]:
            parent, _, name = plain["path"].rpartition("/")
            account = accounts[plain["path"]] = Account(
                name,
                accounts.get(parent),
                tokens=plain["tokens"],
                micros=plain["microdollars"],
                seconds=plain["seconds"],
                wrap_up=plain["wrap_up"],
                started=now - plain["elapsed"],
            )
            account.issued = plain["issued"]
            cls._spend(account, _amount(plain["own"]), NOTHING)
        tree = cls(next(iter(accounts.values())), data["margin"])
        for plain in data["holds"]:
            account = accounts[plain["account"]]
            hold = tree.hold(
                account, _amount(plain["estimate"]), plain["id"], wrap_up=plain["wrap_up"]
            )
            hold.used = _amount(plain["used"])
            if plain["is_open"]:
                tree._hold_anew(hold, _amount(plain["held"]))
            else:
                tree.undo(hold)  # what it used is among what is spent
                tree._released[hold.id] = hold
        tree._settled.update(data["settled"])
        for overruns, (worst, permille) in zip(
            (tree._token_overruns, tree._micro_overruns), data["overruns"], strict=True
        ):
            overruns.worst, overruns.permille = worst, permille
        return tree


def _amount(plain: list[int]) -> Amount:
    return Amount(tokens=plain[0], microdollars=plain[1])


def _plain(amount: Amount) -> list[int]:
    return [amount.tokens, amount.microdollars]


def _plain_account(account: Account, now: float) -> dict[str, Any]:
    return {
        "path": account.path,
        "tokens": account.tokens.limit,
        "microdollars": account.micros.limit,
        "seconds": account.seconds,
        "wrap_up": account.wrap_up,
        "elapsed": max(0.0, now - account.started),
        "issued": account.issued,
        "own": _plain(account.own()),
    }


def _plain_hold(hold: Hold) -> dict[str, Any]:
    return {
        "id": hold.id,
        "account": hold.account.path,
        "estimate": _plain(hold.estimate),
        "held": _plain(hold.held),
        "used": _plain(hold.used),
        "wrap_up": hold.wrap_up,
        "is_open": hold.is_open,
    }
