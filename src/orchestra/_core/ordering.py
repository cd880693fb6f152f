"""In which order named things run that say before and after what they want to.

Phases come first, then ``before`` and ``after``, then the higher priority, then who came earlier.
The sort is Kahn's, as `graphlib.TopologicalSorter` has it, one phase at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush

from attrs import frozen

from orchestra.errors import HookOrderError

__all__ = ("HookPhase", "Place", "put_in_order")


class HookPhase(Enum):
    """When a hook runs among the hooks of its point."""

    EARLY = "early"
    NORMAL = "normal"
    LATE = "late"


_PHASES = tuple(HookPhase)


@frozen(kw_only=True)
class Place:
    """Where something wants to stand.

    Attributes:
        name: Its name, unique among those it is ordered with.
        phase: Its phase; nothing moves it to another one.
        priority: Within the phase the higher one goes first.
        before: Names that it must precede; unknown ones do not count.
        after: Names that it must follow; unknown ones do not count.
    """

    name: str
    phase: HookPhase = HookPhase.NORMAL
    priority: int = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def put_in_order(places: Sequence[Place]) -> list[str]:
    """Return the names in the order in which they run; ties keep the order they are given in.

    Args:
        places: What is to be ordered, with different names.

    Raises:
        HookOrderError: The wishes form a circle, or contradict a phase; it names the members.
    """
    known = {place.name: place for place in places}
    # Predecessors are kept in order: the same hooks give the same order and the same error.
    graphs: dict[HookPhase, dict[str, list[str]]] = {phase: {} for phase in _PHASES}
    for place in places:
        graphs[place.phase][place.name] = []
    for first, second in _wishes(places, known):
        if first.phase is second.phase:
            graphs[first.phase][second.name].append(first.name)
        elif _PHASES.index(first.phase) > _PHASES.index(second.phase):
            raise HookOrderError(
                f"hook {first.name!r} is to run before {second.name!r}, but it is "
                f"{first.phase.value} and the other {second.phase.value}; change a phase, or drop "
                "the wish",
                (first.name, second.name),
            )
    rank = {place.name: (-place.priority, number) for number, place in enumerate(places)}
    return [name for phase in _PHASES for name in _sort(graphs[phase], rank)]


def _wishes(places: Sequence[Place], known: Mapping[str, Place]) -> Iterator[tuple[Place, Place]]:
    """Yield who is to run before whom."""
    for place in places:
        for name in place.before:
            if name in known:
                yield place, known[name]
        for name in place.after:
            if name in known:
                yield known[name], place


def _sort(graph: Mapping[str, list[str]], rank: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as exc:
        circle: list[str] = exc.args[1]
        raise HookOrderError(
            f"hooks are to run before each other in a circle: {' -> '.join(circle)}; drop one of "
            "the wishes",
            tuple(circle[1:]),
        ) from exc
    ready: list[tuple[tuple[int, int], str]] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(ready, (rank[name], name))
        _, name = heappop(ready)
        sorter.done(name)
        yield name
