"""The deque against a plain list, by random sequences of calls."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestra import _native
from orchestra._native import _fallback

MARKER = object()
COUNTS = st.one_of(st.integers(0, 5), st.integers(30, 70), st.just(10**20))


class DequeMachine(RuleBasedStateMachine):
    """Two deques, so that items can be moved, each beside its model."""

    types: Any

    @initialize(capacity=st.integers(1, 9), items=st.lists(st.integers(), max_size=9))
    def start(self, capacity: int, items: list[int]) -> None:
        """Begin with some items in a small ring."""
        self.real = self.types.WorkStealingDeque(items, capacity=capacity)
        self.other = self.types.WorkStealingDeque(capacity=capacity)
        self.model = deque(items)
        self.other_model: deque[int] = deque()

    @rule(item=st.integers())
    def push(self, item: int) -> None:
        """Push goes to the right end."""
        self.real.push(item)
        self.model.append(item)

    @rule(items=st.lists(st.integers(), max_size=70))
    def push_many(self, items: list[int]) -> None:
        """A batch goes to the right end, in order."""
        self.real.push_many(iter(items))
        self.model.extend(items)

    @rule()
    def pop(self) -> None:
        """Pop takes from the right end."""
        assert self.real.pop(MARKER) == (self.model.pop() if self.model else MARKER)

    @rule(count=COUNTS)
    def pop_many(self, count: int) -> None:
        """A batch comes from the right end, newest first."""
        expected = [self.model.pop() for _ in range(min(count, len(self.model)))]
        assert self.real.pop_many(count) == expected

    @rule()
    def steal(self) -> None:
        """Steal takes from the left end."""
        assert self.real.stealer.steal(MARKER) == (self.model.popleft() if self.model else MARKER)

    def _stolen(self, count: int) -> list[int]:
        half = (len(self.model) + 1) // 2
        return [self.model.popleft() for _ in range(min(count, half, 32))]

    @rule(count=COUNTS)
    def steal_many(self, count: int) -> None:
        """A stolen batch is at most half and at most 32, oldest first."""
        assert self.real.stealer.steal_many(count) == self._stolen(count)

    @rule(count=COUNTS)
    def steal_into(self, count: int) -> None:
        """Moved items arrive at the other's right end, in order."""
        expected = self._stolen(count)
        assert self.real.stealer.steal_into(self.other, count) == len(expected)
        self.other_model.extend(expected)

    @rule()
    def clear(self) -> None:
        """Nothing is left."""
        self.real.clear()
        self.model.clear()

    @rule()
    def swap(self) -> None:
        """The two deques change roles."""
        self.real, self.other = self.other, self.real
        self.model, self.other_model = self.other_model, self.model

    @invariant()
    def lengths_agree(self) -> None:
        """The lengths are right at every moment."""
        if hasattr(self, "real"):
            assert len(self.real) == len(self.model)
            assert len(self.other.stealer) == len(self.other_model)
            assert self.real.statistics().size == len(self.model)


class FallbackMachine(DequeMachine):
    """On `collections.deque`."""

    types = _fallback


class NativeMachine(DequeMachine):
    """On the extension."""

    types = _native


SETTINGS = settings(max_examples=150, stateful_step_count=40, deadline=None)
FallbackMachine.TestCase.settings = SETTINGS
NativeMachine.TestCase.settings = SETTINGS

TestFallback = FallbackMachine.TestCase
TestNative = pytest.mark.skipif(
    _native.IMPLEMENTATION != "native",
    reason=f"the native extension is not active: {_native.REASON}",
)(NativeMachine.TestCase)
