"""The pure core against a model that forgets nothing and adds everything up anew each time."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from random import Random

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestra._core.amounts import Amount
from orchestra._core.budget import Account, BudgetTree, Hold

sizes = st.integers(0, 30)
amounts = st.builds(Amount, tokens=sizes, microdollars=sizes)
limits = st.none() | st.integers(0, 120)
picks = st.integers(0, 1000)


def account(
    name: str, parent: Account | None, limit: Amount | None, wrap_up: float = 0.0
) -> Account:
    """An account with both limits or none."""
    return Account(
        name,
        parent,
        tokens=None if limit is None else limit.tokens,
        micros=None if limit is None else limit.microdollars,
        seconds=None,
        wrap_up=wrap_up,
        started=0.0,
    )


@define
class Entry:
    """What the model knows of one reservation."""

    path: str
    wrap_up: bool
    held: Amount
    used: Amount
    spent: Amount | None = None
    state: str = "open"


def above(path: str, account_path: str) -> bool:
    """Whether an account is at or above a path."""
    return f"{path}/".startswith(f"{account_path}/")


class BudgetMachine(RuleBasedStateMachine):
    """Does everything in any order, to three levels of accounts."""

    @initialize(
        data=st.data(),
        margin=st.sampled_from([0.0, 0.5, 1.0]),
        wrap_up=st.sampled_from([0.0, 0.1, 0.5]),
    )
    def start(self, data: st.DataObject, margin: float, wrap_up: float) -> None:
        root = account("m", None, data.draw(st.none() | amounts.map(lambda a: a + a + a)), wrap_up)
        for name in ("a", "b"):
            child = account(name, root, data.draw(st.none() | amounts.map(lambda a: a + a)))
            account("x", child, data.draw(st.none() | amounts), wrap_up)
        self.tree = BudgetTree(root, margin)
        self.holds: dict[str, Hold] = {}
        self.entries: dict[str, Entry] = {}
        self.margin = margin
        self.worst = [0, 0]
        self.excess: list[float] = [margin, margin]
        self.names = 0

    # ---- the model ----

    def note(self, estimate: Amount, actual: Amount) -> None:
        pairs = zip(_pair(estimate), _pair(actual), strict=True)
        for index, (expected, real) in enumerate(pairs):
            if real > expected:
                self.worst[index] = max(self.worst[index], real - expected)
                ratio = (real - expected) / expected if expected else math.inf
                if expected:
                    ratio = math.ceil(ratio * 1000 - 1e-9) / 1000
                self.excess[index] = max(self.excess[index], ratio)
            self.worst[index] = max(self.worst[index], math.ceil(expected * self.margin))

    def fits(self, path: str, ask: Amount, *, wrap_up: bool) -> bool:
        for each in self.tree.accounts[path].line:
            holders = [
                entry
                for entry in self.entries.values()
                if entry.state == "open" and above(entry.path, each.path)
            ]
            spent = self.spent(each.path)
            for index, meter in enumerate((each.tokens, each.micros)):
                if meter.limit is None:
                    continue
                held = sum(_pair(entry.held)[index] for entry in holders)
                relative = self.excess[index]
                by_share = math.inf if math.isinf(relative) else math.ceil(held * relative - 1e-9)
                margin = min(len(holders) * self.worst[index], by_share)
                ceiling = meter.limit
                if not wrap_up:
                    ceiling -= math.ceil(meter.limit * Fraction(str(each.wrap_up)))
                if _pair(spent)[index] + held + margin + _pair(ask)[index] > ceiling:
                    return False
        return True

    def spent(self, path: str) -> Amount:
        total = Amount()
        for entry in self.entries.values():
            if entry.spent is not None and above(entry.path, path):
                total += entry.spent
        return total

    def pick(self, which: int, *states: str) -> str | None:
        names = [name for name, entry in self.entries.items() if entry.state in states]
        return names[which % len(names)] if names else None

    # ---- what happens ----

    @rule(which=picks, ask=amounts, wrap_up=st.booleans(), is_named=st.booleans())
    def reserve(self, which: int, ask: Amount, *, wrap_up: bool, is_named: bool) -> None:
        path = sorted(self.tree.accounts)[which % len(self.tree.accounts)]
        where = self.tree.accounts[path]
        fits = all(self.tree.fits(each, ask, wrap_up=wrap_up) for each in where.line)
        assert fits == self.fits(path, ask, wrap_up=wrap_up)
        can_never = self.tree.shortage(where, ask, wrap_up=wrap_up)
        assert not (fits and can_never)
        if not fits:
            return
        self.names += 1
        name = f"job {self.names}" if is_named else self.tree.new_id(where)
        assert name not in self.entries
        self.holds[name] = self.tree.hold(where, ask, name, wrap_up=wrap_up)
        self.entries[name] = Entry(path, wrap_up, ask, Amount())
        self.note(ask, ask)

    @rule(which=picks, so_far=amounts)
    def record(self, which: int, so_far: Amount) -> None:
        name = self.pick(which, "open", "settled")
        if name is None:
            return
        entry, hold = self.entries[name], self.holds[name]
        may_go_on = self.tree.record(hold, so_far)
        if entry.state != "open":
            assert not may_go_on
            return
        step = [max(0, n - o) for n, o in zip(_pair(so_far), _pair(entry.used), strict=True)]
        entry.used = entry.used.or_more(so_far)
        self.note(hold.estimate, entry.used)
        entry.held = entry.held.or_more(entry.used)
        ahead = entry.used + Amount(tokens=step[0], microdollars=step[1])
        more = entry.held.or_more(ahead)
        fits = True
        for each in hold.account.line:
            open_here = [
                e for e in self.entries.values() if e.state == "open" and above(e.path, each.path)
            ]
            for index, meter in enumerate((each.tokens, each.micros)):
                if meter.limit is None:
                    continue
                ceiling = meter.limit
                if not entry.wrap_up:
                    ceiling -= math.ceil(meter.limit * Fraction(str(each.wrap_up)))
                total = _pair(self.spent(each.path))[index]
                total += sum(_pair(e.held)[index] for e in open_here)
                growth = _pair(more)[index] - _pair(entry.held)[index]
                fits &= total + growth <= ceiling
        assert may_go_on == fits
        if fits:
            entry.held = more

    @rule(which=picks, actual=amounts)
    def settle(self, which: int, actual: Amount) -> None:
        name = self.pick(which, "open", "released", "settled")
        if name is None:
            return
        entry = self.entries[name]
        is_first = self.tree.settle(self.holds[name], actual)
        assert is_first == (entry.state != "settled")
        if is_first:
            entry.spent = actual.or_more(entry.used)
            entry.state = "settled"
            self.note(self.holds[name].estimate, entry.spent)

    @rule(which=picks, actual=amounts)
    def settle_twice_by_id(self, which: int, actual: Amount) -> None:
        name = self.pick(which, "settled")
        if name is None:
            return
        assert self.tree.find(name) is None
        assert not self.tree.spend(self.tree.accounts["m"], name, actual)

    @rule(which=picks, actual=amounts)
    def spend_what_was_never_held(self, which: int, actual: Amount) -> None:
        path = sorted(self.tree.accounts)[which % len(self.tree.accounts)]
        self.names += 1
        name = f"job {self.names}"
        if which % 2:  # one that a journal tells of before this account has named it
            name = f"{path}#{self.tree.accounts[path].issued + 1 + which % 3}"
        is_first = name not in self.entries
        assert self.tree.spend(self.tree.accounts[path], name, actual) == is_first
        if is_first:
            self.entries[name] = Entry(path, False, Amount(), actual, actual, "foreign")

    @rule(which=picks)
    def release(self, which: int) -> None:
        name = self.pick(which, "open", "released", "settled")
        if name is None:
            return
        entry = self.entries[name]
        assert self.tree.release(self.holds[name]) == (entry.state == "open")
        if entry.state == "open":
            entry.state, entry.spent = "released", entry.used

    @precondition(lambda self: hasattr(self, "tree"))
    @rule()
    def restart(self) -> None:
        plain = json.loads(json.dumps(self.tree.snapshot(now=100.0)))
        self.tree = BudgetTree.restore(plain, now=100.0)
        for name, entry in self.entries.items():
            if entry.state in ("open", "released"):
                hold = self.tree.find(name)
                assert hold is not None
                assert hold.is_open == (entry.state == "open")
                self.holds[name] = hold
        assert self.tree.snapshot(now=100.0) == plain

    # ---- what always holds ----

    @invariant()
    def sums_are_right(self) -> None:
        for path, each in getattr(self, "tree", _EMPTY).accounts.items():
            inside = [e for e in self.entries.values() if above(e.path, path)]
            held = [e.held for e in inside if e.state == "open"]
            assert each.spent() == self.spent(path)
            assert each.held() == sum(held, Amount())
            assert each.count == len(held)
            own = [e.spent for e in inside if e.path == path and e.spent is not None]
            assert each.own() == sum(own, Amount())

    @invariant()
    def what_is_over_is_known(self) -> None:
        for name, entry in getattr(self, "entries", {}).items():
            assert self.tree.is_closed(name) == (entry.state != "open")


def _pair(amount: Amount) -> tuple[int, int]:
    return amount.tokens, amount.microdollars


_EMPTY = BudgetTree(account("none", None, None), 0.0)
_EMPTY.accounts.clear()

TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("margin", [0.0, 1.0])
@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1),
    limit=st.integers(0, 200),
    seed=st.integers(0, 2**32),
)
def test_the_overshoot_is_one_requests_error(
    margin: float, requests: list[tuple[int, float]], limit: int, seed: int
) -> None:
    """However many run side by side, together they exceed a limit by at most one error."""
    random = Random(seed)
    root = account("m", None, Amount(tokens=limit))
    leaves = [account(name, root, Amount(tokens=limit * 2 // 3)) for name in "ab"]
    tree = BudgetTree(root, margin)
    todo = [(estimate, int(estimate * (1 + margin) * share)) for estimate, share in requests]
    running: list[tuple[Hold, int]] = []
    error = 0
    while todo or running:
        if todo and random.random() < 0.7:
            estimate, actual = todo.pop()
            leaf, ask = leaves[actual % 2], Amount(tokens=estimate)
            if all(tree.fits(each, ask, wrap_up=False) for each in leaf.line):
                running.append((tree.hold(leaf, ask, tree.new_id(leaf), wrap_up=False), actual))
        elif running:
            hold, actual = running.pop(random.randrange(len(running)))
            tree.settle(hold, Amount(tokens=actual))
            error = max(error, actual - hold.estimate.tokens)
        for each in tree.accounts.values():
            assert each.tokens.limit is not None
            assert each.tokens.spent + each.tokens.held <= each.tokens.limit + error
