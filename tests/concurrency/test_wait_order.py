from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestra._core.waiters import LOW_PATIENCE, NORMAL_PATIENCE, Priority, WaitOrder

priorities = st.sampled_from(Priority)


class Model:
    """The same order as one plain list and a search."""

    def __init__(self) -> None:
        self.waiters: list[tuple[int, Priority]] = []
        self.age = Counter[Priority]()

    def first(self, priority: Priority) -> int | None:
        return next((w for w, p in self.waiters if p is priority), None)

    def next(self) -> int | None:
        high, normal, low = map(self.first, Priority)
        if low is not None and self.age[Priority.LOW] >= LOW_PATIENCE:
            return low
        if normal is not None and self.age[Priority.NORMAL] >= NORMAL_PATIENCE:
            return normal
        return next((w for w in (high, normal, low) if w is not None), None)

    def remove(self, waiter: int, *, is_served: bool) -> None:
        priority = dict(self.waiters)[waiter]
        self.waiters.remove((waiter, priority))
        for other in Priority:
            if self.first(other) is None or (is_served and other is priority):
                self.age[other] = 0
            elif is_served:
                self.age[other] += 1


class WaitOrderMachine(RuleBasedStateMachine):
    """Does the same to an order and to its model."""

    def __init__(self) -> None:
        super().__init__()
        self.order = WaitOrder[int, int]()
        self.model = Model()
        self.arrivals = 0

    @rule(priority=priorities, need=st.integers(1, 5))
    def add(self, priority: Priority, need: int) -> None:
        self.order.add(self.arrivals, priority, need)
        self.model.waiters.append((self.arrivals, priority))
        self.arrivals += 1

    @precondition(lambda self: self.model.waiters)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        waiter, _ = data.draw(st.sampled_from(self.model.waiters))
        assert self.order.discard(waiter)
        assert not self.order.discard(waiter)
        self.model.remove(waiter, is_served=False)

    @precondition(lambda self: self.model.waiters)
    @rule(times=st.integers(1, 20))
    def pop(self, times: int) -> None:
        for _ in range(min(times, len(self.model.waiters))):
            expected = self.model.next()
            assert expected is not None
            assert self.order.pop() == expected
            self.model.remove(expected, is_served=True)

    @invariant()
    def agrees(self) -> None:
        head = self.order.next()
        assert (head and head[0]) == self.model.next()
        assert self.order.size == len(self.model.waiters)
        for priority in Priority:
            waiting = sum(p is priority for _, p in self.model.waiters)
            assert self.order.waiting(priority) == waiting


def test_order_equals_a_list_with_a_search() -> None:
    """After any arrivals, departures and grants the next one is who a plain list says."""
    run_state_machine_as_test(WaitOrderMachine, settings=settings(max_examples=60))


@given(
    k=st.integers(1, 4),
    priority=priorities,
    before=st.lists(priorities, max_size=30),
    newcomers=st.lists(st.lists(priorities, max_size=3), max_size=80),
)
def test_starvation_bound(
    k: int, priority: Priority, before: list[Priority], newcomers: list[list[Priority]]
) -> None:
    """The k-th waiter of a priority is served within the stated number of grants."""
    order = WaitOrder[object, None]()
    for other in before:
        if other is not priority:
            order.add(object(), other, None)
    for _ in range(before.count(priority) and 4):
        order.pop() if order.size else None
    waiters = [object() for _ in range(k)]
    for waiter in waiters:
        order.add(waiter, priority, None)
    bound = {Priority.HIGH: 2 * k + 1, Priority.NORMAL: 6 * k, Priority.LOW: 17 * k}[priority]
    for grant in range(1, bound + 1):
        for other in newcomers[grant - 1] if grant <= len(newcomers) else []:
            order.add(object(), other, None)
        if order.pop() is waiters[-1]:
            return
    pytest.fail(f"not served within {bound} grants")


@pytest.mark.parametrize(
    ("patient", "urgent", "passes"),
    [
        (Priority.NORMAL, Priority.HIGH, NORMAL_PATIENCE),
        (Priority.LOW, Priority.HIGH, LOW_PATIENCE),
        (Priority.LOW, Priority.NORMAL, LOW_PATIENCE),
    ],
)
def test_patience(patient: Priority, urgent: Priority, passes: int) -> None:
    """An endless stream of more urgent work passes a waiter as often as stated, not less or more."""
    order = WaitOrder[int, int]()
    order.add(-1, patient, 1)
    for number in range(passes):
        order.add(number, urgent, 1)
        assert order.pop() == number
    order.add(passes, urgent, 1)
    assert order.pop() == -1


def test_giving_up_keeps_the_age_of_the_class() -> None:
    """When the first LOW waiter gives up, the second inherits how long it has waited."""
    order = WaitOrder[str, None]()
    order.add("first", Priority.LOW, None)
    order.add("second", Priority.LOW, None)
    for _ in range(LOW_PATIENCE):
        order.add("urgent", Priority.HIGH, None)
        order.pop()
    order.discard("first")
    order.add("urgent", Priority.HIGH, None)
    assert order.pop() == "second"


def test_an_empty_class_does_not_age() -> None:
    """Whoever comes after all of its priority have gone starts with full patience needed."""
    order = WaitOrder[str, None]()
    order.add("first", Priority.LOW, None)
    for _ in range(LOW_PATIENCE):
        order.add("urgent", Priority.HIGH, None)
        order.pop()
    order.discard("first")
    order.add("later", Priority.LOW, None)
    order.add("urgent", Priority.HIGH, None)
    assert order.pop() == "urgent"


def test_nobody_waits() -> None:
    """An empty order has no next one, and cannot serve."""
    order = WaitOrder[str, None]()
    assert order.next() is None
    with pytest.raises(KeyError):
        order.pop()
    assert not order.discard("nobody")
