"""Is a recorded history of concurrent calls linearizable? The search of Wing & Gong (1993)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from attrs import frozen

S = TypeVar("S", bound=Hashable)


@frozen
class Call:
    """A call that was made between two readings of one clock, and what came of it."""

    name: str
    argument: Hashable
    outcome: Hashable
    began: int
    ended: int


def is_linearizable(
    history: Sequence[Call], state: S, apply: Callable[[S, Call], tuple[S, Hashable]]
) -> bool:
    """Whether the calls could have taken effect one at a time, each while it was under way.

    Args:
        history: The calls, in any order; a dozen is a good length, since the search is exponential.
        state: What the object holds at first.
        apply: The sequential object: state and call to state and outcome.
    """
    failed: set[tuple[frozenset[int], S]] = set()

    def search(left: frozenset[int], now: S) -> bool:
        if not left:
            return True
        if (left, now) in failed:
            return False
        first_end = min(history[number].ended for number in left)
        for number in left:
            call = history[number]
            if call.began <= first_end:
                after, outcome = apply(now, call)
                if outcome == call.outcome and search(left - {number}, after):
                    return True
        failed.add((left, now))
        return False

    return search(frozenset(range(len(history))), state)


def atomic_deque(state: tuple[Hashable, ...], call: Call) -> tuple[tuple[Hashable, ...], Hashable]:
    """A deque that does one call at a time; pop and steal on empty return None."""
    if call.name == "push":
        return (*state, call.argument), None
    if not state:
        return state, None
    if call.name == "pop":
        return state[:-1], state[-1]
    return state[1:], state[0]
